"""Command ``train-content``: an image diffusion model learns to draw content frames (CMD section 3.2, Eq. 7)."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoModel,
    DDIMScheduler,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.modeling_utils import ModelMixin

from contentmotion.config import TrainContentConfig
from contentmotion.data.cache import LatentCache, open_cache
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.loading import (
    load_autoencoder,
    load_vae,
    quiet,
    require_checkpoints,
    resolve_name,
    to_ddim,
)
from contentmotion.run_dir import prepare_output_dir
from contentmotion.saving import replacing_folder
from contentmotion.stages.denoisers import ContentDenoiser
from contentmotion.stages.text import make_text_encoder
from contentmotion.train.denoiser import make_scheduler, train_denoiser
from contentmotion.train.lora import adapt_unet, merge_adapters, save_adapters
from contentmotion.train.previews import write_previews
from contentmotion.train.processes import this_process
from contentmotion.train.scoring import make_scorer


def train_content(config: TrainContentConfig) -> None:
    """Fine-tunes a Stable Diffusion UNet, or trains a model from scratch; ``output_dir/content`` is the result.

    With adapters (``lora.rank``) these are merged there, and alone in ``output_dir/lora``.

    Raises:
        ValueError: Something needed is missing or does not fit.
    """
    if config.dry_run:
        from contentmotion.cost.plan import print_plan  # it knows all commands

        return print_plan(config)
    require_checkpoints(
        pretrained_model_name_or_path=config.pretrained_model_name_or_path,
        vae=config.vae,
    )
    run_dir = prepare_output_dir(config.output_dir, "train-content", config)
    cache = open_cache(config.cache_dir, config.max_bad_fraction)
    torch.manual_seed(config.seed)
    if config.pretrained_model_name_or_path:
        parts = load_content_parts(config.pretrained_model_name_or_path)
    else:
        parts = make_content_parts(config, cache)
    _check_fit(parts["unet"], cache)
    adapt_unet(parts["unet"], config)
    cache.require_made_with(vae=parts["vae"])
    pipe = ContentMotionPipeline(**parts)
    denoiser = ContentDenoiser(parts["unet"], parts["text_encoder"], parts["tokenizer"])
    train_text = config.train_text_encoder or not config.pretrained_model_name_or_path
    if parts["text_encoder"] is not None:
        parts["text_encoder"].requires_grad_(train_text)
        cache.use_text_features(None if train_text else parts["text_encoder"])
    if config.gradient_checkpointing:
        parts["unet"].enable_gradient_checkpointing()

    def preview(step: int) -> None:
        pipe.to(parts["unet"].device)
        write_previews(pipe, cache, config.validation_prompts, config.seed, run_dir / f"preview-{step:06d}.png")

    scored = ContentMotionPipeline(**parts)
    if config.eval.autoencoder:
        scored.register_modules(autoencoder=load_autoencoder(config.eval.autoencoder))
        cache.require_made_with(autoencoder=scored.autoencoder)

    def save(folder: Path) -> None:
        adapted = {}
        if config.lora.rank:
            save_adapters(parts["unet"], parts["scheduler"], folder / "lora")
            adapted = {"unet": merge_adapters(parts["unet"])}
        save_content(ContentMotionPipeline(**parts | adapted), folder / "content")

    score = make_scorer(scored, config, "content", run_dir, save)
    train_denoiser(
        config,
        cache,
        denoiser,
        lambda batch: batch["content"],
        parts["scheduler"],
        preview,
        score,
        lambda: save(run_dir),
    )
    if this_process().is_main_process:
        print(run_dir / "content")


def load_content_parts(name_or_path: str) -> dict[str, Any]:
    """The parts of a Stable Diffusion folder that the content stage uses; DDIM with the folder's own schedule.

    Raises:
        ValueError: A part is missing.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    path = resolve_name(name_or_path)
    draws_pixels = (Path(path) / "unet").is_dir() and not (Path(path) / "vae").is_dir()
    try:
        with quiet():
            return {
                "vae": None if draws_pixels else load_vae(name_or_path),
                "text_encoder": CLIPTextModel.from_pretrained(path, subfolder="text_encoder", dtype=torch.float32),
                "tokenizer": CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"),
                "unet": AutoModel.from_pretrained(path, subfolder="unet"),
                "scheduler": to_ddim(DDIMScheduler.load_config(path, subfolder="scheduler")),
            }
    except OSError as error:
        raise ValueError(f"{name_or_path} is not a Stable Diffusion folder: {str(error).splitlines()[0]}") from error


def make_content_parts(config: TrainContentConfig, cache: LatentCache) -> dict[str, Any]:
    """Untrained parts of the sizes that the config and the cache ask for."""
    vae = load_vae(config.vae) if config.vae else None
    shapes = cache.shapes("content")
    channels, height, width = shapes[0]
    parts: dict[str, Any] = {"vae": vae, "text_encoder": None, "tokenizer": None}
    if config.model.architecture == "dit":
        for _, high, wide in shapes:
            if high != wide:
                raise ValueError(f"a DiT content model takes square content frames, these are {high}x{wide}")
        unet: ModelMixin = DiTTransformer2DModel(
            in_channels=channels,
            out_channels=channels * (2 if config.model.learn_sigma else 1),
            sample_size=height,
            patch_size=config.model.patch_size,
            num_layers=config.model.depth,
            num_attention_heads=config.model.num_heads,
            attention_head_dim=config.model.hidden_size // config.model.num_heads,
            num_embeds_ada_norm=_num_classes(cache),
        )
        # Dropping labels is the loss's business here, with the run's own generator.
        for module in unet.modules():
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        return parts | {"unet": unet, "scheduler": make_scheduler("linear", config.prediction_type)}
    captions = chain.from_iterable(cache.captions())
    parts["tokenizer"], parts["text_encoder"] = make_text_encoder(
        captions,
        vocab_size=config.model.vocab_size,
        hidden_size=config.model.text_hidden_size,
        num_layers=config.model.text_num_layers,
    )
    levels = len(config.model.block_out_channels)
    unet = UNet2DConditionModel(
        sample_size=(height, width) if height != width else height,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(config.model.block_out_channels),
        # Attention everywhere but at the finest resolution, where it costs most.
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        layers_per_block=config.model.layers_per_block,
        attention_head_dim=config.model.num_attention_heads,  # diffusers calls the number of heads so
        cross_attention_dim=config.model.text_hidden_size,
        # The whole prompt steers every block, beside attention to its words: names are learned in fewer steps.
        addition_embed_type="text",
        addition_embed_type_num_heads=config.model.num_attention_heads,
    )
    return parts | {"unet": unet, "scheduler": make_scheduler("scaled_linear", config.prediction_type)}


def _num_classes(cache: LatentCache) -> int:
    names = cache.manifest["class_names"]
    if not names:
        raise ValueError(f"the clips of {cache.cache_dir} have no class labels: a class-conditional DiT needs them")
    return len(names)


def _check_fit(unet: ModelMixin, cache: LatentCache) -> None:
    channels = cache[0]["content"].shape[0]
    if unet.config.in_channels != channels:
        raise ValueError(
            f"the content model takes {unet.config.in_channels} channels, but the content frames in "
            f"{cache.cache_dir} have {channels}: were they encoded with this model's VAE?"
        )


def save_content(pipe: ContentMotionPipeline, path: Path) -> None:
    """The content half of a pipeline: as a stock Stable Diffusion pipeline where its parts make one, else as ours."""
    parts = {name: pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    if parts["vae"] is None or parts["text_encoder"] is None:
        half: Any = ContentMotionPipeline(**parts)
    else:
        half = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    with replacing_folder(path) as folder:
        half.save_pretrained(folder)
