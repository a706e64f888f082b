"""Stages -> folders in diffusers' layout, each whole or not there at all."""

from __future__ import annotations

from pathlib import Path

from contentmotion.loading import quiet
from contentmotion.pipelines.content_motion import ContentMotionPipeline
from contentmotion.pipelines.image import make_stock
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from contentmotion.saving import replacing_folder
from contentmotion.stages.stage import Stage

FOLDERS = {"content": "content", "motion": "motion_transformer", "video": "video"}  # in a run's folder, by stage


def save_stage(stage: Stage, path: Path) -> None:
    """Writes a stage as what ``load_pipeline`` and ``export`` take: a content model as a folder of its family's stock
    pipeline where its components make one, else as the half of our pipeline; a motion model with
    ``scheduler_config.json`` beside its weights; a video model as a whole pipeline."""
    with replacing_folder(path) as folder, quiet():
        if stage.name == "motion":
            stage.network.save_pretrained(folder)
            stage.scheduler.save_pretrained(folder)
            return
        stock, parts = getattr(stage, "stock", None), stage.components
        if stage.name == "video":
            pipe = VideoLatentPipeline(**parts)
        elif stock is None or parts.get("vae") is None or not stage.text_encoders:
            pipe = ContentMotionPipeline(**parts)
        else:
            pipe = make_stock(stock, parts.get("image_pipeline"), parts)
        pipe.save_pretrained(folder)
