"""Settings of video models' training."""

from __future__ import annotations

from dataclasses import dataclass

from contentmotion.config.blocks import VideoSizes
from contentmotion.config.common import Share
from contentmotion.config.conditions import ConditionName
from contentmotion.config.train import TrainUNetConfig


@dataclass(frozen=True, kw_only=True)
class TrainVideoConfig(TrainUNetConfig):
    """Train a video UNet on whole clips, as VideoLCM's teacher is: inflated from a Stable Diffusion UNet, continued
    from a video model (ModelScope's folder, or the output of this command), or from scratch. With --conditions it
    learns to follow depth, sketches, masks and first frames, any of them or none. The output is a pipeline folder.

    Example: contentmotion train-video --latent_cache outputs/latents --vae outputs/vae --output_dir outputs/video

    Attributes:
        pretrained_model_name_or_path: Stable Diffusion or video pipeline folder or hub id; none trains from scratch.
        latent_cache: Latents of whole clips, made by `encode --latents_only true`; depth and sketches must be in it.
        model: Sizes of a model trained from scratch, and of the condition encoder.
        conditions: Conditions to learn: depth, sketch, mask, first_frame.
        condition_dropout_prob: Share of items that do without a condition, drawn for each one by itself; that all
            are dropped, or all are kept, is drawn besides.
    """

    model: VideoSizes = VideoSizes()
    conditions: tuple[ConditionName, ...] = ()
    condition_dropout_prob: Share = 0.5
