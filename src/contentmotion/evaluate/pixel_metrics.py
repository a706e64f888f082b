"""Numbers from pixels alone: how close two clips are (squared error, PSNR, SSIM), and how much moves in one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

MAX_PSNR = 100.0  # dB, of equal clips, whose PSNR is infinite
SSIM_WINDOW = 11  # pixels, height and width
SSIM_SIGMA = 1.5
MIN_FLOW_SIZE = 16  # pixels, height and width: two of DIS's patches
THUMBNAIL_FRAMES, THUMBNAIL_SIZE = 8, 32  # 24 kB a clip: the nearest neighbours of 10,000 are found in memory


def require_clips(*videos: np.ndarray | Tensor, by: str = "", frames: int = 1, side: int = 1) -> tuple[Tensor, ...]:
    """The videos as tensors (without a copy).

    Raises:
        ValueError: They are not all uint8 (b, t, h, w, 3) of one shape, with t >= frames and h, w >= side as a measure
            needs it, which `by` names.
    """
    tensors = tuple(torch.as_tensor(x) for x in videos)
    for x in tensors:
        if x.dtype != torch.uint8 or x.ndim != 5 or x.shape[-1] != 3:
            raise ValueError(f"videos must be uint8 (b, t, h, w, 3), got {x.dtype} {tuple(x.shape)}")
        if x.shape != tensors[0].shape:
            raise ValueError(f"videos of different shapes: {tuple(tensors[0].shape)} and {tuple(x.shape)}")
    _, t, height, width, _ = tensors[0].shape
    if t < frames:
        raise ValueError(f"{by} needs clips of {frames} frames or more, got {t}")
    if min(height, width) < side:
        raise ValueError(f"{by} needs frames of {side}x{side} or more, got {(height, width)}")
    return tensors


def mean_squared_error(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
    """Mean squared error per clip, float64 (b,), in units of the full range (0 black, 1 white).

    Both are clips (b, ...), of one shape: uint8, or floating point in [-1, 1].

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

    Clips, result and what is refused are as of `mean_squared_error`.
    """
    return -10 * mean_squared_error(a, b).log10()


def ssim(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
    """Structural similarity per clip: 1 for equal clips, the mean over frames and colour channels.

    Both are clips uint8 (b, t, h, w, 3), at least 11 pixels high and wide. The window is Gaussian, 11x11, of deviation
    1.5; only windows that lie inside the frame count.

    Source: Wang et al. 2004, Image quality assessment: from error visibility to structural similarity, Eq. 13-17.

    Returns:
        float64 (b,), in [-1, 1], on the clips' device.

    Raises:
        ValueError: Another type or shape, or frames that are too small.
    """
    a, b = require_clips(a, b, by="SSIM", side=SSIM_WINDOW)
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


def frame_difference(videos: np.ndarray | Tensor) -> Tensor:
    """Mean absolute difference of consecutive frames, of each clip uint8 (b, t, h, w, 3), t >= 2.

    Returns:
        float64 (b,), in [0, 1] of the full range: 0 for a still clip.

    Raises:
        ValueError: Another type or shape, or a single frame.
    """
    (videos,) = require_clips(videos, by="motion", frames=2)
    differences = [(clip[1:].int() - clip[:-1].int()).abs().double().mean() / 255 for clip in videos]
    return torch.tensor(differences, dtype=torch.float64)


def optical_flow(videos: np.ndarray | Tensor) -> Tensor:
    """Mean length of the optical flow between consecutive frames, of each clip, at its own size.

    The flow is OpenCV's DIS with the preset "medium", on grey levels. It follows texture: a flat region counts as
    still, and what moves further than about an eighth of the picture in a step is underrated.

    Source: Kroeger et al. 2016 (arXiv 1603.03590).

    Args:
        videos: uint8 (b, t, h, w, 3), t >= 2, at least `MIN_FLOW_SIZE` pixels high and wide.

    Returns:
        float64 (b,), in pixels per frame step: 0 for a still clip.

    Raises:
        ValueError: Another type or shape, a single frame, or frames that are too small.
    """
    (videos,) = require_clips(videos, by="optical flow", frames=2, side=MIN_FLOW_SIZE)
    clips = videos.cpu().numpy()
    lengths = [np.mean([np.linalg.norm(flow, axis=-1).mean() for flow in flow_fields(clip)]) for clip in clips]
    return torch.tensor(lengths, dtype=torch.float64)


def flow_fields(clip: UInt8[np.ndarray, "t h w 3"]) -> Iterator[Float[np.ndarray, "h w 2"]]:
    """The optical flow of a clip from each frame to the next, in pixels, float64; see `optical_flow`."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    threads = cv2.getNumThreads()
    for a, b in pairwise(grey):
        cv2.setNumThreads(1)  # the same numbers on every machine
        try:
            # A new estimator for each pair: one that is used again starts from its last sizes.
            flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(a, b, None)
        finally:
            cv2.setNumThreads(threads)
        yield flow.astype(np.float64)
