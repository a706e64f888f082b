"""The model card that export writes."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from contentmotion import ContentMotionPipeline
from contentmotion.cli import main
from contentmotion.commands.card import MISUSE, describe_cost, find_runs
from contentmotion.config import ExportConfig
from contentmotion.pipelines import sampling

SCORES = {
    "parts": {
        "real_halves": {"n": 8, "fvd": 20.5},
        "reconstruction": {"n": 16, "fvd": 33.25, "psnr": 27.5},
        "full": {"n": 16, "fvd": 88.0, "nearest_i3d": 0.03},
    },
    "protocol": {
        "features": {"extractor": "I3D, Kinetics-400"},
        "sampling": {"num_inference_steps": 50},
        "run": {"data_dir": "/home/somebody/clips", "date": "2026-11-21"},
    },
    "notes": ["few clips"],
    "problems": [],
}


@pytest.fixture
def export(tiny_pipeline_dir: Path, tmp_path: Path):
    """`export(*words)`: the card of the exported tiny pipeline."""

    def run(*words: str) -> ModelCard:
        output = tmp_path / "my-model"
        parts = [f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--output_dir={output}"]
        assert main(["export", *parts, *words]) == 0
        return ModelCard((output / "README.md").read_text())

    return run


def test_card_of_parts_alone(export, tmp_path: Path) -> None:
    card = export()
    header = card.data.to_dict()
    assert header["library_name"] == "diffusers" and header["pipeline_tag"] == "text-to-video"
    assert not {"license", "base_model", "model-index"} & header.keys()
    for words in ("# my-model", "MotionDiT", "in all", "*[none yet: choose one]*", "*[not evaluated", "no folder of a"):
        assert words in card.text, words
    assert MISUSE in card.text and "deepfakes" in card.text
    assert str(tmp_path) not in card.content, "no path of this machine"


def test_its_commands_run_as_they_stand(export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the folder, whose name the model has until it is pushed."""
    use = dict(re.findall(r"^```(\w+)\n(.*?)^```", export().text.split("## Use")[1], re.MULTILINE | re.DOTALL))
    monkeypatch.setattr(sampling, "DEFAULT_STEPS", 2)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(use["sh"])[1:]) == 0 and list(tmp_path.rglob("*.mp4"))
    names: dict = {}
    exec(use["python"], names)
    assert len(names["frames"]) == 4


def test_the_stock_pipeline_makes_ours_where_code_is_trusted(
    export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export("--dtype=fp32")
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"custom_pipeline": "pipeline", "use_safetensors": True}
    with pytest.raises(ValueError, match="contains custom code in pipeline.py"):
        DiffusionPipeline.from_pretrained(tmp_path / "my-model", **settings)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "my-model", **settings, trust_remote_code=True)
    assert type(pipe) is ContentMotionPipeline
    own = ContentMotionPipeline.from_pretrained(tmp_path / "my-model")
    one, other = (
        p("rocket", num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt").frames
        for p in (pipe, own)
    )
    assert torch.equal(one, other)


def test_card_with_scores_and_licence(export, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    card = export(f"--scores={tmp_path / 'scores.json'}", "--license=apache-2.0")
    header = yaml.safe_load(card.content.split("---")[1])
    assert header["license"] == "apache-2.0"
    [model] = header["model-index"]
    assert model["name"] == "my-model"
    values = {m["name"]: m["value"] for result in model["results"] for m in result["metrics"]}
    assert values == {"FVD, reconstruction": 33.25, "PSNR, reconstruction": 27.5, "FVD, full": 88.0}
    assert {result["dataset"]["name"] for result in model["results"]} == {"clips, 16 clips"}
    assert "| two halves of the real clips | 8 | 20.5 |" in card.text
    assert "num_inference_steps 50" in card.text and "few clips" in card.text
    assert "/home/somebody" not in card.content


def test_card_of_training_runs(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    for name, command, own in (
        (
            "autoencoder",
            "train-autoencoder",
            {"train_data_dir": "/home/me/clips", "num_frames": 4, "height": 16, "width": 16},
        ),
        ("motion_transformer", "distill", {"part": "motion", "latent_cache": str(tmp_path / "cache")}),
    ):
        shutil.copytree(tiny_pipeline_dir / name, tmp_path / name / name)
        settings = {"max_train_steps": 123, "train_batch_size": 7, "learning_rate": 1e-4, "seed": 5} | own
        settings["mixed_precision"] = "auto"
        text = f"# To repeat the run: contentmotion {command} --config config.yaml\n{yaml.safe_dump(settings)}"
        (tmp_path / name / "config.yaml").write_text(text)
        (tmp_path / name / "environment.json").write_text(json.dumps({"precision": "bfloat16"}))
    shutil.copytree(tiny_pipeline_dir / "motion_scheduler", tmp_path / "motion_transformer/motion_scheduler")
    shutil.copy(
        tiny_pipeline_dir / "motion_scheduler/scheduler_config.json", tmp_path / "motion_transformer/motion_transformer"
    )
    (tmp_path / "cache").mkdir()
    manifest = {"items": 42, "num_frames": 4, "height": 16, "width": 16, "split": "train", "data": "abc"}
    (tmp_path / "cache/manifest.json").write_text(json.dumps(manifest))
    words = [f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--output_dir={tmp_path / 'out'}"]
    words += [f"--{name}={tmp_path / name / name}" for name in ("autoencoder", "motion_transformer")]
    assert main(["export", *words]) == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "* train-autoencoder: `clips`, clips of 4 x 16 x 16" in text
    assert "* distill, motion: 42 clips of 4 x 16 x 16, split train" in text
    assert "| distill, motion | 123 | 7 |" in text
    assert "| bfloat16 |" in text and "| auto |" not in text, "what was used, not what was asked for"
    assert "/home/me" not in text and str(tmp_path) not in text


def test_settings_that_cannot_be_read_are_left_out(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pipeline_dir, tmp_path / "run/motion_transformer")
    (tmp_path / "run/config.yaml").write_text("# To repeat the run: contentmotion train-motion\n[: :")
    config = ExportConfig(pretrained_model_name_or_path="emoji", output_dir="x", motion_transformer=str(folder))
    assert find_runs(config) == {}


def test_cost_of_what_benchmark_does_not_count(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "classes"))
    shutil.rmtree(folder / "text_encoder")
    assert describe_cost(folder).startswith("*[not counted: the motion model was made for text features")
    shutil.rmtree(folder / "motion_transformer")
    assert describe_cost(folder) == "*[not counted: this model is no whole pipeline folder: no motion_transformer]*"


def test_scores_that_are_none(tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text("[]")
    words = [f"--pretrained_model_name_or_path={tiny_pipeline_dir}", f"--output_dir={tmp_path / 'out'}"]
    assert main(["export", *words, f"--scores={tmp_path / 'other.json'}"]) == 1
    assert "not a scores.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
