from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from contentmotion.video.reader import probe_video, read_clip, read_video
from contentmotion.video.timeline import VideoError
from contentmotion.video.write import (
    _fonts,
    _has,
    read_metadata,
    readable,
    write_contact_sheet,
    write_picture,
    write_video,
    writing_video,
)

MakeFrames = Callable[..., np.ndarray]


def mean_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("fps", [8, 10, 12.5])
def test_round_trip_keeps_frames_and_speed(tmp_path: Path, suffix: str, fps: float, make_frames: MakeFrames) -> None:
    frames = make_frames(8, 48, 64)
    path = tmp_path / f"clip{suffix}"
    write_video(path, frames, fps)
    video = read_video(path)
    assert video.frames.shape == frames.shape
    assert video.frames.dtype == np.uint8
    assert video.fps == pytest.approx(fps, rel=0.02)
    assert mean_error(video.frames, frames) < 4
    # The frames are in order: each is nearest to its own original.
    distances = [[mean_error(read, true) for true in frames] for read in video.frames]
    assert np.argmin(distances, axis=1).tolist() == list(range(8))
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary file is left"


@pytest.mark.parametrize(("suffix", "shape"), [(".mp4", (26, 32)), (".webm", (26, 32)), (".gif", (25, 31))])
def test_odd_sizes_are_padded_by_their_edge(
    tmp_path: Path, suffix: str, shape: tuple[int, int], make_frames: MakeFrames
) -> None:
    frames = make_frames(3, 25, 31)
    write_video(tmp_path / f"odd{suffix}", frames, 8)
    read = read_video(tmp_path / f"odd{suffix}").frames
    assert read.shape[1:3] == shape
    assert mean_error(read[:, :25, :31], frames) < 6


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_the_same_frames_give_the_same_file(tmp_path: Path, suffix: str) -> None:
    """x264's mbtree broke this for about every fourth clip of 64x64 pixels."""
    random = np.random.default_rng(0)
    for _ in range(4):
        coarse = random.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
        frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
        contents = set()
        for _ in range(4):
            write_video(tmp_path / f"clip{suffix}", frames, 8)
            contents.add((tmp_path / f"clip{suffix}").read_bytes())
        assert len(contents) == 1


def test_mp4_plays_in_browsers(tmp_path: Path, make_frames: MakeFrames) -> None:
    write_video(tmp_path / "clip.mp4", make_frames(4, 32, 32), 8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    content = (tmp_path / "clip.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index comes first, so playing starts at once"


def test_gif_loops_and_single_frames_work(tmp_path: Path, make_frames: MakeFrames) -> None:
    write_video(tmp_path / "clip.gif", make_frames(4, 20, 20), 8)
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.info["loop"] == 0
    for suffix in (".gif", ".mp4", ".webm"):
        write_video(tmp_path / f"one{suffix}", make_frames(1, 20, 20), 8)
        assert read_video(tmp_path / f"one{suffix}").frames.shape == (1, 20, 20, 3)


def test_still_frames_stay_in_a_gif(tmp_path: Path, make_frames: MakeFrames) -> None:
    """Pillow merges equal frames into one that lasts longer; the video still lasts as long."""
    write_video(tmp_path / "still.gif", np.repeat(make_frames(1, 20, 20), 6, axis=0), 8)
    video = read_video(tmp_path / "still.gif")
    assert len(video.frames) / video.fps == pytest.approx(6 / 8, abs=0.02)


def test_frames_that_a_gif_merges_come_back(tmp_path: Path, make_frames: MakeFrames) -> None:
    frames = make_frames(9, 20, 20)[[0, 0, 0, 1, 2, 2, 3, 4, 4]]
    write_video(tmp_path / "a.gif", frames, 8)
    video = read_video(tmp_path / "a.gif")
    assert len(video.frames) == 9 and video.fps == pytest.approx(8, rel=0.02)
    assert np.array_equal(video.frames[0], video.frames[2]) and mean_error(video.frames, frames) < 4
    clip = read_clip(tmp_path / "a.gif", num_frames=4, position=0)
    assert mean_error(clip.frames, frames[:4]) < 4
    write_video(tmp_path / "still.gif", frames[:1].repeat(6, axis=0), 8)
    assert len(read_video(tmp_path / "still.gif").frames) == 6


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_hd_has_the_colours_of_hd(tmp_path: Path, suffix: str) -> None:
    """Red in BT.601, read as BT.709, comes back as 255, 24, 0."""
    red = np.zeros((1, 720, 64, 3), np.uint8)
    red[..., 0] = 254
    write_video(tmp_path / f"hd{suffix}", red, 8)
    with av.open(str(tmp_path / f"hd{suffix}")) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 1, 1)
    assert np.abs(read_video(tmp_path / f"hd{suffix}").frames.mean((0, 1, 2)) - (254, 0, 0)).max() < 4


@pytest.mark.parametrize("height", [704, 720])
def test_untagged_colours_are_those_of_the_size(tmp_path: Path, height: int) -> None:
    """As ffmpeg writes YUV that nothing is said about: BT.601 below 720 lines, BT.709 from there on."""
    red = np.zeros((height, 64, 3), np.uint8)
    red[..., 0] = 254
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = height, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(red, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709" if height == 720 else "ITU601")
        frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(read_video(tmp_path / "a.mp4").frames.mean((0, 1, 2)) - (254, 0, 0)).max() < 4


def test_max_frames(tmp_path: Path, make_frames: MakeFrames) -> None:
    frames = make_frames(6, 24, 24)
    for suffix in (".mp4", ".gif"):
        path = tmp_path / f"clip{suffix}"
        write_video(path, frames, 8)
        assert np.array_equal(read_video(path, max_frames=2).frames, read_video(path).frames[:2])
        assert len(read_video(path, max_frames=100).frames) == 6
    with pytest.raises(ValueError, match="max_frames"):
        read_video(path, max_frames=0)


def test_frame_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path, make_frames: MakeFrames) -> None:
    frames = make_frames(12, 16, 20)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame_{k}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert np.array_equal(read_video(tmp_path).frames, frames)
    assert np.array_equal(read_video(tmp_path, max_frames=3).frames, frames[:3])


def test_animated_webp_is_put_on_white(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (16, 16), (255, 0, 0, 0)), Image.new("RGBA", (16, 16), (0, 0, 255, 255))]
    options = {"save_all": True, "append_images": frames[1:], "duration": 100, "lossless": True}
    frames[0].save(tmp_path / "clip.webp", **options)
    video = read_video(tmp_path / "clip.webp")
    assert video.frames[:, 0, 0].tolist() == [[255, 255, 255], [0, 0, 255]]
    assert video.fps == pytest.approx(10)


def test_names_that_ffmpeg_would_take_for_protocols(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_frames: MakeFrames
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video("pipe:1.mp4", make_frames(2, 16, 16), 8)
    assert len(read_video("pipe:1.mp4").frames) == 2


@pytest.mark.parametrize(
    ("name", "shape", "fps"),
    [
        ("bikes.mp4", (250, 272, 640, 3), 25),
        ("carphone.mp4", (120, 144, 176, 3), 29.97),
        ("carphone_distorted.mp4", (120, 144, 176, 3), 29.97),
        ("tree.avi", (68, 240, 320, 3), 15),
        ("ucf101_ApplyEyeMakeup.avi", (164, 240, 320, 3), 25),
    ],
)
def test_real_clips(shared_data: Path, name: str, shape: tuple[int, ...], fps: float) -> None:
    video = read_video(shared_data / "real-clips/videos" / name)
    assert video.frames.shape == shape
    assert video.fps == pytest.approx(fps, rel=1e-3)
    assert video.frames.std() > 10


def _bad_files(folder: Path, make_frames: MakeFrames) -> dict[str, Path]:
    write_video(folder / "good.mp4", make_frames(8, 48, 48), 8)
    write_video(folder / "good.gif", make_frames(8, 48, 48), 8)
    mp4, gif = (folder / "good.mp4").read_bytes(), (folder / "good.gif").read_bytes()
    random = np.random.default_rng(0).bytes(4000)
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n"
    contents = {
        "truncated.mp4": mp4[: len(mp4) * 2 // 3],
        "header_only.mp4": mp4[:40],
        "garbage.mp4": random,
        "text.mp4": b"These are words, not pictures.\n" * 50,
        "playlist.mp4": playlist,
        "empty.mp4": b"",
        "text.avi": b"words\n" * 100,
        "garbage.webm": random,
        "garbage.gif": random,
        "cut_short.gif": gif[: len(gif) // 2],
        "empty.gif": b"",
        "text.webp": b"words",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "no_frames").mkdir()
    (folder / "no_frames/readme.txt").write_text("no pictures")
    (folder / "bad_frame").mkdir()
    (folder / "bad_frame/1.png").write_bytes(random)
    (folder / "two_sizes").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "two_sizes/1.png")
    Image.new("RGB", (8, 9)).save(folder / "two_sizes/2.png")
    return {name: folder / name for name in [*contents, "no_frames", "bad_frame", "two_sizes"]}


def test_bad_files_give_one_line_that_names_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make_frames: MakeFrames
) -> None:
    for name, path in _bad_files(tmp_path, make_frames).items():
        with pytest.raises(VideoError) as caught:
            read_video(path)
        message = str(caught.value)
        assert str(path) in message, name
        assert "\n" not in message, name
    assert capfd.readouterr().err == "", "ffmpeg's own lines stay away from the user"


def test_one_short_frame_is_no_rate(tmp_path: Path, make_frames: MakeFrames) -> None:
    images = [Image.fromarray(frame) for frame in make_frames(6, 20, 20)]
    lasts = [120, 120, 250, 120, 120, 10]  # the third stands for two
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=lasts)
    info = probe_video(tmp_path / "a.gif")
    assert (info.num_frames, round(info.fps, 2)) == (7, round(7 / 0.74, 2))
    images[0].save(tmp_path / "b.gif", save_all=True, append_images=images[1:3], duration=[120, 250, 500])
    assert probe_video(tmp_path / "b.gif").num_frames == 1 + 2 + 4  # one alone may be the rate, too


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_cut_anywhere_a_file_is_read_or_refused(tmp_path: Path, make_frames: MakeFrames, suffix: str) -> None:
    """Decoders fail in many ways on cut and changed files; VideoError is the only one that comes out."""
    path = tmp_path / f"clip{suffix}"
    frames = make_frames(3, 16, 16)
    if suffix == ".webp":
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=100)
    else:
        write_video(path, frames, 8)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for length in range(1, len(content), max(1, len(content) // 60)):
        changed = bytearray(content)
        changed[int(random.integers(len(content)))] ^= 0xFF
        for spoiled in (content[:length], changed):
            path.write_bytes(spoiled)
            try:
                read = read_video(path).frames
                assert read.ndim == 4 and read.dtype == np.uint8
            except VideoError:
                refused += 1
    assert refused > 20


def test_audio_without_pictures(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        read_video(tmp_path / "sound.mp4")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4: no such file"):
        read_video(tmp_path / "nothing.mp4")


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_write_refuses_other_frames(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "clip.mp4", frames, 8)
    assert not list(tmp_path.iterdir())


def test_write_refuses_other_arguments(tmp_path: Path, make_frames: MakeFrames) -> None:
    frames = make_frames(2, 8, 8)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps"):
            write_video(tmp_path / "clip.mp4", frames, fps)
    for name in ("clip.xyz", "clip"):
        with pytest.raises(ValueError, match=r"use \.mp4"):
            write_video(tmp_path / name, frames, 8)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_video(tmp_path / "none/clip.mp4", frames, 8)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_a_video_of_no_frames_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    with pytest.raises(ValueError, match=f"^{path}: no frames to write$"), writing_video(path, 8):
        pass
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file(tmp_path: Path, make_frames: MakeFrames) -> None:
    path = tmp_path / "clip.webm"
    write_video(path, make_frames(2, 16, 16), 8)
    before = path.read_bytes()
    with pytest.raises((OSError, ValueError)):
        write_video(path, np.zeros((1, 2, 70_000, 3), np.uint8), 8)  # wider than VP9 allows
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["clip.webm"]


def test_contact_sheet(tmp_path: Path) -> None:
    red, blue = np.zeros((16, 64, 64, 3), np.uint8), np.zeros((3, 32, 32, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    red[-1] = (0, 255, 0)
    write_contact_sheet(tmp_path / "sheet.png", [red, blue], ["a red video", "a blue one"])
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    count = {name: (pixels == colour).all(-1).sum() for name, colour in COLOURS.items()}
    assert count["red"] == 7 * 128**2, "seven frames, twice as large, and the last one"
    assert count["green"] == 128**2
    assert count["blue"] == 3 * 96**2, "a short video shows all its frames; tiny ones grow threefold"
    assert count["black"] > 20, "captions are drawn"


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


def test_contact_sheet_wraps_long_captions(tmp_path: Path) -> None:
    video = np.full((2, 64, 64, 3), 255, np.uint8)
    heights = []
    for caption in ("short", "a caption of many words " * 10):
        write_contact_sheet(tmp_path / "sheet.png", [video], [caption])
        with Image.open(tmp_path / "sheet.png") as image:
            heights.append(image.height)
            edge = np.asarray(image.convert("L"))[:, -4:]
        assert edge.min() == 255, "no text runs over the margin"
    assert heights[1] > heights[0] + 40


def test_contact_sheet_refuses_nothing(tmp_path: Path, make_frames: MakeFrames) -> None:
    with pytest.raises(ValueError, match="one caption each"):
        write_contact_sheet(tmp_path / "sheet.png", [], [])
    with pytest.raises(ValueError, match="1 videos, 2 captions"):
        write_contact_sheet(tmp_path / "sheet.png", [make_frames(2, 8, 8)], ["a", "b"])


def test_contact_sheet_of_many_is_several_pages(tmp_path: Path, make_frames: MakeFrames) -> None:
    def write(count: int) -> list[Path]:
        return write_contact_sheet(tmp_path / "sheet.png", [make_frames(2, 8, 8)] * count, ["x"] * count)

    (tmp_path / "sheet-of-mine.png").touch()
    assert [path.name for path in write(45)] == ["sheet.png", "sheet-2.png", "sheet-3.png"]
    with Image.open(tmp_path / "sheet-3.png") as last, Image.open(tmp_path / "sheet.png") as first:
        assert first.height > 3 * last.height
    assert len(write(20)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet-of-mine.png", "sheet.png"], "no page of before"


def test_captions_in_characters_that_there_are(tmp_path: Path, make_frames: MakeFrames) -> None:
    """Pillow's own font has those of English: what it lacks is spelt out, and never a box."""
    own = _fonts()[-1]
    assert readable("a red car", own) == "a red car"
    assert readable("a \U0001f63f cat\ufe0f", own) == "a [crying cat face] cat"
    assert readable("\u732b", own) == "[U+732B]"
    assert readable("caf\u1eb9", own) == "cafe"
    for font in _fonts():
        assert all(_has(font, character) for character in readable("n\u00e4ch\u0161te \U0001f63f \u732b", font))


ABOUT = {"generated": "by a model", "prompt": 'a "crying" cat\n猫 é', "seed": "7"}


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_metadata_of_a_video_is_found_again(suffix: str, tmp_path: Path, make_frames) -> None:
    told, silent = tmp_path / f"told.{suffix}", tmp_path / f"silent.{suffix}"
    frames = make_frames(4, 16, 16)
    write_video(told, frames, 8, ABOUT)
    write_video(silent, frames, 8)
    assert read_metadata(told) == ABOUT
    assert read_metadata(silent) == {}
    assert np.array_equal(read_video(told).frames, read_video(silent).frames)


def test_metadata_of_a_picture_is_found_again(tmp_path: Path, make_frames) -> None:
    write_contact_sheet(tmp_path / "sheet.png", [make_frames(4, 16, 16)], ["x"], metadata=ABOUT)
    write_picture(tmp_path / "silent.png", Image.fromarray(make_frames(1, 16, 16)[0]))
    assert read_metadata(tmp_path / "sheet.png") == ABOUT
    assert read_metadata(tmp_path / "silent.png") == {}
