"""What every metric asks of its videos."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def require_clips(*videos: np.ndarray | Tensor) -> tuple[Tensor, ...]:
    """The videos as tensors (without a copy), if they are clips that can be compared.

    Args:
        videos: uint8 (b, t, h, w, 3), all of one shape.

    Raises:
        ValueError: Another type, or other shapes.
    """
    tensors = tuple(torch.as_tensor(x) for x in videos)
    for x in tensors:
        if x.dtype != torch.uint8 or x.ndim != 5 or x.shape[-1] != 3:
            raise ValueError(f"videos must be uint8 (b, t, h, w, 3), got {x.dtype} {tuple(x.shape)}")
        if x.shape != tensors[0].shape:
            raise ValueError(f"videos of different shapes: {tuple(tensors[0].shape)} and {tuple(x.shape)}")
    return tensors
