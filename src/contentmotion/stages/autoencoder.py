"""The autoencoder that is made from scratch: what its sizes follow from."""

from __future__ import annotations

from dataclasses import asdict

import torch
from diffusers.models.modeling_utils import ModelMixin

from contentmotion.config import TrainAutoencoderConfig
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.stages.image_vae import vae_latent_channels, vae_scale_factor


def make_autoencoder(config: TrainAutoencoderConfig, vae: ModelMixin | None) -> ContentMotionAutoencoder:
    """The network that a config describes, initialised from its seed.

    Raises:
        ValueError: The clip's size does not fit the VAE's and the autoencoder's patches.
    """
    factor, sizes = vae_scale_factor(vae), config.model
    for name in ("height", "width"):
        size = getattr(config, name)
        if size % (factor * sizes.patch_size):
            raise ValueError(f"{name} must be a multiple of {factor * sizes.patch_size}, got {size}")
    torch.manual_seed(config.seed)
    return ContentMotionAutoencoder(
        in_channels=vae_latent_channels(vae),
        num_frames=config.num_frames,
        sample_height=config.height // factor,
        sample_width=config.width // factor,
        **asdict(sizes),
    )
