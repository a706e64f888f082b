"""What visitors bring: numbers, and pictures and videos, which are checked before they are decoded, and read no further
than needed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from contentmotion.config import DemoConfig
from contentmotion.video.reader import Clip, probe_video, read_clip
from contentmotion.video.timeline import Limits, VideoError

MAX_STRIDE = 1000


def read_upload(
    path: str | None, config: DemoConfig, limits: Limits, shape: tuple[int, int, int], frame_stride: float
) -> Clip:
    """The middle of an uploaded video, every n-th frame of it, at a model's ``shape`` (frames, height, width).

    Raises:
        ValueError: No file, no video, too large, too long or too short; one line.
    """
    if path is None:
        raise ValueError("no video yet: upload one, or pick an example")
    require_whole("frame_stride", frame_stride, 1, MAX_STRIDE)
    require_short(path, config, limits)
    num_frames, height, width = shape
    try:
        return read_clip(
            path, num_frames=num_frames, frame_stride=int(frame_stride), height=height, width=width, limits=limits
        )
    except VideoError as error:
        raise ValueError(f"cannot use {error}") from None


def require_whole(name: str, value: float | None, low: int, high: int) -> None:
    """Raises ``ValueError`` where it is no whole number of a range."""
    if value is None or not is_within(value, low, high) or value != int(value):
        raise ValueError(f"{name} must be a whole number between {low} and {high}, got {value}")


def is_within(value: float | None, low: float, high: float) -> bool:
    """Whether it is a number of a range; a field that was emptied comes as None."""
    return isinstance(value, (int, float)) and low <= value <= high


def require_small(path: str, config: DemoConfig) -> None:
    """Raises ``ValueError`` where an upload is gone, or has more bytes than are taken."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file.name} is gone: uploads are deleted after {config.keep_minutes:g} minutes")
    megabytes = file.stat().st_size / 1e6
    if megabytes > config.max_upload_mb:
        raise ValueError(f"{file.name} is too large: {megabytes:.1f} MB, at most {config.max_upload_mb:g} MB are taken")


def require_short(path: str, config: DemoConfig, limits: Limits) -> None:
    """Raises ``ValueError`` where an upload is no video, or one that is larger or longer than are taken."""
    require_small(path, config)
    try:
        info = probe_video(path, limits=limits)
    except VideoError as error:
        raise ValueError(f"cannot use {error}") from None
    seconds = info.duration or (info.num_frames or 0) / info.fps
    if seconds > config.max_video_seconds:
        most = f"at most {config.max_video_seconds:g} s are taken; cut it first"
        raise ValueError(f"{Path(path).name} is too long: {seconds:.0f} s, {most}")


def named_as_by_owner(text: str) -> str:
    """A line without the places that visitors' files have on this machine."""
    folder = os.environ.get("GRADIO_TEMP_DIR")
    return re.sub(rf"{re.escape(folder)}/(?:[\w-]+/)*", "", text) if folder else text


def require_room(folder: Path, config: DemoConfig, more: int = 0) -> None:
    """Raises ``ValueError`` where there is no room for so many bytes more under a folder."""
    used = more
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                used += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # deleted meanwhile
                continue
    if used > config.max_disk_mb * 1e6:
        raise ValueError("the page has no room for more files: try again when older ones are deleted")
