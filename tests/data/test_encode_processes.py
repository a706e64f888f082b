"""Several processes encode; some are killed. The cache is always the one that a single process makes undisturbed."""

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import warm
from contentmotion.commands.encode import encode
from contentmotion.config import EncodeConfig
from contentmotion.data.cache import LatentCache
from launch import run, start

NUM_SHARDS = 40


@pytest.fixture(scope="module")
def work(
    clip_folder: Path, tmp_path_factory: pytest.TempPathFactory, save_autoencoder: Callable[[Path], Path]
) -> tuple[Path, dict[str, bytes]]:
    """A folder to encode in, and the files of a cache made there by one process: 120 clips in 40 shards."""
    root = tmp_path_factory.mktemp("processes")
    save_autoencoder(root / "autoencoder")
    encode(EncodeConfig(**settings(clip_folder, root)))
    files = contents(root / "cache")
    assert sum(name.startswith("shard-") for name in files) == NUM_SHARDS
    assert len(LatentCache(root / "cache")) == 3 * NUM_SHARDS
    return root, files


def settings(clip_folder: Path, root: Path) -> dict:
    return {
        "train_data_dir": str(clip_folder), "autoencoder": str(root / "autoencoder"), "output_dir": str(root / "cache"),
        "num_frames": 4, "height": 16, "width": 16, "clips_per_shard": 3, "encode_batch_size": 2,
        "num_clips_per_video": 30, "device": "cpu",
    }  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_when(processes: list[warm.Process], cache: Path, num_shards: int, delay: float) -> None:
    """Kills all processes a moment after so many shards are there."""
    deadline = time.monotonic() + 600
    while len(list(cache.glob("shard-*"))) < num_shards:
        assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


def run_with_kills(work: tuple[Path, dict[str, bytes]], clip_folder: Path, kills: int) -> dict[str, bytes]:
    """The files of a cache whose making was killed so many times, and then finished."""
    root, expected = work
    cache, draw = root / "cache", random.Random(kills)
    shutil.rmtree(cache)
    for k in range(kills):
        there = len(list(cache.glob("shard-*"))) if cache.exists() else 0
        target = there + 1 + draw.randrange(max(1, (NUM_SHARDS - there) // (kills - k) - 3))
        kill_when(start([("encode", settings(clip_folder, root))], 2), cache, target, draw.random() * 0.01)
        left = len(list(cache.glob("shard-*")))
        assert there < left < NUM_SHARDS, "killed in the middle"
        assert not (cache / "index.json").exists()
    run([("encode", settings(clip_folder, root))], 2)
    assert contents(cache).keys() == expected.keys()
    items = LatentCache(cache)
    assert sorted(int(items._shard(k).rows("item")[row]) for k in range(NUM_SHARDS) for row in range(3)) == list(
        range(3 * NUM_SHARDS)
    )
    return contents(cache)


@pytest.mark.timeout(1200)
def test_two_processes_and_a_kill(work: tuple[Path, dict[str, bytes]], clip_folder: Path) -> None:
    assert run_with_kills(work, clip_folder, kills=1) == work[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_processes_and_five_kills(work: tuple[Path, dict[str, bytes]], clip_folder: Path) -> None:
    assert run_with_kills(work, clip_folder, kills=5) == work[1]


def test_leftovers_and_damage_of_a_power_cut(work: tuple[Path, dict[str, bytes]], clip_folder: Path) -> None:
    root, expected = work
    cache = root / "cache"
    (cache / ".shard-00007.safetensors.123").write_bytes(b"half a shard")
    (cache / "shard-00007.safetensors").unlink()
    (cache / "shard-00009.safetensors").write_bytes(expected["shard-00009.safetensors"][:1000])
    (cache / "index.json").unlink()
    encode(EncodeConfig(**settings(clip_folder, root)))
    assert contents(cache) == expected
