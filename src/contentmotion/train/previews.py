"""Pictures of a model in training, made by the pipeline object that users run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contentmotion.data.cache import LatentCache
from contentmotion.data.conditions import training_conditions
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.stages.image_vae import vae_scale_factor
from contentmotion.video.pixels import to_uint8
from contentmotion.video.write import write_contact_sheet

AnyPipeline = ContentMotionPipeline | VideoLatentPipeline

NUM_PREVIEWS = 8
PREVIEW_STEPS = 25


def write_previews(pipe: AnyPipeline, cache: LatentCache, prompts: Sequence[str], seed: int, path: Path) -> None:
    """Generates from the prompts (or items of the cache, of the first one's size), and writes a contact sheet.

    A content model shows content frames; a motion model moves the cache's true content frames; a video model
    with conditions follows those of the cache's clips.

    Args:
        pipe: With the networks being trained inside.
        cache: Source of prompts, labels and true content frames.
        prompts: What a content model draws; captions of the cache when empty.
        seed: Seed of the noise.
        path: PNG file.
    """
    videos, captions = make_previews(pipe, cache, prompts, seed, num_inference_steps=PREVIEW_STEPS)
    write_contact_sheet(path, videos, captions)


def make_previews(
    pipe: AnyPipeline, cache: LatentCache, prompts: Sequence[str], seed: int, **sampling: Any
) -> tuple[list[np.ndarray], list[str]]:
    """Preview videos, uint8 (t, h, w, 3) each, and their captions; ``sampling`` goes to the pipeline."""
    alike = cache.alike()
    items = [cache[i] for i in alike[:: max(1, len(alike) // NUM_PREVIEWS)][:NUM_PREVIEWS]]
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipe, VideoLatentPipeline):
        return _preview_whole(pipe, items, prompts, seed, sampling)
    moving = pipe.motion_transformer is not None
    captions = list(prompts) if prompts and not moving else [item["caption"] for item in items]
    text, factor = pipe.text_encoder is not None, vae_scale_factor(pipe.vae)
    height, width = (factor * side for side in items[0]["content"].shape[1:])
    output: Any = pipe(
        prompt=captions if text else None,
        class_labels=None if text else [item["label"] for item in items],
        content_latents=torch.stack([item["content"] for item in items]) if moving else None,
        generator=_generators(seed, len(captions)),
        height=height,
        width=width,
        output_type="np",
        **sampling,
    )
    videos: Any = output.frames if moving else output.content_frame[:, None]
    if not text:
        captions = [f"class {item['label']}" for item in items]
    return [to_uint8(video, low=0) for video in videos], captions


def _preview_whole(
    pipe: VideoLatentPipeline, items: list[dict[str, Any]], prompts: Sequence[str], seed: int, sampling: dict[str, Any]
) -> tuple[list[np.ndarray], list[str]]:
    """Videos of a video model; one with conditions follows the first it knows, taken from the cache's items."""
    names = pipe.condition_names[:1]
    captions = list(prompts) if prompts and not names else [item["caption"] for item in items]
    batch = {key: torch.stack([item[key] for item in items]) for key in ("latents", *names) if key in items[0]}
    generator = torch.Generator().manual_seed(seed)
    conditions, _ = training_conditions(batch, names, generator, keep_all_prob=1.0, drop_all_prob=0.0)
    output: Any = pipe(
        prompt=captions,
        conditions=conditions,
        generator=_generators(seed, len(captions)),
        output_type="np",
        **sampling,
    )
    return [to_uint8(video, low=0) for video in output.frames], captions


def _generators(seed: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]
