"""How papers count their videos."""

import dataclasses
from pathlib import Path

import pytest

from contentmotion.config import EvaluateConfig
from contentmotion.data.formats import read_clip_folder
from contentmotion.evaluate.clips import Clips
from contentmotion.evaluate.protocol import PRESETS, with_preset

FRAMES, HEIGHT, WIDTH = 10, 24, 32


def make_clips(folder: Path, **changes: object) -> Clips:
    config = EvaluateConfig(data_dir=str(folder), split=None)
    return Clips(read_clip_folder(folder), dataclasses.replace(config, **changes), FRAMES, HEIGHT, WIDTH)


def test_presets_fill_in_what_is_not_given() -> None:
    config = with_preset(EvaluateConfig(data_dir="x"))
    assert (config.num_videos, config.num_generated, config.fvd_resize) == (None, None, "bilinear")
    config = with_preset(EvaluateConfig(data_dir="x", preset="ucf101-2048"))
    assert (config.num_videos, config.num_generated) == (2048, None)
    config = with_preset(EvaluateConfig(data_dir="x", preset="ucf101-10000", num_videos=7))
    assert (config.num_videos, config.num_generated) == (7, 10_000)
    config = with_preset(EvaluateConfig(data_dir="x", preset="ucf101-zero-shot", class_prompts="prompts.json"))
    assert (config.num_videos, config.videos_per_class, config.num_frames) == (None, 100, 16)
    config = with_preset(EvaluateConfig(data_dir="x", preset="webvid", num_frames=8, fvd_resize="bicubic"))
    assert (config.num_videos, config.num_frames, config.fvd_resize) == (5000, 8, "bicubic")
    config = with_preset(EvaluateConfig(data_dir="x", preset="ucf101-10000", videos_per_class=3))
    assert (config.num_generated, config.videos_per_class) == (None, 3), "either stands in for the other"
    with pytest.raises(ValueError, match="give --class_prompts"):
        with_preset(EvaluateConfig(data_dir="x", preset="ucf101-zero-shot"))
    assert set(PRESETS) == {"stylegan-v", "ucf101-2048", "ucf101-10000", "ucf101-zero-shot", "webvid"}


def test_more_videos_than_clips_take_the_captions_again(clip_folder: Path) -> None:
    clips = make_clips(clip_folder, num_generated=12)
    assert len(clips.drawn) == len(set(clips.drawn)) == 12
    originals = [clips.original(i) for i in clips.drawn]
    assert {originals.count(k) for k in range(5)} == {2, 3}
    again = next(i for i in clips.drawn if i >= 5)
    assert clips.caption(again) == clips.caption(clips.original(again))
    batch = clips.read([again, clips.original(again)])
    assert batch is not None and batch.indices == [again, clips.original(again)]
    assert (batch.frames[0] == batch.frames[1]).all()


def test_so_many_of_each_class(clip_folder: Path) -> None:
    clips = make_clips(clip_folder, videos_per_class=4)  # 3 even clips, 2 odd ones
    labels = [clips.label(i) for i in clips.drawn]
    assert len(set(clips.drawn)) == 8
    assert [labels.count(k) for k in (0, 1)] == [4, 4]


def test_fewer_videos_than_clips(clip_folder: Path) -> None:
    clips = make_clips(clip_folder, num_generated=2)
    assert len(clips.drawn) == 2
    assert set(clips.drawn) < set(clips.selected)
    with pytest.raises(ValueError, match="not both"):
        make_clips(clip_folder, num_generated=2, videos_per_class=1)
