"""Command ``train-autoencoder``: learn to split videos into content frame and motion latent (CMD section 3.1)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import Dataset

from contentmotion.config import TrainAutoencoderConfig, parse_bucket
from contentmotion.data.cache import LatentCache, collate_latents, open_cache
from contentmotion.data.clips import ClipDataset, collate, open_clips
from contentmotion.data.limits import require_few_bad
from contentmotion.data.streaming import is_stream, open_stream
from contentmotion.draws import Source, rand
from contentmotion.evaluate.lpips import load_lpips
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.loading import load_autoencoder, load_vae
from contentmotion.run_dir import is_main_process, prepare_output_dir
from contentmotion.saving import hash_weights, save_model
from contentmotion.stages.image_vae import decode_frames, encode_frames, vae_latent_channels, vae_scale_factor
from contentmotion.train.loop import Batch, Player, Scheduled, fit
from contentmotion.train.processes import on_main, this_process
from contentmotion.train.scoring import make_scorer
from contentmotion.video.pixels import to_float, to_uint8
from contentmotion.video.write import write_contact_sheet

PREVIEW_CLIPS = 4


def train_autoencoder(config: TrainAutoencoderConfig) -> None:
    """Trains the autoencoder on a folder of videos; ``output_dir/autoencoder`` is the result.

    Raises:
        ValueError: No usable videos, or a size that the VAE and the patches do not divide.
    """
    if config.dry_run:
        from contentmotion.cost.plan import print_plan  # it knows all commands

        return print_plan(config)
    vae = load_vae(config.vae).to(this_process().device) if config.vae else None
    model = make_autoencoder(config, vae)
    run_dir = prepare_output_dir(config.output_dir, "train-autoencoder", config)
    dataset, join, shown = open_training_clips(config, vae)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    lpips = load_lpips(config.perceptual.lpips).to(this_process().device) if config.perceptual.weight else None

    pipe = ContentMotionPipeline(vae=vae, autoencoder=model)

    def latents_of(batch: Batch) -> Tensor:
        """(b, t, c, h, w)"""
        return batch["latents"] if "latents" in batch else encode_frames(vae, to_float(batch["frames"]))

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x = latents_of(batch)
        decoded = model(x)
        mse = F.mse_loss(decoded.float(), x)
        if lpips is None or batch["step"] <= config.perceptual.start_step:
            return {"loss": mse}
        true, decoded = draw_frames((x, decoded), config.perceptual.frames, batch["generator"])
        true, decoded = decode_frames(vae, true), decode_frames(vae, decoded)
        perceptual = lpips(true.flatten(0, 1), decoded.flatten(0, 1)).mean()
        loss = mse + config.perceptual.weight * perceptual
        return {"loss": loss, "mse": mse.detach(), "lpips": perceptual.detach()}

    def preview(step: int) -> None:
        x = latents_of(shown).to(model.device)
        originals = shown["frames"] if "frames" in shown else to_uint8(decode_frames(vae, x)).cpu()
        decoded = to_uint8(decode_frames(vae, model(x))).cpu()
        videos = torch.stack([originals, decoded], dim=1).flatten(0, 1).permute(0, 1, 3, 4, 2).numpy()
        names = [kind for _ in range(len(originals)) for kind in ("original", "reconstruction")]
        write_contact_sheet(run_dir / f"preview-{step:06d}.png", list(videos), names)

    def save(folder: Path) -> None:
        save_model(model, folder / "autoencoder")

    score = make_scorer(pipe, config, "reconstruction", run_dir, save)
    path = run_dir / "autoencoder"

    def save_if_new() -> None:
        # A run that was finished before: leave it, with the statistics that encode added.
        if not (path.is_dir() and hash_weights(load_autoencoder(str(path))) == hash_weights(model)):
            save(run_dir)

    at: list[Scheduled] = [(config.validation_steps, lambda step: on_main(lambda: preview(step)))]
    at += [(config.eval.steps, score)] if score else []
    fit([Player(model, loss)], dataset, config, collate=join, at=at, save=save_if_new)
    if this_process().is_main_process:
        print(path)


def draw_frames(videos: tuple[Tensor, ...], num_frames: int, generator: Source) -> tuple[Tensor, ...]:
    """The same random frames, all different, of each clip.

    Args:
        videos: Each (b, t, c, h, w).
        num_frames: Frames n per clip; all where there are fewer.
        generator: Source of randomness.

    Returns:
        Each (b, n, c, h, w).
    """
    b, t = videos[0].shape[:2]
    chosen = rand((b, t), generator).argsort(dim=1)[:, :num_frames].to(videos[0].device)  # (b, n)
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
        if size % (factor * config.model.patch_size):
            raise ValueError(f"{name} must be a multiple of {factor * config.model.patch_size}, got {size}")
    torch.manual_seed(config.seed)
    return ContentMotionAutoencoder(
        in_channels=vae_latent_channels(vae),
        patch_size=config.model.patch_size,
        hidden_size=config.model.hidden_size,
        depth=config.model.depth,
        num_heads=config.model.num_heads,
        head_dim=config.model.head_dim,
        mlp_ratio=config.model.mlp_ratio,
        motion_channels=config.model.motion_channels,
        content_mode=config.model.content_mode,
        residual_decoding=config.model.residual_decoding,
        refine_channels=config.model.refine_channels,
        attention_window=config.model.attention_window,
        num_frames=config.num_frames,
        sample_height=config.height // factor,
        sample_width=config.width // factor,
    )


def open_training_clips(config: TrainAutoencoderConfig, vae: ModelMixin | None) -> tuple[Dataset, Callable, Batch]:
    """What a config says to train on.

    Returns:
        The data set; its collate function; and a batch of it to show, with "frames" or "latents".

    Raises:
        ValueError: Nothing usable, or a cache of something else.
    """
    if (config.train_data_dir is None) == (config.cache_dir is None):
        raise ValueError("give --train_data_dir or --cache_dir (exactly one of the two)")
    if config.cache_dir is not None:
        cache = open_cache(config.cache_dir, config.max_bad_fraction)
        cache.require_made_with(vae=vae)
        if not cache.manifest["latents_only"]:
            raise ValueError(f"{config.cache_dir} holds no frames' latents: they come from encode --latents_only true")
        _require_size(config, cache)
        return cache, collate_latents, collate_latents([cache[i] for i in cache.alike()[:PREVIEW_CLIPS]])
    if is_stream(str(config.train_data_dir)):
        if config.cache_latents:
            raise ValueError("a stream has no end that cache_latents could wait for: use encode --latents_only true")
        if config.buckets:
            raise ValueError("buckets need all headers before training starts: a stream takes one size")
        stream = open_stream(config, config.shuffle_window)
        return stream, collate, collate(stream.peek(PREVIEW_CLIPS))
    clips = open_clips(config, cache_in_memory=config.cache_latents)
    first = [clips[i] for i in range(min(PREVIEW_CLIPS, len(clips)))]
    shown = collate([item for item in first if item["frames"].shape == first[0]["frames"].shape])  # buckets: one size
    if config.cache_latents:
        return CachedLatents(clips, vae, config.max_bad_fraction), collate_latents, shown
    return clips, collate, shown


def _require_size(config: TrainAutoencoderConfig, cache: LatentCache) -> None:
    """Raises ``ValueError`` where a cache's clips are of another size, or sizes, than the run's."""
    size = {name: getattr(config, name) for name in ("num_frames", "height", "width")}
    buckets = cache.manifest.get("buckets")
    if buckets and tuple(size.values()) not in map(parse_bucket, buckets):
        raise ValueError(
            f"{config.cache_dir} was made with --buckets {' '.join(buckets)}: num_frames, height and width must be one "
            f"of them, not {'x'.join(map(str, size.values()))}"
        )
    for name, wanted in size.items() if not buckets else ():
        made = cache.manifest[name]
        if made != wanted:
            raise ValueError(f"{config.cache_dir} was made with {name} {made}, this run has {wanted}")


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
        bar = {"description": "encoding clips", "transient": True, "disable": not is_main_process()}
        for index in track(range(len(clips)), **bar):
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
