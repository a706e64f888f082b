"""A pipeline of ours run as one, from prompt to file: what its stages' sum is checked against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import nn
from transformers import CLIPTokenizer

from contentmotion.config import SHIPPED_MODEL
from contentmotion.cost.measure import time_in_turns
from contentmotion.cost.results import SystemResult
from contentmotion.cost.stages import Size
from contentmotion.cost.systems import System
from contentmotion.loading import resolve_name
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.video.pixels import to_uint8
from contentmotion.video.write import write_video

if TYPE_CHECKING:
    from contentmotion.cost.run import Bench

PARTS = {
    "text": "text_encoder",
    "content": "unet",
    "motion": "motion_transformer",
    "autoencoder": "autoencoder",
    "image decoder": "vae",
}


def time_whole(bench: Bench, system: System, size: Size, prefix: str, result: SystemResult, folder: Path) -> None:
    """Times the whole pipeline, if it is one of ours, fits, and takes no longer than ``whole_seconds`` by its stages.

    Args:
        bench: Has the networks.
        system: The system.
        size: The clip's.
        prefix: Of its networks' names.
        result: Gets ``measured_seconds``.
        folder: For the video file.
    """
    if result.seconds is None or result.seconds > bench.config.whole_seconds:
        return
    stages = {stage.name: stage for stage in system.stages}
    if "motion" not in stages:
        return
    networks = {part: bench.network(prefix + stages[n].network) for n, part in PARTS.items() if n in stages}
    path = prefix.rpartition("|")[0] or SHIPPED_MODEL  # random networks take any words: the shipped model's
    pipe = assemble(
        {part: network for part, network in networks.items() if isinstance(network, nn.Module)},
        Path(resolve_name(path)),
        guided=stages["content"].batch > 1,
    )

    def run() -> None:
        frames: Any = pipe(
            "a rocket",
            num_inference_steps=stages["content"].calls,
            motion_num_inference_steps=stages["motion"].calls,
            guidance_scale=float(stages["content"].batch * 2 - 1),  # 1 without guidance, else 3
            num_frames=size.frames,
            height=size.height,
            width=size.width,
            output_type="np",
        ).frames
        write_video(folder / "whole.mp4", to_uint8(frames[0], low=0), 8)

    with torch.inference_mode():
        timing = time_in_turns([run], bench.config.repeats, bench.device)[0]
    if not isinstance(timing, str):
        result.measured_seconds, result.measured_spread = timing.median, timing.spread


def assemble(networks: dict[str, nn.Module], folder: Path, guided: bool) -> ContentMotionPipeline:
    """A pipeline of these networks with a folder's tokenizer, sampled with DDIM, or without guidance as an LCM."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text: Any = networks["text_encoder"]
    tokenizer.model_max_length = text.config.max_position_embeddings
    scheduler = DDIMScheduler if guided else LCMScheduler
    schedulers = {name: scheduler(clip_sample=False) for name in ("scheduler", "motion_scheduler")}
    pipe = ContentMotionPipeline(**networks, tokenizer=tokenizer, **schedulers)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe
