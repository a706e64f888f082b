"""Clips of videos: finds and decodes only the frames that a clip needs, at the size that it needs.

What a file is, its first bytes tell, not its name: real containers are read through PyAV, pictures (animated or not)
and folders of pictures through Pillow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from contentmotion.video.headers import check_headers
from contentmotion.video.sources import StoredVideo, TarMember, VideoSource, is_folder, source_name
from contentmotion.video.timeline import Limits, OpenVideo, TimelineError, VideoError, VideoInfo, choose_frames

if TYPE_CHECKING:
    from contentmotion.video.resize import ResizeMode

_PICTURE_STARTS = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff")
_LIMITS = Limits()


@dataclass(frozen=True)
class Clip:
    """Frames of a clip, and where they are from.

    Attributes:
        frames: uint8 RGB, (t, h, w, 3).
        times: Seconds from the start of the video at which each frame is first shown, float64 (t,).
        fps: Frames per second of the clip: the video's divided by the stride, or the ones asked for.
        indices: The frames' numbers in the video, int64 (t,).
    """

    frames: np.ndarray
    times: np.ndarray
    fps: float
    indices: np.ndarray


def probe_video(source: VideoSource, *, limits: Limits = _LIMITS) -> VideoInfo:
    """Read a video's header; see `read_clip` for what may be a video.

    Raises:
        OSError: No such file, or not readable.
        VideoError: Not a video, or beyond the limits.
    """
    with _opened(source, limits) as video:
        return video.describe()


def read_clip(
    source: VideoSource,
    *,
    num_frames: int | None,
    frame_stride: int = 1,
    fps: float | None = None,
    position: float | None = None,
    height: int | None = None,
    width: int | None = None,
    resize_mode: ResizeMode = "center",
    crop: tuple[float, float] | None = (0.5, 0.5),
    limits: Limits = _LIMITS,
    indices: np.ndarray | None = None,
) -> Clip:
    """Decode one clip: seeks to it, and converts no frame that is not returned.

    Rotation flags and pixels that are not square are put right, transparent parts become white, deep and HDR colours
    become 8-bit sRGB. Sound is never read.

    Args:
        source: Video file, folder of numbered frames, video within another file, or a video file's bytes.
        num_frames: Frames to return; None: all.
        frame_stride: Take every n-th frame of the file (ignored when `fps` is given).
        fps: Take the frames that are shown at this rate, by their timestamps.
        position: Where the clip starts, from 0 (the earliest start) up to 1 (the latest); None: in the middle.
        height: Height to return in pixels; None: the stored size, with no resizing.
        width: Width to return in pixels; given exactly when `height` is.
        resize_mode: "center", "random": fill the frame and cut the rest off; "pad": show all, between black bars.
        crop: Where "random" cuts, (0, 0) top left to (1, 1) bottom right; None: it does not cut yet.
        limits: What the file may cost.
        indices: Return the frames with these rising numbers, whatever `num_frames`, `frame_stride`, `fps` and
            `position` say: another clip's, to read what goes with it.

    Raises:
        OSError: No such file, or not readable.
        VideoError: Not a video, damaged, too short for the clip, or beyond the limits; one line that names the file.
    """
    if (height is None) != (width is None):
        raise ValueError(f"give height and width, or neither; got {height} and {width}")
    import contentmotion.video.resize  # noqa: F401  brings torch along, which must not count as the file's time

    with _opened(source, limits) as video:
        # By what the header says first; where the frames prove it wrong, by all packets' timestamps.
        for exact in (False, True):
            timeline = video.timeline(exact=exact or num_frames is None)
            if indices is not None:
                chosen, clip_fps = indices, timeline.fps
                if indices[-1] >= timeline.num_frames:
                    raise VideoError(f"{timeline.num_frames} frames, {indices[-1] + 1} needed")
            elif num_frames is None:
                chosen, clip_fps = np.arange(timeline.num_frames), timeline.fps
            else:
                chosen, clip_fps = choose_frames(timeline, num_frames, frame_stride, fps, position)
            try:
                frames = _gather(video.frames(chosen, timeline), video, height, width, resize_mode, crop, limits)
            except TimelineError as error:
                if exact:
                    raise VideoError(str(error)) from None
                continue
            return Clip(frames, timeline.times_of(chosen), clip_fps, chosen)
    raise AssertionError("unreachable")


def first_frames(source: str | Path, num_frames: int, fps: float | None, limits: Limits = _LIMITS) -> np.ndarray:
    """Numbers of a video's frames from its first on, shown at a rate, int64 (num_frames,).

    One after another where `fps` is None, or it has not more frames a second, or no rate (a folder of frames).

    Raises:
        OSError: No such file, or not readable.
        VideoError: Not a video, or too short.
    """
    with _opened(source, limits) as video:
        timeline = video.timeline()
        if fps is None or timeline.fps <= fps or os.path.isdir(source):
            return np.arange(num_frames)
        return choose_frames(timeline, num_frames, fps=fps, position=0.0)[0]


@dataclass(frozen=True)
class Video:
    """Decoded video.

    Attributes:
        frames: uint8 RGB, (t, h, w, 3), t >= 1.
        fps: Frames per second.
    """

    frames: np.ndarray
    fps: float


def read_video(path: str | Path, *, max_frames: int | None = None) -> Video:
    """Decode a whole video, from its first frame on.

    Args:
        path: Video file, or folder of numbered png or jpg frames.
        max_frames: Stop after this many frames; None reads all.

    Raises:
        OSError: No such file, or not readable.
        VideoError: Not a video, damaged, or without frames.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    with _opened(path, _LIMITS) as video:
        timeline = video.timeline()
        frames = islice(video.frames(None, timeline), max_frames)
        return Video(_gather(frames, video, None, None, "center", None, _LIMITS), timeline.fps)


def _gather(
    decoded: Iterator[np.ndarray],
    video: OpenVideo,
    height: int | None,
    width: int | None,
    mode: ResizeMode,
    crop: tuple[float, float] | None,
    limits: Limits,
) -> np.ndarray:
    """Decoded frames in one array, at the size asked for."""
    from contentmotion.video.resize import crop_frames, fit_frame

    frames: list[np.ndarray] = []
    size = 0
    for frame in decoded:
        if height is not None and width is not None:
            frame = fit_frame(frame, height, width, mode, video.pixel_aspect)
            if crop is not None:
                frame = crop_frames(frame, height, width, crop)
        size += frame.nbytes
        if size > limits.max_bytes:
            raise VideoError(f"more than {limits.max_bytes / 2**30:.1f} GiB of frames")
        frames.append(frame)
    if not frames:
        raise VideoError("no frame could be decoded")
    if sizes := {frame.shape for frame in frames} - {frames[0].shape}:
        raise VideoError(f"frames of different sizes ({len(sizes) + 1} sizes)")
    return np.stack(frames)


@contextmanager
def _opened(source: VideoSource, limits: Limits) -> Iterator[OpenVideo]:
    """An open video; whatever its decoder complains of, while it is open, comes out as a VideoError with its name."""
    name = source_name(source)
    try:
        with closing(_open(source, limits)) as video:
            yield video
    except ValueError as error:
        if name in str(error):
            raise
        raise (type(error) if isinstance(error, VideoError) else VideoError)(f"{name}: {error}") from None


def _open(source: VideoSource, limits: Limits) -> OpenVideo:
    # Imported where they are used: pictures need no PyAV, and the command line neither.
    from contentmotion.video.pictures import FolderVideo, PictureVideo

    deadline = time.monotonic() + limits.max_seconds
    if isinstance(source, StoredVideo) and not isinstance(source, TarMember):
        source = source.read_bytes()
    offset, place = 0, None  # ffmpeg's name of it, where it has one
    if isinstance(source, bytes):
        file, size = BytesIO(source), len(source)
    elif isinstance(source, TarMember):
        if is_folder(source.tar):
            raise VideoError(f"{source.tar} is a folder")
        file, offset, size = source.tar.open("rb"), source.offset, source.size
        place = f"subfile,,start,{offset},end,{offset + size},,:file:{source.tar}"
    else:
        path = Path(source)
        if is_folder(path):
            return FolderVideo(path, limits, deadline)
        file, size = path.open("rb"), path.stat().st_size
        # "file:" keeps ffmpeg from taking a colon in the name for a protocol.
        place = f"file:{path}" if _is_utf8(path) else None
    with file:
        file.seek(offset)
        start = file.read(16)
        if not size or not start:
            raise VideoError("empty file")
        if start.startswith(_PICTURE_STARTS) or (start[:4], start[8:12]) == (b"RIFF", b"WEBP"):
            return PictureVideo(_whole_file(source), limits, deadline)
        file.seek(offset)
        containers = check_headers(file, size)
    from contentmotion.video.ffmpeg import FfmpegVideo

    return FfmpegVideo(place or _whole_file(source), size, containers, limits, deadline)


def _whole_file(source: VideoSource) -> BinaryIO:
    if isinstance(source, StoredVideo):
        source = source.read_bytes()
    return BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _is_utf8(path: Path) -> bool:
    """Whether a name can be handed to ffmpeg's wrapper."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
