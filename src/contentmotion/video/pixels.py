"""Pixels between the numbers that networks take and the bytes that files hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Pixels = TypeVar("Pixels", "Tensor", np.ndarray)


def to_float(frames: Tensor) -> Tensor:
    """uint8 pixels to [-1, 1]."""
    return frames.float() / 127.5 - 1


def to_uint8(pixels: Pixels, low: float = -1.0) -> Pixels:
    """Pixels in [low, 1] (clamped) to uint8, 0 to 255: -1 for networks' frames, 0 for those that pipelines return."""
    scale = 255 / (1 - low)
    if isinstance(pixels, np.ndarray):
        return ((pixels.clip(low, 1) - low) * scale).round().astype(np.uint8)
    return ((pixels.float().clamp(low, 1) - low) * scale).round().byte()


def to_bytes(frames: Tensor) -> np.ndarray:
    """Frames (..., 3, H, W) in [0, 1] as uint8 (..., H, W, 3): made where the frames are, for bytes travel faster."""
    return to_uint8(frames, low=0).movedim(-3, -1).contiguous().cpu().numpy()
