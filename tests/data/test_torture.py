"""Files as they come from the wild: each is read rightly or refused with its reason, in bounded time and memory."""

import os
import re
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from contentmotion.data.clips import ClipDataset
from contentmotion.data.formats import ClipFolder
from contentmotion.data.records import ClipRecord
from contentmotion.video.ffmpeg import FfmpegVideo
from contentmotion.video.pictures import read_picture
from contentmotion.video.reader import probe_video, read_clip, read_video
from contentmotion.video.timeline import Limits, VideoError
from contentmotion.video.write import write_video

FRAMES = 4  # of the clips that are asked for
RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    rate: int = 8,
    stamps: list[int] | None = None,
    ticks: int = 1000,
    sound: bool = False,
    **options: str,
) -> None:
    """Writes uint8 RGB(A) frames with real encoders; `stamps` are in 1/ticks s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        noise = container.add_stream("aac", rate=8000) if sound else None
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, ticks)
        for k, frame in enumerate(frames):
            kind = "rgba" if frame.shape[2] == 4 else "rgb24"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=kind)
            if stamps is not None:
                picture.pts, picture.time_base = stamps[k], Fraction(1, ticks)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if noise is not None:
            assert isinstance(noise, av.AudioStream)
            for k in range(40):
                part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                part.sample_rate, part.pts = 8000, 1024 * k
                container.mux(noise.encode(part))
            container.mux(noise.encode())


def colours(count: int = 8, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames that go from red to blue in equal steps."""
    steps = np.linspace(0, 1, count)[:, None]
    shades = np.array(RED) * (1 - steps) + np.array(BLUE) * steps
    return np.broadcast_to(shades[:, None, None].round().astype(np.uint8), (count, height, width, 3))


def halves() -> np.ndarray:
    """8 frames, 32x48: upper half red, lower half blue."""
    frames = np.empty((8, 32, 48, 3), np.uint8)
    frames[:, :16], frames[:, 16:] = RED, BLUE
    return frames


def noise(count: int = 60) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


Check = Callable[[np.ndarray], None]


def near(frame: np.ndarray, colour: tuple[int, int, int], tolerance: float = 14) -> bool:
    return bool(np.abs(frame.reshape(-1, 3).mean(0) - colour).max() < tolerance)


def whole_range(frames: np.ndarray) -> None:
    """The centred clip of `colours(8)`: frames 2 to 5."""
    for frame, true in zip(frames, colours(8)[2:6], strict=True):
        assert near(frame, tuple(true[0, 0].tolist())), (frame.mean((0, 1)), true[0, 0])


def anything(frames: np.ndarray) -> None:
    assert frames.shape == (FRAMES, 16, 16, 3)


def turned(frames: np.ndarray) -> None:
    """Upper half red, lower half blue, turned 90 degrees clockwise: red is on the right."""
    assert near(frames[:, :, 10:], RED, 30) and near(frames[:, :, :6], BLUE, 30)


def upside_down(frames: np.ndarray) -> None:
    assert near(frames[:, 10:], RED, 30) and near(frames[:, :6], BLUE, 30)


def white_and_red(frames: np.ndarray) -> None:
    assert near(frames[:, :, :6], (255, 255, 255)) and near(frames[:, :, 10:], RED)


def set_rotation(path: Path, matrix: tuple[int, ...]) -> None:
    """Writes a display matrix into an mp4's track header."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # a version-0 header
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def make_all(folder: Path) -> dict[str, str | Check]:
    """Writes every file; returns, by name, what a reader must say, or how to check what it read."""
    expected: dict[str, str | Check] = {}
    good = folder / "good.mp4"
    encode(good, colours(), crf="10")
    expected["good.mp4"] = whole_range
    content = good.read_bytes()

    def put(name: str, data: bytes, expectation: str | Check) -> None:
        (folder / name).write_bytes(data)
        expected[name] = expectation

    one = 0x10000
    write_video(folder / "long.mp4", noise(), 8)  # its index comes first
    long = (folder / "long.mp4").read_bytes()
    (folder / "long.mp4").unlink()
    put("zero.mp4", b"", "empty file")
    put("cut_index_first.mp4", long[: len(long) // 2], "cut short")
    put("cut_index_last.mp4", content[:-100], "no frame could be decoded|not a readable video")
    put("one_byte.mp4", b"\0", "not a readable video")
    put("random.mp4", np.random.default_rng(0).bytes(5000), "not a readable video")
    put("page.mp4", b"<!doctype html><title>404</title>" * 30, "not a readable video")
    put("playlist.mp4", f"#EXTM3U\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n".encode(), "not a readable video")
    put("list.avi", f"ffconcat version 1.0\nfile {good}\n".encode(), "not a readable video")
    put("really_mp4.gif", content, whole_range)
    put("really_mp4.avi", content, whole_range)
    put("no_suffix", content, whole_range)
    put("a:colon,and,,commas.mp4", content, whole_range)
    damaged = bytearray(long)
    for k in range(len(long) // 3, 2 * len(long) // 3, 37):
        damaged[k] ^= 0x5A
    put("corrupt_middle.mp4", bytes(damaged), "damaged")

    for name, codec in (("cut.webm", "libvpx-vp9"), ("cut.mkv", "libx264"), ("cut.ts", "libx264")):
        encode(folder / name, noise(), codec)
        whole = (folder / name).read_bytes()
        put(name, whole[: len(whole) // 2], "cut short")
    with av.open(str(folder / "live.webm"), "w", options={"live": "1"}) as container:  # of a length nobody knew
        stream = container.add_stream("libvpx-vp9", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in colours():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    expected["live.webm"] = whole_range
    for name, box, at, values in (
        ("many_samples.mp4", b"stsz", 8, (1, 2**26)),  # 67 million frames of a byte each
        ("many_edits.mp4", b"elst", 8, (2**24,)),
    ):
        bomb = bytearray(long)
        place = bomb.index(box) + at
        bomb[place : place + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
        put(name, bytes(bomb), "cut short: |its tables count")

    images = [Image.fromarray(frame) for frame in colours()]
    options: dict[str, Any] = {"save_all": True, "append_images": images[1:], "duration": 125}
    images[0].save(folder / "animated.gif", **options)
    put("really_gif.mp4", (folder / "animated.gif").read_bytes(), whole_range)
    images[0].save(folder / "animated.webp", **options, lossless=True)
    expected["animated.gif"] = expected["animated.webp"] = whole_range
    images[0].save(folder / "picture.png")
    put("really_png.mp4", (folder / "picture.png").read_bytes(), "1 frames, 4 needed")
    (folder / "picture.png").unlink()
    clear = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in range(6)]
    for number, image in enumerate(clear):
        image.paste((*RED, 255), (16, 0, 32, 32))
        image.putpixel((number, 0), (0, 0, 255, 255))  # equal frames would be merged
    clear[0].save(folder / "clear.webp", save_all=True, append_images=clear[1:], duration=100, lossless=True)
    expected["clear.webp"] = white_and_red
    rgba = np.stack([np.asarray(image) for image in clear])
    encode(folder / "clear.mov", rgba, "qtrle", pix_fmt="argb")
    encode(folder / "clear_vp9.webm", rgba, "libvpx-vp9", pix_fmt="yuva420p", crf="10")
    expected["clear.mov"] = expected["clear_vp9.webm"] = white_and_red

    encode(folder / "one_frame.mp4", colours(1))
    expected["one_frame.mp4"] = "1 frames, 4 needed"
    encode(folder / "tiny.mkv", colours(8, 1, 1), "ffv1", pix_fmt="bgr0")
    encode(folder / "odd.mkv", colours(8, 37, 23), "ffv1", pix_fmt="bgr0")
    expected["tiny.mkv"] = expected["odd.mkv"] = whole_range
    encode(folder / "sliver.mkv", colours(8, 2, 200), "ffv1", pix_fmt="bgr0")
    expected["sliver.mkv"] = "less than 1/16 would be left"
    encode(folder / "negative.mkv", colours(), stamps=[125 * k - 500 for k in range(8)])
    encode(folder / "uneven.mp4", colours(), stamps=[0, 40, 300, 333, 366, 700, 1200, 1900])
    encode(folder / "no_stamps.avi", colours(), g="4", bf="2")
    encode(folder / "sound.mkv", colours(), sound=True)
    encode(folder / "stream.ts", colours())
    stream = (folder / "stream.ts").read_bytes()
    packets = (stream[k : k + 188] for k in range(0, len(stream), 188))
    # As Blu-ray discs have it: a time before each packet, here one that would be the length of a large table of an mp4.
    put("disc.m2ts", b"".join(b"\x20\0\0\0" + packet for packet in packets), anything)
    encode(folder / "flash.flv", colours())
    with av.open(str(folder / "late_sound.mov"), "w") as container:  # 3 million samples, and an edit for the start
        stream, sound = container.add_stream("libx264", rate=8), container.add_stream("pcm_s16le", rate=192_000)
        assert isinstance(stream, av.VideoStream) and isinstance(sound, av.AudioStream)
        stream.height, stream.width, stream.pix_fmt, sound.layout = 32, 48, "yuv420p", "mono"
        for frame in colours():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        part = av.AudioFrame.from_ndarray(np.zeros((1, 3_000_000), np.int16), format="s16", layout="mono")
        part.sample_rate, part.pts, part.time_base = 192_000, 90_000, Fraction(1, 192_000)
        container.mux(sound.encode(part))
        container.mux([*stream.encode(), *sound.encode()])
    for name in (
        "negative.mkv", "uneven.mp4", "no_stamps.avi", "sound.mkv", "stream.ts", "flash.flv", "late_sound.mov",
    ):  # fmt: skip
        expected[name] = whole_range
    encode(folder / "fast.mp4", colours(), rate=1_000_000, stamps=list(range(8)), ticks=1_000_000)
    expected["fast.mp4"] = whole_range
    encode(folder / "deep.mkv", colours(), "ffv1", pix_fmt="yuv420p10le")
    expected["deep.mkv"] = whole_range
    for name, matrix in {
        "turned.mp4": (0, one, 0, -one, 0, 0, 0, 0, 1 << 30),
        "upside_down.mp4": (-one, 0, 0, 0, -one, 0, 0, 0, 1 << 30),
    }.items():
        encode(folder / name, halves(), crf="10")
        set_rotation(folder / name, matrix)
    expected["turned.mp4"], expected["upside_down.mp4"] = turned, upside_down

    # 8K in every header, and no picture behind it.
    header = bytearray(content)
    sizes = struct.pack(">2H", 48, 32), struct.pack(">2H", 7680, 4320)
    header = header.replace(*sizes)
    data = header.index(b"mdat") + 4
    end = header.index(b"moov") - 4
    header[data:end] = bytes(end - data)
    put("8k_without_data.mp4", bytes(header), "damaged|no frame|not a readable video")
    canvas = b"GIF89a" + struct.pack("<2H3B", 65535, 65535, 0, 0, 0)
    image = b"\x2c" + struct.pack("<4HB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00;"
    put("huge.gif", canvas + image, "not a readable picture|65535x65535 pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bomb = Image.new("1", (30000, 30000))
        (folder / "bomb").mkdir()
        bomb.save(folder / "bomb/1.png")
    for number in range(2, 5):
        (folder / f"bomb/{number}.png").symlink_to("1.png")
    expected["bomb"] = "not a readable picture|30000x30000 pixels"

    (folder / "frames").mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"frames/{number}.png")
    expected["frames"] = whole_range
    (folder / "bad_frames").mkdir()
    for number in range(4):
        (folder / f"bad_frames/{number}.png").write_bytes((folder / "frames/0.png").read_bytes()[: 60 + number])
    expected["bad_frames"] = "not a readable picture"
    (folder / "pipes").mkdir()
    for number in range(4):
        os.mkfifo(folder / f"pipes/{number}.png")
    expected["pipes"] = "no regular file"
    (folder / "empty_folder").mkdir()
    expected["empty_folder"] = "without numbered"
    (folder / "loop.mp4").symlink_to("loop.mp4")
    expected["loop.mp4"] = "[Ss]ymbolic links"
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    expected["dangling.mp4"] = "no such file"
    os.mkfifo(folder / "pipe.mp4")
    expected["pipe.mp4"] = "neither file nor folder"
    strange = os.fsdecode(b"caf\xe9.mp4")
    put(strange, content, whole_range)
    return expected


@pytest.fixture(scope="module")
def torture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str | Check]]:
    folder = tmp_path_factory.mktemp("torture")
    return folder, make_all(folder)


def test_each_file_is_read_rightly_or_refused(torture: tuple[Path, dict[str, str | Check]], capfd) -> None:
    folder, expected = torture
    assert len(expected) >= 40
    wrong = []
    for name, expectation in expected.items():
        started = time.monotonic()
        try:
            clip = read_clip(folder / name, num_frames=FRAMES, height=16, width=16)
            anything(clip.frames)
            said = "read"
            if not isinstance(expectation, str):
                expectation(clip.frames)
        except (VideoError, OSError) as error:
            said = str(error)
            assert "\n" not in said and os.fsencode(name).decode(errors="backslashreplace").split("\\")[0] in said
        except AssertionError as error:
            said = f"read wrongly: {str(error)[:200]}"
        refused = said != "read"
        if refused != isinstance(expectation, str) or (
            isinstance(expectation, str) and not re.search(expectation, said)
        ):
            wrong.append((name, said))
        assert time.monotonic() - started < 30, name
    assert not wrong, wrong
    assert capfd.readouterr().err == "", "decoders' own lines stay away from the user"


def test_the_data_set_skips_counts_and_names_them(torture: tuple[Path, dict[str, str | Check]]) -> None:
    folder, expected = torture
    records = [ClipRecord(folder / name, (name,), None, None) for name in expected]
    dataset = ClipDataset(ClipFolder(folder, records, None, []), num_frames=FRAMES, height=16, width=16)
    skipped = {line for k in range(len(dataset)) for line in dataset[(k, 5)]["skipped"]}
    bad = [name for name, expectation in expected.items() if isinstance(expectation, str)]
    assert len(skipped) == len(bad)
    for name in bad:
        assert sum(line.startswith(f"{folder / name}") for line in skipped) == 1, name


def test_headers_are_probed_without_crashing(torture: tuple[Path, dict[str, str | Check]]) -> None:
    folder, expected = torture
    for name, expectation in expected.items():
        try:
            info = probe_video(folder / name)
        except (VideoError, OSError):
            assert isinstance(expectation, str), name
            continue
        assert info.fps > 0 and info.height > 0 and info.width > 0, name
    turned_info = probe_video(folder / "turned.mp4")
    assert (turned_info.rotation, turned_info.height, turned_info.width) == (270, 48, 32)
    assert probe_video(folder / "sound.mkv").has_audio and not probe_video(folder / "good.mp4").has_audio


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from contentmotion.video.reader import read_clip
from contentmotion.video.timeline import VideoError
read_clip(Path(sys.argv[1]) / "good.mp4", num_frames=4, height=16, width=16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_clip(path, num_frames=4, height=16, width=16)
    except (VideoError, OSError):
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_bounded(torture: tuple[Path, dict[str, str | Check]]) -> None:
    """The bombs ask for gigabytes: 12 for huge.gif, 2.5 for the PNG."""
    folder, _ = torture
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, timeout=200, check=True
    )
    assert int(result.stdout) < 300_000, "kB more than for a good file"


@pytest.mark.parametrize("name", ["good.mp4", "uneven.mp4"])  # whose header is trusted, and not
def test_frames_without_timestamps_are_counted(
    torture: tuple[Path, dict[str, str | Check]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, whole = torture[0] / name, read_video(torture[0] / name)
    packets = FfmpegVideo._packets

    def without_timestamps(video: FfmpegVideo):
        for packet in packets(video):
            packet.pts = packet.dts = None
            yield packet

    monkeypatch.setattr(FfmpegVideo, "_packets", without_timestamps)
    assert np.array_equal(read_video(path).frames, whole.frames)
    assert np.array_equal(read_video(path, max_frames=3).frames, whole.frames[:3])
    assert np.array_equal(read_clip(path, num_frames=FRAMES).frames, whole.frames[2:6])


def test_a_pipe_is_named_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a\n1.png")
    with pytest.raises(VideoError) as caught:
        read_clip(tmp_path, num_frames=1)
    assert str(caught.value) == f"{tmp_path}/a\\x0a1.png: no regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(torture: tuple[Path, dict[str, str | Check]], tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes((torture[0] / "good.mp4").read_bytes())
    (tmp_path / "secret.mp4").chmod(0)
    with pytest.raises(PermissionError, match=r"secret\.mp4: no permission to read it"):
        read_clip(tmp_path / "secret.mp4", num_frames=FRAMES)


def test_no_permission_as_another_user(torture: tuple[Path, dict[str, str | Check]], tmp_path: Path) -> None:
    """What root sees of a user who may not read a file."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    reads = {"secret.mp4": partial(read_clip, num_frames=FRAMES), "secret.png": read_picture}
    for name in reads:
        (tmp_path / name).write_bytes((torture[0] / "good.mp4").read_bytes())
        (tmp_path / name).chmod(0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(tmp_path)  # whose parents the other user may not enter
        os.setuid(65534)
        for name, read in reads.items():
            try:
                read(name)
                said = "read"
            except (OSError, VideoError) as error:
                said = f"{type(error).__name__} {error}"
            os.write(writing, f"{said}\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert answer.read().splitlines() == [f"PermissionError {name}: no permission to read it" for name in reads]


def test_time_is_limited(torture: tuple[Path, dict[str, str | Check]]) -> None:
    folder, _ = torture
    for name in ("good.mp4", "negative.mkv", "animated.gif", "frames"):
        with pytest.raises(VideoError, match=f"{name}: takes longer than 0 s"):
            read_clip(folder / name, num_frames=FRAMES, limits=Limits(max_seconds=0))


def test_sizes_are_limited(torture: tuple[Path, dict[str, str | Check]]) -> None:
    folder, _ = torture
    for name in ("good.mp4", "animated.gif", "frames"):
        with pytest.raises(VideoError, match=r"48x32 pixels, more than 1000 are allowed|not a readable video"):
            read_clip(folder / name, num_frames=FRAMES, limits=Limits(max_pixels=1000))
        with pytest.raises(VideoError, match="GiB of frames"):
            read_clip(folder / name, num_frames=FRAMES, limits=Limits(max_bytes=10_000))
