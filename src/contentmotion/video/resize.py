"""Frames to the size that a model wants."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ResizeMode = Literal["center", "random", "pad"]
MAX_CUT = 16  # a picture of which less than this part would be left is refused


def fit_frame(
    frame: np.ndarray, height: int, width: int, mode: ResizeMode = "center", pixel_aspect: float = 1.0
) -> np.ndarray:
    """Resize one frame, keeping its aspect ratio (bicubic, antialiased).

    Args:
        frame: uint8 (h, w, 3).
        height: Wanted, in pixels.
        width: Likewise.
        mode: "center": cut the middle out; "pad": show all between black bars; "random": cut nothing off yet, return
            the smallest size that covers height and width (see `crop_frames`).
        pixel_aspect: Width of a stored pixel over its height.

    Returns:
        uint8 (height, width, 3); with "random", one of the two may be larger.

    Raises:
        ValueError: With "center" or "random", almost nothing of the picture would be left.
    """
    h, w = frame.shape[0], frame.shape[1] * pixel_aspect  # as shown
    picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    if mode == "pad":
        scale = min(height / h, width / w)
        inner = _resize(picture, max(1, round(h * scale)), max(1, round(w * scale)))
        top, left = (height - inner.shape[2]) // 2, (width - inner.shape[3]) // 2
        fitted = F.pad(inner, (left, width - inner.shape[3] - left, top, height - inner.shape[2] - top))
    else:
        scale = max(height / h, width / w)
        if h * scale > MAX_CUT * height or w * scale > MAX_CUT * width:
            raise ValueError(
                f"{frame.shape[1]}x{frame.shape[0]} pixels: less than 1/{MAX_CUT} would be left after the cut "
                f"to {width}x{height}"
            )
        if mode == "center":
            part = _cut(picture, max(1, round(height / scale)), max(1, round(width / scale / pixel_aspect)))
            fitted = _resize(part, height, width)
        else:
            fitted = _resize(picture, max(height, round(h * scale)), max(width, round(w * scale)))
    return fitted[0].permute(1, 2, 0).contiguous().numpy()


def crop_frames(frames: np.ndarray, height: int, width: int, crop: tuple[float, float]) -> np.ndarray:
    """The part (..., height, width, 3) of frames (..., h, w, 3) at `crop`: (0, 0) top left to (1, 1) bottom right."""
    spare_h, spare_w = frames.shape[-3] - height, frames.shape[-2] - width
    top, left = min(int(crop[0] * (spare_h + 1)), spare_h), min(int(crop[1] * (spare_w + 1)), spare_w)
    return frames[..., top : top + height, left : left + width, :]


def _cut(frames: Tensor, height: int, width: int) -> Tensor:
    """The centred part, no larger than the frames."""
    h, w = frames.shape[-2:]
    height, width = min(height, h), min(width, w)
    top, left = (h - height) // 2, (w - width) // 2
    return frames[..., top : top + height, left : left + width]


def _resize(frames: Tensor, height: int, width: int) -> Tensor:
    if frames.shape[-2:] == (height, width):
        return frames.contiguous()
    # On uint8, not floats: PyTorch has a kernel for it that is about four times as fast, and right to +-1.
    return F.interpolate(frames, (height, width), mode="bicubic", antialias=True)
