"""Pictures of a model in training, made by the pipeline object that users run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from contentmotion.config import TrainDenoiserConfig
from contentmotion.data.cache import LatentCache
from contentmotion.pipeline import ContentMotionPipeline
from contentmotion.video_io import write_contact_sheet

NUM_PREVIEWS = 8


def write_previews(pipe: ContentMotionPipeline, cache: LatentCache, config: TrainDenoiserConfig, path: Path) -> None:
    """Generates from the validation prompts (or the cache's first items), and writes a contact sheet.

    A content model shows content frames; a motion model moves the cache's true content frames.

    Args:
        pipe: With the networks being trained inside.
        cache: Source of prompts, labels and true content frames.
        config: Gives seed and prompts.
        path: PNG file.
    """
    stride = max(1, len(cache) // NUM_PREVIEWS)
    items = [cache[i] for i in range(0, len(cache), stride)][:NUM_PREVIEWS]
    moving = pipe.motion_transformer is not None
    prompts = [item["caption"] for item in items]
    if config.validation_prompts and not moving:
        prompts = list(config.validation_prompts)
    text = pipe.text_encoder is not None
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        prompt=prompts if text else None,
        class_labels=None if text else [item["label"] for item in items],
        content_latents=torch.stack([item["content"] for item in items]) if moving else None,
        generator=[torch.Generator().manual_seed(config.seed + i) for i in range(len(prompts if text else items))],
        num_inference_steps=25,
        output_type="np",
    )
    videos: Any = output.frames if moving else output.content_frame[:, None]
    captions = prompts if text else [f"class {item['label']}" for item in items]
    write_contact_sheet(path, [(255 * v).round().astype(np.uint8) for v in videos], captions)
