"""Command ``train-video``: a UNet learns whole videos, from text and depth, sketches, masks or first frames."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from contentmotion.config import TrainVideoConfig
from contentmotion.data.cache import LatentCache, open_cache
from contentmotion.data.conditions import require_conditions
from contentmotion.loading import load_vae, require_checkpoints, training_scheduler
from contentmotion.pipelines.loading import is_video_model, load_video_pipeline
from contentmotion.pipelines.sampling import is_distilled
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.run_dir import make_output_dir
from contentmotion.stages.content import load_content
from contentmotion.stages.lora import adapt
from contentmotion.stages.video import VideoStage
from contentmotion.train.denoiser import train_denoiser


def train_video(config: TrainVideoConfig) -> None:
    """Trains a video UNet on latents of whole clips; ``output_dir/video`` is the result, a pipeline folder.

    With adapters (``lora.rank``) these are merged there: diffusers' video UNet loads none by itself.

    Raises:
        ValueError: Something needed is missing or does not fit.
    """
    require_checkpoints(pretrained_model_name_or_path=config.pretrained_model_name_or_path, vae=config.vae)
    make_output_dir(config.output_dir)
    cache = open_cache(config.latent_cache, config.max_bad_fraction)
    fields = list(cache[0])
    if "latents" not in fields:
        raise ValueError(f"{config.latent_cache} holds no latents of whole clips: encode with --latents_only true")
    require_conditions(config.conditions, fields)
    stage = video_to_train(config, cache)
    stage.fit_to(cache.shapes("latents")[0], cache.frame_rate)
    cache.require_made_with(vae=stage.components["vae"])
    adapt(stage, config.lora)
    pipe = VideoLatentPipeline(**stage.components)
    pipe.check_parts()
    train_text = config.train_text_encoder or not config.pretrained_model_name_or_path
    stage.components["text_encoder"].requires_grad_(train_text)
    cache.use_text_features(None if train_text else stage.components)
    train_denoiser(config, cache, stage, pipe, prompts=config.validation_prompts)


def video_to_train(config: TrainVideoConfig, cache: LatentCache) -> VideoStage:
    """The stage to train: of the checkpoint that the config names, or an untrained one.

    Raises:
        ValueError: The checkpoint cannot be made the model that the config asks for.
    """
    shapes = cache.shapes("latents")
    name = config.pretrained_model_name_or_path
    torch.manual_seed(config.seed)
    if name is None:
        return VideoStage.make(
            config.model, shapes, chain.from_iterable(cache.captions()),
            vae=load_vae(config.vae) if config.vae else None, conditions=config.conditions,
            prediction_type=config.prediction_type, flow_shift=config.flow_shift,
            condition_dropout_prob=config.condition_dropout_prob,
        )  # fmt: skip
    if is_video_model(name):
        components: dict[str, Any] = dict(load_video_pipeline(name).components)
        known = () if components["condition_encoder"] is None else components["condition_encoder"].config.conditions
        if known and set(known) != set(config.conditions):
            raise ValueError(f"{name} takes {', '.join(known)}: give --conditions the same names")
        if is_distilled(components["scheduler"]):
            raise ValueError(f"{name} was distilled: train on from its teacher, and distil that")
        components["scheduler"] = training_scheduler(components["scheduler"].config)
        if config.lora.rank and config.conditions and not known:
            raise ValueError(f"{name} does not know conditions yet: adapters are not enough to learn them")
    elif config.lora.rank:
        raise ValueError(f"lora.rank adapts a video model; {name} is one of pictures, whose layers in time are new")
    else:
        components = load_content(name).components
    return VideoStage.grow(components, config.model, shapes[0], config.conditions, config.condition_dropout_prob)
