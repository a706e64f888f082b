"""Command ``generate``: prompts -> videos in files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from contentmotion.config import GenerateConfig
from contentmotion.data.prompts import read_prompts
from contentmotion.loading import load_pipeline, load_vae, require_checkpoints
from contentmotion.pipeline import ContentMotionPipeline
from contentmotion.run_dir import prepare_output_dir, resolve_device, resolve_dtype, seeded_generator
from contentmotion.sampling import resolve_sampling
from contentmotion.speed import compile_networks, enable_tiling, quantize_networks, use_channels_last, use_vae
from contentmotion.video_io import write_contact_sheet, write_video

MAX_SLUG = 48  # characters of the prompt in a file's name


def generate(config: GenerateConfig) -> None:
    """Writes ``NUMBER-prompt-seedN.mp4`` (and other formats) per video, and ``sheet.png``; prints the paths.

    Video k of a run is drawn from (seed, k) alone: ``batch_size`` changes the speed, not the videos.

    Raises:
        ValueError: No prompts, a checkpoint that is missing or damaged, or sizes that do not fit it.
        OSError: The output folder is not writable.
    """
    conditions = read_conditions(config)
    device = resolve_device(config.device)
    require_checkpoints(
        pretrained_model_name_or_path=config.pretrained_model_name_or_path,
        autoencoder=config.autoencoder,
        motion_transformer=config.motion_transformer,
        vae_decoder=config.vae_decoder,
    )
    output_dir = prepare_output_dir(config.output_dir, "generate", config)
    pipe = open_pipeline(config, device)

    conditions = [condition for condition in conditions for _ in range(config.num_videos_per_prompt)]
    starts = range(0, len(conditions), config.batch_size)
    sampling = resolve_sampling(
        pipe,
        config.num_inference_steps,
        config.motion_num_inference_steps,
        config.guidance_scale,
        config.motion_guidance_scale,
    )
    videos: list[np.ndarray] = []
    written: list[Path] = []
    with _progress() as progress:
        task = progress.add_task("generating", total=(sampling.steps + sampling.motion_steps) * len(starts))
        for start in starts:
            batch = conditions[start : start + config.batch_size]
            for video in sample(pipe, config, batch, start, lambda: progress.advance(task)):
                name = f"{len(videos):03d}-{slug(conditions[len(videos)])}-seed{config.seed}"
                for suffix in config.formats:
                    path = output_dir / f"{name}.{suffix}"
                    write_video(path, video, config.fps)
                    written.append(path)
                videos.append(video)
    sheet = output_dir / "sheet.png"
    write_contact_sheet(sheet, videos, [_caption(condition) for condition in conditions])
    print(*written, f"{sheet} (all of them in one picture)", sep="\n")


def open_pipeline(config: GenerateConfig, device: torch.device) -> ContentMotionPipeline:
    """The pipeline that a config asks for, on its device, with its switches set.

    Raises:
        ValueError: A part is missing or does not fit, or a switch does not apply here.
        ImportError: A switch needs a package that is not installed.
    """
    if config.enable_model_cpu_offload and device.type == "cpu":
        raise ValueError("enable_model_cpu_offload needs a GPU, and this run is on the CPU")
    # On a GPU, autocast would make half-precision copies of the weights anyway.
    dtype = resolve_dtype(config.mixed_precision, device) if device.type == "cuda" else None
    parts = (config.pretrained_model_name_or_path, config.autoencoder, config.motion_transformer)
    pipe = load_pipeline(*parts, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_text_cache()
    if config.vae_decoder:
        use_vae(pipe, load_vae(config.vae_decoder).to(dtype or torch.float32))
    if config.vae_slicing:
        pipe.enable_vae_slicing()
    if config.vae_tiling:
        enable_tiling(pipe)
    quantize_networks(pipe, config.quantization)
    if config.enable_model_cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    if device.type == "cuda":
        use_channels_last(pipe)
    if config.compile:
        compile_networks(pipe, device)
    return pipe


def read_conditions(config: GenerateConfig) -> list[str] | list[int]:
    """The prompts, or the class ids, that a run asks for.

    Raises:
        ValueError: There are none, or one is empty.
        OSError: The prompt file cannot be read.
    """
    if config.class_labels is not None:
        if not config.class_labels:
            raise ValueError("class_labels is empty")
        return config.class_labels
    if config.prompt_file is not None:
        return read_prompts(config.prompt_file)
    prompts = [prompt.strip() for prompt in config.prompt or []]
    if not prompts or not all(prompts):
        raise ValueError("empty prompt: say what to show")
    return prompts


def sample(
    pipe: ContentMotionPipeline,
    config: GenerateConfig,
    batch: list[str] | list[int],
    first: int,
    on_step: Callable[[], object],
) -> list[np.ndarray]:
    """Generates one batch.

    Args:
        pipe: On its device.
        config: The sampler's settings.
        batch: Prompts or class ids, one per video.
        first: Number of the batch's first video in the run, which its noise is drawn from.
        on_step: Called after each denoising step.

    Returns:
        uint8 (t, h, w, 3) per video.
    """
    device = pipe._execution_device
    dtype = resolve_dtype(config.mixed_precision, device)
    kind = "class_labels" if config.class_labels is not None else "prompt"

    def callback(pipe: ContentMotionPipeline, step: int, timestep: object, tensors: dict) -> dict:
        on_step()
        return tensors

    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        frames: Any = pipe(
            **{kind: batch},
            negative_prompt=config.negative_prompt,
            num_inference_steps=config.num_inference_steps,
            motion_num_inference_steps=config.motion_num_inference_steps,
            guidance_scale=config.guidance_scale,
            motion_guidance_scale=config.motion_guidance_scale,
            num_frames=config.num_frames,
            height=config.height,
            width=config.width,
            generator=[seeded_generator(config.seed, first + k) for k in range(len(batch))],
            output_type="np",
            decode_content_frame=False,
            callback_on_step_end=callback,
        ).frames
    return [(video * 255).round().astype(np.uint8) for video in frames]


def slug(condition: str | int) -> str:
    """A condition as part of a file's name: letters and digits of any alphabet, joined by hyphens."""
    words = re.findall(r"\w+", _caption(condition).lower().replace("_", " "))
    return "-".join(words)[:MAX_SLUG].rstrip("-") or "prompt"


def _caption(condition: str | int) -> str:
    return condition if isinstance(condition, str) else f"class {condition}"


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
