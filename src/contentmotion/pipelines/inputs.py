"""Pictures and videos that a caller hands to a pipeline, in the forms that diffusers takes, to what networks take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from contentmotion.video.pictures import read_picture, upright
from contentmotion.video.reader import first_frames, read_clip
from contentmotion.video.resize import ResizeMode, fit_frame
from contentmotion.video.timeline import Limits, VideoError

Fit = Literal["crop", "pad"]
MODES: dict[Fit, ResizeMode] = {"crop": "center", "pad": "pad"}


def read_schedule(prompt: Any) -> tuple[list[int], list[str] | None]:
    """Frames at which a video's prompt changes, and the prompts; of anything but a schedule [0] and None.

    Raises:
        ValueError: It does not begin at frame 0.
    """
    if not isinstance(prompt, Mapping):
        return [0], None
    frames = sorted(prompt)
    if not frames or frames[0] != 0 or not all(isinstance(prompt[frame], str) for frame in frames):
        raise ValueError(f"prompts by frame begin at frame 0 and are texts, got {dict(prompt)!r}")
    return frames, [prompt[frame] for frame in frames]


def for_each(name: str, values: Float[Tensor, "n ..."], size: int) -> Float[Tensor, "b ..."]:
    """One value a video of a batch, where one may serve all.

    Raises:
        ValueError: Neither one nor as many as videos.
    """
    if len(values) not in (1, size):
        raise ValueError(f"{name}: {len(values)} for {size} videos")
    return values.expand(size, *values.shape[1:])


def as_pictures(given: Any, height: int, width: int, fit: Fit) -> Float[Tensor, "b 3 H W"]:
    """Pictures in [0, 1], of so many pixels; see ``as_videos``.

    Args:
        given: A path or a PIL image, of any size; an array (H, W, 3) or a tensor (3, H, W) of the right one; a list or
            a batch of these.

    Raises:
        ValueError: Not a picture, or one of another size that cannot be fitted.
        OSError: No such file.
    """
    batch = isinstance(given, Sequence) and not isinstance(given, str) or getattr(given, "ndim", 0) == 4
    pictures = []
    for each in given if batch else [given]:
        if isinstance(each, (str, Path)):
            each, _ = read_fitted(each, height, width, fit)
        pictures.append(_as_video("image", each[None] if isinstance(each, Tensor) else [each], height, width, fit))
    if not pictures:
        raise ValueError("image: an empty list")
    return torch.cat(pictures)


def as_videos(
    name: str, given: Any, num_frames: int, height: int, width: int, fit: Fit, fps: float | None = None
) -> Float[Tensor, "b {num_frames} 3 H W"]:
    """The first frames of videos, in [-1, 1].

    Args:
        name: What the argument is called, for messages.
        given: One video or a list of them: a path or a list of PIL images, of any size; an array (t, H, W, 3) or a
            tensor (t, 3, H, W) of the right one, in [0, 1] or uint8; or a batch of these with an axis more.
        num_frames: How many.
        height: Pixels.
        width: Pixels.
        fit: "crop": the middle that has the shape asked for; "pad": all of it, between black bars.
        fps: Of files that have more frames a second, take those that are shown at this rate.

    Raises:
        ValueError: Not a video, a shorter one, or one of another size that cannot be fitted.
        OSError: No such file.
    """
    frames = isinstance(given, Sequence) and given and all(isinstance(frame, Image.Image) for frame in given)
    if isinstance(given, (str, Path)) or getattr(given, "ndim", 0) == 4 or frames:
        given = [given]
    elif not isinstance(given, Sequence) and getattr(given, "ndim", 0) != 5:
        raise ValueError(f"{name}: expected frames or a path, got {type(given).__name__}")
    videos = []
    for each in given:
        if isinstance(each, (str, Path)):
            each = read_frames(name, each, num_frames, height, width, fit, fps)
        if len(each) < num_frames:
            raise ValueError(f"{name}: {len(each)} frames, shorter than a clip, which has {num_frames}")
        videos.append(_as_video(name, each[:num_frames], height, width, fit))
    if not videos:
        raise ValueError(f"{name}: an empty list")
    return torch.stack(videos) * 2 - 1


def read_frames(
    name: str, path: str | Path, num_frames: int, height: int, width: int, fit: Fit, fps: float | None,
    stride: int | None = None, limits: Limits = Limits(),  # noqa: B008  it is frozen
) -> np.ndarray:  # fmt: skip
    """The first frames of a video file or a folder of frames, as ``as_videos`` takes them, or every ``stride``-th:
    uint8 (num_frames, height, width, 3).

    Raises:
        VideoError: Not a video, or a shorter one.
        OSError: No such file.
    """
    try:
        indices = np.arange(num_frames) * stride if stride else first_frames(path, num_frames, fps, limits)
        return read_clip(
            path, num_frames=None, indices=indices, height=height, width=width, resize_mode=MODES[fit], limits=limits
        ).frames  # fmt: skip
    except VideoError as error:
        if "needed" not in str(error):
            raise
        raise VideoError(f"{name}: shorter than a clip: {error}") from None


def _as_video(name: str, frames: Any, height: int, width: int, fit: Fit) -> Float[Tensor, "t 3 H W"]:
    """Frames of one form in [0, 1]; those of PIL are fitted, others have to be of the size."""
    if isinstance(frames, Sequence):
        if not all(isinstance(frame, (Image.Image, np.ndarray)) for frame in frames):
            raise ValueError(f"{name}: expected pictures, got {type(frames[0]).__name__}")
        fitted = [fit_frame(upright(f), height, width, MODES[fit]) if isinstance(f, Image.Image) else f for f in frames]
        frames = np.stack(fitted)
    if not isinstance(frames, (np.ndarray, Tensor)) or frames.ndim != 4:
        raise ValueError(f"{name}: expected pictures, got {type(frames).__name__}")
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    if frames.shape[1:] != (3, height, width):
        size = "x".join(str(side) for side in frames.shape[1:])
        raise ValueError(f"{name}: {size}, needed 3x{height}x{width} (PIL images are fitted, arrays taken as they are)")
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if not (frames.min() >= 0 and frames.max() <= 1):  # NaN is neither
        raise ValueError(f"{name}: numbers must be in [0, 1]")
    return frames.float()


def read_fitted(
    path: str | Path, height: int, width: int, fit: Fit, limits: Limits = Limits()  # noqa: B008  it is frozen
) -> tuple[np.ndarray, tuple[int, int]]:  # fmt: skip
    """A picture file, fitted (see ``as_pictures``): uint8 (height, width, 3), and the height and width that it had."""
    picture = read_picture(path, limits)
    try:
        return fit_frame(picture, height, width, MODES[fit]), picture.shape[:2]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
