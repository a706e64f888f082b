"""Command ``train-content``: an image diffusion model learns to draw content frames (CMD section 3.2, Eq. 7)."""

from __future__ import annotations

from itertools import chain

import torch

from contentmotion.config import TrainContentConfig
from contentmotion.data.cache import LatentCache, open_cache
from contentmotion.loading import load_autoencoder, load_vae, require_checkpoints
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.run_dir import make_output_dir
from contentmotion.stages.content import ARCHITECTURES, load_content
from contentmotion.stages.lora import adapt
from contentmotion.stages.stage import Stage
from contentmotion.train.denoiser import train_denoiser


def train_content(config: TrainContentConfig) -> None:
    """Fine-tunes an image model, or trains one from scratch; ``output_dir/content`` is the result.

    With adapters (``lora.rank``) these are merged there, and alone in ``output_dir/lora``.

    Raises:
        ValueError: Something needed is missing or does not fit.
    """
    require_checkpoints(pretrained_model_name_or_path=config.pretrained_model_name_or_path, vae=config.vae)
    make_output_dir(config.output_dir)
    cache = open_cache(config.latent_cache, config.max_bad_fraction)
    stage = content_to_train(config, cache)
    adapt(stage, config.lora)
    cache.require_made_with(vae=stage.components["vae"])
    if stage.text_encoders:
        train_text = config.train_text_encoder or not config.pretrained_model_name_or_path
        for text_encoder in stage.text_encoders.values():
            text_encoder.requires_grad_(train_text)
        cache.use_text_features(None if train_text else stage.components, stage.text_family)
    scored = ContentMotionPipeline(**stage.components)
    if config.eval.autoencoder:
        scored.register_modules(autoencoder=load_autoencoder(config.eval.autoencoder))
        cache.require_made_with(autoencoder=scored.autoencoder)
    pipe = ContentMotionPipeline(**stage.components)
    train_denoiser(config, cache, stage, pipe, scored=scored, prompts=config.validation_prompts)


def content_to_train(config: TrainContentConfig, cache: LatentCache) -> Stage:
    """The stage that a config names, or an untrained one of the sizes that config and cache ask for.

    Raises:
        ValueError: It does not fit the cache's content frames.
    """
    torch.manual_seed(config.seed)
    shapes = cache.shapes("content")
    if config.pretrained_model_name_or_path:
        stage = load_content(config.pretrained_model_name_or_path)
        if stage.told_guidance:
            raise ValueError(
                f"{config.pretrained_model_name_or_path} is told the guidance scale: it was distilled, and can be "
                "sampled, not trained"
            )
    else:
        stage = ARCHITECTURES[config.model.architecture].make(
            config.model, shapes, chain.from_iterable(cache.captions()),
            vae=load_vae(config.vae) if config.vae else None, class_names=cache.manifest["class_names"] or (),
            prediction_type=config.prediction_type, flow_shift=config.flow_shift,
        )  # fmt: skip
    channels = stage.network.config.in_channels
    if channels != shapes[0][0]:
        raise ValueError(
            f"the content model takes {channels} channels, but the content frames in {cache.cache_dir} have "
            f"{shapes[0][0]}: were they encoded with this model's VAE?"
        )
    if config.train_text_encoder and not stage.trains_text:
        raise ValueError(f"train_text_encoder: the text encoders of a {type(stage.network).__name__} stay as they are")
    return stage
