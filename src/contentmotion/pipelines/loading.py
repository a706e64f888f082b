"""Whole pipelines by folder or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoModel, UNet3DConditionModel

from contentmotion.config import SHIPPED_MODEL, SHIPPED_STUDENT
from contentmotion.loading import (
    SCHEDULERS,
    explain,
    load_autoencoder,
    load_model,
    load_motion,
    load_scheduler,
    load_tokenizer,
    quiet,
    require_checkpoints,
    require_possible_sizes,
    resolve_name,
    training_scheduler,
)
from contentmotion.models.video_unet import VideoUNet  # diffusers loads no class whose module is not imported
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.folder import INDEX, fetch, known_classes, read_index
from contentmotion.pipelines.video_latent import VideoLatentPipeline

VIDEO_UNETS = (VideoUNet.__name__, UNet3DConditionModel.__name__)
NETWORKS = (
    "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer", "controlnet", "autoencoder",
    "motion_transformer", "condition_encoder",
)  # fmt: skip
Pipeline = TypeVar("Pipeline", bound=LatentPipeline)


def load_pipeline(
    name_or_path: str,
    autoencoder: str | None = None,
    motion_transformer: str | None = None,
    dtype: torch.dtype | None = None,
) -> ContentMotionPipeline:
    """A whole pipeline: a folder that has every part, or a Stable Diffusion folder completed by ours.

    Args:
        name_or_path: Pipeline folder or hub id; "emoji" is the shipped model, "emoji-lcm" its student.
        autoencoder: Folder that replaces (or adds) the autoencoder.
        motion_transformer: Folder that replaces (or adds) the motion model and its scheduler.
        dtype: Precision of the weights; float32 when None.

    Raises:
        ValueError: A part is missing, damaged or of another shape.
    """
    require_checkpoints(
        pretrained_model_name_or_path=name_or_path, autoencoder=autoencoder, motion_transformer=motion_transformer
    )
    path, motion = fetch(name_or_path), motion_transformer
    parts: dict[str, Any] = {}
    if name_or_path == SHIPPED_STUDENT:  # what it shares with its teacher is stored once
        motion = motion or str(path)
        parts["unet"] = load_model(AutoModel, str(path), "unet", "a content model", dtype)
        parts["scheduler"] = load_scheduler(path / "scheduler")
        path = Path(resolve_name(SHIPPED_MODEL))
    if autoencoder:
        parts["autoencoder"] = load_autoencoder(autoencoder, dtype)
    if motion:
        parts["motion_transformer"], parts["motion_scheduler"] = load_motion(motion, dtype)
    if is_video_model(name_or_path):
        raise ValueError(f"{name_or_path} is a video model: it has no content frame and no motion")
    pipe = _assemble(ContentMotionPipeline, name_or_path, path, parts, dtype)
    absent = [n for n in ("autoencoder", "motion_transformer", "motion_scheduler") if getattr(pipe, n) is None]
    if absent:
        raise ValueError(
            f"{name_or_path} has no {' and no '.join(absent)}: give --autoencoder and --motion_transformer"
        )
    # Trailing steps: such as SDXL-Turbo's Euler, made for few steps.
    few = getattr(pipe.scheduler, "config", {}).get("timestep_spacing") == "trailing"
    if motion_transformer and not few and not isinstance(pipe.scheduler, SCHEDULERS):
        # A stock Stable Diffusion folder names PNDM or Euler; the paper samples with DDIM.
        pipe.scheduler = training_scheduler(pipe.scheduler.config)
    pipe.check_parts()
    return pipe


def _assemble(
    pipeline: type[Pipeline], name: str, path: Path, parts: dict[str, Any], dtype: torch.dtype | None
) -> Pipeline:
    """A pipeline of a folder, some parts of which are given; its networks are loaded strictly."""
    index = read_index(path / INDEX)
    pipeline.settings_of(path, index, parts)
    for part, cls in known_classes(name, index, pipeline, parts).items():
        if part in NETWORKS:
            parts[part] = load_model(cls, str(path), part, f"the {part}", dtype)
        elif part.startswith("tokenizer"):
            parts[part] = load_tokenizer(str(path), part, cls.__name__)
        elif part.endswith("scheduler"):
            require_possible_sizes(path / part / "scheduler_config.json")
    try:
        with quiet():  # Stable Diffusion folders hold parts that a video has no use for: no word about each
            return pipeline.from_pretrained(path, dtype=dtype or torch.float32, **parts)
    except Exception as error:  # torch, safetensors, json and the hub each raise their own
        raise ValueError(explain(name, str(path), error)) from error


def is_video_model(name_or_path: str) -> bool:
    """Whether a pipeline folder or hub id holds a video UNet rather than content and motion."""
    index = fetch(name_or_path) / INDEX
    if not index.exists():
        return False
    try:
        return read_index(index).get("unet", [None, None])[1] in VIDEO_UNETS
    except (TypeError, LookupError) as error:
        raise ValueError(f"{index} is not a pipeline's index: {error}") from error


def load_video_pipeline(name_or_path: str, dtype: torch.dtype | None = None) -> VideoLatentPipeline:
    """A video model's pipeline: what ``train-video`` and ``distill --part video`` wrote, or ModelScope's folder; with
    weights of a precision, float32 when None.

    Raises:
        ValueError: It is another kind of model, or a part is missing, damaged or of another shape.
    """
    if not is_video_model(name_or_path):
        raise ValueError(f"{name_or_path} is not a video model: its model_index.json names no video UNet")
    pipe = _assemble(VideoLatentPipeline, name_or_path, fetch(name_or_path), {}, dtype)
    pipe.check_parts()
    return pipe


def load_any_pipeline(
    name_or_path: str,
    autoencoder: str | None = None,
    motion_transformer: str | None = None,
    dtype: torch.dtype | None = None,
) -> ContentMotionPipeline | VideoLatentPipeline:
    """``load_video_pipeline`` or ``load_pipeline``, by what the folder holds.

    Raises:
        ValueError: See there; or a video model, which has no use for the other parts.
    """
    if not is_video_model(name_or_path):
        return load_pipeline(name_or_path, autoencoder, motion_transformer, dtype)
    if autoencoder or motion_transformer:
        raise ValueError(f"{name_or_path} is a video model: it takes no --autoencoder and no --motion_transformer")
    return load_video_pipeline(name_or_path, dtype)
