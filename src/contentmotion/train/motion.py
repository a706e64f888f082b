"""Command ``train-motion``: a DiT learns to move a content frame (CMD section 3.2, Eq. 8)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler

from contentmotion.config import TrainMotionConfig
from contentmotion.data.cache import open_cache
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.loading import load_autoencoder, require_checkpoints
from contentmotion.run_dir import prepare_output_dir
from contentmotion.saving import replacing_folder
from contentmotion.stages.denoisers import MotionDenoiser
from contentmotion.stages.text import pooled_text_dim
from contentmotion.train.content import load_content_parts
from contentmotion.train.denoiser import make_scheduler, train_denoiser
from contentmotion.train.loop import Batch
from contentmotion.train.previews import write_previews
from contentmotion.train.processes import this_process
from contentmotion.train.scoring import make_scorer


def train_motion(config: TrainMotionConfig) -> None:
    """Trains the motion model; ``output_dir/motion_transformer`` is the result, with its scheduler beside it.

    Raises:
        ValueError: Something needed is missing or does not fit.
    """
    if config.dry_run:
        from contentmotion.cost.plan import print_plan  # it knows all commands

        return print_plan(config)
    require_checkpoints(
        pretrained_model_name_or_path=config.pretrained_model_name_or_path, autoencoder=config.autoencoder
    )
    run_dir = prepare_output_dir(config.output_dir, "train-motion", config)
    autoencoder = load_autoencoder(config.autoencoder).requires_grad_(False)
    cache = open_cache(config.cache_dir, config.max_bad_fraction)
    cache.require_made_with(autoencoder=autoencoder)
    name = config.pretrained_model_name_or_path
    content = (
        load_content_parts(name) if name else dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "scheduler"))
    )
    if name:
        cache.require_made_with(vae=content["vae"])
    if content["text_encoder"] is not None:
        cache.use_text_features(content["text_encoder"].requires_grad_(False))
    names = cache.manifest["class_names"]
    if content["text_encoder"] is None and not names:
        raise ValueError("give --pretrained_model_name_or_path (a text encoder), or a cache of labelled clips")
    transformer = make_motion_transformer(
        config,
        motion_channels=cache[0]["motion"].shape[0],
        content_channels=cache[0]["content"].shape[0],
        num_classes=None if content["text_encoder"] is not None else len(names),
        text_dim=pooled_text_dim(content["text_encoder"]) if content["text_encoder"] is not None else None,
    )
    scheduler = make_scheduler("linear", config.prediction_type)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    denoiser = MotionDenoiser(
        transformer, content["text_encoder"], content["tokenizer"], content_noise=config.content_noise
    )
    pipe = ContentMotionPipeline(
        **content, autoencoder=autoencoder, motion_transformer=transformer, motion_scheduler=scheduler
    )

    def clean_sample(batch: Batch) -> torch.Tensor:
        return autoencoder.standardize_motion(batch["motion"])

    def preview(step: int) -> None:
        pipe.to(transformer.device)
        write_previews(pipe, cache, (), config.seed, run_dir / f"preview-{step:06d}.png")

    def save(folder: Path) -> None:
        save_motion(transformer, scheduler, folder / "motion_transformer")

    score = make_scorer(pipe, config, "motion", run_dir, save)
    train_denoiser(config, cache, denoiser, clean_sample, scheduler, preview, score, lambda: save(run_dir))
    if this_process().is_main_process:
        print(run_dir / "motion_transformer")


def make_motion_transformer(
    config: TrainMotionConfig, *, motion_channels: int, content_channels: int, num_classes: int | None,
    text_dim: int | None,
) -> MotionDiT:  # fmt: skip
    """The network that the config, the cache's shapes and the condition at hand call for."""
    torch.manual_seed(config.seed)
    return MotionDiT(
        motion_channels=motion_channels,
        content_channels=content_channels,
        hidden_size=config.model.hidden_size,
        depth=config.model.depth,
        num_heads=config.model.num_heads,
        patch_size=config.model.patch_size,
        content_patch_size=config.model.content_patch_size,
        num_classes=num_classes,
        text_dim=text_dim,
        learn_sigma=config.model.learn_sigma,
    )


def save_motion(transformer: MotionDiT, scheduler: DDIMScheduler, path: Path) -> None:
    """Motion model with ``scheduler_config.json`` beside its weights (``loading.load_motion`` reads it)."""
    with replacing_folder(path) as folder:
        transformer.save_pretrained(folder)
        scheduler.save_pretrained(folder)
