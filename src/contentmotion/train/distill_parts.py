"""What can be distilled: one ``Part`` for each kind of model, with all that differs between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, LCMScheduler
from torch import Tensor, nn

from contentmotion.config import DistillConfig
from contentmotion.config.use import Component
from contentmotion.data.cache import LatentCache
from contentmotion.data.conditions import require_conditions
from contentmotion.losses.consistency import require_teacher
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.loading import is_video_model, load_pipeline, load_video_pipeline, resolve_name
from contentmotion.stages.denoisers import ContentDenoiser, MotionDenoiser, VideoDenoiser, perturb
from contentmotion.train.content import load_content_parts, save_content
from contentmotion.train.loop import Batch
from contentmotion.train.lora import ATTENTION_AND_FEED_FORWARD, save_adapters
from contentmotion.train.motion import save_motion
from contentmotion.train.previews import make_previews
from contentmotion.train.video import add_conditions, fit_to_clips, save_video


@dataclass(frozen=True, kw_only=True)
class Part:
    """A kind of model that can be distilled.

    Attributes:
        network: The pipeline's component that denoises.
        besides: Components that are trained with it, where the pipeline has them (not with LoRA).
        scheduler: The pipeline's component that is its scheduler.
        component: What ``evaluate`` scores of it.
        steps: The argument of the pipeline's call that says its steps.
        guidance: The one that guides it.
        field: What a cache must hold of each clip.
        made_with: Components that must have made the cache.
        open_teacher: The teacher's pipeline.
        fit: Makes the teacher's pipeline one of a cache's clips.
        wrap: Components -> the network's ``Denoiser``.
        clean_sample: Teacher's pipeline and batch -> clean samples (b, c, ...).
        prepare: Teacher's pipeline, batch and config -> the batch with what the three networks must see alike, such as
            conditions, or noise on them.
        time_axis: Axis of the clean samples that counts frames.
        folder: Where in the output folder the student goes.
        save: Writes it: pipeline with the student inside, and folder.
        save_adapters: Writes LoRA's weights alone: network, scheduler and folder.
        lora_targets: Layers that get an adapter, by the ends of their names.
        hidden: Components that previews do without.
        previews: Pipeline, cache, prompts, seed and sampling's arguments -> videos and captions.
    """

    network: str
    scheduler: str
    component: Component
    steps: str
    guidance: str
    field: str
    made_with: tuple[str, ...]
    open_teacher: Callable[[DistillConfig], DiffusionPipeline]
    wrap: Callable[[dict[str, Any]], nn.Module]
    clean_sample: Callable[[Any, Batch], Tensor]
    folder: str
    save: Callable[[Any, Path], None]
    lora_targets: tuple[str, ...]
    besides: tuple[str, ...] = ()
    fit: Callable[[Any, LatentCache], object] = lambda teacher, cache: None
    prepare: Callable[[Any, Batch, DistillConfig], Batch] = lambda teacher, batch, config: batch
    time_axis: int | None = None
    save_adapters: Callable[[nn.Module, LCMScheduler, Path], None] | None = None
    hidden: tuple[str, ...] = ()
    previews: Callable[..., tuple[list, list[str]]] = make_previews

    def check_cache(self, cache: LatentCache, teacher: Any) -> None:
        """Raises ``ValueError`` where a cache does not fit the teacher."""
        # A Stable Diffusion folder does not say which autoencoder its content frames are of; without a VAE it is one
        # of pixels.
        makers = {name: getattr(teacher, name) for name in self.made_with}
        cache.require_made_with(**{k: v for k, v in makers.items() if v is not None or k == "vae"})
        if self.field not in cache[0]:
            raise ValueError(f"the latent cache {cache.cache_dir} holds no {self.field}, which is what is distilled")
        require_conditions(getattr(teacher, "condition_names", ()), list(cache[0]))
        cache.use_text_features(teacher.text_encoder)


def open_content_teacher(config: DistillConfig) -> ContentMotionPipeline:
    """A whole pipeline, or the content half: a Stable Diffusion folder or hub id.

    Raises:
        ValueError: Neither, or a distilled one.
    """
    name = config.pretrained_model_name_or_path
    path = resolve_name(name)
    if Path(path).is_dir() and not (Path(path) / "model_index.json").exists():
        raise ValueError(f"{name} is not a pipeline folder: it has no model_index.json")
    if is_video_model(name):
        raise ValueError(f"{name} is a video model: give --part video")
    index = ContentMotionPipeline.load_config(path)
    if index.get("autoencoder", [None, None])[0] is not None:
        return load_pipeline(name)
    if config.eval.steps:
        raise ValueError(f"eval.steps needs an autoencoder, and {name} has none: give a whole pipeline (export)")
    if index.get("scheduler", [None, None])[1] == LCMScheduler.__name__:
        require_teacher(LCMScheduler(), f"{name}: its content model", config.num_ddim_steps)
    return ContentMotionPipeline(**load_content_parts(name))


def perturb_content(teacher: ContentMotionPipeline, batch: Batch, config: DistillConfig) -> Batch:
    """The batch with noise on its content frames (see ``content_noise``)."""
    return batch | {"content": perturb(batch["content"], config.content_noise, batch)}


PARTS: dict[str, Part] = {
    "content": Part(
        network="unet",
        scheduler="scheduler",
        component="content",
        steps="num_inference_steps",
        guidance="guidance_scale",
        field="content",
        made_with=("vae", "autoencoder"),
        open_teacher=open_content_teacher,
        wrap=lambda parts: ContentDenoiser(parts["unet"], parts["text_encoder"], parts["tokenizer"]),
        clean_sample=lambda teacher, batch: batch["content"],
        folder="content",
        save=save_content,
        save_adapters=save_adapters,
        lora_targets=ATTENTION_AND_FEED_FORWARD,
        hidden=("autoencoder", "motion_transformer", "motion_scheduler"),  # previews are content frames
    ),
    "motion": Part(
        network="motion_transformer",
        scheduler="motion_scheduler",
        component="motion",
        steps="motion_num_inference_steps",
        guidance="motion_guidance_scale",
        field="motion",
        made_with=("vae", "autoencoder"),
        open_teacher=lambda config: load_pipeline(config.pretrained_model_name_or_path),
        wrap=lambda parts: MotionDenoiser(parts["motion_transformer"], parts["text_encoder"], parts["tokenizer"]),
        clean_sample=lambda teacher, batch: teacher.autoencoder.standardize_motion(batch["motion"]),
        prepare=perturb_content,
        time_axis=2,  # (b, D, t, s)
        folder="motion_transformer",
        save=lambda pipe, path: save_motion(pipe.motion_transformer, pipe.motion_scheduler, path),
        lora_targets=("attn.qkv", "attn.proj", "mlp.0", "mlp.2"),
    ),
    "video": Part(
        network="unet",
        besides=("condition_encoder",),
        scheduler="scheduler",
        component="full",
        steps="num_inference_steps",
        guidance="guidance_scale",
        field="latents",
        made_with=("vae",),
        open_teacher=lambda config: load_video_pipeline(config.pretrained_model_name_or_path),
        wrap=lambda parts: VideoDenoiser(
            parts["unet"], parts["text_encoder"], parts["tokenizer"], parts["condition_encoder"]
        ),
        fit=lambda teacher, cache: fit_to_clips(teacher.components, cache),
        clean_sample=lambda teacher, batch: batch["latents"],
        prepare=lambda teacher, batch, config: add_conditions(
            batch, teacher.condition_names, config.condition_dropout_prob
        ),
        time_axis=1,  # (b, t, c, h, w)
        folder="video",
        save=save_video,
        lora_targets=ATTENTION_AND_FEED_FORWARD,
    ),
}
