"""Videos that visitors bring: checked before they are decoded, and read no further than needed."""

from __future__ import annotations

from pathlib import Path

from contentmotion.config import DemoConfig
from contentmotion.video.reader import Clip, probe_video, read_clip
from contentmotion.video.timeline import Limits, VideoError

MAX_STRIDE = 1000


def read_upload(
    path: str | None, config: DemoConfig, limits: Limits, shape: tuple[int, int, int], frame_stride: float
) -> Clip:
    """The middle of an uploaded video at a model's size.

    Args:
        path: The file; None where nothing was uploaded.
        config: The page's limits on bytes and seconds.
        limits: What decoding may cost.
        shape: Frames, height and width of the clip.
        frame_stride: Take every n-th frame.

    Raises:
        ValueError: No file, no video, too large, too long or too short; one line that names the file as its owner does.
        OSError: It is gone.
    """
    if path is None:
        raise ValueError("no video yet: upload one, or pick an example")
    if frame_stride not in range(1, MAX_STRIDE + 1):
        raise ValueError(f"frame_stride must be a whole number between 1 and {MAX_STRIDE}, got {frame_stride}")
    file = Path(path)
    name = file.name
    if not file.is_file():
        raise ValueError(f"{name} is gone: uploads are deleted after {config.keep_minutes:g} minutes")
    megabytes = file.stat().st_size / 1e6
    if megabytes > config.max_upload_mb:
        raise ValueError(f"{name} is too large: {megabytes:.1f} MB, at most {config.max_upload_mb:g} MB are taken")
    try:
        info = probe_video(file, limits=limits)
        seconds = info.duration or (info.num_frames or 0) / info.fps
        if seconds > config.max_video_seconds:
            raise ValueError(
                f"{name} is too long: {seconds:.0f} s, at most {config.max_video_seconds:g} s are taken; cut it first"
            )
        num_frames, height, width = shape
        return read_clip(
            file, num_frames=num_frames, frame_stride=int(frame_stride), height=height, width=width, limits=limits
        )
    except VideoError as error:  # its message names the file by its place on this machine
        reason = str(error).replace(str(file), name)
        raise ValueError(f"cannot use {reason}") from None
