import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import warm
from contentmotion.config import ClipConfig, EncodeConfig
from contentmotion.data import clips
from contentmotion.data.clips import ClipDataset, collate, open_clips
from contentmotion.data.formats import ClipFolder, read_clip_folder
from contentmotion.data.records import ClipRecord
from contentmotion.data.samplers import StepSampler
from contentmotion.video.reader import read_clip, read_video
from contentmotion.video.resize import fit_frame
from contentmotion.video.timeline import SlowVideoError
from contentmotion.video.write import write_video

MakeFrames = Callable[..., np.ndarray]


def make_dataset(root: Path, **changes: Any) -> ClipDataset:
    options: dict[str, Any] = {"num_frames": 4, "height": 16, "width": 16} | changes
    return ClipDataset(read_clip_folder(root), **options)


def equal(a: dict, b: dict) -> bool:
    """Whether two items are the same."""
    same = all(a[key] == b[key] for key in a if key != "frames")
    return same and a.keys() == b.keys() and torch.equal(a["frames"], b["frames"])


def test_item(clip_folder: Path) -> None:
    item = make_dataset(clip_folder)[3]
    assert item["frames"].shape == (4, 3, 16, 16)
    assert item["frames"].dtype == torch.uint8
    assert item["frames"][:, 2].float().median() == pytest.approx(150, abs=12), "the blue of clip 3"
    assert item["caption"] == "square 3"
    assert item["captions"] == ("square 3", "a moving square, number 3")
    assert (item["label"], item["index"], item["skipped"]) == (1, 3, [])
    assert item["path"] == str(clip_folder / "videos/3.mp4")


def test_without_seed_the_clip_is_centred(clip_folder: Path) -> None:
    dataset = make_dataset(clip_folder, height=24, width=32)
    whole = torch.from_numpy(read_video(clip_folder / "videos/0.mp4").frames).permute(0, 3, 1, 2)
    assert torch.equal(dataset[0]["frames"], whole[3:7])
    strided = make_dataset(clip_folder, height=24, width=32, frame_stride=3)
    assert torch.equal(strided[0]["frames"], whole[0:10:3])


def test_seed_draws_start_and_caption(clip_folder: Path) -> None:
    dataset = make_dataset(clip_folder, height=24, width=32)
    whole = torch.from_numpy(read_video(clip_folder / "videos/0.mp4").frames).permute(0, 3, 1, 2)
    starts, captions = Counter(), Counter()
    for seed in range(60):
        item = dataset[(0, seed)]
        matches = [s for s in range(7) if torch.equal(item["frames"], whole[s : s + 4])]
        assert len(matches) == 1, "four frames of the video in a row"
        starts[matches[0]] += 1
        captions[item["caption"]] += 1
    assert set(starts) == set(range(7)), "every start is possible, the last one included"
    assert set(captions) == {"square 0", "a moving square, number 0"}
    assert min(captions.values()) > 15


def test_items_are_functions_of_index_and_seed(clip_folder: Path) -> None:
    first, second = make_dataset(clip_folder), make_dataset(clip_folder)
    for index in (4, 0, 2):  # another order of access changes nothing
        assert equal(first[(index, 9)], second[(index, 9)])
    assert equal(second[(0, 5)], first[(0, 5)])
    assert len({dataset_caption(first, seed) for seed in range(10)}) == 2


def dataset_caption(dataset: ClipDataset, seed: int) -> str:
    return dataset[(1, seed)]["caption"]


def test_cache_changes_nothing(clip_folder: Path) -> None:
    plain, cached = make_dataset(clip_folder), make_dataset(clip_folder, cache_in_memory=True)
    for item in [(0, 1), (0, 1), (2, 7), 3]:
        assert equal(plain[item], cached[item])
    cached[0]["frames"].zero_()
    assert equal(plain[0], cached[0]), "a caller that writes into a clip does not spoil the cache"


def resize_and_crop(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 (t, 3, h, w) to (t, 3, height, width)."""
    fitted = [fit_frame(frame, height, width) for frame in frames.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2)


def test_crop_is_centred_and_keeps_the_aspect_ratio() -> None:
    frames = torch.zeros(2, 3, 20, 40, dtype=torch.uint8)
    frames[..., 10:30] = 200  # the centred square
    assert resize_and_crop(frames, 20, 20).unique().tolist() == [200]
    assert resize_and_crop(frames, 10, 10).unique().tolist() == [200]
    wide = resize_and_crop(frames, 10, 20)
    assert wide.shape == (2, 3, 10, 20)
    assert (wide[..., :4] < 40).all() and (wide[..., 8:12] > 160).all()
    assert resize_and_crop(frames, 7, 31).shape == (2, 3, 7, 31)
    assert resize_and_crop(frames[..., :1, :1], 8, 8).shape == (2, 3, 8, 8)


def test_resize_is_antialiased_and_stays_in_range() -> None:
    lines = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    lines[..., ::2] = 255
    small = resize_and_crop(lines, 16, 16)[..., 2:-2].float()
    assert small.mean() == pytest.approx(127, abs=3)
    assert small.std() < 10, "one-pixel lines become grey, not moire"
    step = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    step[..., 4:] = 255
    assert resize_and_crop(step, 32, 32)[..., :14].max() < 64, "bicubic undershoot does not wrap round to white"


@pytest.fixture
def spoiled(clip_folder: Path, tmp_path: Path) -> Path:
    """Clips 0 to 5; 1 is truncated, 2 a text, 3 empty, 4 a one-frame gif, 5 is deleted after listing."""
    videos = tmp_path / "videos"
    videos.mkdir()
    good = (clip_folder / "videos/0.mp4").read_bytes()
    (videos / "0.mp4").write_bytes(good)
    (videos / "1.mp4").write_bytes(good[: len(good) // 2])
    (videos / "2.mp4").write_text("words " * 100)
    (videos / "3.mp4").touch()
    Image.new("RGB", (16, 16)).save(videos / "4.gif")
    (videos / "5.mp4").write_bytes(good)
    rows = [f"videos/{p.name},caption {p.stem}" for p in sorted(videos.iterdir())]
    (tmp_path / "metadata.csv").write_text("\n".join(["file,caption", *rows]))
    return tmp_path


def test_bad_files_are_skipped_and_named(spoiled: Path) -> None:
    dataset = make_dataset(spoiled)
    (spoiled / "videos/5.mp4").unlink()
    item = dataset[(1, 3)]
    assert (item["index"], item["caption"]) == (0, "caption 0"), "the next good one, past the end of the list"
    names = ["1.mp4", "2.mp4", "3.mp4", "4.gif", "5.mp4"]
    assert len(item["skipped"]) == 5
    for line, name in zip(item["skipped"], names, strict=True):
        path, reason = line.split(": ", 1)
        assert path == str(spoiled / "videos" / name)
        assert reason and "\n" not in reason
    assert item["skipped"][3].endswith("1 frames, 4 needed")
    assert item["skipped"][4].endswith("no such file")
    assert item["frames"].float().std() > 5, "never trained on as zeros"
    assert equal(dataset[(1, 3)], item), "the same when asked again"
    assert equal(make_dataset_of(dataset.folder)[(1, 3)], item), "and from a fresh start"
    assert dataset[0]["skipped"] == []


def make_dataset_of(folder: ClipFolder) -> ClipDataset:
    return ClipDataset(folder, num_frames=4, height=16, width=16)


def test_short_videos_are_not_padded(clip_folder: Path) -> None:
    assert make_dataset(clip_folder, num_frames=10)[(0, 1)]["frames"].shape[0] == 10
    for options in ({"num_frames": 11}, {"num_frames": 4, "frame_stride": 4}):
        with pytest.raises(ValueError, match=r"none of 5 videos can be used; .*0\.mp4: 10 frames, 1[13] needed"):
            make_dataset(clip_folder, **options)[0]


def test_all_bad(spoiled: Path) -> None:
    (spoiled / "videos/0.mp4").write_text("words")
    (spoiled / "videos/5.mp4").unlink()
    (spoiled / "metadata.csv").write_text("file,caption\nvideos/0.mp4,a\nvideos/2.mp4,b\n")
    with pytest.raises(ValueError, match="none of 2 videos can be used"):
        make_dataset(spoiled)[1]


def test_one_frame_gif_is_a_fine_one_frame_clip(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.gif")
    folder = ClipFolder(tmp_path, [ClipRecord(tmp_path / "a.gif", (), None, None)], None, [])
    item = ClipDataset(folder, num_frames=1, height=8, width=8)[(0, 1)]
    assert (item["caption"], item["captions"], item["label"]) == ("", (), -1)
    assert item["frames"][0, :, 4, 4].tolist() == [255, 0, 0]


def test_bad_arguments(clip_folder: Path) -> None:
    for change in ({"num_frames": 0}, {"height": -1}, {"width": 0}, {"frame_stride": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            make_dataset(clip_folder, **change)
    with pytest.raises(ValueError, match="no videos"):
        make_dataset_of(ClipFolder(clip_folder, [], None, []))
    dataset = make_dataset(clip_folder)
    for index in (5, -1):
        with pytest.raises(IndexError):
            dataset[index]


def test_frame_folders_are_clips(tmp_path: Path, make_frames: MakeFrames) -> None:
    (tmp_path / "walk/one").mkdir(parents=True)
    for k, frame in enumerate(make_frames(5, 16, 16)):
        Image.fromarray(frame).save(tmp_path / f"walk/one/{k:04d}.png")
    assert make_dataset(tmp_path)[0]["frames"].shape == (4, 3, 16, 16)


def test_through_a_data_loader(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "clips")
    (tmp_path / "clips/videos/2.mp4").write_text("words")
    dataset = make_dataset(tmp_path / "clips")
    batches = []
    for num_workers in (0, 2):
        sampler = StepSampler(len(dataset), 3, seed=0, num_steps=4)
        loader = torch.utils.data.DataLoader(
            dataset, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers
        )
        batches.append(list(loader))
    assert len(batches[0]) == len(batches[1]) == 4
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one["frames"], two["frames"])
        assert one["caption"] == two["caption"]
        assert one["skipped"] == two["skipped"]
    batch = batches[0][0]
    assert batch["frames"].shape == (3, 4, 3, 16, 16)
    assert batch["label"].shape == batch["index"].shape == (3,)
    assert len(batch["caption"]) == len(batch["captions"]) == len(batch["path"]) == 3
    assert any("2.mp4" in line for b in batches[0] for line in b["skipped"])


sizes = st.integers(1, 40)


@settings(max_examples=50, deadline=None)
@given(num_items=sizes, batch_size=sizes, seed=st.integers(0, 2**32), start=st.integers(0, 12))
def test_a_resumed_sampler_is_the_tail_of_the_whole(num_items: int, batch_size: int, seed: int, start: int) -> None:
    whole = list(StepSampler(num_items, batch_size, seed, num_steps=12))
    resumed = StepSampler(num_items, batch_size, seed, start_step=start, num_steps=12)
    assert list(resumed) == whole[start:]
    assert len(resumed) == len(whole[start:])
    assert all(len(batch) == batch_size for batch in whole)


@settings(max_examples=50, deadline=None)
@given(num_items=sizes, batch_size=sizes, seed=st.integers(0, 2**32))
def test_each_epoch_covers_every_item_once(num_items: int, batch_size: int, seed: int) -> None:
    num_steps = -(-3 * num_items // batch_size)
    pairs = [pair for batch in StepSampler(num_items, batch_size, seed, num_steps=num_steps) for pair in batch]
    for epoch in range(3):
        indices = [index for index, _ in pairs[epoch * num_items : (epoch + 1) * num_items]]
        assert sorted(indices) == list(range(num_items))


def test_epochs_and_seeds_differ() -> None:
    def orders(seed: int) -> list[list[tuple[int, int]]]:
        return list(StepSampler(50, 50, seed, num_steps=3))

    epochs = [[index for index, _ in batch] for batch in orders(0)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert orders(0) == orders(0) != orders(1)
    seeds = [seed for batch in orders(0) for _, seed in batch]
    assert len(set(seeds)) == len(seeds), "an item gets another seed each epoch"


def test_weights_are_shares_of_an_epoch() -> None:
    weights = [1.0, 0.5, 0.5, 2.0]  # of 4 items an epoch: 1, 0.5, 0.5 and 2
    sampler = StepSampler(4, 4, seed=0, num_steps=200, weights=weights)
    counts = [Counter(index for index, _ in batch) for batch in sampler]
    for epoch in counts:
        assert epoch[0] == 1 and epoch[3] == 2 and epoch[1] + epoch[2] == 1
    assert 70 < sum(epoch[1] for epoch in counts) < 130
    resumed = StepSampler(4, 4, seed=0, start_step=150, num_steps=200, weights=weights)
    assert [Counter(index for index, _ in batch) for batch in resumed] == counts[150:]
    equal_weights = StepSampler(4, 4, seed=0, num_steps=3, weights=[2.0] * 4)
    assert list(equal_weights) == list(StepSampler(4, 4, seed=0, num_steps=3))


def test_sampler_far_into_a_run_is_cheap() -> None:
    """Resuming computes nothing for the steps before."""
    batch = next(iter(StepSampler(1000, 8, 0, start_step=10**9)))
    assert len(batch) == 8


def test_sampler_refuses_bad_arguments() -> None:
    for arguments in [(0, 1, 0), (1, 0, 0), (5, 5, -1), (5, 5, 0, -1), (5, 5, 0, 0, -1)]:
        with pytest.raises(ValueError):
            StepSampler(*arguments)


def test_emoji_clip(shared_data: Path) -> None:
    folder = read_clip_folder(shared_data / "fluent-emoji-anim", split="heldout")
    item = ClipDataset(folder, num_frames=16, height=64, width=64)[0]
    direct = read_video(folder.records[0].path).frames
    assert np.array_equal(item["frames"].permute(0, 2, 3, 1).numpy(), direct)
    assert item["caption"] == folder.records[0].captions[0]


def test_written_gifs_are_clips(tmp_path: Path, make_frames: MakeFrames) -> None:
    (tmp_path / "jump").mkdir()
    write_video(tmp_path / "jump/a.gif", make_frames(6, 16, 16), 8)
    item = make_dataset(tmp_path)[(0, 0)]
    assert (item["label"], item["skipped"]) == (0, [])


def test_open_clips_prints_what_is_wrong_with_the_list(clip_folder: Path, tmp_path: Path, capsys) -> None:
    rows = [{"file_name": str(clip_folder / "videos/0.mp4"), "caption": "a"}, {"file_name": "gone.mp4", "caption": "b"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips = open_clips(ClipConfig(train_data_dir=str(tmp_path), num_frames=4, height=8, width=8))
    assert len(clips) == 1
    assert "line 2: gone.mp4: no such file" in capsys.readouterr().err


def test_rows_without_a_file_count_as_bad_ones(clip_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(clip_folder / "videos", tmp_path / "videos").parent
    rows = [{"file_name": f"videos/{k}.mp4", "text": "a"} for k in (0, *range(100, 130))]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = EncodeConfig(
        train_data_dir=str(data), latents_only=True, output_dir="x", num_frames=4, height=16, width=16
    )
    with pytest.raises(ValueError, match=r"30 bad files among 31 tried, more than max_bad_fraction=0.01"):
        open_clips(config)
    assert len(open_clips(replace(config, max_bad_fraction=0.98))) == 1


def test_a_disk_that_stalls_once_makes_no_file_bad(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the data are is a function of (seed, index), not of how fast they came."""
    folder = read_clip_folder(clip_folder, split="train")
    whole = ClipDataset(folder, num_frames=4, height=16, width=16)[0]
    stalls = [SlowVideoError("takes longer than 30 s"), OSError("Input/output error")]

    def stall(*args: Any, **kwargs: Any) -> Any:
        if stalls:
            raise stalls.pop(0)
        return read_clip(*args, **kwargs)

    monkeypatch.setattr(clips, "read_clip", stall)
    dataset = ClipDataset(folder, num_frames=4, height=16, width=16)
    assert "Input/output error" in dataset[0]["skipped"][0], "twice in a row: another one for now"
    assert dataset[0]["path"] == whole["path"] and not dataset[0]["skipped"], "but it is not remembered"
    stalls.append(SlowVideoError("takes longer than 30 s"))
    assert torch.equal(dataset[0]["frames"], whole["frames"])


@pytest.mark.parametrize(
    ("seconds", "said"), [("1e-6", "takes longer than 1e-06 s"), ("nan", "READ_SECONDS is 'nan': seconds above 0")]
)
def test_how_long_reading_may_take_is_a_setting(clip_folder: Path, seconds: str, said: str) -> None:
    code = "import sys; from contentmotion.video.reader import probe_video; probe_video(sys.argv[1])"
    file = str(clip_folder / "videos/0.mp4")
    _, errors = warm.python(code, file, env={"CONTENTMOTION_READ_SECONDS": seconds}).communicate(120)
    assert said in errors.splitlines()[-1]
