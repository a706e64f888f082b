"""Clips of several sizes side by side, from videos and from caches: the same in one process and in two."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contentmotion.cli import main
from contentmotion.commands.encode import encode
from contentmotion.config import (
    AutoencoderSizes,
    ContentSizes,
    DistillConfig,
    EncodeConfig,
    MotionSizes,
    ScaleSettings,
    TrainAutoencoderConfig,
    TrainContentConfig,
    TrainMotionConfig,
    TrainVideoConfig,
    VideoSizes,
)
from contentmotion.cost.plan import print_plan
from contentmotion.data.cache import LatentCache, collate_latents
from contentmotion.losses.player import Player
from contentmotion.pipelines.loading import load_video_pipeline
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.batches import make_batches
from contentmotion.train.content import train_content
from contentmotion.train.distill import distill
from contentmotion.train.held_out import HeldOut
from contentmotion.train.motion import train_motion
from contentmotion.train.video import train_video
from contentmotion.video.write import write_video
from launch import Job, run, to_words
from tiny import NARROW, STEPS, UNET, make_autoencoder


def job(clips: Path, folder: Path, batch_size: int) -> Job:
    """Training on square and on wide clips."""
    settings: dict[str, Any] = {
        "train_data_dir": clips, "split": "null", "max_bad_fraction": 0.3, "buckets": ("4x16x16", "4x16x24", "8x16x24"),
        "output_dir": folder, "max_train_steps": 6, "train_batch_size": batch_size, "logging_steps": 1,
        "checkpointing_steps": 6, "validation_steps": 6, "report_to": "none", "mixed_precision": "no",
        "lr_warmup_steps": 1, "learning_rate": 1e-3, "model.hidden_size": 16, "model.depth": 1, "model.num_heads": 2,
        "model.head_dim": 8, "model.motion_channels": 2,
    }  # fmt: skip
    return "train-autoencoder", settings


@pytest.mark.timeout(600)
def test_two_processes_share_batches_of_one_size(clip_folder: Path, tmp_path: Path) -> None:
    assert main(to_words(*job(clip_folder, tmp_path / "one", 2))) == 0
    run([job(clip_folder, tmp_path / "two", 1)], 2)
    one, two = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == 6 and two == pytest.approx(one, rel=2e-5)
    assert (tmp_path / "two/preview-000006.png").exists()


@pytest.mark.parametrize("command", ["train-content", "train-motion", "train-video", "train-vae", "distill"])
def test_other_stages_take_their_sizes_from_the_cache(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--buckets", "4x16x16", "--output_dir", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "--buckets" in errors[0] and command in errors[0]
    assert not (tmp_path / "out").exists()


THREE: dict[str, Any] = STEPS | {"max_train_steps": 3, "checkpointing_steps": 3, "learning_rate": 1e-3}
BUCKETS = ("4x16x16", "4x16x24")


@pytest.fixture(scope="module")
def root(two_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of square and of wide clips: ``cache``, with its autoencoder, and ``latents``; ``content``, trained."""
    root = tmp_path_factory.mktemp("buckets")
    make_autoencoder().save_pretrained(root / "autoencoder")
    data: dict[str, Any] = {"train_data_dir": str(two_shapes), "buckets": BUCKETS, "clips_per_shard": 3}
    encode(EncodeConfig(**data, autoencoder=f"{root}/autoencoder", output_dir=f"{root}/cache"))
    encode(EncodeConfig(**data, latents_only=True, conditions=("sketch",), output_dir=f"{root}/latents"))
    common = THREE | {"latent_cache": f"{root}/cache", "validation_steps": 3}
    train_content(TrainContentConfig(**common, model=ContentSizes(**UNET), output_dir=f"{root}/content"))
    return root


def motion_config(root: Path, folder: Path, **changes: Any) -> TrainMotionConfig:
    given: dict[str, Any] = {
        "latent_cache": f"{root}/cache", "autoencoder": f"{root}/autoencoder", "output_dir": str(folder),
        "pretrained_model_name_or_path": f"{root}/content/content",
        "model": MotionSizes(content_patch_size=2, **NARROW),
    }  # fmt: skip
    return TrainMotionConfig(**THREE | given | changes)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def learned(folder: Path, steps: int) -> bool:
    values = losses(folder)
    return len(values) == steps and all(math.isfinite(value) for value in values)


def test_every_batch_of_a_cache_is_of_one_size(root: Path, tmp_path: Path) -> None:
    """Of however many processes, resumed or not: batches of both sizes, none of two."""
    config = motion_config(root, tmp_path, max_train_steps=12)

    def sizes(processes: int, first: int) -> list[set[int]]:
        places = [SimpleNamespace(process_index=k, num_processes=processes, device=torch.device("cpu"))
                  for k in range(processes)]  # fmt: skip
        readers = [make_batches(LatentCache(root / "cache"), config, place, first, collate_latents)  # type: ignore
                   for place in places]  # fmt: skip
        return [{batch["content"].shape[-1] for batch in step} for step in zip(*readers, strict=True)]

    one, two = sizes(1, 0), sizes(2, 0)
    for found in (one, two):
        assert all(len(step) == 1 for step in found) and set.union(*found) == {16, 24}
    assert sizes(1, 5) == one[5:] and sizes(2, 5) == two[5:]


def test_content_models_train_on_a_cache_of_several_sizes(root: Path) -> None:
    assert learned(root / "content", 3) and (root / "content/preview-000003.png").exists()
    unet = json.loads((root / "content/content/unet/config.json").read_text())
    assert unet["sample_size"] == 16, "the first bucket's"
    dit = ContentSizes(architecture="dit", **NARROW)
    with pytest.raises(ValueError, match="takes square content frames, these are 16x24"):
        train_content(TrainContentConfig(**THREE, model=dit, latent_cache=f"{root}/cache", output_dir=f"{root}/dit"))


def test_motion_models_train_on_a_cache_of_several_sizes_and_resume(root: Path, tmp_path: Path) -> None:
    config = motion_config(root, tmp_path / "whole", max_train_steps=6, validation_steps=6, dataloader_num_workers=1)
    train_motion(config)
    assert learned(tmp_path / "whole", 6) and (tmp_path / "whole/preview-000006.png").exists()
    halves = replace(config, output_dir=str(tmp_path / "halves"), validation_steps=0)
    train_motion(replace(halves, max_train_steps=3))
    train_motion(halves)
    one, other = (load_file(tmp_path / f"{run}/checkpoint-000006/model.safetensors") for run in ("whole", "halves"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="scale.shuffle_window mixes clips of one size"):
        window = replace(config, output_dir=str(tmp_path / "window"), scale=ScaleSettings(shuffle_window=4))
        train_motion(replace(window, dataloader_num_workers=0))


def test_video_models_train_on_a_cache_of_several_sizes(root: Path, tmp_path: Path, capsys: Any) -> None:
    config = TrainVideoConfig(
        **THREE | {"validation_steps": 3}, model=VideoSizes(num_attention_heads=2, **UNET),
        latent_cache=f"{root}/latents", conditions=("sketch", "first_frame"), output_dir=f"{tmp_path}/run",
    )  # fmt: skip
    train_video(config)
    assert learned(tmp_path / "run", 3) and (tmp_path / "run/preview-000003.png").exists()
    assert load_video_pipeline(f"{tmp_path}/run/video").clip_shape == (4, 16, 16), "the first bucket's"
    print_plan(config)
    assert "trained parameters" in capsys.readouterr().out


def test_students_are_trained_and_scored_on_caches_of_several_sizes(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "cache", tmp_path / "unseen")
    given = {"part": "content", "pretrained_model_name_or_path": f"{root}/content/content", "heldout_items": 5}
    config = DistillConfig(
        **THREE | given, latent_cache=f"{root}/cache", eval_latent_cache=f"{tmp_path}/unseen", heldout_steps=3,
        output_dir=f"{tmp_path}/run",
    )  # fmt: skip
    distill(config)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert learned(tmp_path / "run", 3)
    assert [line["eval/student_error"] > 0 for line in lines if "eval/student_error" in line] == [True]


def test_held_out_batches_are_of_one_length(
    root: Path, two_shapes: Path, tmp_path: Path, make_frames: Callable
) -> None:
    """Content frames of short and of long clips are alike; their motion is not."""
    data = shutil.copytree(two_shapes, tmp_path / "data")
    for k in range(0, 8, 3):
        write_video(data / f"{k}.mp4", make_frames(6, 24, 24), fps=8)
    encode(
        EncodeConfig(
            train_data_dir=str(data), buckets=("4x16x16", "8x16x16"), autoencoder=f"{root}/autoencoder",
            output_dir=f"{tmp_path}/cache",
        )
    )  # fmt: skip
    cache = LatentCache(tmp_path / "cache")
    assert cache.shapes("content") == [(3, 16, 16)] and cache.shapes("motion") == [(2, 4, 16), (2, 8, 16)]
    config = DistillConfig(**THREE, pretrained_model_name_or_path="x", latent_cache="x", output_dir="x", part="content")
    nothing: Any = None
    judge = HeldOut(Player(nothing, nothing), nothing, cache, config)
    assert [tuple(batch["motion"].shape[::2]) for batch in judge.batches] == [(2, 4), (1, 4), (2, 8), (2, 8), (1, 8)]


def test_autoencoders_train_on_a_cache_of_several_sizes(root: Path, tmp_path: Path) -> None:
    config = TrainAutoencoderConfig(
        **THREE | {"validation_steps": 3}, model=AutoencoderSizes(head_dim=8, motion_channels=2, **NARROW),
        num_frames=4, height=16, width=16, latent_cache=f"{root}/latents", output_dir=f"{tmp_path}/run",
    )  # fmt: skip
    train_autoencoder(config)
    assert learned(tmp_path / "run", 3) and (tmp_path / "run/preview-000003.png").exists()
    with pytest.raises(ValueError, match="made with .* 4x16x16 or 4x16x24; this run has 4x32x16"):
        train_autoencoder(replace(config, height=32, output_dir=f"{tmp_path}/other"))


@pytest.mark.timeout(600)
def test_two_processes_fill_and_train_on_a_cache_of_several_sizes(root: Path, two_shapes: Path, tmp_path: Path) -> None:
    train_motion(motion_config(root, tmp_path / "one"))
    fill: dict[str, Any] = {
        "train_data_dir": two_shapes, "buckets": BUCKETS, "clips_per_shard": 3, "autoencoder": root / "autoencoder",
        "output_dir": tmp_path / "cache",
    }  # fmt: skip
    sizes = {f"model.{name}": size for name, size in NARROW.items()}
    settings: dict[str, Any] = THREE | sizes | {
        "latent_cache": tmp_path / "cache", "autoencoder": root / "autoencoder", "model.content_patch_size": 2,
        "pretrained_model_name_or_path": root / "content/content", "output_dir": tmp_path / "two",
        "train_batch_size": 1,
    }  # fmt: skip
    run([("encode", fill), ("train-motion", settings)], 2)
    for path in (*(root / "cache").glob("shard-*"), root / "cache/index.json"):
        assert (tmp_path / "cache" / path.name).read_bytes() == path.read_bytes(), path.name
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)
