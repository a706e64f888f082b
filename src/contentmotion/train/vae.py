"""Command ``train-vae``: a small image VAE for domains where no pretrained one fits."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from contentmotion.config import TrainVAEConfig
from contentmotion.data.clips import ClipDataset, collate
from contentmotion.data.formats import read_clip_folder
from contentmotion.image_vae import to_float, to_uint8
from contentmotion.run_dir import prepare_output_dir
from contentmotion.saving import save_model
from contentmotion.train.loop import Batch, fit
from contentmotion.video_io import write_contact_sheet


def train_vae(config: TrainVAEConfig) -> None:
    """Trains diffusers' AutoencoderTiny on single frames; the result is a VAE folder.

    Raises:
        ValueError: No usable videos, or a size that the VAE's strides do not divide.
    """
    stride = 2**config.num_downsamples
    if config.height % stride or config.width % stride:
        raise ValueError(f"height and width must be multiples of {stride}, got {config.height}x{config.width}")
    run_dir = prepare_output_dir(config.output_dir, "train-vae", config)
    folder = read_clip_folder(config.train_data_dir, split=config.split)
    frames = ClipDataset(
        folder, num_frames=1, height=config.height, width=config.width, cache_in_memory=True
    )
    torch.manual_seed(config.seed)
    vae = make_vae(config)

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return vae_loss(model, batch["frames"][:, 0], config.latent_noise, batch["generator"])

    def preview(step: int) -> None:
        images = torch.stack([frames[i]["frames"] for i in range(min(8, len(frames)))])  # (n, 1, 3, h, w)
        decoded = vae(to_float(images[:, 0]).to(vae.device)).sample[:, None]
        pairs = torch.cat([images, to_uint8(decoded).cpu()], dim=1).permute(0, 1, 3, 4, 2).numpy()
        captions = [record.captions[0] if record.captions else "" for record in folder.records[: len(pairs)]]
        write_contact_sheet(run_dir / f"preview-{step:06d}.png", list(pairs), captions, num_columns=2)

    fit(vae, loss, frames, config, collate=collate, preview=preview)
    save_model(vae, Path(config.output_dir) / "vae")


def make_vae(config: TrainVAEConfig) -> AutoencoderTiny:
    """The network: no normalisation layers, so its cost is its convolutions."""
    channels = (config.hidden_channels,) * (config.num_downsamples + 1)
    layers = (config.num_layers,) * config.num_downsamples
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, *layers),
        num_decoder_blocks=(*layers, 1),
        latent_channels=config.latent_channels,
    )


def vae_loss(vae: nn.Module, images: Tensor, latent_noise: float, generator: torch.Generator) -> dict[str, Tensor]:
    """L1 reconstruction, with the latents held at zero mean and unit variance per channel.

    The penalty on the moments replaces a KL term: a diffusion model wants unit-scale latents, and the noise added to
    them makes the decoder smooth, without the blur that a KL weight buys.

    Args:
        vae: AutoencoderTiny.
        images: uint8 (b, 3, h, w).
        latent_noise: Standard deviation of the noise added to the latents.
        generator: Source of that noise.
    """
    x = to_float(images)
    z = vae.encode(x).latents  # type: ignore[operator]
    noise = torch.randn(z.shape, generator=generator).to(z)
    reconstruction = vae.decode(z + latent_noise * noise).sample  # type: ignore[operator]
    error = F.l1_loss(reconstruction.float(), x)
    std, mean = torch.std_mean(z.float(), dim=(0, 2, 3))
    moments = (mean.square() + (std - 1).square()).mean()
    return {"loss": error + 0.1 * moments, "l1": error.detach(), "moments": moments.detach()}
