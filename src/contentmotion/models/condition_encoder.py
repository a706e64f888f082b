"""What a video follows besides its text: depth, sketch, mask, first frame, each through an encoder of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from contentmotion.config import CONDITION_NAMES
from contentmotion.models.layers import Attention, require_multiple, sincos_embedding

MAPS = ("depth", "sketch")  # one channel, at the size of the pixels


class TemporalBlock(nn.Module):
    """Pre-norm transformer block across the frames, at each place by itself."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SpatioTemporalEncoder(nn.Module):
    """One condition's sequence -> features at the latent's size: convolutions within a frame, attention across them.

    ``downsampling`` is how many of the condition's pixels a latent has along a side, a power of 2.

    Source: Wang et al. 2023 (VideoComposer), section 3.2: light convolutions and one temporal transformer layer.
    """

    def __init__(
        self, in_channels: int, downsampling: int, hidden_channels: int, out_channels: int, num_heads: int
    ) -> None:
        super().__init__()
        halvings = int(math.log2(downsampling))
        # Narrow where the picture is large: 64 channels at the latent's size, 32 at twice that, ...
        widths = [max(8, hidden_channels // 2**k) for k in range(halvings, -1, -1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1), nn.SiLU()]
        for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.SiLU()]
        layers.append(nn.Conv2d(widths[-1], hidden_channels, 3, padding=1))
        self.spatial = nn.Sequential(*layers)
        self.temporal = TemporalBlock(hidden_channels, num_heads)
        self.proj_out = nn.Linear(hidden_channels, out_channels)
        # PyTorch's own start shrinks what passes by a factor of 3 and more per convolution: a sparse map would drown
        # in the biases and in the embedding of the frames' places, and be learned late or never.
        for layer in (*self.spatial, self.proj_out):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "b t c H W"]) -> Float[Tensor, "b t out h w"]:
        """Returns features, ``downsampling`` times smaller along each side."""
        b, t = x.shape[:2]
        x = self.spatial(x.flatten(0, 1))  # (b t, d, h, w)
        d, h, w = x.shape[1:]
        x = x.view(b, t, d, h, w).permute(0, 3, 4, 1, 2).reshape(b * h * w, t, d)
        x = x + sincos_embedding(d, torch.arange(t, device=x.device)).to(x.dtype)
        x = self.proj_out(self.temporal(x))  # (b h w, t, out)
        return x.view(b, h, w, t, -1).permute(0, 3, 4, 1, 2)


class ConditionEncoder(ModelMixin, ConfigMixin):
    """Any set of conditions -> channels that join a video UNet's noisy latent.

    Each condition has an encoder of its own; what they make is summed, so any subset serves, and a condition that is
    not there adds exactly nothing. Frames see each other, through attention at every place.

    Source: Wang et al. 2023 (VideoComposer, arXiv 2306.02018), section 3.2, as in VideoLCM's compositional model.

    Args:
        conditions: Names of the conditions it takes: "depth", "sketch", "mask", "first_frame".
        latent_channels: Channels of the image VAE's latents (3 on pixels).
        vae_scale_factor: Pixels per latent along a side, a power of 2 (1 on pixels).
        hidden_channels: Width; a multiple of ``num_heads``, and even.
        out_channels: Channels that it returns.
        num_heads: Heads of the attention across frames.

    Raises:
        ValueError: No or unknown conditions, or sizes that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        conditions: Sequence[str] = CONDITION_NAMES,
        latent_channels: int = 4,
        vae_scale_factor: int = 8,
        hidden_channels: int = 64,
        out_channels: int = 4,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        unknown = [name for name in conditions if name not in CONDITION_NAMES]
        if unknown or not conditions:
            wrong = f"unknown condition {unknown[0]!r}" if unknown else "no conditions"
            raise ValueError(f"{wrong}: choose from {', '.join(CONDITION_NAMES)}")
        if vae_scale_factor < 1 or vae_scale_factor & (vae_scale_factor - 1):
            raise ValueError(f"vae_scale_factor must be a power of 2, got {vae_scale_factor}")
        require_multiple(hidden_channels, math.lcm(2, num_heads), "hidden_channels")
        # The mask comes with the known latents, the first frame with a flag that tells it from the other frames.
        channels = {"depth": 1, "sketch": 1, "mask": 1 + latent_channels, "first_frame": latent_channels + 1}
        self.encoders = nn.ModuleDict()
        for name in dict.fromkeys(conditions):
            factor = vae_scale_factor if name in MAPS else 1
            self.encoders[name] = SpatioTemporalEncoder(
                channels[name], factor, hidden_channels, out_channels, num_heads
            )

    def forward(
        self,
        conditions: Mapping[str, Tensor],
        num_frames: int,
        height: int,
        width: int,
        present: Mapping[str, Bool[Tensor, " b"]] | None = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, "b t out h w"]:
        """Encodes and sums.

        Args:
            conditions: By name, any subset: "depth" and "sketch" (b, t, 1, H, W) in [0, 1] (1: near; line); "mask"
                (b, t, 1 + c, h, w), the mask (1: to be made) and the known latents, 0 where there are none;
                "first_frame" (b, 1, c, h, w), scaled latents. One with b = 1 serves a whole batch.
            present: By name, which items have the condition; all do where a name is missing.
            batch_size: Items b; those of the conditions when not given.

        Returns:
            Float in the weights' type (or autocast's); zeros where an item has no condition.

        Raises:
            ValueError: A condition that the model does not take, of another shape, or no way to tell the batch size.
        """
        if unknown := [name for name in conditions if name not in self.encoders]:
            raise ValueError(f"the model takes no {unknown[0]} (it was trained with: {', '.join(self.encoders)})")
        if not conditions and batch_size is None:
            raise ValueError("give batch_size where there are no conditions")
        b = batch_size or max(len(value) for value in conditions.values())
        shape = (b, num_frames, self.config.out_channels, height, width)
        out = torch.zeros(shape, dtype=self.dtype, device=self.device)
        for name in self.encoders:  # in the model's order, so that a sum is the same whatever order the dict has
            if name not in conditions:
                continue
            x = self._prepared(name, conditions[name], b, num_frames, height, width)
            encoded = self.encoders[name](x.to(out))
            if present is not None and name in present:
                kept = present[name].to(out.device)[:, None, None, None, None]
                encoded = torch.where(kept, encoded, 0.0)
            out = out + encoded
        return out

    def _prepared(self, name: str, x: Tensor, b: int, t: int, h: int, w: int) -> Tensor:
        """A condition in the form that its encoder takes, (b or 1, t, c, H, W)."""
        c, f = self.config.latent_channels, self.config.vae_scale_factor
        shapes = {"mask": (t, 1 + c, h, w), "first_frame": (1, c, h, w)}
        wanted = shapes.get(name, (t, 1, h * f, w * f))
        if tuple(x.shape[1:]) != wanted or len(x) not in (1, b):
            raise ValueError(f"the condition {name} must be {(b, *wanted)}, got {tuple(x.shape)}")
        if name in MAPS:
            return 2 * x - 1
        if name == "mask":
            return x
        # Every frame sees it; a flag says which one is it.
        flag = torch.zeros(len(x), t, 1, h, w, dtype=x.dtype, device=x.device)
        flag[:, 0] = 1
        return torch.cat([x.expand(-1, t, -1, -1, -1), flag], dim=2)
