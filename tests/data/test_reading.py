"""The order in which a cache is read: exactly the epoch, by several processes, from any step on, with workers."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from contentmotion.commands.encode import encode
from contentmotion.config import EncodeConfig, MotionSizes, ScaleSettings, TrainMotionConfig
from contentmotion.data.accounting import require_few_bad
from contentmotion.data.cache import LatentCache, collate_latents
from contentmotion.data.samplers import ShardSampler
from contentmotion.train.batches import make_batches
from contentmotion.train.motion import train_motion
from launch import finish, start_all


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    processes=st.integers(1, 4),
    window=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_processes_together_read_exactly_the_epoch(sizes: list[int], processes: int, window: int, seed: int) -> None:
    num_items = sum(sizes)
    if num_items < processes:
        return
    samplers = [
        ShardSampler(sizes, 2, seed, window=window, process_index=rank, num_processes=processes)
        for rank in range(processes)
    ]
    for epoch in range(3):
        parts = [sampler.epoch_order(epoch) for sampler in samplers]
        assert sorted(np.concatenate(parts).tolist()) == list(range(num_items))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # In as many epochs as there are processes, all have read as much.
    lengths = [sum(len(sampler.epoch_order(epoch)) for epoch in range(processes)) for sampler in samplers]
    assert lengths == [num_items] * processes


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 60), rank=st.integers(0, 2), weighted=st.booleans())
def test_any_step_can_be_the_first(start: int, rank: int, weighted: bool) -> None:
    arguments = {
        "shard_sizes": [5, 3, 7, 4, 4], "batch_size": 3, "seed": 1, "window": 6, "process_index": rank,
        "num_processes": 3, "num_steps": 64, "weights": list(range(1, 24)) if weighted else None,
    }  # fmt: skip
    whole = list(ShardSampler(**arguments))
    assert list(ShardSampler(**arguments, start_step=start)) == whole[start:]
    assert len(whole) == 64


def test_shards_are_disjoint_and_read_one_window_after_another() -> None:
    sizes, window = [8] * 32, 16
    parts = [
        ShardSampler(sizes, 4, 0, window=window, process_index=rank, num_processes=4).epoch_order(0)
        for rank in range(4)
    ]
    shards = [set((part // 8).tolist()) for part in parts]
    assert sum(map(len, shards)) == 32 and set.union(*shards) == set(range(32))
    for part in parts:
        for k in range(0, 64, window):
            assert len(set((part[k : k + window] // 8).tolist())) == 2  # two shards at a time
    assert (np.diff(parts[0][:window]) != 1).any()  # mixed
    orders = [ShardSampler(sizes, 4, 0, window=window).epoch_order(epoch).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]


def test_weights_are_shares_of_the_epochs() -> None:
    weights = [1.0] * 30 + [3.0] * 10
    sampler = ShardSampler([8] * 5, 4, 0, window=16, weights=weights)
    counts = Counter(np.concatenate([sampler.epoch_order(epoch) for epoch in range(60)]).tolist())
    for item, weight in enumerate(weights):
        assert counts[item] / 60 == pytest.approx(40 * weight / 60, rel=0.25)


def test_ten_million_clips_are_in_order_within_seconds() -> None:
    sizes = [256] * 41_905  # WebVid-10M
    sampler = ShardSampler(sizes, 8, 0, window=8192, process_index=63, num_processes=64, start_step=50_000)
    batch = next(iter(sampler))
    assert len(batch) == 8 and all(0 <= index < sum(sizes) for index, _ in batch)


def test_bad_numbers_are_refused() -> None:
    for sizes, batch_size, window in (([3], 0, 1), ([3], 1, 0), ([1], 1, 1)):
        with pytest.raises(ValueError, match="must be"):
            ShardSampler(sizes, batch_size, 0, window=window, num_processes=2)


def test_limit_of_bad_files() -> None:
    require_few_bad(1, 8, 0.01, 1000)  # the first bad file proves nothing
    require_few_bad(10, 5000, 0.01, 1000)
    require_few_bad(0, 10, 0.0, 10)
    for bad, seen, total in ((11, 5000, 1000), (11, 1000, 1000), (5, 20, 1000), (40, 1000, None), (1, 4, 4)):
        with pytest.raises(ValueError, match="more than max_bad_fraction=0.01 allows"):
            require_few_bad(bad, seen, 0.01, total)


@pytest.fixture(scope="module")
def cache_dir(
    clip_folder: Path, tmp_path_factory: pytest.TempPathFactory, save_autoencoder: Callable[[Path], Path]
) -> Path:
    """A cache of 24 labelled clips in 8 shards, and its autoencoder."""
    root = tmp_path_factory.mktemp("reading")
    save_autoencoder(root / "autoencoder")
    encode(
        EncodeConfig(
            train_data_dir=str(clip_folder), autoencoder=str(root / "autoencoder"), output_dir=str(root / "cache"),
            num_frames=4, height=16, width=16, clips_per_shard=3, num_clips_per_video=6,
        )
    )  # fmt: skip
    return root / "cache"


def motion_config(cache_dir: Path, output_dir: Path, **kwargs: object) -> TrainMotionConfig:
    return TrainMotionConfig(
        **{
            "latent_cache": str(cache_dir), "output_dir": str(output_dir), "train_batch_size": 3, "logging_steps": 1,
            "autoencoder": str(cache_dir.parent / "autoencoder"), "max_train_steps": 6, "checkpointing_steps": 1,
            "checkpoints_total_limit": 9, "validation_steps": 0, "report_to": "none", "mixed_precision": "no",
            "lr_warmup_steps": 1, "model": MotionSizes(hidden_size=16, depth=1, num_heads=2, content_patch_size=2),
            "scale": ScaleSettings(shuffle_window=6), **kwargs,
        }
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, 6])
def test_resume_in_the_middle_of_an_epoch_with_workers(cache_dir: Path, tmp_path: Path, window: int | None) -> None:
    """8 batches are an epoch; stopped after 3."""
    config = motion_config(cache_dir, tmp_path / "whole", scale=ScaleSettings(shuffle_window=window))
    train_motion(config)
    halves = replace(config, output_dir=str(tmp_path / "halves"), dataloader_num_workers=2)
    train_motion(replace(halves, max_train_steps=3))
    train_motion(halves)
    one, other = (load_file(tmp_path / f"{run}/checkpoint-000006/model.safetensors") for run in ("whole", "halves"))
    for name in one:
        assert torch.equal(one[name], other[name]), name
    lines = [json.loads(line) for line in (tmp_path / "halves/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert all(0 <= line["data_wait"] <= 1 for line in lines)


def read_an_epoch(settings: dict) -> None:
    """Prints, as JSON, the items that each process reads, in either order."""
    for name, window in (("everything", None), ("shards", 6)):
        config = TrainMotionConfig(**settings | {"scale": ScaleSettings(shuffle_window=window)})
        accelerator = Accelerator(cpu=True)
        batches = make_batches(LatentCache(config.latent_cache), config, accelerator, 0, collate_latents)
        mine = torch.cat([next(batches)["index"] for _ in range(4)])  # 24 clips = 2 processes x 4 batches x 3
        both = accelerator.gather(mine[None])
        if accelerator.is_main_process:
            print(json.dumps({name: both.tolist()}))
    accelerator.end_training()


def test_two_processes_read_disjoint_shards_that_make_the_epoch(cache_dir: Path, tmp_path: Path) -> None:
    config = {
        "latent_cache": str(cache_dir), "output_dir": str(tmp_path), "train_batch_size": 3, "max_train_steps": 4,
        "autoencoder": "not needed here",
    }  # fmt: skip
    (status, output, errors), (other, _, _) = finish(start_all(2, read_an_epoch, config))
    assert status == other == 0, errors
    read = {name: parts for line in output.splitlines() for name, parts in json.loads(line).items()}
    for parts in read.values():
        assert sorted(parts[0] + parts[1]) == list(range(24))
    one, other = ({index // 3 for index in part} for part in read["shards"])
    assert len(one) == len(other) == 4 and not one & other
