"""Caches of clips of several sizes: what is written, left out and refused, and read when shards are lost."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contentmotion.cli import main
from contentmotion.commands.encode import encode
from contentmotion.config import EncodeConfig
from contentmotion.data.cache import LatentCache, Shard
from contentmotion.data.samplers import BucketSampler, make_sampler
from contentmotion.data.streaming import open_source
from contentmotion.video.write import write_video

BUCKETS = ("4x16x16", "4x16x24")


@pytest.fixture
def config(two_shapes: Path, tmp_path: Path, save_autoencoder: Callable[[Path], Path]) -> EncodeConfig:
    """Four square and four wide clips, in shards of three at most."""
    save_autoencoder(tmp_path / "autoencoder")
    return EncodeConfig(
        train_data_dir=str(two_shapes), buckets=BUCKETS, clips_per_shard=3, encode_batch_size=2,
        autoencoder=f"{tmp_path}/autoencoder", output_dir=f"{tmp_path}/cache",
    )  # fmt: skip


def numbers(cache: LatentCache) -> list[int]:
    return [int(Path(cache[k]["path"]).stem) for k in range(len(cache))]


def test_every_shard_holds_clips_of_one_bucket(config: EncodeConfig) -> None:
    encode(config)
    root = Path(config.output_dir)
    shards = json.loads((root / "index.json").read_text())["shards"]
    assert [(shard["clips"], shard["bucket"]) for shard in shards] == [
        (3, "4x16x16"), (1, "4x16x16"), (3, "4x16x24"), (1, "4x16x24"),
    ]  # fmt: skip
    for shard in shards:
        width = int(shard["bucket"].split("x")[2])
        tensors = load_file(root / shard["name"])
        assert tensors["content"].shape == (shard["clips"], 3, 16, width)
        assert tensors["motion"].shape == (shard["clips"], 2, 4, 8 + width // 2)
        assert Shard(root / shard["name"]).header["bucket"] == shard["bucket"]
    cache = LatentCache(root)
    assert cache.bucket_of is not None and cache.bucket_of.tolist() == [0] * 4 + [1] * 4
    assert numbers(cache) == [0, 2, 4, 6, 1, 3, 5, 7]
    assert cache.manifest["buckets"] == list(BUCKETS)
    assert cache.shapes("content") == [(3, 16, 16), (3, 16, 24)]
    assert list(cache.alike()) == [0, 1, 2, 3]
    sampler = make_sampler(cache, 3, seed=0, num_steps=20)
    assert isinstance(sampler, BucketSampler)
    assert all(len({cache.bucket_of[index] for index, _ in batch}) == 1 for batch in sampler)


def test_motion_statistics_are_over_all_sizes(config: EncodeConfig) -> None:
    encode(config)
    cache = LatentCache(config.output_dir)
    values = torch.cat([cache[k]["motion"].flatten(1) for k in range(8)], dim=1)  # (D, positions of all clips)
    assert cache.motion_statistics is not None
    mean, std = map(torch.tensor, cache.motion_statistics)
    torch.testing.assert_close(values.mean(1), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(1, correction=0), std, atol=1e-5, rtol=0)


def test_one_size_is_written_and_read_as_before(config: EncodeConfig) -> None:
    """A cache without buckets names none, and one that was made before there were any goes on."""
    config = replace(config, buckets=(), num_frames=4, height=16, width=16)
    encode(config)
    root = Path(config.output_dir)
    index = (root / "index.json").read_bytes()
    assert b"bucket" not in index and "bucket" not in Shard(root / "shard-00000.safetensors").header
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest.pop("buckets") == []
    (root / "manifest.json").write_text(json.dumps(manifest))
    cache = LatentCache(root)
    assert cache.bucket_of is None and cache.shapes("motion") == [(2, 4, 16)]
    (root / "shard-00001.safetensors").unlink()
    encode(config)
    assert (root / "index.json").read_bytes() == index


@pytest.mark.parametrize("buckets", [("4x16x24", "4x16x16"), ("4x16x16",), ()])
def test_other_buckets_are_refused(config: EncodeConfig, buckets: tuple[str, ...]) -> None:
    encode(config)
    with pytest.raises(ValueError, match=r"made with other settings \(.*buckets"):
        encode(replace(config, buckets=buckets))


def test_streams_and_bad_buckets_are_refused_in_one_line(
    config: EncodeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="--buckets needs a list of the videos"):
        encode(replace(config, train_data_dir="pipe:cat x.tar"))
    for words, reason in ((["4x16"], "FRAMESxHEIGHTxWIDTH"), (["4x16x16", "4x16x16"], "each size once")):
        given = ["--train_data_dir", "x", "--latents_only", "true", "--output_dir", str(tmp_path / "out")]
        assert main(["encode", "--buckets", *words, *given]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert reason in line


def with_bad_files(two_shapes: Path, root: Path, make_frames: Callable) -> Path:
    """Beside the eight, one that is no video, and one that is too short for every bucket."""
    shutil.copytree(two_shapes, root)
    (root / "8.mp4").write_text("not a video")
    write_video(root / "9.mp4", make_frames(2, 24, 24), fps=8)
    with open(root / "metadata.jsonl", "a") as file:
        file.writelines(json.dumps({"file_name": f"{k}.mp4", "caption": "x", "label": "wide"}) + "\n" for k in (8, 9))
    return root


def test_videos_that_fit_none_are_left_out_and_named(
    config: EncodeConfig, two_shapes: Path, tmp_path: Path, make_frames: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, train_data_dir=str(with_bad_files(two_shapes, tmp_path / "data", make_frames)))
    with pytest.raises(ValueError, match="2 bad files among 10 tried, more than max_bad_fraction=0.01"):
        encode(config)
    capsys.readouterr()
    encode(replace(config, max_bad_fraction=0.25))
    errors = capsys.readouterr().err
    lines = json.loads((Path(config.output_dir) / "index.json").read_text())["skipped"]
    assert len(lines) == 2 and all(line in errors for line in lines)
    assert "8.mp4" in lines[0] and "9.mp4: too short for every bucket" in lines[1]
    assert numbers(LatentCache(config.output_dir)) == [0, 2, 4, 6, 1, 3, 5, 7]


def test_a_bucket_whose_only_video_is_lost(config: EncodeConfig, two_shapes: Path, tmp_path: Path) -> None:
    """It is left out; no clip of another video stands in for it, of its bucket or of another."""
    data = shutil.copytree(two_shapes, tmp_path / "data")
    for k in (1, 3, 5):
        shutil.copy(data / "0.mp4", data / f"{k}.mp4")
    source = open_source(replace(config, train_data_dir=str(data)))
    (data / "7.mp4").unlink()  # after its header was read
    batches = list(source.batches(range(source.num_shards), 0))
    assert [batch.shard for batch in batches if batch.last] == [0, 1, 2, 3]
    assert [source.bucket(shard) for shard in range(4)] == ["4x16x16"] * 3 + ["4x16x24"]
    assert sum(len(batch.items) for batch in batches) == 7 and batches[-1].items == []
    [line] = batches[-1].skipped
    assert "7.mp4" in line


def test_a_shard_that_vanishes_is_replaced_within_its_bucket(config: EncodeConfig) -> None:
    encode(replace(config, clips_per_shard=2))
    root = Path(config.output_dir)
    cache = LatentCache(root, max_bad_fraction=0.6)
    shapes = [cache[k]["content"].shape for k in range(8)]
    cache._open.clear()  # as after many other shards
    (root / "shard-00001.safetensors").unlink()  # the last of the squares: the first of the wide ones comes next
    for index, other in ((2, 0), (3, 1)):
        item = cache[index, 5]
        assert item["content"].shape == shapes[index] == (3, 16, 16)
        assert item["path"] == cache[other]["path"]
        assert len(item["skipped"]) == 1 and "shard-00001" in item["skipped"][0]
    cache._open.clear()
    (root / "shard-00000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no shard of its size is left in place of .*shard-00000"):
        cache[0]
    assert cache[4]["content"].shape == (3, 16, 24)
    # Missing from the beginning: the sizes that are left.
    rest = LatentCache(root, max_bad_fraction=0.6)
    assert rest.bucket_of is not None and rest.bucket_of.tolist() == [1] * 4
    encode(replace(config, clips_per_shard=2))
    assert [LatentCache(root)[k]["content"].shape for k in range(8)] == shapes


def test_processes_that_read_and_several_clips_of_a_video(config: EncodeConfig, tmp_path: Path) -> None:
    config = replace(config, num_clips_per_video=3, clips_per_shard=5)
    encode(config)
    cache = LatentCache(config.output_dir)
    assert cache.shard_sizes.tolist() == [5, 5, 2, 5, 5, 2]
    assert sorted(numbers(cache)) == sorted(list(range(8)) * 3)
    items: list[dict[str, Any]] = [cache[k] for k in (0, 4, 8)]
    assert len({item["path"] for item in items}) == 1
    encode(replace(config, output_dir=str(tmp_path / "workers"), dataloader_num_workers=2))
    for path in Path(config.output_dir).glob("shard-*"):
        assert (tmp_path / "workers" / path.name).read_bytes() == path.read_bytes(), path.name
