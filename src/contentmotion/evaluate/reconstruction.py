"""How close two clips are, pixel by pixel."""

import numpy as np
import torch
from torch import Tensor


def mean_squared_error(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
    """Mean squared error per clip, in units of the full range (0 black, 1 white).

    Args:
        a: Clips (b, ...), uint8, or floating point in [-1, 1].
        b: Clips of the same shape and type.

    Returns:
        float64 (b,).

    Raises:
        ValueError: Different shapes or types.
    """
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        kinds = f"{tuple(a.shape)} {a.dtype}, {tuple(b.shape)} {b.dtype}"
        raise ValueError(f"clips differ in shape or type: {kinds}")
    full_range = 255.0 if a.dtype == torch.uint8 else 2.0
    return ((a.double() - b.double()) / full_range).square().flatten(1).mean(dim=1)


def psnr(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
    """Peak signal-to-noise ratio per clip in dB, over all its frames; infinite for equal clips.

    Args:
        a: Clips (b, ...), uint8, or floating point in [-1, 1].
        b: Clips of the same shape and type.

    Returns:
        float64 (b,).
    """
    return -10 * mean_squared_error(a, b).log10()
