"""The autoencoder that splits a video into a content frame and a motion latent (CMD section 3.1, Fig. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor, nn

from contentmotion.models.layers import (
    Attention,
    grid_embedding,
    require_multiple,
    require_statistics,
    sincos_embedding,
    standardize,
)


@dataclass
class AutoencoderOutput(BaseOutput):
    """What the encoder makes of a video.

    Attributes:
        content: Content frame, ``(b, c, h, w)``, inside the range of the frames.
        motion_latent: ``z_x`` and ``z_y`` side by side, ``(b, D, t, H' + W')``, not standardised.
        weights: Share of each frame in the content frame, ``(b, t, c, h, w)``, sums to 1 over ``t``.
    """

    content: Tensor
    motion_latent: Tensor
    weights: Tensor


class GEGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020), the MLP of the TimeSformer whose FLOPs CMD prints."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        inner_dim = int(dim * mlp_ratio)
        self.proj_in = nn.Linear(dim, 2 * inner_dim)
        self.proj_out = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(x * F.gelu(gate))


class TimeSformerBlock(nn.Module):
    """Divided attention: over time, then over space, then an MLP, each pre-norm and residual.

    Source: Bertasius et al. 2021, "Is Space-Time Attention All You Need for Video Understanding?", Eq. 6-7.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_time, self.norm_space, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.attn_time = Attention(dim, num_heads, head_dim)
        self.attn_space = Attention(dim, num_heads, head_dim)
        self.mlp = GEGLU(dim, mlp_ratio)

    def forward(
        self, u: Float[Tensor, "b t n d"], windows: tuple[int, int, int] | None = None
    ) -> Float[Tensor, "b t n d"]:
        """Returns tokens of the same shape; ``windows`` is (rows, columns, side) of a grid cut into windows."""
        b, t, n, d = u.shape
        tubes = self.norm_time(u).transpose(1, 2).reshape(b * n, t, d)  # one sequence per place
        u = u + self.attn_time(tubes).view(b, n, t, d).transpose(1, 2)
        frames = self.norm_space(u).reshape(b * t, n, d)  # one sequence per frame
        if windows is None:
            attended = self.attn_space(frames)
        else:
            attended = join_windows(self.attn_space(cut_windows(frames, *windows)), *windows)
        u = u + attended.view(b, t, n, d)
        return u + self.mlp(self.norm_mlp(u))


def cut_windows(x: Float[Tensor, "b n d"], rows: int, columns: int, side: int) -> Float[Tensor, "b_windows m d"]:
    """Tokens of a grid of rows x columns as one sequence per square window, ``m = side ** 2``."""
    x = x.view(len(x), rows // side, side, columns // side, side, -1)  # (b, R, side, C, side, d)
    return x.transpose(2, 3).reshape(-1, side**2, x.shape[-1])


def join_windows(x: Float[Tensor, "b_windows m d"], rows: int, columns: int, side: int) -> Float[Tensor, "b n d"]:
    """Undoes ``cut_windows``."""
    x = x.view(-1, rows // side, columns // side, side, side, x.shape[-1])  # (b, R, C, side, side, d)
    return x.transpose(2, 3).reshape(-1, rows * columns, x.shape[-1])


class ContentMotionAutoencoder(ModelMixin, ConfigMixin):
    """Video <-> (content frame, motion latent), on image-VAE latents or on pixels.

    Source: CMD Eq. 3-6, Table 5.

    Args:
        in_channels: Channels c of a frame: 4 for Stable Diffusion's latents, 3 for pixels.
        patch_size: Patch size; the patch grid is H' = h / patch_size by W' = w / patch_size.
        hidden_size: Width d of both TimeSformers; a multiple of 4.
        depth: Blocks of the encoder, and of the decoder.
        num_heads: Attention heads.
        head_dim: Channels per head.
        mlp_ratio: Width of the GEGLU layers over ``hidden_size``.
        motion_channels: Channels D of the motion latent.
        content_mode: ``"softmax"``: a learned weight per frame, channel and pixel (Eq. 3); ``"mean"``: the plain
            mean of the frames (the paper's ablation); ``"frame"``: one of the frames as it is (ours): sharp, what
            image models know, and a given picture is a content frame already.
        content_index: Which frame that is, from 0; negative ones count from the end.
        residual_decoding: Whether the decoder's output is added to the content frame (ours; off in the paper).
        refine_channels: Width of a convolutional head that smooths the seams between the decoder's patches (ours);
            0 is the paper's linear head alone.
        attention_window: Side of the windows of patches inside which two of three decoder blocks attend over space
            (ours; as ViTDet, Li et al. 2022, does); where it does not divide the grid, they attend over all of it.
            0: every block over the whole frame, as in the paper. The weights are the same either way.
        num_frames: Frames it was trained on (a default for users, not a limit).
        sample_height: Height h it was trained on, likewise.
        sample_width: Width w it was trained on, likewise.
        motion_mean: Mean of each motion channel over the training set, of models made by version 0.1: newer ones have
            it in the motion model.
        motion_std: Standard deviation of each motion channel, likewise.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TimeSformerBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 8,
        head_dim: int = 64,
        mlp_ratio: float = 4.0,
        motion_channels: int = 8,
        content_mode: Literal["softmax", "mean", "frame"] = "softmax",
        content_index: int = 0,
        residual_decoding: bool = True,
        refine_channels: int = 0,
        attention_window: int = 0,
        num_frames: int = 16,
        sample_height: int = 64,
        sample_width: int = 64,
        motion_mean: list[float] | None = None,
        motion_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if content_mode not in ("softmax", "mean", "frame"):
            raise ValueError(f'content_mode must be "softmax", "mean" or "frame", got {content_mode!r}')
        require_statistics(motion_mean, motion_std, motion_channels)
        require_multiple(hidden_size, 4, "hidden_size")
        self.gradient_checkpointing = False

        def timesformer() -> nn.ModuleList:
            blocks = (TimeSformerBlock(hidden_size, num_heads, head_dim, mlp_ratio) for _ in range(depth))
            return nn.ModuleList(blocks)

        # Encoder: f_B, and the content head f_I and the motion head on top of it.
        self.patch_embed = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        self.encoder = timesformer()
        self.encoder_norm = nn.LayerNorm(hidden_size)
        if content_mode == "softmax":
            self.content_head = nn.Linear(hidden_size, in_channels * patch_size**2)
        self.motion_head = nn.Linear(hidden_size, motion_channels)
        # Decoder: g_I, g_M, g_B and the way back to frames.
        self.content_embed = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        self.motion_embed = nn.Linear(motion_channels, hidden_size)
        self.decoder = timesformer()
        self.decoder_norm = nn.LayerNorm(hidden_size)
        self.frame_head = nn.Linear(hidden_size, (refine_channels or in_channels) * patch_size**2)
        self.refine_head = nn.Sequential()
        if refine_channels:
            self.refine_head.append(nn.Conv2d(refine_channels, refine_channels, 3, padding=1))
            self.refine_head.append(nn.SiLU())
            self.refine_head.append(nn.Conv2d(refine_channels, in_channels, 3, padding=1))
        self._initialize()

    def _initialize(self) -> None:
        if self.config.content_mode == "softmax":  # start from the plain mean of the frames
            nn.init.zeros_(self.content_head.weight)
            nn.init.zeros_(self.content_head.bias)
        if self.config.residual_decoding:  # start from "every frame is the content frame"
            last = [self.frame_head, *self.refine_head][-1]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    @apply_forward_hook  # CPU offload hooks in where forward is not called, too
    def encode(self, x: Float[Tensor, "b t c h w"]) -> AutoencoderOutput:
        """Splits a video (CMD Eq. 3-4).

        Args:
            x: Frames: image-VAE latents times their scaling factor, or pixels in [-1, 1].

        Raises:
            ValueError: The channels or the size do not fit.
        """
        b, t, c, h, w = x.shape
        p = self.config.patch_size
        if c != self.config.in_channels:
            raise ValueError(f"this autoencoder takes frames of {self.config.in_channels} channels, got {c}")
        require_multiple(h, p, "the frames' height")
        require_multiple(w, p, "the frames' width")
        u = self.patch_embed(x.flatten(0, 1)).flatten(2).transpose(1, 2)  # (b t, H' W', d)
        u = u.view(b, t, -1, u.shape[-1]) + self._position(t, h // p, w // p, x)
        u = self.encoder_norm(self._run(self.encoder, u)).view(b, t, h // p, w // p, -1)  # (b, t, H', W', d)
        if self.config.content_mode == "softmax":
            # In float32 whatever the autocast: the weights of a clip must sum to 1.
            weights = self._unpatchify(self.content_head(u)).float().softmax(dim=1)  # (b, t, c, h, w)
        elif self.config.content_mode == "mean":
            weights = torch.full_like(x, 1 / t, dtype=torch.float32)
        else:
            weights = torch.zeros_like(x, dtype=torch.float32)
            weights[:, self.config.content_index] = 1.0
        content = (x.float() * weights).sum(dim=1).to(x.dtype)  # (b, c, h, w)
        # The motion head is linear, so projecting before averaging would give the same at a higher cost.
        u_x, u_y = u.mean(dim=3), u.mean(dim=2)  # (b, t, H', d), (b, t, W', d)
        z = self.motion_head(torch.cat([u_x, u_y], dim=2))  # (b, t, H' + W', D)
        return AutoencoderOutput(content=content, motion_latent=z.permute(0, 3, 1, 2), weights=weights)

    @apply_forward_hook
    def decode(
        self, content: Float[Tensor, "b c h w"], motion_latent: Float[Tensor, "b D t s"]
    ) -> Float[Tensor, "b t c h w"]:
        """Joins a content frame and a motion latent to a video (CMD Eq. 5-6).

        Args:
            content: Content frame.
            motion_latent: ``z_x`` and ``z_y`` side by side, not standardised; ``s = H' + W'``.

        Raises:
            ValueError: The two do not belong together.
        """
        h, w = content.shape[-2:]
        b, _, t, s = motion_latent.shape
        p = self.config.patch_size
        if h % p or w % p or s != h // p + w // p:
            raise ValueError(f"a motion latent of {s} places does not fit a content frame of {h}x{w}")
        v_content = self.content_embed(content).permute(0, 2, 3, 1)  # (b, H', W', d)
        v_motion = self.motion_embed(motion_latent.permute(0, 2, 3, 1))  # (b, t, H' + W', d)
        v_x, v_y = v_motion.split([h // p, w // p], dim=2)
        v = v_content[:, None] + v_x[:, :, :, None] + v_y[:, :, None]  # (b, t, H', W', d), Eq. 6
        v = v.flatten(2, 3) + self._position(t, h // p, w // p, content)
        side = self.config.attention_window
        windows = (h // p, w // p, side) if side and not (h // p % side or w // p % side) else None
        v = self.decoder_norm(self._run(self.decoder, v, windows)).view(b, t, h // p, w // p, -1)
        frames = self._unpatchify(self.frame_head(v)).flatten(0, 1)
        frames = self.refine_head(frames).unflatten(0, (b, t))  # (b, t, c, h, w)
        frames = frames + content[:, None] if self.config.residual_decoding else frames
        index = self.config.content_index
        if self.config.content_mode == "frame" and -t <= index < t:  # the content frame is that frame, exactly
            place = torch.full((1,), index % t, device=frames.device)  # from a list it would be made on the CPU
            frames = frames.index_copy(1, place, content[:, None].to(frames.dtype))
        return frames

    def forward(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        """Encodes and decodes a video."""
        encoded = self.encode(x)
        return self.decode(encoded.content, encoded.motion_latent)

    def standardize_motion(self, z: Float[Tensor, "b D t s"], inverse: bool = False) -> Tensor:
        """Motion latents at zero mean and unit variance per channel (or back), by the statistics that autoencoders of
        version 0.1 have; since then the motion model has them.

        Raises:
            ValueError: The statistics were not measured yet.
        """
        if self.config.motion_mean is None:
            raise ValueError("this autoencoder has no motion statistics yet: run `contentmotion encode` with it")
        return standardize(z, self.config.motion_mean, self.config.motion_std, inverse)

    def _run(self, blocks: nn.ModuleList, u: Tensor, windows: tuple[int, int, int] | None = None) -> Tensor:
        for k, block in enumerate(blocks):
            local = windows if k % 3 != 2 else None  # every third block sees the whole frame
            if self.gradient_checkpointing and torch.is_grad_enabled():
                u = self._gradient_checkpointing_func(block, u, local)
            else:
                u = block(u, local)
        return u

    def _position(self, t: int, rows: int, columns: int, like: Tensor) -> Tensor:
        """Position embedding of time plus space, ``(1, t, H' W', d)``."""
        d = self.config.hidden_size
        time = sincos_embedding(d, torch.arange(t, device=like.device))[:, None]  # (t, 1, d)
        space = grid_embedding(d, rows, columns, like.device).flatten(0, 1)  # (H' W', d)
        return (time + space)[None].to(like.dtype)

    def _unpatchify(self, u: Tensor) -> Tensor:
        """``(b, t, H', W', p p c)`` -> ``(b, t, c, H' p, W' p)``."""
        b, t, rows, columns, _ = u.shape
        p = self.config.patch_size
        u = u.view(b, t, rows, columns, p, p, -1).permute(0, 1, 6, 2, 4, 3, 5)  # (b, t, c, H', p, W', p)
        return u.reshape(b, t, -1, rows * p, columns * p)
