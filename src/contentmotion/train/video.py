"""Command ``train-video``: a UNet learns whole videos, from text and depth, sketches, masks or first frames."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch

from contentmotion.config import TrainVideoConfig
from contentmotion.data.cache import LatentCache, open_cache
from contentmotion.data.conditions import require_conditions, training_conditions
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.models.video_unet import enable_checkpointing, inflate_unet, make_video_unet, widen_input
from contentmotion.pipelines.loading import is_video_model, load_vae, load_video_pipeline, require_checkpoints, to_ddim
from contentmotion.pipelines.sampling import is_distilled
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.run_dir import prepare_output_dir
from contentmotion.saving import replacing_folder
from contentmotion.stages.denoisers import VideoDenoiser
from contentmotion.stages.image_vae import vae_scale_factor
from contentmotion.stages.text import make_text_encoder
from contentmotion.train.content import load_content_parts
from contentmotion.train.denoiser import make_scheduler, train_denoiser
from contentmotion.train.loop import Batch
from contentmotion.train.lora import adapt_unet, merge_adapters
from contentmotion.train.previews import write_previews
from contentmotion.train.processes import this_process
from contentmotion.train.scoring import make_scorer


def train_video(config: TrainVideoConfig) -> None:
    """Trains a video UNet on latents of whole clips; ``output_dir/video`` is the result, a pipeline folder.

    With adapters (``lora.rank``) these are merged there: diffusers' video UNet loads none by itself.

    Raises:
        ValueError: Something needed is missing or does not fit.
    """
    if config.dry_run:
        from contentmotion.cost.plan import print_plan  # it knows all commands

        return print_plan(config)
    require_checkpoints(pretrained_model_name_or_path=config.pretrained_model_name_or_path, vae=config.vae)
    run_dir = prepare_output_dir(config.output_dir, "train-video", config)
    cache = open_cache(config.cache_dir, config.max_bad_fraction)
    fields = list(cache[0])
    if "latents" not in fields:
        raise ValueError(f"{config.cache_dir} holds no latents of whole clips: encode with --latents_only true")
    require_conditions(config.conditions, fields)
    parts = make_video_parts(config, cache)
    cache.require_made_with(vae=parts["vae"])
    adapt_unet(parts["unet"], config)
    pipe = VideoLatentPipeline(**parts)
    pipe.check_parts()
    train_text = config.train_text_encoder or not config.pretrained_model_name_or_path
    parts["text_encoder"].requires_grad_(train_text)
    cache.use_text_features(None if train_text else parts["text_encoder"])
    if config.gradient_checkpointing:
        enable_checkpointing(parts["unet"])
    denoiser = VideoDenoiser(parts["unet"], parts["text_encoder"], parts["tokenizer"], parts["condition_encoder"])

    def preview(step: int) -> None:
        pipe.to(parts["unet"].device)
        write_previews(pipe, cache, config.validation_prompts, config.seed, run_dir / f"preview-{step:06d}.png")

    def save(folder: Path) -> None:
        adapted = {"unet": merge_adapters(parts["unet"])} if config.lora.rank else {}
        save_video(VideoLatentPipeline(**parts | adapted), folder / "video")

    train_denoiser(
        config, cache, denoiser, lambda batch: batch["latents"], parts["scheduler"], preview,
        make_scorer(VideoLatentPipeline(**parts), config, "full", run_dir, save), lambda: save(run_dir),
        prepare=lambda batch: add_conditions(batch, config.conditions, config.condition_dropout_prob),
    )  # fmt: skip
    if this_process().is_main_process:
        print(run_dir / "video")


def add_conditions(batch: Batch, names: tuple[str, ...], dropout_prob: float) -> Batch:
    """The batch with the conditions that a model takes, drawn from its generator, each dropped at random."""
    if not names:
        return batch
    conditions, present = training_conditions(batch, names, batch["generator"], dropout_prob)
    return batch | {"conditions": conditions, "present": present}


def make_video_parts(config: TrainVideoConfig, cache: LatentCache) -> dict[str, Any]:
    """The pipeline's parts to train: of the checkpoint that the config names, or untrained ones.

    Raises:
        ValueError: The checkpoint cannot be made the model that the config asks for.
    """
    frames, channels, height, width = cache[0]["latents"].shape
    extra = config.model.condition_channels if config.conditions else 0
    name = config.pretrained_model_name_or_path
    torch.manual_seed(config.seed)
    if name is None:
        vae = load_vae(config.vae) if config.vae else None
        texts = chain.from_iterable(cache.captions())
        sizes = {"hidden_size": config.model.text_hidden_size, "num_layers": config.model.text_num_layers}
        tokenizer, text_encoder = make_text_encoder(texts, vocab_size=config.model.vocab_size, **sizes)
        unet: Any = make_video_unet(
            latent_channels=channels,
            extra_channels=extra,
            block_out_channels=config.model.block_out_channels,
            layers_per_block=config.model.layers_per_block,
            num_attention_heads=config.model.num_attention_heads,
            cross_attention_dim=config.model.text_hidden_size,
            sample_size=(height, width),
            num_frames=frames,
        )
        scheduler = make_scheduler("scaled_linear", config.prediction_type)
        parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    elif is_video_model(name):
        parts = dict(load_video_pipeline(name).components)
        known = () if parts["condition_encoder"] is None else tuple(parts["condition_encoder"].config.conditions)
        if known and set(known) != set(config.conditions):
            raise ValueError(f"{name} takes {', '.join(known)}: give --conditions the same names")
        if is_distilled(parts["scheduler"]):
            raise ValueError(f"{name} was distilled: train on from its teacher, and distil that")
        parts["scheduler"] = to_ddim(parts["scheduler"].config)
        if known:
            return fit_to_clips(parts, cache)
        if config.lora.rank and extra:
            raise ValueError(f"{name} does not know conditions yet: adapters are not enough to learn them")
        parts["unet"] = widen_input(parts["unet"], extra)
    elif config.lora.rank:
        raise ValueError(f"lora.rank adapts a video model; {name} is one of pictures, whose layers in time are new")
    else:
        parts = load_content_parts(name)
        parts["unet"] = inflate_unet(parts["unet"], frames, extra)
    encoder = None
    if config.conditions:
        encoder = ConditionEncoder(
            conditions=config.conditions,
            latent_channels=channels,
            vae_scale_factor=vae_scale_factor(parts["vae"]),
            hidden_channels=config.model.condition_hidden_channels,
            out_channels=extra,
        )
    return fit_to_clips(parts | {"condition_encoder": encoder}, cache)


def fit_to_clips(parts: dict[str, Any], cache: LatentCache) -> dict[str, Any]:
    """The parts, their UNet's config saying the size of the clips that it learns: previews and pipelines ask for it."""
    frames, _, height, width = cache[0]["latents"].shape
    parts["unet"].register_to_config(sample_size=(height, width))
    if "num_frames" in parts["unet"].config:
        parts["unet"].register_to_config(num_frames=frames)
    return parts


def save_video(pipe: VideoLatentPipeline, path: Path) -> None:
    """Writes a pipeline folder, whole or not at all."""
    with replacing_folder(path) as folder:
        pipe.save_pretrained(folder)
