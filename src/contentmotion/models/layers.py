"""Layers that the autoencoder and the motion DiT share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor, nn

# Attention kernels launch one block per sequence and CUDA's grids end at 65,535.
MAX_SEQUENCES = 2**15


class Attention(nn.Module):
    """Multi-head self-attention over the second-to-last axis, through PyTorch's fused attention.

    Args:
        dim: Width of the tokens.
        num_heads: Attention heads.
        head_dim: Channels per head; ``dim // num_heads`` when not given.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim or dim // num_heads
        inner_dim = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner_dim)
        self.proj = nn.Linear(inner_dim, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Returns tokens of the same shape."""
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (b, heads, n, head_dim)
        if x.device.type == "cpu" and qkv.requires_grad:
            # The fused backward pass is four to nine times slower than plain products there (docs/log.md).
            weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)  # (b, heads, n, n)
            x = weights.to(v.dtype) @ v
        elif b <= MAX_SEQUENCES:
            x = F.scaled_dot_product_attention(q, k, v)  # (b, heads, n, head_dim)
        else:
            parts = zip(*(part.split(MAX_SEQUENCES) for part in (q, k, v)), strict=True)
            x = torch.cat([F.scaled_dot_product_attention(*part) for part in parts])
        return self.proj(x.transpose(1, 2).reshape(b, n, -1))


def sincos_embedding(dim: int, positions: Real[Tensor, " n"]) -> Float[Tensor, "n {dim}"]:
    """Sinusoidal embedding of one coordinate, of an even width, cosines first (Vaswani et al. 2017, DiT's order)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[:, None] * frequencies[None]  # (n, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_embedding(dim: int, height: int, width: int, device: torch.device) -> Float[Tensor, "height width {dim}"]:
    """Sinusoidal embedding of a 2-D grid: half the channels, a multiple of 4, for the row, half for the column.

    It is computed from the grid at hand, so a model applies to sizes that it was not trained on.
    """
    rows = sincos_embedding(dim // 2, torch.arange(height, device=device))  # (height, dim / 2)
    columns = sincos_embedding(dim // 2, torch.arange(width, device=device))  # (width, dim / 2)
    rows, columns = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1)


def require_statistics(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """Raises ``ValueError`` unless mean and deviation of motion are both there, a number a channel, or both absent."""
    if mean is not None or std is not None:
        for name, values in (("motion_mean", mean), ("motion_std", std)):
            if not isinstance(values, (list, tuple)) or len(values) != channels:
                raise ValueError(f"{name} must be {channels} numbers, one a channel, got {values}")


def standardize(
    motion: Float[Tensor, "b D t s"], mean: Sequence[float], std: Sequence[float], inverse: bool = False
) -> Float[Tensor, "b D t s"]:
    """Motion latents at zero mean and unit variance per channel (or back), computed in float32."""
    means, stds = (_per_channel(tuple(values), motion.device) for values in (mean, std))
    return (motion.float() * stds + means if inverse else (motion.float() - means) / stds).to(motion.dtype)


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers (D, 1, 1) on a device; kept, for at every copy there the processor waits until the device is done."""
    with torch.inference_mode(False):  # or training would refuse what sampling has made
        return torch.tensor(values, device=device)[:, None, None]


def require_multiple(value: int, divisor: int, what: str) -> None:
    """Raise ``ValueError`` naming ``what`` unless ``value`` is a positive multiple of ``divisor``."""
    if value <= 0 or value % divisor:
        raise ValueError(f"{what} must be a multiple of {divisor}, got {value}")
