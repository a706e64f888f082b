"""Pictures of a model in training, made by the pipeline object that users run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from contentmotion.data.cache import LatentCache
from contentmotion.data.conditions import training_conditions
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.stages.image_vae import vae_scale_factor
from contentmotion.video.pixels import to_uint8

AnyPipeline = ContentMotionPipeline | VideoLatentPipeline

NUM_PREVIEWS = 8


def make_previews(
    pipe: AnyPipeline, cache: LatentCache, prompts: Sequence[str], seed: int, **sampling: Any
) -> tuple[list[np.ndarray], list[str]]:
    """Generates from the prompts, or from items of the cache, of the first one's size.

    A content model shows content frames; a motion model moves the cache's true content frames; a video model
    with conditions follows the first that it knows, of the cache's clips.

    Args:
        pipe: With the networks being trained inside.
        cache: Source of prompts, labels and true content frames.
        prompts: What a content or a video model draws; captions of the cache when empty.
        seed: Seed of the noise.
        **sampling: Goes to the pipeline.

    Returns:
        Videos, uint8 (t, h, w, 3) each, and their captions.
    """
    alike = cache.alike()
    items = [cache[i] for i in alike[:: max(1, len(alike) // NUM_PREVIEWS)][:NUM_PREVIEWS]]
    pipe.set_progress_bar_config(disable=True)
    is_video = isinstance(pipe, VideoLatentPipeline)
    names = pipe.condition_names[:1] if is_video else ()
    moving = not is_video and pipe.motion_transformer is not None
    captions = list(prompts) if prompts and not names and not moving else [item["caption"] for item in items]
    given: dict[str, Any] = {"prompt": captions}
    if is_video:
        batch = {key: torch.stack([item[key] for item in items]) for key in ("latents", *names) if key in items[0]}
        generator = torch.Generator().manual_seed(seed)
        given["conditions"], _ = training_conditions(batch, names, generator, keep_all_prob=1.0, drop_all_prob=0.0)
    else:
        factor = vae_scale_factor(pipe.vae)
        given["height"], given["width"] = (factor * side for side in items[0]["content"].shape[1:])
        if moving:
            given["content_latents"] = torch.stack([item["content"] for item in items])
        if pipe.text_encoder is None:
            labels = [item["label"] for item in items]
            captions = [f"class {label}" for label in labels]
            given |= {"prompt": None, "class_labels": labels}
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(captions))]
    output: Any = pipe(generator=generators, output_type="np", **given, **sampling)
    videos: Any = output.frames if is_video or moving else output.content_frame[:, None]
    return [to_uint8(video, low=0) for video in videos], captions
