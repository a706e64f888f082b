"""Folders of models that bring code of their own: it is never run, whatever standard input says."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from contentmotion.data.maps import load_depth_model
from contentmotion.evaluate.clipsim import load_clip


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose every class is its own; its code leaves a file. Standard input says yes to all questions."""
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class EvilConfig(PretrainedConfig):\n    model_type = 'evil'\n"
        "class EvilModel(PreTrainedModel):\n    config_class = EvilConfig\n"
        "class EvilProcessor:\n    from_pretrained = classmethod(lambda cls, *a, **k: cls())\n"
    )
    names = {"AutoConfig": "EvilConfig", "AutoModelForDepthEstimation": "EvilModel", "AutoModel": "EvilModel"}
    auto_map = {name: f"evil.{cls}" for name, cls in names.items()}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    processor = {"image_processor_type": "EvilProcessor", "auto_map": {"AutoImageProcessor": "evil.EvilProcessor"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


@pytest.mark.parametrize("load", [load_clip, lambda folder: load_depth_model(str(folder))], ids=["clip", "depth"])
def test_code_of_a_folder_does_not_run(evil: Path, load: Callable[[Path], object]) -> None:
    with pytest.raises(ValueError, match=str(evil)):
        load(evil)
    assert not (evil.parent / "ran").exists()


def test_a_processor_of_its_own_does_not_run_either(evil: Path, tmp_path: Path) -> None:
    import torch
    from transformers import GLPNConfig, GLPNForDepthEstimation

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_attention_heads": [1, 1], "decoder_hidden_size": 8}
    stages = {"num_encoder_blocks": 2, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]}
    config = GLPNConfig(**sizes, **stages, mlp_ratios=[1, 1])
    GLPNForDepthEstimation(config).save_pretrained(evil)
    with pytest.raises(ValueError, match="cannot load a depth model"):
        load_depth_model(str(evil))
    assert not (tmp_path / "ran").exists()
