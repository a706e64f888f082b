"""Command ``generate``: prompts -> videos in files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import contentmotion
from contentmotion.config import GenerateConfig, SamplingConfig
from contentmotion.data.conditions import read_conditions
from contentmotion.data.prompts import read_prompts
from contentmotion.loading import load_vae, require_checkpoints
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.pipelines.loading import load_any_pipeline
from contentmotion.pipelines.sampling import resolve_sampling
from contentmotion.pipelines.speed import (
    compile_networks,
    enable_tiling,
    quantize_networks,
    use_channels_last,
    use_vae,
)
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.progress import progress_bar
from contentmotion.run_dir import prepare_output_dir, resolve_device, resolve_dtype, seeded_generator
from contentmotion.stages.image_vae import encode_frames, vae_scale_factor
from contentmotion.video.pixels import to_uint8
from contentmotion.video.write import write_contact_sheet, write_video

MAX_SLUG = 48  # characters of the prompt in a file's name


@dataclass(frozen=True)
class Drawn:
    """A generated video.

    Attributes:
        video: uint8 (t, h, w, 3).
        content: The content frame it was made from, uint8 (h, w, 3); None where it was not asked for.
    """

    video: np.ndarray
    content: np.ndarray | None


def generate(config: GenerateConfig) -> None:
    """Writes ``NUMBER-prompt-seedN.mp4`` (and other formats) per video, and ``sheet.png``; prints the paths.

    Video k of a run is drawn from (seed, k) alone: ``batch_size`` changes the speed, not the videos.

    Raises:
        ValueError: No prompts, a checkpoint that is missing or damaged, or sizes that do not fit it.
        OSError: The output folder is not writable.
    """
    conditions = prompts_or_labels(config)
    device = resolve_device(config.device)
    require_checkpoints(
        pretrained_model_name_or_path=config.pretrained_model_name_or_path,
        autoencoder=config.autoencoder,
        motion_transformer=config.motion_transformer,
        vae_decoder=config.vae_decoder,
    )
    pipe = load_for_sampling(config, device)

    conditions = [condition for condition in conditions for _ in range(config.num_videos_per_prompt)]
    follow = read_followed(pipe, config)
    sampling = resolve_sampling(
        pipe,
        config.num_inference_steps,
        config.motion_num_inference_steps,
        config.guidance_scale,
        config.motion_guidance_scale,
    )
    output_dir = prepare_output_dir(config.output_dir, "generate", config)
    videos: list[np.ndarray] = []
    written: list[Path] = []
    with progress_bar(transient=True) as progress:
        batches = math.ceil(len(conditions) / config.batch_size)
        task = progress.add_task("generating", total=(sampling.steps + sampling.motion_steps) * batches)
        for drawn in sample_all(
            pipe, config, conditions, lambda: progress.advance(task), content_frames=False, follow=follow
        ):
            number = len(videos)
            name = f"{number:03d}-{slug(conditions[number])}-seed{config.seed}"
            metadata = provenance(config, conditions[number], number)
            for suffix in config.formats:
                path = output_dir / f"{name}.{suffix}"
                write_video(path, drawn.video, config.fps, metadata)
                written.append(path)
            videos.append(drawn.video)
    sheet = output_dir / "sheet.png"
    captions = [_caption(condition) for condition in conditions]
    write_contact_sheet(sheet, videos, captions, metadata=provenance(config, "; ".join(captions), 0))
    print(*written, f"{sheet} (all of them in one picture)", sep="\n")


def load_for_sampling(config: SamplingConfig, device: torch.device) -> Any:
    """The pipeline that the settings name, on its device, with the switches that ``generate`` has.

    Returns:
        A ContentMotionPipeline or a VideoLatentPipeline.

    Raises:
        ValueError: A part is missing, damaged or does not fit; or a switch does not apply here.
        ImportError: A switch needs a package that is not installed.
    """
    if config.enable_model_cpu_offload and device.type == "cpu":
        raise ValueError("enable_model_cpu_offload needs a GPU, and this run is on the CPU")
    dtype = resolve_dtype(config.mixed_precision, device)  # autocast alone would copy all weights at every step
    parts = (config.pretrained_model_name_or_path, config.autoencoder, config.motion_transformer)
    pipe = load_any_pipeline(*parts, dtype=dtype)
    if isinstance(pipe, VideoLatentPipeline):
        _require_video_settings(config)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_text_cache()
    switches = config if isinstance(config, GenerateConfig) else None
    if switches and switches.vae_decoder:
        use_vae(pipe, load_vae(switches.vae_decoder).to(dtype or torch.float32))
    if switches and switches.vae_slicing:
        pipe.enable_vae_slicing()
    if switches and switches.vae_tiling:
        enable_tiling(pipe)
    if switches:
        quantize_networks(pipe, switches.quantization)
    if config.enable_model_cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    if device.type == "cuda":
        use_channels_last(pipe)
    if switches and switches.compile:
        compile_networks(pipe, device)
    return pipe


def read_followed(pipe: LatentPipeline, config: GenerateConfig) -> dict[str, torch.Tensor] | None:
    """What the videos have to follow besides their prompts: the files that the settings name, read.

    Raises:
        ValueError: A file that cannot be used, or a condition that the model does not take.
        OSError: No such file.
    """
    if not config.condition_names:
        return None
    known = pipe.condition_names if isinstance(pipe, VideoLatentPipeline) else ()
    asked = (config.num_frames, config.height, config.width)
    num_frames, height, width = (a or b for a, b in zip(asked, pipe.clip_shape, strict=True))
    vae = pipe.vae
    place = pipe._execution_device if vae is None else vae.device  # with CPU offload it rests on the CPU
    return read_conditions(
        config, num_frames=num_frames, height=height, width=width, encode=partial(encode_frames, vae),
        pixels_per_latent=vae_scale_factor(vae), known=known, device=place,
    )  # fmt: skip


def _require_video_settings(config: SamplingConfig) -> None:
    """Raises ``ValueError`` where settings are for models of content and motion."""
    name = config.pretrained_model_name_or_path
    if config.motion_num_inference_steps is not None or config.motion_guidance_scale != 1:
        raise ValueError(f"{name} is a video model: it has no motion model for motion_... settings to act on")
    if isinstance(config, GenerateConfig) and config.class_labels is not None:
        raise ValueError(f"{name} is a video model: it takes prompts, not class_labels")


def provenance(config: SamplingConfig, condition: str | int, number: int) -> dict[str, str]:
    """What a generated file says about itself.

    Args:
        config: The model and the seed. Of a folder the name alone is told, not where it lies.
        condition: Prompt or class id.
        number: Number of the video in its run.
    """
    model = config.pretrained_model_name_or_path
    return {
        "generated": f"by a model, with contentmotion {contentmotion.__version__}",
        "model": Path(model).resolve().name if Path(model).is_dir() else model,
        "prompt": _caption(condition),
        "seed": str(config.seed),
        "number": str(number),
    }


def prompts_or_labels(config: GenerateConfig) -> list[str] | list[int]:
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


def sample_all(
    pipe: LatentPipeline,
    config: GenerateConfig,
    conditions: list[str] | list[int],
    on_step: Callable[[], object],
    *,
    content_frames: bool = True,
    follow: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[Drawn]:
    """Generates one video per condition, ``config.batch_size`` at once.

    Args:
        pipe: On its device.
        config: The sampler's settings.
        conditions: Prompts or class ids.
        on_step: Called after each denoising step of a batch.
        content_frames: Whether to decode the content frames too.
        follow: Conditions beside the prompts, by name, for video models that take some.
    """

    for start in range(0, len(conditions), config.batch_size):
        batch = conditions[start : start + config.batch_size]
        yield from sample(
            pipe, config, batch, start, lambda step, latents: on_step(), content_frames=content_frames, follow=follow
        )


def sample_motions(
    pipe: LatentPipeline,
    config: GenerateConfig,
    condition: str | int,
    count: int,
    on_step: Callable[[], object],
) -> list[Drawn]:
    """Generates several videos of one content frame: only the motion is drawn anew.

    Args:
        pipe: On its device.
        config: The sampler's settings.
        condition: Prompt or class id.
        count: Videos; the first is the one that ``sample_all`` gives.
        on_step: Called after each denoising step: of the first video, then of the others' motion, all at once.
    """
    content: list[torch.Tensor] = []

    def keep_content(step: int, latents: torch.Tensor) -> None:
        if step == len(pipe.scheduler.timesteps) - 1:  # the content frame's last step
            content.append(latents)
        on_step()

    one: Any = [condition]
    first = sample(pipe, config, one, 0, keep_content)
    if count == 1:
        return first
    others: Any = [condition] * (count - 1)
    latents = content[0].expand(count - 1, -1, -1, -1)
    return first + sample(pipe, config, others, 1, lambda step, _: on_step(), content_latents=latents)


def sample(
    pipe: LatentPipeline,
    config: GenerateConfig,
    batch: list[str] | list[int],
    first: int,
    on_step: Callable[[int, torch.Tensor], object],
    content_latents: torch.Tensor | None = None,
    content_frames: bool = True,
    follow: Mapping[str, torch.Tensor] | None = None,
) -> list[Drawn]:
    """Generates one batch.

    Args:
        pipe: On its device.
        config: The sampler's settings.
        batch: Prompts or class ids, one per video.
        first: Number of the batch's first video in the run, which its noise is drawn from.
        on_step: Gets number and latents after each denoising step.
        content_latents: Content frames to use, (b, c, h, w); drawn when None.
        content_frames: Whether to decode the content frames too.
        follow: Conditions beside the prompts, by name, for video models that take some.
    """
    device = pipe._execution_device
    dtype = resolve_dtype(config.mixed_precision, device)
    kind = "class_labels" if config.class_labels is not None else "prompt"

    def callback(pipe: LatentPipeline, step: int, timestep: object, tensors: dict) -> dict:
        on_step(step, tensors["latents"])
        return tensors

    if isinstance(pipe, VideoLatentPipeline):
        own: dict[str, Any] = {"conditions": follow}
    else:
        own = {
            "motion_num_inference_steps": config.motion_num_inference_steps,
            "motion_guidance_scale": config.motion_guidance_scale,
            "content_latents": content_latents,
            "decode_content_frame": content_frames,
            "motion_callback_on_step_end": callback,
        }
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        output: Any = pipe(
            **{kind: batch},
            **own,
            negative_prompt=config.negative_prompt,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            num_frames=config.num_frames,
            height=config.height,
            width=config.width,
            generator=[seeded_generator(config.seed, first + k) for k in range(len(batch))],
            output_type="np",
            callback_on_step_end=callback,
        )
    contents = output.get("content_frame")
    contents = [None] * len(batch) if contents is None else contents
    return [
        Drawn(to_uint8(video, low=0), None if content is None else to_uint8(content, low=0))
        for video, content in zip(output.frames, contents, strict=True)
    ]


def slug(condition: str | int) -> str:
    """A condition as part of a file's name: letters and digits of any alphabet, joined by hyphens."""
    words = re.findall(r"\w+", _caption(condition).lower().replace("_", " "))
    return "-".join(words)[:MAX_SLUG].rstrip("-") or "prompt"


def _caption(condition: str | int) -> str:
    return condition if isinstance(condition, str) else f"class {condition}"
