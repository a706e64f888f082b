"""Command ``train-motion``: a DiT learns to move a content frame (CMD section 3.2, Eq. 8)."""

from __future__ import annotations

from typing import Any

import torch

from contentmotion.config import TrainMotionConfig
from contentmotion.data.cache import open_cache
from contentmotion.loading import load_autoencoder, require_checkpoints
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.run_dir import make_output_dir
from contentmotion.stages.content import load_content
from contentmotion.stages.motion import MotionStage
from contentmotion.train.denoiser import train_denoiser


def train_motion(config: TrainMotionConfig) -> None:
    """Trains the motion model; ``output_dir/motion_transformer`` is the result, with its scheduler beside it.

    Raises:
        ValueError: Something needed is missing or does not fit: no text encoder and no classes, or a cache made with
            other networks.
    """
    require_checkpoints(
        pretrained_model_name_or_path=config.pretrained_model_name_or_path, autoencoder=config.autoencoder
    )
    make_output_dir(config.output_dir)
    cache = open_cache(config.latent_cache, config.max_bad_fraction)
    autoencoder = load_autoencoder(config.autoencoder).requires_grad_(False)
    cache.require_made_with(autoencoder=autoencoder)
    components: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "scheduler"))
    names, text_dim = cache.manifest["class_names"], None
    if config.pretrained_model_name_or_path:
        content = load_content(config.pretrained_model_name_or_path).requires_grad_(False)
        components, text_dim = content.components, content.pooled_width
        cache.require_made_with(vae=components["vae"])
        cache.use_text_features(components, content.text_family)
    if text_dim is None and not names:
        raise ValueError("give --pretrained_model_name_or_path (a text encoder), or a cache of labelled clips")
    own = autoencoder.config
    statistics = cache.motion_statistics
    if statistics is None and own.motion_mean is not None:  # a cache made by version 0.1
        statistics = (own.motion_mean, own.motion_std)
    if statistics is None:
        raise ValueError(
            f"{config.latent_cache} has no statistics of its motion latents: encode again, into a new folder"
        )
    torch.manual_seed(config.seed)
    stage = MotionStage.make(
        config.model, cache.shapes("motion"), components=components | {"autoencoder": autoencoder},
        content_channels=cache.shapes("content")[0][0],
        num_classes=None if text_dim is not None else len(names),
        text_dim=text_dim,
        statistics=statistics, prediction_type=config.prediction_type, flow_shift=config.flow_shift,
        content_noise=config.content_noise, overlap=config.overlap, frame_rate=cache.frame_rate,
    )  # fmt: skip
    train_denoiser(config, cache, stage, ContentMotionPipeline(**stage.components))
