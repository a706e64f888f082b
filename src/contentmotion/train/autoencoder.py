"""Command ``train-autoencoder``: learn to split videos into content frame and motion latent (CMD section 3.1)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from rich.progress import track
from torch.utils.data import Dataset

from contentmotion.config import TrainAutoencoderConfig, parse_bucket
from contentmotion.data.accounting import require_few_bad
from contentmotion.data.cache import LatentCache, collate_latents, open_cache
from contentmotion.data.clips import ClipDataset, collate, open_clips
from contentmotion.data.streaming import is_stream, open_stream
from contentmotion.evaluate.lpips import load_lpips
from contentmotion.loading import load_vae
from contentmotion.losses import reconstruction
from contentmotion.losses.player import Batch
from contentmotion.losses.reconstruction import latents_of
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.run_dir import is_main_process, make_output_dir
from contentmotion.saving import save_model
from contentmotion.stages.autoencoder import make_autoencoder
from contentmotion.stages.image_vae import decode_frames, encode_frames
from contentmotion.train.denoiser import main_only
from contentmotion.train.loop import fit
from contentmotion.train.processes import this_process
from contentmotion.train.scoring import Scorer
from contentmotion.video.pixels import to_float, to_uint8
from contentmotion.video.write import write_contact_sheet

PREVIEW_CLIPS = 4


def train_autoencoder(config: TrainAutoencoderConfig) -> None:
    """Trains the autoencoder on a folder of videos; ``output_dir/autoencoder`` is the result.

    Raises:
        ValueError: No usable videos, or a size that the VAE and the patches do not divide.
    """
    vae = load_vae(config.vae).to(this_process().device) if config.vae else None
    model = make_autoencoder(config, vae)
    run_dir = make_output_dir(config.output_dir)
    dataset, join, shown = open_training_clips(config, vae)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    device, perceptual = this_process().device, config.perceptual
    lpips = load_lpips(perceptual.lpips).to(device) if perceptual.weight else None
    pipe = ContentMotionPipeline(vae=vae, autoencoder=model)

    def preview(step: int) -> None:
        x = latents_of({k: v.to(device) for k, v in shown.items() if k in ("frames", "latents")}, vae)
        originals = shown["frames"] if "frames" in shown else to_uint8(decode_frames(vae, x)).cpu()
        decoded = to_uint8(decode_frames(vae, model(x))).cpu()
        videos = torch.stack([originals, decoded], dim=1).flatten(0, 1).permute(0, 1, 3, 4, 2).numpy()
        names = [kind for _ in range(len(originals)) for kind in ("original", "reconstruction")]
        write_contact_sheet(run_dir / f"preview-{step:06d}.png", list(videos), names)

    def save(folder: Path) -> None:
        save_model(model, folder / "autoencoder")

    score = Scorer(pipe, config, "reconstruction", save) if config.eval.steps else None
    fit(
        reconstruction.autoencoder_players(model, vae, lpips, config), dataset, config, collate=join,
        save=lambda: save(run_dir), at=[(config.validation_steps, main_only(preview)), (config.eval.steps, score)],
        command="train-autoencoder",
    )  # fmt: skip
    if this_process().is_main_process:
        print(run_dir / "autoencoder")


def open_training_clips(config: TrainAutoencoderConfig, vae: ModelMixin | None) -> tuple[Dataset, Callable, Batch]:
    """What a config says to train on.

    Returns:
        The data set; its collate function; and a batch of it to show, with "frames" or "latents".

    Raises:
        ValueError: Nothing usable, or a cache of something else.
    """
    if (config.train_data_dir is None) == (config.latent_cache is None):
        raise ValueError("give --train_data_dir or --latent_cache (exactly one of the two)")
    if config.latent_cache is not None:
        cache = open_cache(config.latent_cache, config.max_bad_fraction)
        cache.require_made_with(vae=vae)
        if not cache.manifest["latents_only"]:
            raise ValueError(
                f"{config.latent_cache} holds no frames' latents: they come from encode --latents_only true"
            )
        _require_size(config, cache)
        return cache, collate_latents, collate_latents([cache[i] for i in cache.alike()[:PREVIEW_CLIPS]])
    if is_stream(str(config.train_data_dir)):
        if config.cache_latents:
            raise ValueError("a stream has no end that cache_latents could wait for: use encode --latents_only true")
        if config.buckets:
            raise ValueError("buckets need all headers before training starts: a stream takes one size")
        stream = open_stream(config, config.scale.shuffle_window)
        return stream, collate, collate(stream.peek(PREVIEW_CLIPS))
    clips = open_clips(config)
    first = [clips[i] for i in range(min(PREVIEW_CLIPS, len(clips)))]
    shown = collate([item for item in first if item["frames"].shape == first[0]["frames"].shape])  # buckets: one size
    if config.cache_latents:
        return CachedLatents(clips, vae, config.max_bad_fraction), collate_latents, shown
    return clips, collate, shown


def _require_size(config: TrainAutoencoderConfig, cache: LatentCache) -> None:
    """Raises ``ValueError`` where a cache's clips are of another size, or sizes, than the run's."""
    names = ("num_frames", "height", "width")
    wanted = tuple(getattr(config, name) for name in names)
    buckets = cache.manifest.get("buckets")
    made = list(map(parse_bucket, buckets)) if buckets else [tuple(cache.manifest[name] for name in names)]
    if wanted not in made:
        sizes, own = " or ".join("x".join(map(str, size)) for size in made), "x".join(map(str, wanted))
        raise ValueError(f"{config.latent_cache} was made with frames, height and width {sizes}; this run has {own}")


class CachedLatents(Dataset):
    """The centred clip of every video as VAE latents, encoded once and kept in memory.

    Raises:
        ValueError: Too many files are bad.
    """

    def __init__(self, clips: ClipDataset, vae: ModelMixin | None, max_bad_fraction: float) -> None:
        device = vae.device if vae is not None else "cpu"
        self.items: list[dict[str, Any]] = []
        self.weights: list[float] = []
        bad: dict[str, None] = {}
        for index in track(range(len(clips)), "encoding clips", transient=True, disable=not is_main_process()):
            clip = clips[index]
            if clip["skipped"]:  # the file is bad, and another clip came in its place
                bad |= dict.fromkeys(clip["skipped"][:1])
                continue
            latents = encode_frames(vae, to_float(clip["frames"][None]).to(device))[0].cpu()
            kept = {name: clip[name] for name in ("label", "caption")}
            self.items.append({"latents": latents, "index": len(self.items), "skipped": [], **kept})
            self.weights.append(clip["weight"])
        for line in bad if is_main_process() else ():
            print(f"skipped: {line}", file=sys.stderr)
        require_few_bad(len(bad), len(clips), max_bad_fraction, len(clips))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        return self.items[item[0]]
