"""What an open video is, what there is to know of it before decoding, and which of its frames make up a clip."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

READ_SECONDS = "CONTENTMOTION_READ_SECONDS"  # environment variable: it is the disk's, not the run's
DEFAULT_FPS = 8.0  # of folders, and of files that do not say
HD_LINES = 720  # from here on colours that nothing is said about are BT.709's, below BT.601's
MAX_SLOWER = 0.01  # a video may have this much fewer frames per second than asked for (29.97 for 30)
LATE = 0.1  # of a frame: timestamps are rounded, so a frame this little late counts as on time


class VideoError(ValueError):
    """A file that is no readable video; the message names it."""


class SlowVideoError(VideoError):
    """A video that took too long to read; it may be the disk's fault, and go faster another time."""


class TimelineError(Exception):
    """The frames are not where the timeline says."""


def _read_seconds() -> float:
    text = os.environ.get(READ_SECONDS) or "30"
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise ValueError(f"{READ_SECONDS} is {text!r}: seconds above 0 are needed")


@dataclass(frozen=True)
class Limits:
    """What a file may cost before it is refused.

    Attributes:
        max_pixels: Height times width of a frame, as stored.
        max_seconds: Seconds that reading one clip may take; 30, unless the environment variable says another number.
        max_bytes: Bytes of decoded frames to return at once.
    """

    max_pixels: int = 8192 * 4320
    max_seconds: float = field(default_factory=_read_seconds)
    max_bytes: int = 4 * 2**30

    def require_size(self, width: int, height: int) -> None:
        """Raises ``VideoError`` where a frame has too many pixels."""
        if width * height > self.max_pixels:
            raise VideoError(f"{width}x{height} pixels, more than {self.max_pixels} are allowed")


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says.

    Attributes:
        num_frames: Frames, or None where the header does not say.
        duration: Seconds, or None where the header does not say.
        fps: Average frames per second.
        height: Pixels of a frame as shown (rotation applied).
        width: Pixels of a frame as shown (rotation applied, pixels made square).
        rotation: Degrees (0, 90, 180 or 270), counterclockwise, by which the stored frames are turned for showing.
        has_audio: Whether there is a sound track (it is never read).
        codec: Name of the codec or picture format, such as h264, gif or png.
    """

    num_frames: int | None
    duration: float | None
    fps: float
    height: int
    width: int
    rotation: int
    has_audio: bool
    codec: str


@dataclass(frozen=True)
class Timeline:
    """When each frame is shown.

    Attributes:
        num_frames: Frames.
        fps: Average frames per second.
        times: Seconds from the first frame, float64 (num_frames,), rising; None: evenly spaced.
    """

    num_frames: int
    fps: float
    times: np.ndarray | None = None

    def times_of(self, indices: np.ndarray) -> np.ndarray:
        """Seconds from the first frame at which these frames are shown."""
        return indices / self.fps if self.times is None else self.times[indices]

    def indices_at(self, times: np.ndarray) -> np.ndarray:
        """The frames shown at these times (seconds from the first frame)."""
        late = LATE / self.fps
        if self.times is None:
            found = np.floor((times + late) * self.fps).astype(np.int64)
        else:
            found = np.searchsorted(self.times, times + late, side="right") - 1
        return np.clip(found, 0, self.num_frames - 1)


class OpenVideo(ABC):
    """A video to decode frames of; to be closed.

    Args:
        limits: What it may cost.
        deadline: `time.monotonic()` at which reading stops.

    Attributes:
        pixel_aspect: Width of a pixel over its height, as shown; known once a frame was read.

    Raises:
        VideoError: Not a video, cut short, or beyond the limits.
    """

    pixel_aspect = 1.0

    def __init__(self, limits: Limits, deadline: float) -> None:
        self._limits, self._deadline = limits, deadline

    @abstractmethod
    def describe(self) -> VideoInfo:
        """What the header and the first frame say.

        Raises:
            VideoError: The first frame cannot be decoded, or past the deadline.
        """

    @abstractmethod
    def timeline(self, *, exact: bool = False) -> Timeline:
        """When each frame is shown: by the header where it can be trusted; else, or with `exact`, by all packets.

        Raises:
            VideoError: No packets, or fewer than the header promises; or past the deadline.
        """

    @abstractmethod
    def frames(self, indices: np.ndarray | None, timeline: Timeline) -> Iterator[np.ndarray]:
        """Decodes frames.

        Args:
            indices: Rising, repetitions allowed; None: every frame that can be decoded.
            timeline: What `timeline` gave before.

        Yields:
            RGB uint8 (h, w, 3), rotation applied, transparent parts white.

        Raises:
            VideoError: Damaged, or past the deadline.
            TimelineError: A frame is not where the timeline says.
        """

    def close(self) -> None:  # noqa: B027  of a folder no file stays open
        """Closes the file."""

    def _require_time(self, stopped: bool = False) -> None:
        """Raises ``SlowVideoError`` when the time is up, or the decoder `stopped` because it was."""
        if stopped or time.monotonic() > self._deadline:
            raise SlowVideoError(f"takes longer than {self._limits.max_seconds:g} s") from None


def choose_frames(
    timeline: Timeline, num_frames: int, frame_stride: int = 1, fps: float | None = None, position: float | None = None
) -> tuple[np.ndarray, float]:
    """Which frames of a video make up a clip; `read_clip` says what its settings mean.

    Returns:
        Indices int64 (num_frames,), rising, and the clip's frames per second.

    Raises:
        ValueError: The video is too short, or has fewer frames per second than asked for: frames are never repeated.
    """
    if fps is None:
        span = (num_frames - 1) * frame_stride + 1
        slack = timeline.num_frames - span
        if slack < 0:
            raise ValueError(f"{timeline.num_frames} frames, {span} needed")
        start = slack // 2 if position is None else min(int(position * (slack + 1)), slack)
        return start + np.arange(num_frames) * frame_stride, timeline.fps / frame_stride
    if num_frames > 1 and timeline.fps < fps * (1 - MAX_SLOWER):
        raise ValueError(f"{timeline.fps:.4g} frames per second, {fps:g} needed")
    last = float(timeline.times_of(np.array([timeline.num_frames - 1]))[0])
    interval, length = 1 / timeline.fps, (num_frames - 1) / fps
    slack = last - length
    if slack < -LATE * interval:
        raise ValueError(f"{last + interval:.2f} s, {length + interval:.2f} s needed")
    slack = max(slack, 0.0)
    offset = slack / 2 if position is None else min(position * (slack + interval), slack)
    start = timeline.times_of(timeline.indices_at(np.array([offset])))  # at a frame's own time
    return timeline.indices_at(start + np.arange(num_frames) / fps), fps
