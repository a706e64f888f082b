"""How close two clips are: squared error, PSNR, SSIM (LPIPS has its own module)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contentmotion.evaluate.checks import require_clips

SSIM_WINDOW = 11  # pixels, height and width
SSIM_SIGMA = 1.5


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


def ssim(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
    """Structural similarity per clip: 1 for equal clips, the mean over frames and colour channels.

    The window is Gaussian, 11x11, of deviation 1.5; only windows that lie inside the frame count.

    Source: Wang et al. 2004, Image quality assessment: from error visibility to structural similarity, Eq. 13-17.

    Args:
        a: uint8 clips (b, t, h, w, 3), at least 11 pixels high and wide.
        b: The others, of the same shape.

    Returns:
        float64 (b,), in [-1, 1], on the clips' device.

    Raises:
        ValueError: Another type or shape, or frames that are too small.
    """
    a, b = require_clips(a, b)
    if min(a.shape[2:4]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of {SSIM_WINDOW}x{SSIM_WINDOW} or more, got {tuple(a.shape[2:4])}")
    values = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    for k, (x, y) in enumerate(zip(a, b, strict=True)):  # one clip at a time: float64 copies are large
        values[k] = _structural_similarity(x, y).mean()
    return values


def _structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of every window. a, b: uint8 (t, h, w, 3) -> float64 (3 t, 1, h - 10, w - 10)."""
    x, y = (clip.permute(0, 3, 1, 2).flatten(0, 1)[:, None].double() for clip in (a, b))
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=a.device) - SSIM_WINDOW // 2
    kernel = (-(offsets**2) / (2 * SSIM_SIGMA**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)

    def average(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, kernel), kernel.movedim(-1, 2))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = average(x), average(y)
    var_x, var_y = average(x * x) - mean_x**2, average(y * y) - mean_y**2
    cov = average(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
