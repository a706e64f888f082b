"""Settings of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from contentmotion.config.blocks import LoraSettings
from contentmotion.config.common import (
    SHIPPED_MODEL,
    Batch,
    Guidance,
    HubConfig,
    Positive,
    Range,
    Rate,
    Share,
    Steps,
    Weight,
    require,
)
from contentmotion.config.train import ScoredTrainConfig


@dataclass(frozen=True, kw_only=True)
class DistillConfig(HubConfig, ScoredTrainConfig):
    """Distil a model of a pipeline into one that samples in 1 to 8 steps (consistency distillation, VideoLCM;
    docs/distillation.md). `export` and `generate` take the result in the teacher's place.

    Example: contentmotion distill --part content --cache_dir outputs/cache --output_dir outputs/content-lcm

    Attributes:
        pretrained_model_name_or_path: The teacher: a pipeline folder or hub id, for the content model a Stable
            Diffusion folder too; "emoji" is the model shipped with the package.
        part: Which of its models; "video" of a video model (train-video, ModelScope's folder).
        cache_dir: Latent cache, made by encode with the teacher's image VAE and autoencoder; for a video model with
            `--latents_only true`, and with the maps that the model follows.
        guidance_scale: Guidance of the teacher that the student learns to do without, `null + g * (cond - null)`;
            VideoLCM's w of 9 is 10. Take what the teacher is sampled with.
        num_ddim_steps: Steps of the teacher's solver over the whole schedule; 8 (the most steps that a student is shown
            with) to 1000.
        huber_c: Below this, the loss is quadratic.
        content_noise: Of the motion model: noise on its content frames, see train-motion.
        condition_dropout_prob: Of a video model with conditions: see train-video.
        lora: Low-rank adapters (PEFT) instead of all weights.
        eval_cache_dir: Latent cache of clips that are not trained on: scores the student on them (heldout_loss,
            student_error), and makes the best one the result.
        heldout_steps: Score on these clips every n steps; validation_steps when not given.
        heldout_items: Score on this many of them, evenly spaced; the teacher samples each once in 50 steps.
        validation_prompts: Prompts of the preview pictures; captions of the cache when not given, and for motion.
    """

    pretrained_model_name_or_path: str = SHIPPED_MODEL
    part: Literal["content", "motion", "video"]
    cache_dir: str
    guidance_scale: Guidance = 10.0
    num_ddim_steps: Annotated[int, Range(8, 1000)] = 50
    huber_c: Positive = 0.001
    content_noise: Weight = 0.0
    condition_dropout_prob: Share = 0.5
    lora: LoraSettings = LoraSettings()
    eval_cache_dir: str | None = None
    heldout_steps: Steps | None = None
    heldout_items: Batch = 16
    validation_prompts: tuple[str, ...] = ()
    learning_rate: Rate = 1e-5
    ema_decay: Annotated[float, Range(0, 1, above=True, below=True)] = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.heldout_steps is None or self.eval_cache_dir is not None, "heldout_steps needs --eval_cache_dir")
        require(
            self.eval_cache_dir is None or bool(self.heldout_steps or self.validation_steps),
            "eval_cache_dir needs --heldout_steps where validation_steps is 0",
        )
