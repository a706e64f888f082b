"""Command ``train-autoencoder``: learn to split videos into content frame and motion latent (CMD section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import Dataset

from contentmotion.config import TrainAutoencoderConfig
from contentmotion.data.cache import hash_weights
from contentmotion.data.clips import ClipDataset, collate, open_clips
from contentmotion.evaluate.lpips import load_lpips
from contentmotion.image_vae import (
    decode_frames,
    encode_frames,
    to_float,
    to_uint8,
    vae_latent_channels,
    vae_scale_factor,
)
from contentmotion.loading import load_autoencoder, load_vae
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.run_dir import prepare_output_dir, resolve_device
from contentmotion.saving import save_model
from contentmotion.train.loop import Batch, fit
from contentmotion.video_io import write_contact_sheet

PREVIEW_CLIPS = 4


def train_autoencoder(config: TrainAutoencoderConfig) -> None:
    """Trains the autoencoder on a folder of videos; ``output_dir/autoencoder`` is the result.

    Raises:
        ValueError: No usable videos, or a size that the VAE and the patches do not divide.
    """
    vae = load_vae(config.vae).to(resolve_device("auto")) if config.vae else None
    model = make_autoencoder(config, vae)
    run_dir = prepare_output_dir(config.output_dir, "train-autoencoder", config)
    clips = open_clips(config, cache_in_memory=config.cache_latents)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    lpips = load_lpips(config.lpips).to(resolve_device("auto")) if config.perceptual_weight else None
    dataset: Dataset = CachedLatents(clips, vae) if config.cache_latents else clips

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x = batch["latents"] if config.cache_latents else encode_frames(vae, to_float(batch["frames"]))
        decoded = model(x)
        mse = F.mse_loss(decoded.float(), x)
        if lpips is None or batch["step"] <= config.perceptual_start_step:
            return {"loss": mse}
        true, decoded = draw_frames((x, decoded), config.perceptual_frames, batch["generator"])
        true, decoded = decode_frames(vae, true), decode_frames(vae, decoded)
        perceptual = lpips(true.flatten(0, 1), decoded.flatten(0, 1)).mean()
        loss = mse + config.perceptual_weight * perceptual
        return {"loss": loss, "mse": mse.detach(), "lpips": perceptual.detach()}

    def preview(step: int) -> None:
        frames = torch.stack([clips[i]["frames"] for i in range(min(PREVIEW_CLIPS, len(clips)))])
        x = encode_frames(vae, to_float(frames).to(model.device))
        decoded = to_uint8(decode_frames(vae, model(x))).cpu()
        videos = torch.stack([frames, decoded], dim=1).flatten(0, 1).permute(0, 1, 3, 4, 2).numpy()
        names = [kind for _ in range(len(frames)) for kind in ("original", "reconstruction")]
        write_contact_sheet(run_dir / f"preview-{step:06d}.png", list(videos), names)

    fit(
        model,
        loss,
        dataset,
        config,
        collate=collate_latents if config.cache_latents else collate,
        preview=preview,
    )
    path = Path(config.output_dir) / "autoencoder"
    if not (path.is_dir() and hash_weights(load_autoencoder(str(path))) == hash_weights(model)):
        save_model(model, path)  # else the run was finished before: leave it, with the statistics that encode added


def draw_frames(videos: tuple[Tensor, ...], num_frames: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The same random frames, all different, of each clip.

    Args:
        videos: Each (b, t, c, h, w).
        num_frames: Frames n per clip; all where there are fewer.
        generator: Source of randomness.

    Returns:
        Each (b, n, c, h, w).
    """
    b, t = videos[0].shape[:2]
    chosen = torch.rand(b, t, generator=generator).argsort(dim=1)[:, :num_frames].to(videos[0].device)  # (b, n)
    rows = torch.arange(b, device=chosen.device)[:, None]
    return tuple(video[rows, chosen] for video in videos)


def make_autoencoder(config: TrainAutoencoderConfig, vae: ModelMixin | None) -> ContentMotionAutoencoder:
    """The network that a config describes, initialised from its seed.

    Raises:
        ValueError: The clip's size does not fit the VAE's and the autoencoder's patches.
    """
    factor = vae_scale_factor(vae)
    for name in ("height", "width"):
        size = getattr(config, name)
        if size % (factor * config.patch_size):
            raise ValueError(f"{name} must be a multiple of {factor * config.patch_size}, got {size}")
    torch.manual_seed(config.seed)
    return ContentMotionAutoencoder(
        in_channels=vae_latent_channels(vae),
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        depth=config.depth,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        mlp_ratio=config.mlp_ratio,
        motion_channels=config.motion_channels,
        content_mode=config.content_mode,
        residual_decoding=config.residual_decoding,
        refine_channels=config.refine_channels,
        num_frames=config.num_frames,
        sample_height=config.height // factor,
        sample_width=config.width // factor,
    )


class CachedLatents(Dataset):
    """The centred clip of every video as VAE latents, encoded once and kept in memory."""

    def __init__(self, clips: ClipDataset, vae: ModelMixin | None) -> None:
        device = vae.device if vae is not None else "cpu"
        self.latents, self.skipped, self.weights = [], [], []
        for index in track(range(len(clips)), description="encoding clips", transient=True):
            item = clips[index]
            self.skipped += item["skipped"]
            if item["index"] == index:  # else the file is bad, and another clip came in its place
                self.latents.append(encode_frames(vae, to_float(item["frames"][None]).to(device))[0].cpu())
                self.weights.append(item["weight"])

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        return {"latents": self.latents[item[0]], "index": item[0], "skipped": self.skipped}


def collate_latents(items: list[dict[str, Any]]) -> Batch:
    """Items of ``CachedLatents`` as a batch: "latents" (b, t, c, h, w), "index" (b,), "skipped"."""
    return {
        "latents": torch.stack([item["latents"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "skipped": items[0]["skipped"],
    }
