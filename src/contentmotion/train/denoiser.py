"""Training a denoiser, of content, motion or whole videos: one way through the data for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contentmotion.config import TrainDenoiserConfig
from contentmotion.data.cache import LatentCache, collate_latents
from contentmotion.data.conditions import training_conditions
from contentmotion.losses import diffusion
from contentmotion.models.video_unet import enable_checkpointing
from contentmotion.pipelines.base import LatentPipeline
from contentmotion.pipelines.saving import FOLDERS, save_stage
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.stages.image_vae import vae_scale_factor
from contentmotion.stages.lora import freeze_all_but, merge_adapters, save_adapters
from contentmotion.stages.stage import Stage
from contentmotion.train.loop import fit
from contentmotion.train.processes import on_main, this_process
from contentmotion.train.scoring import Scorer
from contentmotion.video.pixels import to_uint8
from contentmotion.video.write import write_contact_sheet

NUM_PREVIEWS, PREVIEW_STEPS = 8, 25


def train_denoiser(
    config: TrainDenoiserConfig,
    cache: LatentCache,
    stage: Stage,
    pipe: LatentPipeline,
    *,
    scored: LatentPipeline | None = None,
    prompts: Sequence[str] = (),
) -> None:
    """Trains what requires a gradient in a stage; its folder in ``output_dir`` is the result.

    Args:
        config: Of the run, whose ``output_dir`` is there.
        cache: Latents to train on.
        stage: Its networks are changed in place.
        pipe: A pipeline with the stage inside, for previews.
        scored: Another one, for scores, where these want more components; ``pipe`` when None.
        prompts: What previews show; captions of the cache when empty.

    Raises:
        ValueError: Settings of flow matching, of a model that is none.
    """
    if not stage.schedule.is_flow and (config.logit_mean, config.logit_std) != (0.0, 1.0):
        raise ValueError(
            f"logit_mean and logit_std are flow matching's: {config.pretrained_model_name_or_path} is a model of "
            f"another kind ({stage.schedule.prediction_type})"
        )
    run_dir = Path(config.output_dir)
    freeze_all_but(stage, config.trainable_modules)
    if config.gradient_checkpointing:
        enable_checkpointing(stage.network)

    def preview(step: int) -> None:
        pipe.to(stage.network.device)
        previews = make_previews(pipe, cache, prompts, config.seed, num_inference_steps=PREVIEW_STEPS)
        write_contact_sheet(run_dir / f"preview-{step:06d}.png", *previews)

    save = partial(save_trained, stage)
    component = {"content": "content", "motion": "motion", "video": "full"}[stage.name]
    score = Scorer(scored or pipe, config, component, save) if config.eval.steps else None
    fit(
        diffusion.players(stage, config), cache, config, collate=collate_latents, save=partial(save, run_dir),
        command=f"train-{stage.name}", at=[(config.validation_steps, main_only(preview)), (config.eval.steps, score)],
    )  # fmt: skip
    if this_process().is_main_process:
        print(run_dir / FOLDERS[stage.name])


def make_previews(
    pipe: LatentPipeline, cache: LatentCache, prompts: Sequence[str], seed: int, **sampling: Any
) -> tuple[list[np.ndarray], list[str]]:
    """Has the pipeline that users run generate from the prompts, or from items of the cache, of the first one's size.

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


def save_trained(stage: Stage, folder: Path) -> None:
    """Writes a stage into its place in a folder; adapters are merged there, and alone in ``lora`` where diffusers has a
    format for them."""
    if hasattr(stage.network, "peft_config"):
        if stage.name == "content":
            save_adapters(stage, folder / "lora")
        stage = stage.replace(**{stage.network_name: merge_adapters(stage.network)})
    save_stage(stage, folder / FOLDERS[stage.name])


def main_only(function: Callable[[int], None]) -> Callable[[int], None]:
    """What is scheduled for all processes, done by the first; the others wait."""
    return lambda step: on_main(lambda: function(step))
