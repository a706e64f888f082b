"""Command ``train-vae``: a small image VAE for domains where no pretrained one fits."""

from __future__ import annotations

from dataclasses import replace

import torch

from contentmotion.config import TrainVAEConfig
from contentmotion.data.clips import collate, open_clips
from contentmotion.losses import reconstruction
from contentmotion.run_dir import make_output_dir
from contentmotion.saving import save_model
from contentmotion.stages.image_vae import make_image_vae
from contentmotion.train.denoiser import main_only
from contentmotion.train.loop import fit
from contentmotion.train.processes import this_process
from contentmotion.video.pixels import to_float, to_uint8
from contentmotion.video.write import write_contact_sheet

COMPONENT_IMAGES = 2048


def train_vae(config: TrainVAEConfig) -> None:
    """Measures the principal components of patches, then trains the refinement; ``output_dir/vae`` is the result.

    Raises:
        ValueError: No usable videos, or a size that the VAE's patches do not divide.
    """
    stride = 2**config.model.num_downsamples
    if config.height % stride or config.width % stride:
        raise ValueError(f"height and width must be multiples of {stride}, got {config.height}x{config.width}")
    run_dir = make_output_dir(config.output_dir)
    frames = open_clips(replace(config, num_frames=1), cache_in_memory=True)
    torch.manual_seed(config.seed)
    vae = make_image_vae(config.model)
    images = [frames[k % len(frames), k]["frames"] for k in range(min(COMPONENT_IMAGES, 16 * len(frames)))]
    vae.fit_components(to_float(torch.cat(images)), config.latent_whitening)

    def preview(step: int) -> None:
        images = torch.stack([frames[i]["frames"] for i in range(min(8, len(frames)))])  # (n, 1, 3, h, w)
        decoded = vae(to_float(images[:, 0]).to(vae.device))[:, None]
        pairs = torch.cat([images, to_uint8(decoded).cpu()], dim=1).permute(0, 1, 3, 4, 2).numpy()
        captions = [record.captions[0] if record.captions else "" for record in frames.folder.records[: len(pairs)]]
        write_contact_sheet(run_dir / f"preview-{step:06d}.png", list(pairs), captions, num_columns=2)

    fit(
        reconstruction.image_vae_players(vae, config), frames, config, collate=collate,
        at=[(config.validation_steps, main_only(preview))], save=lambda: save_model(vae, run_dir / "vae"),
        command="train-vae",
    )  # fmt: skip
    if this_process().is_main_process:
        print(run_dir / "vae")
