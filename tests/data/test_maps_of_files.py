"""Maps in the latent cache: sketches of the clips as cached, ready-made depth cut exactly like its clip."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contentmotion.commands.encode import encode
from contentmotion.config import EncodeConfig
from contentmotion.data.cache import LatentCache, collate_latents
from contentmotion.data.clips import open_clips
from contentmotion.data.maps import sharpen_lines, sketch_of, to_grey, with_depth
from contentmotion.data.records import ClipRecord
from contentmotion.video.timeline import VideoError
from contentmotion.video.write import write_video


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Grey frames (t, h, w) as a folder of pictures: exact."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")


@pytest.fixture
def config(clip_folder: Path, make_frames: Callable[..., np.ndarray], tmp_path: Path) -> EncodeConfig:
    """Clips of 4 frames at 16x16 out of 10 frames at 24x32; what is called depth is their green."""
    for k in range(5):
        write_frames(tmp_path / f"depth/{k}", make_frames(10, 24, 32, hue=50 * k)[..., 1])
    return EncodeConfig(
        train_data_dir=str(clip_folder), num_frames=4, height=16, width=16, clips_per_shard=3, encode_batch_size=2,
        latents_only=True, conditions=("sketch", "depth"), depth_dir=str(tmp_path / "depth"),
        output_dir=str(tmp_path / "cache"),
    )  # fmt: skip


def test_sketch_is_that_of_the_clip(config: EncodeConfig) -> None:
    encode(config)
    cache, clips = LatentCache(config.output_dir), open_clips(config)
    for k in range(4):
        assert torch.equal(cache[k]["sketch"], sketch_of(clips[k]["frames"]))
        assert cache[k]["sketch"].any()
    batch = collate_latents([cache[k] for k in range(3)])
    for name in ("sketch", "depth"):
        assert (batch[name].dtype, batch[name].shape) == (torch.uint8, (3, 4, 1, 16, 16))
    assert cache.manifest["conditions"] == ["depth", "sketch"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"frame_stride": 3},
        {"num_clips_per_video": 3, "random_flip": True, "resize_mode": "random"},
        {"fps": 4.0, "resize_mode": "pad", "num_clips_per_video": 2},
    ],
    ids=["centred", "stride", "random", "fps and pad"],
)
def test_depth_is_cut_as_its_clip(config: EncodeConfig, changes: dict) -> None:
    config = replace(config, **changes)
    encode(config)
    cache = LatentCache(config.output_dir)
    assert len(cache) == 4 * config.num_clips_per_video
    for k in range(len(cache)):
        item = cache[k]  # without a VAE, latents are pixels in [-1, 1]
        green = (item["latents"][:, 1:2] + 1) * 127.5
        aligned = (green - item["depth"]).abs().mean()
        assert aligned < 6  # the videos are compressed, the depth is not
        for wrong in (item["depth"].flip(0), item["depth"].flip(-1)):
            assert (green - wrong).abs().mean() > 2 * aligned


def test_depth_that_the_list_of_videos_names(config: EncodeConfig, clip_folder: Path, tmp_path: Path) -> None:
    encode(config)
    rows = [json.loads(line) for line in (clip_folder / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        name = Path(row["file_name"]).stem
        row |= {"file_name": str(clip_folder / row["file_name"]), "depth_file_name": str(tmp_path / "depth" / name)}
    lists = tmp_path / "with_depth.jsonl"
    lists.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = replace(config, depth_dir=None, metadata_path=str(lists), output_dir=str(tmp_path / "named"))
    encode(named)
    first, second = LatentCache(config.output_dir), LatentCache(named.output_dir)
    for k in range(4):
        assert torch.equal(first[k]["depth"], second[k]["depth"])


def test_files_beside_videos_may_be_larger(
    config: EncodeConfig, make_frames: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "large/videos").mkdir(parents=True)
    large = make_frames(10, 48, 64)[..., [1, 1, 1]]
    for k in range(4):
        write_video(tmp_path / f"large/videos/{k}.mp4", large, fps=8)
    config = replace(config, depth_dir=str(tmp_path / "large"))
    encode(config)
    item = LatentCache(config.output_dir)[1]
    assert ((item["latents"][:, 1:2] + 1) * 127.5 - item["depth"]).abs().mean() < 8


def test_dots_in_names_are_no_suffixes(tmp_path: Path) -> None:
    videos, maps = tmp_path / "videos", tmp_path / "depth"
    for folder in (videos / "frames 1.5", maps / "clip 2", maps / "x.y"):
        folder.mkdir(parents=True)
    for name in ("clip 1.mp4", "clip 1.5.mp4", "frames 1.mp4"):
        (maps / name).write_bytes(b"")
    names = ["clip 1.mp4", "clip 1.5.MP4", "clip 1.6.mp4", "clip 2.mpg", "frames 1.5", "x.y.mp4"]
    records = with_depth([ClipRecord(videos / name, (), None, None) for name in names], videos, maps)
    found = [path.name for record in records for _, path in record.conditions]
    assert found == ["clip 1.mp4", "clip 1.5.mp4", "clip 1.6", "clip 2", "frames 1.5", "x.y"]


def test_bad_maps_are_left_out_and_named(
    config: EncodeConfig, clip_folder: Path, make_frames: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    frames = make_frames(10, 24, 32)
    folder = tmp_path / "bad"
    write_frames(folder / "0", frames[..., 1])
    write_frames(folder / "1", frames[:6, :, :, 1])  # too short for the centred clip
    write_frames(folder / "2", frames[:, :, :24, 1])
    write_video(folder / "3.mp4", frames[..., [0, 2, 1]], fps=8)
    config = replace(config, depth_dir=str(folder), max_bad_fraction=0.8)
    encode(config)
    assert len(LatentCache(config.output_dir)) == 1
    lines = json.loads((Path(config.output_dir) / "index.json").read_text())["skipped"]
    assert any("1: 6 frames, 7 needed" in line for line in lines)
    assert any("24x24 pixels, another aspect ratio than its video's 32x24" in line for line in lines)
    assert any("3.mp4: in colours" in line for line in lines)
    for path in (folder / "0").iterdir():
        path.unlink()
    (folder / "0").rmdir()
    with pytest.raises(ValueError, match=r"bad/0: no such file|no usable video|bad files"):
        encode(replace(config, output_dir=str(tmp_path / "other"), max_bad_fraction=0.1))


def test_settings_that_do_not_fit(config: EncodeConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--conditions mask: only depth and sketch are cached"):
        replace(config, conditions=("mask",))
    with pytest.raises(ValueError, match="--conditions needs --latents_only"):
        replace(config, latents_only=False, autoencoder="x", depth_dir=None)
    with pytest.raises(ValueError, match="--depth_dir needs --conditions depth"):
        replace(config, conditions=("sketch",))
    with pytest.raises(ValueError, match="not both"):
        replace(config, depth_model="x")
    with pytest.raises(OSError, match="nowhere: no such folder"):
        encode(replace(config, depth_dir=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="0.mp4: no depth file is named for it: give --depth_dir or --depth_model"):
        encode(replace(config, depth_dir=None))


def test_caches_of_before_stay_valid(config: EncodeConfig) -> None:
    plain = replace(config, conditions=(), depth_dir=None)
    encode(plain)
    path = Path(plain.output_dir) / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("conditions") == [] and manifest.pop("depth_model") is None
    path.write_text(json.dumps(manifest))
    encode(plain)
    assert "sketch" not in LatentCache(plain.output_dir)[0]
    with pytest.raises(ValueError, match="other settings .*conditions"):
        encode(config)


def test_grey_and_lines() -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[:, 1] = 90
    assert to_grey(frames, "x")[0, 1].tolist() == [90] * 4
    assert sharpen_lines(to_grey(frames, "x"))[0, :, 0].tolist() == [0, 255, 0, 0]
    assert not sharpen_lines(np.full((1, 2, 2), 20, np.uint8)).any()
    frames[..., 0] = 200
    with pytest.raises(VideoError, match="x: in colours"):
        to_grey(frames, "x")
