"""How clips are cut: frame rates, seeking, crops, flips, sources, buckets."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from contentmotion.config import EncodeConfig, TrainAutoencoderConfig
from contentmotion.data import clips
from contentmotion.data.buckets import choose_bucket
from contentmotion.data.clips import ClipDataset, ClipShape, make_clip
from contentmotion.data.formats import ClipFolder, read_clip_folder
from contentmotion.data.records import ClipRecord
from contentmotion.data.samplers import BucketSampler, make_sampler
from contentmotion.train.autoencoder import open_training_clips
from contentmotion.video.reader import read_clip, read_video
from contentmotion.video.resize import fit_frame
from contentmotion.video.sources import TarMember
from contentmotion.video.timeline import Timeline, VideoError, VideoInfo, choose_frames

MakeFrames = Callable[..., np.ndarray]
NUM = 60


def encode(path: Path, codec: str, options: dict[str, str], stamps: list[int] | None = None) -> None:
    """60 distinct frames at 30 fps, or shown at `stamps` (ms)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        y, x = np.mgrid[:48, :64]
        for k in range(NUM):
            waves = [np.sin((x + 5 * k) / 20), np.sin((y - 3 * k) / 15), np.sin((x + y + 2 * k) / 40)]
            frame = (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if stamps is not None:
                picture.pts, picture.time_base = stamps[k], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


UNEVEN = np.cumsum(np.random.default_rng(1).integers(20, 60, NUM)).tolist()
VIDEOS = {
    "default.mp4": ("libx264", {}, None),
    "short_groups.mp4": ("libx264", {"g": "10"}, None),
    "open_groups.mp4": ("libx264", {"g": "12", "x264-params": "open-gop=1:scenecut=0"}, None),
    "uneven.mp4": ("libx264", {"g": "12"}, UNEVEN),
    "uneven.mkv": ("libx264", {"g": "12"}, UNEVEN),
    "vp9.webm": ("libvpx-vp9", {"g": "15"}, None),
    "plain.avi": ("mpeg4", {"g": "12"}, None),
    "unordered.avi": ("mpeg4", {"g": "12", "bf": "2"}, None),
    "stream.ts": ("libx264", {"g": "12"}, None),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_seeking_gives_the_frames_of_a_full_decode(tmp_path: Path, name: str) -> None:
    codec, options, stamps = VIDEOS[name]
    encode(tmp_path / name, codec, options, stamps)
    whole = read_video(tmp_path / name).frames
    assert len(whole) == NUM
    for stride in (1, 2, 7):
        slack = NUM - (7 * stride + 1)
        for position in (None, 0.0, 0.3, 0.62, 0.999):
            clip = read_clip(tmp_path / name, num_frames=8, frame_stride=stride, position=position)
            start = slack // 2 if position is None else int(position * (slack + 1))
            assert np.array_equal(clip.frames, whole[start : start + 7 * stride + 1 : stride]), (stride, position)


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv"])
def test_target_fps_goes_by_the_timestamps(tmp_path: Path, name: str) -> None:
    codec, options, stamps = VIDEOS[name]
    encode(tmp_path / name, codec, options, stamps)
    whole = read_video(tmp_path / name).frames
    clip = read_clip(tmp_path / name, num_frames=8, fps=8, position=0.4)
    times = np.array(UNEVEN) / 1000 - UNEVEN[0] / 1000
    for k, frame in enumerate(clip.frames):
        number = int(np.argmax([np.array_equal(frame, true) for true in whole]))
        assert np.array_equal(frame, whole[number])
        assert clip.times[k] == pytest.approx(times[number], abs=2e-3)
        wanted = clip.times[0] + k / 8
        assert times[number] <= wanted + 0.01 and (times[number + 1] > wanted), "the frame on the screen at that time"


def test_choose_frames() -> None:
    even = Timeline(90, 30.0)
    assert choose_frames(even, 4, 2)[0].tolist() == [41, 43, 45, 47]
    assert choose_frames(even, 4, 2, position=0.0)[0].tolist() == [0, 2, 4, 6]
    assert choose_frames(even, 4, 2, position=0.999)[0].tolist() == [83, 85, 87, 89]
    assert choose_frames(even, 4, fps=15, position=0.999)[0].tolist() == [83, 85, 87, 89], "as stride 2"
    assert choose_frames(even, 4, fps=8, position=0.0)[0].tolist() == [0, 3, 7, 11]
    assert choose_frames(Timeline(90, 30000 / 1001), 4, fps=30, position=0.0)[0].tolist() == [0, 1, 2, 3]
    assert choose_frames(Timeline(16, 8.0), 16, fps=8, position=0.7)[0].tolist() == list(range(16))
    with pytest.raises(ValueError, match="24 frames per second, 30 needed"):
        choose_frames(Timeline(90, 24.0), 4, fps=30)
    with pytest.raises(ValueError, match=r"3\.00 s, 3\.\d\d s needed"):
        choose_frames(even, 26, fps=8)
    starts = {int(choose_frames(Timeline(10, 10.0), 4, fps=10, position=p)[0][0]) for p in np.linspace(0, 0.999, 50)}
    assert starts == set(range(7)), "every start is possible"


def test_sources_are_alike(clip_folder: Path, tmp_path: Path) -> None:
    path = clip_folder / "videos/2.mp4"
    content = path.read_bytes()
    (tmp_path / "shard.tar").write_bytes(b"x" * 1000 + content + b"y" * 500)
    member = TarMember(tmp_path / "shard.tar", 1000, len(content), "2.mp4")
    want = read_clip(path, num_frames=4).frames
    for source in (str(path), content, member):
        assert np.array_equal(read_clip(source, num_frames=4).frames, want)
    with pytest.raises(VideoError, match=r"shard\.tar/2\.mp4"):
        read_clip(TarMember(tmp_path / "shard.tar", 1000, len(content) // 2, "2.mp4"), num_frames=4)
    record = ClipRecord(Path("2.mp4"), ("a",), None, None)
    item = make_clip(record, ClipShape(4, 16, 16), seed=3, index=7, source=content)
    assert item["frames"].shape == (4, 3, 16, 16) and item["index"] == 7


def test_resize_modes() -> None:
    frame = np.zeros((20, 40, 3), np.uint8)
    frame[:, 10:30] = 200
    assert (fit_frame(frame, 10, 10) == 200).all()
    padded = fit_frame(frame, 20, 20, "pad")
    assert (padded[:5] == 0).all() and (padded[15:] == 0).all() and (padded[8:12, 8:12] == 200).all()
    assert fit_frame(frame, 10, 10, "random").shape == (10, 20, 3)
    assert fit_frame(frame, 20, 80, "pad", pixel_aspect=2.0)[10, 30].tolist() == [200] * 3, "wide pixels are widened"
    with pytest.raises(ValueError, match="less than 1/16"):
        fit_frame(np.zeros((2, 200, 3), np.uint8), 16, 16)


def dataset(root: Path, **changes) -> ClipDataset:
    return ClipDataset(read_clip_folder(root), **({"num_frames": 4, "height": 16, "width": 16} | changes))


@pytest.mark.parametrize("changes", [{"resize_mode": "random"}, {"resize_mode": "pad"}, {"fps": 4}])
def test_memory_changes_nothing(clip_folder: Path, changes: dict) -> None:
    plain, kept = dataset(clip_folder, **changes), dataset(clip_folder, cache_in_memory=True, **changes)
    for item in [(0, 1), (2, 7), 3]:
        assert torch.equal(plain[item]["frames"], kept[item]["frames"])


def test_memory_is_bounded(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dataset(clip_folder, num_frames=1)
    size = 10 * 24 * 32 * 3  # of a video, as stored
    for budget, num_kept in ((4 * size, 4), (4 * size - 1, 0)):  # a video's share of it is a quarter
        monkeypatch.setattr(clips, "KEPT_BYTES", budget)
        kept = dataset(clip_folder, num_frames=1, cache_in_memory=True)
        for item in [(0, 1), (1, 5), (2, 7), 3, (0, 1)]:
            assert torch.equal(plain[item]["frames"], kept[item]["frames"])
        assert sum(whole is not None for whole in kept._kept.values()) == num_kept
    monkeypatch.setattr(clips, "KEPT_BYTES", 4 * size)
    kept = dataset(clip_folder, num_frames=1, height=24, width=32, cache_in_memory=True)
    kept._room = 2 * size + 1
    assert [kept[k]["index"] for k in range(4)] == [0, 1, 2, 3]
    assert [whole is not None for whole in kept._kept.values()] == [True, True, False, False]


def test_one_clip_of_each_video_takes_no_whole_videos(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipDataset, "_whole", None)
    size = {"num_frames": 4, "height": 16, "width": 16}
    config = TrainAutoencoderConfig(train_data_dir=str(clip_folder), output_dir="o", cache_latents=True, **size)
    assert len(open_training_clips(config, None)[0]) == 4  # type: ignore[arg-type]


def test_what_is_drawn_is_refused_where_clips_are_cut_once(clip_folder: Path) -> None:
    paths = {"train_data_dir": str(clip_folder), "output_dir": "o"}
    for drawn, flag in (
        ({"random_flip": True}, "--random_flip true"),
        ({"resize_mode": "random"}, "--resize_mode ran"),
    ):
        with pytest.raises(ValueError, match=f"{flag}.* is drawn for each .* --num_clips_per_video 2"):
            EncodeConfig(**paths, latents_only=True, **drawn)
        EncodeConfig(**paths, latents_only=True, num_clips_per_video=2, **drawn)
        with pytest.raises(ValueError, match=f"{flag}.* goes without --cache_latents true"):
            TrainAutoencoderConfig(**paths, cache_latents=True, **drawn)
        with pytest.raises(ValueError, match=f"{flag}.* changes nothing of a latent cache"):
            TrainAutoencoderConfig(latent_cache="c", output_dir="o", **drawn)
        TrainAutoencoderConfig(**paths, **drawn)


def test_crops_and_flips_are_drawn_by_the_seed(clip_folder: Path) -> None:
    cropped = dataset(clip_folder, num_frames=10, resize_mode="random")
    assert len({cropped[(0, seed)]["frames"].numpy().tobytes() for seed in range(8)}) > 3
    flipping, plain = dataset(clip_folder, num_frames=10, random_flip=True), dataset(clip_folder, num_frames=10)
    mirrored = 0
    for seed in range(12):
        one, other = flipping[(0, seed)]["frames"], plain[(0, seed)]["frames"]
        assert torch.equal(one, other) or torch.equal(one, other.flip(-1))
        mirrored += not torch.equal(one, other)
    assert 1 < mirrored < 11
    assert torch.equal(flipping[0]["frames"], plain[0]["frames"]), "never without a seed"


def test_buckets() -> None:
    buckets = [(16, 64, 64), (1, 64, 64), (16, 36, 64), (16, 72, 128)]
    info = {"fps": 8.0, "rotation": 0, "has_audio": False, "codec": "h264"}
    for (frames, height, width), bucket in {
        (16, 256, 256): 0,
        (15, 256, 256): 1,
        (40, 720, 1280): 3,
        (40, 50, 90): 2,
        (3, 720, 1280): 1,
    }.items():
        video = VideoInfo(num_frames=frames, duration=frames / 8, height=height, width=width, **info)
        assert choose_bucket(video, buckets) == bucket, (frames, height, width)
    short = VideoInfo(num_frames=3, duration=3 / 8, height=64, width=64, **info)
    assert choose_bucket(short, [(4, 64, 64)]) == -1


def test_bucket_batches() -> None:
    bucket_of = np.array([0, 1, 0, 2, -1, 0, 1, 0, 0, 2, 0])
    batches = list(BucketSampler(bucket_of, 4, seed=0, num_steps=60))
    assert all(len({bucket_of[index] for index, _ in batch}) == 1 and len(batch) == 4 for batch in batches)
    seen = np.bincount([index for batch in batches for index, _ in batch], minlength=11)
    assert seen[4] == 0 and seen[bucket_of == 0].min() > 20
    for bucket in range(3):
        counts = seen[bucket_of == bucket]
        assert counts.max() - counts.min() <= 1, "every item as often as the others of its bucket"
    assert abs(seen[0] - seen[1]) <= 4, "and of the other buckets, but for batches not full yet"
    for start in (1, 7, 33, 59):
        assert list(BucketSampler(bucket_of, 4, seed=0, start_step=start, num_steps=60)) == batches[start:]
    far = next(iter(BucketSampler(bucket_of, 4, seed=0, start_step=10**9)))
    assert len(far) == 4
    with pytest.raises(ValueError, match="no item"):
        BucketSampler(np.array([-1, -1]), 4, seed=0)


def test_bad_files_are_replaced_from_their_own_bucket(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("words")
    good = [clip_folder / f"videos/{k}.mp4" for k in range(3)]
    records = [ClipRecord(path, (), None, None) for path in [tmp_path / "bad.mp4", *good]]
    clips = ClipDataset(
        ClipFolder(tmp_path, records, None, []),
        num_frames=4,
        height=16,
        width=16,
        buckets=[(4, 16, 16), (2, 8, 16)],
        bucket_of=np.array([1, 0, 0, 1]),
    )
    item = clips[(0, 1)]
    assert item["index"] == 3 and item["frames"].shape == (2, 3, 8, 16) and len(item["skipped"]) == 1
    assert {len(batch) for batch in make_sampler(clips, 3, seed=0, num_steps=5)} == {3}
