"""Files of version 0.1 (data_files/legacy, see its README) load and give the numbers that they gave then.

As a program, run with that version's code, it writes those numbers.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from contentmotion import ContentMotionAutoencoder, load_pipeline
from contentmotion.cli import main
from contentmotion.data.cache import LatentCache

FOLDER = Path(__file__).parent / "data_files/legacy"
NUMBERS = FOLDER / "expected/numbers.safetensors"


def ramp(*shape: int) -> Tensor:
    """Something like noise that depends on no random number generator."""
    numbers = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
    return (2 * (numbers * 12.9898).sin()).float().view(shape)


@torch.no_grad()
def compute(part: str) -> dict[str, Tensor]:
    """What one of the folders holds or makes."""
    if part in ("cache", "latents"):
        cache = LatentCache(FOLDER / part)
        items = [cache[k] for k in range(len(cache))]
        names = [name for name in ("content", "motion", "latents") if name in items[0]]
        texts = "\n".join(f"{item['label']} {item['captions']}" for item in items)
        numbers = {name: torch.stack([item[name].float() for item in items]) for name in names}
        return numbers | {"texts": torch.tensor(list(texts.encode()))}
    if part == "autoencoder":
        model = ContentMotionAutoencoder.from_pretrained(FOLDER / part).eval()
        encoded = model.encode(ramp(1, 4, 3, 16, 16) / 2)
        numbers = {"content": encoded.content, "motion": encoded.motion_latent}
        standard = model.standardize_motion(encoded.motion_latent)
        return numbers | {"standard": standard, "frames": model.decode(encoded.content, encoded.motion_latent)}
    own = None if part == "pipeline" else str(FOLDER / "pipeline/autoencoder")
    pipe = load_pipeline(str(FOLDER / part), own, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    guidance = {"guidance_scale": 3.0, "motion_guidance_scale": 2.0} if part == "pipeline" else {}
    out = pipe(
        "a red square moves right", num_inference_steps=3, latents=ramp(1, 3, 16, 16),
        motion_latents=ramp(1, pipe.motion_transformer.config.motion_channels, 4, 16), output_type="latent",
        generator=torch.Generator().manual_seed(0), **guidance,
    )  # fmt: skip
    return {"content": out.content_frame, "frames": out.frames}


PARTS = ("cache", "latents", "autoencoder", "pipeline", "student")


@pytest.mark.parametrize("part", PARTS)
def test_numbers_are_those_of_then(part: str) -> None:
    expected = {key: value for key, value in load_file(NUMBERS).items() if key.startswith(f"{part}.")}
    computed = {f"{part}.{name}": value for name, value in compute(part).items()}
    assert computed.keys() == expected.keys()
    for name, value in computed.items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, and the current folder: commands write into what they use."""
    folder = shutil.copytree(FOLDER, tmp_path / "legacy")
    monkeypatch.chdir(folder)
    return folder


def words(output_dir: str, steps: int) -> list[str]:
    """run/config.yaml in the words of today."""
    settings = yaml.safe_load((FOLDER / "run/config.yaml").read_text())
    kept = (
        "cache_dir", "pretrained_model_name_or_path", "autoencoder", "learning_rate", "lr_warmup_steps", "ema_decay",
        "train_batch_size", "mixed_precision", "logging_steps", "report_to",
    )  # fmt: skip
    sizes = ("hidden_size", "depth", "num_heads", "content_patch_size")
    flags = {"latent_cache" if name == "cache_dir" else name: settings[name] for name in kept}
    flags |= {f"model.{name}": settings[name] for name in sizes}
    flags |= {"output_dir": output_dir, "max_train_steps": steps, "validation_steps": 0}
    return ["train-motion", *(f"--{name}={value}" for name, value in flags.items())]


def test_training_on_the_cache_has_the_losses_of_then(folder: Path) -> None:
    """The motion's statistics are in the autoencoder's config."""
    assert main(words("new", 3)) == 0
    for now, then in zip(*(read_lines(folder / name / "metrics.jsonl") for name in ("new", "run")), strict=True):
        assert now["loss"] == pytest.approx(then["loss"], rel=1e-4)
        assert now["grad_norm"] == pytest.approx(then["grad_norm"], rel=1e-3)


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_checkpoints_are_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("run", 6)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "checkpoint-000003" in line]
    assert len(lines) == 1 and "an earlier version wrote it, with pickles, which are never read" in lines[0]
    assert (folder / "run/metrics.jsonl").read_bytes() == (FOLDER / "run/metrics.jsonl").read_bytes()


def test_old_settings_are_refused_with_the_new_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-motion", "--config", "run/config.yaml", "--output_dir", "new"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "unknown key 'eval_steps': it is called eval.steps now" in lines[0]
    assert not (folder / "new").exists()


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    numbers = {f"{part}.{name}": value for part in PARTS for name, value in compute(part).items()}
    save_file({name: value.contiguous() for name, value in numbers.items()}, FOLDER / "expected/numbers.safetensors")
    for name, value in numbers.items():
        print(name, tuple(value.shape), value.float().mean().item(), value.float().std().item())
