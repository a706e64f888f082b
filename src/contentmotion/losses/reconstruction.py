"""Reconstruction: how the two autoencoders are trained, that of videos (CMD section 3.1) and that of images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contentmotion.config import PerceptualLoss, TrainAutoencoderConfig, TrainVAEConfig
from contentmotion.draws import Source, channel_std, rand, randn
from contentmotion.losses.player import Batch, Player
from contentmotion.stages.image_vae import decode_frames, encode_frames
from contentmotion.video.pixels import to_float


def autoencoder_players(
    model: nn.Module, vae: Any, lpips: nn.Module | None, config: TrainAutoencoderConfig
) -> list[Player]:
    """The video autoencoder, trained by ``autoencoder_loss``."""

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return autoencoder_loss(model, batch, vae, lpips, config.perceptual)

    return [Player(model, loss, phase=lambda step: step > config.perceptual.start_step)]


def autoencoder_loss(
    model: nn.Module, batch: Batch, vae: Any, lpips: nn.Module | None, perceptual: PerceptualLoss
) -> dict[str, Tensor]:
    """Squared error of decoded latents (CMD section 3.1), on request that of the differences between neighbouring
    frames, which is flicker, and LPIPS of some frames' pixels (both ours).

    Args:
        model: Takes and gives videos (b, t, c, h, w).
        batch: See ``latents_of``; "step" and "generator".
        vae: Image VAE, or None for pixels.
        lpips: Distance of images, or None.
        perceptual: The weights of both, first step and number of frames of LPIPS.

    Returns:
        "loss", and its parts where it has several.
    """
    x = latents_of(batch, vae)
    decoded = model(x)
    error = channel_weights(vae, x) * (decoded.float() - x)
    loss = mse = error.square().mean()
    if perceptual.difference_weight:
        loss = loss + perceptual.difference_weight * error.diff(dim=1).square().mean()
    if lpips is None or batch["step"] <= perceptual.start_step:
        return {"loss": loss, "mse": mse.detach()} if perceptual.difference_weight else {"loss": loss}
    true, decoded = draw_frames((x, decoded), perceptual.frames, batch["generator"])
    true, decoded = decode_frames(vae, true), decode_frames(vae, decoded)
    distance = lpips(true.flatten(0, 1), decoded.flatten(0, 1)).mean()
    return {"loss": loss + perceptual.weight * distance, "mse": mse.detach(), "lpips": distance.detach()}


def channel_weights(vae: Any, like: Tensor) -> Tensor | float:
    """Factors (c, 1, 1) of latents' errors, their squares 1 on average, that make these errors of pixels again.

    The whitened channels of a PatchVAE were divided by its divisors; channels of other VAEs, and pixels, weigh alike.
    """
    divisors = getattr(vae, "divisors", None)
    if divisors is None:
        return 1.0
    divisors = divisors.to(like.device, torch.float32)
    return (divisors / divisors.square().mean().sqrt())[:, None, None]


def latents_of(batch: dict[str, Any], vae: Any) -> Tensor:
    """Scaled latents (b, t, c, h, w) of a batch: its "latents", else encoded from "frames" (uint8)."""
    return batch["latents"] if "latents" in batch else encode_frames(vae, to_float(batch["frames"]))


def draw_frames(videos: tuple[Tensor, ...], num_frames: int, generator: Source) -> tuple[Tensor, ...]:
    """The same random frames, all different, of each clip (b, t, c, h, w) -> (b, n, c, h, w); all where there are fewer
    than ``num_frames``."""
    b, t = videos[0].shape[:2]
    chosen = rand((b, t), generator).argsort(dim=1)[:, :num_frames].to(videos[0].device)  # (b, n)
    rows = torch.arange(b, device=chosen.device)[:, None]
    return tuple(video[rows, chosen] for video in videos)


def image_vae_players(vae: nn.Module, config: TrainVAEConfig) -> list[Player]:
    """The image VAE, trained by ``image_vae_loss``."""

    def loss(vae: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return image_vae_loss(vae, batch["frames"][:, 0], config.latent_noise, batch["generator"])

    return [Player(vae, loss)]


def image_vae_loss(vae: nn.Module, images: Tensor, latent_noise: float, generator: Source) -> dict[str, Tensor]:
    """Squared error of decoded images, from latents with a little noise so that the decoder forgives a generator.

    Args:
        vae: PatchVAE.
        images: uint8 (b, 3, h, w).
        latent_noise: Standard deviation of the noise, over that of the channel that it is put on.
        generator: Its source.
    """
    x = to_float(images)
    z = vae.encode(x).latents  # type: ignore[operator]
    noise = randn(z.shape, generator).to(z)
    decoded = vae.decode(z + latent_noise * channel_std(z, generator) * noise).sample  # type: ignore[operator]
    return {"loss": F.mse_loss(decoded.float(), x)}
