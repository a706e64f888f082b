"""The motion model: a diffusion transformer over the two motion planes, given the content frame (CMD section 3.2)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor, nn

from contentmotion.models.layers import (
    Attention,
    grid_embedding,
    require_multiple,
    require_statistics,
    sincos_embedding,
)

# Peebles & Xie 2023, Table 1; the patch size "/2" is that of the motion planes.
PRESETS: dict[str, dict[str, int]] = {
    "DiT-S/2": {"hidden_size": 384, "depth": 12, "num_heads": 6, "patch_size": 2},
    "DiT-B/2": {"hidden_size": 768, "depth": 12, "num_heads": 12, "patch_size": 2},
    "DiT-L/2": {"hidden_size": 1024, "depth": 24, "num_heads": 16, "patch_size": 2},
    "DiT-XL/2": {"hidden_size": 1152, "depth": 28, "num_heads": 16, "patch_size": 2},
}
FREQUENCY_DIM = 256


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's affine part, ``x (b, n, d)``, with one shift and scale per item ``(b, 1, d)`` or token."""
    return x * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Transformer block with adaLN-Zero conditioning (Peebles & Xie 2023, Fig. 3)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        inner_dim = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, inner_dim), nn.GELU(approximate="tanh"), nn.Linear(inner_dim, dim))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b _ d"]) -> Float[Tensor, "b n d"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class MotionDiT(ModelMixin, ConfigMixin):
    """Predicts the noise (or whatever its scheduler's ``prediction_type`` says) of a motion latent.

    The planes ``z_x`` (t by H') and ``z_y`` (t by W') are cut into patches and joined to one token sequence, followed
    by patches of the content frame, which is an *input* like the motion, not a feature of another network. Only the
    motion tokens are read out. The timestep and the class or pooled text go through adaLN-Zero.

    Source: CMD Eq. 8, Table 6.

    Args:
        motion_channels: Channels D of the motion latent.
        content_channels: Channels of the content frame.
        hidden_size: Width; a multiple of 4.
        depth: Blocks.
        num_heads: Attention heads.
        patch_size: Patch size on the motion planes.
        content_patch_size: Patch size on the content frame: larger ones make fewer tokens.
        mlp_ratio: Width of the MLPs over ``hidden_size``.
        num_classes: Classes, for class conditioning; label ``num_classes`` is the null class.
        text_dim: Width of the pooled text feature, for text conditioning.
        learn_sigma: Whether it predicts the variance too (twice the output channels).
        motion_mean: Mean of each motion channel over the clips that it was trained on.
        motion_std: Standard deviation of each motion channel, likewise.
        overlap: Frames at a clip's ends that it was trained to be given (``known``), to go on from another clip.
        fps: Frames per second of the clips that it was trained on; None: not known.
        target_blocks: Of a flow map: so many of the last blocks, and the output's layer, are told the time that a step
            leads to in place of its own (Lee et al. 2025, Decoupled MeanFlow, arXiv 2510.24474). No weight is new.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock"]

    @register_to_config
    def __init__(
        self,
        motion_channels: int = 8,
        content_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        patch_size: int = 2,
        content_patch_size: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        text_dim: int | None = None,
        learn_sigma: bool = False,
        motion_mean: list[float] | None = None,
        motion_std: list[float] | None = None,
        overlap: int = 0,
        fps: float | None = None,
        target_blocks: int = 0,
    ) -> None:
        super().__init__()
        require_statistics(motion_mean, motion_std, motion_channels)
        require_multiple(hidden_size, 4, "hidden_size")
        require_multiple(hidden_size, num_heads, "hidden_size")
        if num_classes is not None and text_dim is not None:
            raise ValueError("give num_classes (class conditioning) or text_dim (text conditioning), not both")
        self.gradient_checkpointing = False
        self.motion_embed = nn.Conv2d(motion_channels, hidden_size, patch_size, stride=patch_size)
        self.content_embed = nn.Conv2d(content_channels, hidden_size, content_patch_size, stride=content_patch_size)
        self.plane_embed = nn.Parameter(torch.zeros(3, hidden_size))  # tells z_x, z_y and content tokens apart
        self.timestep_embed = nn.Sequential(
            nn.Linear(FREQUENCY_DIM, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        if num_classes is not None:
            self.class_embed = nn.Embedding(num_classes + 1, hidden_size)
        if text_dim is not None:
            self.text_embed = nn.Linear(text_dim, hidden_size)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.norm_out = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))
        out_channels = motion_channels * (2 if learn_sigma else 1)
        self.proj_out = nn.Linear(hidden_size, out_channels * patch_size**2)
        self._initialize()

    @classmethod
    def from_preset(cls, name: Literal["DiT-S/2", "DiT-B/2", "DiT-L/2", "DiT-XL/2"], **kwargs: Any) -> MotionDiT:
        """Builds one of the paper's sizes, "DiT-L/2" (UCF-101) or "DiT-XL/2" (WebVid), or a smaller one.

        Raises:
            ValueError: Unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **kwargs})

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for embed in (self.motion_embed, self.content_embed):  # as the linear layers that they are
            nn.init.xavier_uniform_(embed.weight.view(embed.weight.shape[0], -1))
            nn.init.zeros_(embed.bias)
        nn.init.normal_(self.plane_embed, std=0.02)
        for layer in (self.timestep_embed[0], self.timestep_embed[2]):
            nn.init.normal_(layer.weight, std=0.02)
        if self.config.num_classes is not None:
            nn.init.normal_(self.class_embed.weight, std=0.02)
        # adaLN-Zero: every block starts as the identity, and the model's output at zero.
        for layer in (*(block.modulation[1] for block in self.blocks), self.modulation_out[1], self.proj_out):  # type: ignore[index]
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        motion: Float[Tensor, "b D t s"],
        timesteps: Real[Tensor, " b"],
        content: Float[Tensor, "b c h w"],
        class_labels: Int[Tensor, " b"] | None = None,
        pooled_text: Float[Tensor, "b text_dim"] | None = None,
        known: Bool[Tensor, "b t"] | None = None,
        target_timesteps: Real[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b out t s"]:
        """Denoises one step.

        Args:
            motion: Noisy standardised motion latent, ``s = H' + W'``.
            timesteps: Diffusion times, 0 to 999; of flow matching any number in [0, 1000].
            content: Content frame; its sides tell H' from W'.
            class_labels: Class ids; ``num_classes`` is the null class.
            pooled_text: Pooled text features.
            known: Frames whose motion is clean: their tokens have time 0. Whole patches.
            target_timesteps: Of a flow map: the times that the step leads to.

        Returns:
            The prediction, ``out = D``, or ``2 D`` with ``learn_sigma``.

        Raises:
            ValueError: The sizes do not fit the patches, or the condition or a flow map's target is missing.
        """
        if (target_timesteps is None) != (self.config.target_blocks == 0):
            raise ValueError("target_timesteps are for flow maps (target_blocks), and those need them")
        _, _, t, s = motion.shape
        h, w = content.shape[-2:]
        p = self.config.patch_size
        if (s * h) % (h + w):
            raise ValueError(f"a motion latent of {s} places does not fit a content frame of {h}x{w}")
        rows = s * h // (h + w)  # H' and W' are as the content frame's sides
        columns = s - rows
        for size, what in ((t, "frames"), (rows, "the motion plane's rows"), (columns, "columns")):
            require_multiple(size, p, what)
        for size in (h, w):
            require_multiple(size, self.config.content_patch_size, "the content frame's side")
        planes = motion.split([rows, columns], dim=3)
        tokens = [self._tokens(self.motion_embed(z), plane) for plane, z in enumerate(planes)]
        num_motion_tokens = sum(x.shape[1] for x in tokens)
        x = torch.cat([*tokens, self._tokens(self.content_embed(content), 2)], dim=1)  # (b, n, d)
        condition = self._condition(timesteps, class_labels, pooled_text).to(x.dtype)  # (b, 1, d)
        if known is not None:
            clean = self._condition(torch.zeros_like(timesteps), class_labels, pooled_text).to(x.dtype)
            rows_known = known[:, ::p, None]  # (b, t / p, 1): of patches
            is_clean = torch.cat([rows_known.expand(-1, -1, n // p).flatten(1) for n in (rows, columns)], dim=1)
            is_clean = F.pad(is_clean, (0, x.shape[1] - num_motion_tokens))  # the content frame goes with the noise
            condition = torch.where(is_clean[..., None], clean, condition)  # (b, n, d)
        for number, block in enumerate(self.blocks):
            if target_timesteps is not None and number == len(self.blocks) - self.config.target_blocks:
                condition = self._condition(target_timesteps, class_labels, pooled_text).to(x.dtype)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, condition)
            else:
                x = block(x, condition)
        x, condition = x[:, :num_motion_tokens], condition[:, :num_motion_tokens]
        shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
        x = self.proj_out(modulate(self.norm_out(x), shift, scale))  # (b, n_motion, p p out)
        x_tokens, y_tokens = x.split([x_.shape[1] for x_ in tokens], dim=1)
        return torch.cat([self._plane(x_tokens, t, rows), self._plane(y_tokens, t, columns)], dim=3)

    def _condition(self, timesteps: Tensor, class_labels: Tensor | None, pooled_text: Tensor | None) -> Tensor:
        """Time, and class or text, of each item, ``(b, 1, d)``."""
        dtype = self.proj_out.weight.dtype
        condition = self.timestep_embed(sincos_embedding(FREQUENCY_DIM, timesteps).to(dtype))
        if self.config.num_classes is not None:
            if class_labels is None:
                raise ValueError("this motion model is class-conditional: give class_labels")
            condition = condition + self.class_embed(class_labels)
        if self.config.text_dim is not None:
            if pooled_text is None:
                raise ValueError("this motion model is text-conditional: give pooled_text")
            condition = condition + self.text_embed(pooled_text)
        return condition[:, None]

    def _tokens(self, patches: Tensor, plane: int) -> Tensor:
        """``(b, d, rows, columns)`` -> tokens with position and kind, ``(b, rows columns, d)``."""
        position = grid_embedding(patches.shape[1], *patches.shape[2:], device=patches.device).flatten(0, 1)
        position = position + self.plane_embed[plane]
        return patches.flatten(2).transpose(1, 2) + position.to(patches.dtype)

    def _plane(self, tokens: Tensor, t: int, places: int) -> Tensor:
        """Tokens of one plane ``(b, n, p p out)`` -> ``(b, out, t, places)``."""
        p = self.config.patch_size
        x = tokens.view(tokens.shape[0], t // p, places // p, p, p, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], -1, t, places)
