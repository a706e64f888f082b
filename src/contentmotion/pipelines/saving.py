"""Stages -> folders in diffusers' layout, each whole or not there at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.saving import replacing_folder
from contentmotion.stages.stage import Stage

FOLDERS = {"content": "content", "motion": "motion_transformer", "video": "video"}  # in a run's folder, by stage


def save_stage(stage: Stage, path: Path) -> None:
    """Writes a stage as what ``load_pipeline`` and ``export`` take: a content model as a Stable Diffusion folder where
    its components make one, else as the half of our pipeline; a motion model with ``scheduler_config.json`` beside its
    weights; a video model as a whole pipeline.
    """
    with replacing_folder(path) as folder:
        if stage.name == "motion":
            stage.network.save_pretrained(folder)
            stage.scheduler.save_pretrained(folder)
        else:
            pipeline_of(stage).save_pretrained(folder)


def pipeline_of(stage: Stage) -> Any:
    """The pipeline that a content or a video stage is by itself."""
    if stage.name == "video":
        return VideoLatentPipeline(**stage.components)
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    components = {name: stage.components.get(name) for name in names}
    if components["vae"] is None or components["text_encoder"] is None:
        return ContentMotionPipeline(**components)
    return StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
