"""The autoencoder that is made from scratch: what its sizes follow from."""

from __future__ import annotations

from dataclasses import asdict

import torch
from diffusers.models.modeling_utils import ModelMixin

from contentmotion.config import AutoencoderSizes, TrainAutoencoderConfig
from contentmotion.loading import load_autoencoder
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.stages.image_vae import vae_latent_channels, vae_scale_factor


def make_autoencoder(config: TrainAutoencoderConfig, vae: ModelMixin | None) -> ContentMotionAutoencoder:
    """The network that a config describes, initialised from its seed.

    Raises:
        ValueError: The clip's size does not fit the VAE's and the autoencoder's patches.
    """
    factor, sizes = vae_scale_factor(vae), asdict(config.model)
    pretrained = sizes.pop("pretrained")
    for name in ("height", "width"):
        size = getattr(config, name)
        if size % (factor * sizes["patch_size"]):
            raise ValueError(f"{name} must be a multiple of {factor * sizes['patch_size']}, got {size}")
    torch.manual_seed(config.seed)
    model = ContentMotionAutoencoder(
        in_channels=vae_latent_channels(vae),
        num_frames=config.num_frames,
        sample_height=config.height // factor,
        sample_width=config.width // factor,
        **sizes,
    )
    if pretrained is not None:
        start_from(model, pretrained)
    return model


def start_from(model: ContentMotionAutoencoder, name_or_path: str) -> None:
    """Gives a network, in place, the weights of another of its sizes; ``content_mode`` may differ.

    Raises:
        ValueError: There is none of that name, or it has other sizes.
    """
    start = load_autoencoder(name_or_path)
    there, here = start.config, model.config
    sizes = (
        "in_channels",
        *(name for name in asdict(AutoencoderSizes()) if not name.startswith(("content_", "pretrained"))),
    )
    differ = [f"{name} is {there[name]}, not {here[name]}" for name in sizes if there[name] != here[name]]
    if differ:
        raise ValueError(f"model.pretrained {name_or_path} has other sizes: {', '.join(differ)}")
    own, weights = model.state_dict(), start.state_dict()
    model.load_state_dict(own | {name: weight for name, weight in weights.items() if name in own})
