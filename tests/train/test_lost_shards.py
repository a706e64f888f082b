"""Shards of a stream or of a latent cache that are missing when training starts, or vanish while it goes on."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contentmotion.cli import main
from contentmotion.commands.encode import encode
from contentmotion.config import AutoencoderSizes, EncodeConfig, ScaleSettings, TrainAutoencoderConfig, TrainConfig
from contentmotion.data.cache import LatentCache, collate_latents
from contentmotion.data.clips import collate
from contentmotion.data.streaming import open_stream
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.checkpoints import checkpoints
from contentmotion.train.loop import Player, fit
from tiny import make_autoencoder

SIZE: dict[str, Any] = {"num_frames": 4, "height": 16, "width": 16}
STEPS: dict[str, Any] = {
    "max_train_steps": 8, "train_batch_size": 1, "logging_steps": 1, "checkpointing_steps": 1, "validation_steps": 0,
    "report_to": "none", "mixed_precision": "no", "checkpoints_total_limit": 99,
}  # fmt: skip
NARROW: dict[str, Any] = {"hidden_size": 16, "depth": 1, "num_heads": 2, "head_dim": 8, "motion_channels": 2}


@pytest.fixture
def shards(clip_folder: Path, tmp_path: Path) -> Path:
    """Four tar files of a video each."""
    pytest.importorskip("webdataset")
    (tmp_path / "shards").mkdir()
    for k in range(4):
        with tarfile.open(tmp_path / f"shards/part-{k}.tar", "w") as tar:
            tar.add(clip_folder / f"videos/{k}.mp4", f"{k}.mp4")
    return tmp_path / "shards"


@pytest.fixture
def cache_dir(clip_folder: Path, tmp_path: Path) -> Path:
    """Four shards of a clip each."""
    make_autoencoder().save_pretrained(tmp_path / "ae")
    places = {"autoencoder": f"{tmp_path}/ae", "output_dir": f"{tmp_path}/cache"}
    encode(EncodeConfig(train_data_dir=str(clip_folder), **SIZE, **places, clips_per_shard=1))
    return tmp_path / "cache"


def run_losing(
    at_step: int, lose: Callable[[], None], dataset: Any, join: Callable, field: str, folder: Path, **changes: Any
) -> None:
    """A run that loses data right after it has read a step's batch."""
    model = torch.nn.Linear(1, 1)

    def loss(model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        if batch["step"] == at_step:
            lose()
        return {"loss": model(batch[field].float().mean()[None]).square().mean()}

    fit([Player(model, loss)], dataset, TrainConfig(output_dir=str(folder), **STEPS | changes), collate=join)


def done(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def skipped(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("skipped")]


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_goes_on_without_a_shard_and_says_so(
    shards: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (shards / "part-1.tar").unlink()
    config = TrainAutoencoderConfig(
        train_data_dir=f"file://{shards}/part-{{0..3}}.tar", **SIZE, **STEPS, model=AutoencoderSizes(**NARROW),
        output_dir=f"{tmp_path}/run", dataloader_num_workers=workers, scale=ScaleSettings(shuffle_window=1),
    )  # fmt: skip
    train_autoencoder(config)
    [line] = skipped(capsys.readouterr().err)
    assert "part-1.tar" in line and "No such file" in line
    assert done(tmp_path / "run") == list(range(1, 9))


def test_stream_of_nothing_is_one_line(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train_data_dir", f"file://{shards}/none-{{0..3}}.tar", "--output_dir", f"{tmp_path}/run"]
    sizes = [f"--model.{name}={size}" for name, size in NARROW.items()]
    assert main(["train-autoencoder", *words, *sizes]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("contentmotion: error")]
    assert "none-0.tar: No such file" in line


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("lost", [["part-3.tar"], [f"part-{k}.tar" for k in range(4)]], ids=["one", "all"])
def test_shards_of_a_stream_vanish(
    shards: Path, tmp_path: Path, lost: list[str], workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainAutoencoderConfig(train_data_dir=f"file://{shards}/part-{{0..3}}.tar", **SIZE, output_dir="x")
    settings = {"dataloader_num_workers": workers, "max_train_steps": 40, "max_bad_fraction": 0.1}

    def lose() -> None:
        for name in lost:
            (shards / name).unlink()

    def train() -> None:
        run_losing(3, lose, open_stream(config, 1), collate, "frames", tmp_path / "run", **settings)

    if len(lost) == 1:
        train()
        [line] = skipped(capsys.readouterr().err)
        assert "part-3.tar: No such file" in line and done(tmp_path / "run") == list(range(1, 41))
        return
    with pytest.raises(ValueError, match=r"none of 4 shards could be read; file://.*part-\d.tar: No such") as error:
        train()
    assert "\n" not in str(error.value)
    kept = done(tmp_path / "run")
    assert kept[-1] >= 3 and [path.name for path in checkpoints(tmp_path / "run")][-1] == f"checkpoint-{kept[-1]:06d}"


@pytest.mark.parametrize("workers", [0, 1])
def test_shard_of_a_cache_vanishes(
    cache_dir: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard that is open stays readable, so it vanishes before it is opened: after the start, or in the middle."""

    def train(name: str, limit: float) -> None:
        cache = LatentCache(cache_dir, limit)
        last = cache_dir / "shard-00003.safetensors"
        settings = {"dataloader_num_workers": workers, "scale": ScaleSettings(shuffle_window=1), "seed": 1}
        kept = last.read_bytes()
        if workers:
            last.unlink()
        try:
            run_losing(0 if workers else 1, last.unlink, cache, collate_latents, "content", tmp_path / name, **settings)
        finally:
            last.write_bytes(kept)

    train("most", 0.3)
    [line] = skipped(capsys.readouterr().err)
    assert "shard-00003.safetensors" in line and done(tmp_path / "most") == list(range(1, 9))
    with pytest.raises(ValueError, match="1 of 4 cached clips are lost, more than max_bad_fraction=0.01") as error:
        train("all", 0.01)
    assert "shard-00003.safetensors" in str(error.value) and "\n" not in str(error.value)
    if not workers:
        assert checkpoints(tmp_path / "all"), "the last good state"
