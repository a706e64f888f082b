"""Pixels <-> image-VAE latents, frame by frame, in chunks that fit the memory.

Tensors must be on the device where the VAE computes (with CPU offload, that is not the one where it rests).
Any of diffusers' image autoencoders serves (``AutoencoderKL`` of Stable Diffusion, SD 3 and Z-Image, SANA's
``AutoencoderDC``, FLUX.2's ``AutoencoderKLFlux2``, ``AutoencoderTiny``); ``None`` stands for working on pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from contentmotion.config import ImageVAESizes
from contentmotion.models.patch_vae import PatchVAE


@torch.no_grad()
def encode_frames(
    vae: ModelMixin | None, frames: Float[Tensor, "b t 3 H W"], chunk_size: int = 64
) -> Float[Tensor, "b t c h w"]:
    """Encodes every frame, pixels in [-1, 1], so many at once; the latent is the mean of the VAE's posterior, as
    ``normalize_latents`` makes it."""
    if vae is None:
        return frames
    images = frames.flatten(0, 1).to(vae.dtype)  # (b t, 3, H, W)
    chunks = []
    for chunk in images.split(chunk_size):
        encoded = vae.encode(chunk)  # AutoencoderKL has a distribution, AutoencoderDC a latent, AutoencoderTiny latents
        chunks.append(encoded.latent_dist.mode() if "latent_dist" in encoded else encoded[0])
    return normalize_latents(vae, torch.cat(chunks)).unflatten(0, frames.shape[:2])


def decode_frames(
    vae: ModelMixin | None, latents: Float[Tensor, "b t c h w"], chunk_size: int = 16
) -> Float[Tensor, "b t 3 H W"]:
    """Decodes scaled latents of every frame to pixels, clamped to [-1, 1], so many at once; gradients pass where the
    caller wants them."""
    if vae is None:
        return latents.clamp(-1, 1)
    flat = normalize_latents(vae, latents.flatten(0, 1).to(vae.dtype), inverse=True)
    images = torch.cat([vae.decode(chunk).sample for chunk in flat.split(chunk_size)])
    return images.clamp(-1, 1).unflatten(0, latents.shape[:2])


def normalize_latents(vae: Any, latents: Float[Tensor, "n c h w"], inverse: bool = False) -> Float[Tensor, "n C h2 w2"]:
    """What a VAE makes as its family's denoisers take it (or back): shifted and scaled; FLUX.2's packed, 2x2 into the
    channels of one, each standardised by the statistics of the VAE's batch norm.
    """
    if not _packs(vae.config):
        shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
        return latents / scale + shift if inverse else (latents - shift) * scale
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(latents)
    side = vae.config.patch_size[0]
    if inverse:
        return F.pixel_shuffle(latents * std + mean, side)
    return (F.pixel_unshuffle(latents, side) - mean) / std


def vae_scale_factor(vae: ModelMixin | None) -> int:
    """Pixels per latent along a side; 1 on pixels."""
    if vae is None:
        return 1
    return getattr(vae, "spatial_compression_ratio", None) or pixels_per_latent(vae.config)


def pixels_per_latent(settings: Mapping[str, Any]) -> int:
    """``vae_scale_factor`` by a VAE's config."""
    channels = settings.get("block_out_channels") or settings["decoder_block_out_channels"]
    return 2 ** (len(channels) - 1) * (settings["patch_size"][0] if _packs(settings) else 1)


def vae_latent_channels(vae: ModelMixin | None) -> int:
    """Channels of a latent frame; 3 on pixels."""
    if vae is None:
        return 3
    if "latent_channels" not in vae.config:
        raise ValueError(f"a {type(vae).__name__} is no image VAE: its config has no latent_channels")
    return latent_channels(vae.config)


def latent_channels(settings: Mapping[str, Any]) -> int:
    """``vae_latent_channels`` by a VAE's config."""
    return settings["latent_channels"] * (math.prod(settings["patch_size"]) if _packs(settings) else 1)


def make_image_vae(sizes: ImageVAESizes) -> PatchVAE:
    """An untrained image VAE; the principal components of patches are not measured yet."""
    return PatchVAE(
        latent_channels=sizes.latent_channels,
        block_out_channels=(sizes.hidden_channels,) * (sizes.num_downsamples + 1),
        num_layers=sizes.num_layers,
    )


def _packs(settings: Mapping[str, Any]) -> bool:
    """Whether a VAE's config is FLUX.2's: it alone has a batch norm."""
    return "batch_norm_eps" in settings
