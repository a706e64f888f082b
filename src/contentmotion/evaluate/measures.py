"""What is measured of every video, and stored: features, differences from the real clip, motion, thumbnails."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contentmotion.config import EvaluateConfig
from contentmotion.config.use import Resize
from contentmotion.evaluate.clipsim import clip_similarity, load_clip
from contentmotion.evaluate.i3d import i3d_features, load_i3d
from contentmotion.evaluate.lpips import load_lpips, lpips_distance
from contentmotion.evaluate.motion import frame_difference, optical_flow
from contentmotion.evaluate.reconstruction import mean_squared_error, ssim
from contentmotion.evaluate.weights import find_weights

THUMBNAIL_FRAMES, THUMBNAIL_SIZE = 8, 32  # 24 kB a clip: the nearest neighbours of 10,000 are found in memory


class Measures:
    """The networks that measure.

    Args:
        config: Says which, and where their weights are.
        device: Where they run.

    Attributes:
        i3d_file: I3D's weights.
        lpips_file: LPIPS's weights; None where they were not given.
        clip_digest: sha256 of CLIP and of what comes before it; None without it.

    Raises:
        FileNotFoundError: Weights that were named are not there, or no I3D weights were given.
        ValueError: Weights of another network.
    """

    def __init__(self, config: EvaluateConfig, device: torch.device) -> None:
        self.i3d_file = find_weights(config.i3d, "i3d")
        self.lpips_file = find_weights(config.lpips, "lpips", required=False)
        self.i3d = load_i3d(self.i3d_file).to(device)
        self.lpips = load_lpips(self.lpips_file).to(device) if self.lpips_file else None
        self.clip = load_clip(config.clip, device) if config.clip else None
        self.clip_digest = hash_network(self.clip.model, self.clip.settings) if self.clip else None
        self.resolution = config.fvd_resolution
        self.resize: Resize = config.fvd_resize or "bilinear"

    def __call__(self, videos: Tensor, real: Tensor | None, prompts: Sequence[str] | None) -> dict[str, np.ndarray]:
        """Measures of some videos, one row each.

        Args:
            videos: uint8 (b, t, 3, h, w).
            real: What they should equal, of the same shape; None where they need not.
            prompts: What they should show, one each; None where nobody said.
        """
        videos = videos.permute(0, 1, 3, 4, 2)
        measured = {
            "features": i3d_features(self.i3d, videos, resolution=self.resolution, resize=self.resize),
            "thumbnails": thumbnails(videos),
            "frame_difference": frame_difference(videos),
            "optical_flow": optical_flow(videos),
        }
        if real is not None:
            real = real.permute(0, 1, 3, 4, 2)
            measured |= {"mse": mean_squared_error(videos, real), "ssim": ssim(videos, real)}
            if self.lpips is not None:
                measured["lpips"] = lpips_distance(self.lpips, videos, real)
        if prompts is not None and self.clip is not None:
            measured["clipsim"] = clip_similarity(self.clip, videos, prompts)
        return {name: value.numpy() for name, value in measured.items()}


def hash_network(network: nn.Module, settings: dict[str, Any]) -> str:
    """sha256 (hex) over every tensor of a network, and its settings (JSON-like)."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, value in network.state_dict().items():
        sha.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def thumbnails(videos: Tensor) -> Tensor:
    """Small versions of clips: what their pixels are compared by.

    Args:
        videos: uint8 (b, t, h, w, 3).

    Returns:
        uint8 (b, min(t, 8), min(h, 32), min(w, 32), 3): evenly spread frames, averaged over areas.
    """
    b, t, h, w, _ = videos.shape
    picks = torch.linspace(0, t - 1, min(t, THUMBNAIL_FRAMES)).round().long()
    frames = videos[:, picks].flatten(0, 1).permute(0, 3, 1, 2).float()
    small = F.interpolate(frames, (min(h, THUMBNAIL_SIZE), min(w, THUMBNAIL_SIZE)), mode="area")
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).unflatten(0, (b, len(picks)))
