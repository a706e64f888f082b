"""LPIPS, the distance between two pictures as a trained network sees it; with AlexNet, version 0.1.

Sources: Zhang et al. 2018 (arXiv 1801.03924), Eq. 1; AlexNet, Krizhevsky 2014 (arXiv 1404.5997). Keys of the weights are
those of the package ``lpips`` (``net.slice1.0.weight`` ... ``lin4.model.1.weight``).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for pictures in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
VARIABLE = "CONTENTMOTION_LPIPS"


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity: 0 for equal pictures, larger for what looks different."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = (
            (1, 0, nn.Conv2d(3, 64, 11, stride=4, padding=2)),
            (2, 3, nn.Conv2d(64, 192, 5, padding=2)),
            (3, 6, nn.Conv2d(192, 384, 3, padding=1)),
            (4, 8, nn.Conv2d(384, 256, 3, padding=1)),
            (5, 10, nn.Conv2d(256, 256, 3, padding=1)),
        )
        self.net = nn.ModuleDict({f"slice{n}": nn.ModuleDict({str(k): conv}) for n, k, conv in convolutions})
        for i, (*_, conv) in enumerate(convolutions):
            head = nn.ModuleDict({"1": nn.Conv2d(conv.out_channels, 1, 1, bias=False)})
            self.add_module(f"lin{i}", nn.ModuleDict({"model": head}))

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Distance of each pair.

        Args:
            a: Pictures in [-1, 1], at least 31 pixels high and wide.
            b: The others.
        """
        heads = [self.get_submodule(f"lin{i}.model.1") for i in range(5)]
        distance = torch.zeros(len(a), device=a.device)
        for x, y, head in zip(self._features(a), self._features(b), heads, strict=True):
            distance = distance + head((x - y).square()).float().mean(dim=(1, 2, 3))
        return distance

    def _features(self, x: Tensor) -> list[Tensor]:
        """Five layers' activations, each place scaled to unit length."""
        shift, scale = (torch.tensor(v, device=x.device)[:, None, None] for v in (SHIFT, SCALE))
        x = (x - shift) / scale
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
    path = path or os.environ.get(VARIABLE)
    if not path:
        raise FileNotFoundError(f"LPIPS needs its AlexNet weights: give a safetensors file, or set {VARIABLE}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file (LPIPS weights)")
    with torch.device("meta"):
        model = LPIPS()
    try:
        model.load_state_dict(load_file(path), assign=True)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None
    except RuntimeError as error:
        raise ValueError(f"{path}: not LPIPS with AlexNet ({str(error).splitlines()[-1].strip()})") from None
    return model.eval().requires_grad_(False)
