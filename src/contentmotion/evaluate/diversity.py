"""How much the videos of one prompt differ from seed to seed: distilled models tend to give one video for all."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from contentmotion.evaluate.lpips import LPIPS, lpips_distance


def diversity(
    model: LPIPS, videos: np.ndarray | Tensor, batch_size: int = 32, num_frames: int | None = None
) -> Float[Tensor, " b"]:
    """Mean LPIPS over all pairs of seeds, each frame against the frame at the same place.

    Args:
        model: From `contentmotion.evaluate.lpips.load_lpips`.
        videos: uint8 (s, b, t, h, w, 3): s >= 2 seeds, b prompts, at least 31 pixels high and wide.
        batch_size: Pairs of frames at once.
        num_frames: Compare this many frames, evenly spread from the first to the last; None for all.

    Returns:
        float64 (b,) on the CPU: 0 where every seed gave the same video.

    Raises:
        ValueError: Another type or shape, or a single seed.
    """
    videos = torch.as_tensor(videos)
    if videos.ndim != 6 or len(videos) < 2:
        raise ValueError(f"diversity needs videos (s, b, t, h, w, 3) of 2 seeds or more, got {tuple(videos.shape)}")
    if num_frames is not None:
        places = np.linspace(0, videos.shape[2] - 1, num_frames).round().astype(int)
        videos = videos[:, :, np.unique(places)]
    pairs = [lpips_distance(model, x, y, batch_size) for x, y in combinations(videos, 2)]
    return torch.stack(pairs).mean(dim=0)
