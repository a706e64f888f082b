"""Settings of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from contentmotion.config.blocks import LoraSettings
from contentmotion.config.common import (
    SHIPPED_MODEL,
    Batch,
    Count,
    Guidance,
    Positive,
    Range,
    Rate,
    Settings,
    Share,
    Time,
    Weight,
    require_interval,
)
from contentmotion.config.train import ScoredTrainConfig


@dataclass(frozen=True, kw_only=True)
class MethodSettings(Settings):
    """Particulars of an objective of distillation.

    Attributes:
        solver: Of consistency, the teacher's: "ddim" (of a flow, Euler's), or "heun" (second order, twice the passes).
        student_every: Of distribution_matching: the student's turn is every n-th step, the critic's every one.
        gan_weight: Of distribution_matching, for UNets: the critic also learns to tell the student's samples from the
            cache's, and the student to pass for those; how much this counts for the student. 0: not at all; DMD2's is
            0.001 to 0.005.
        critic_gan_weight: How much it counts for the critic.
    """

    solver: Literal["ddim", "heun"] = "ddim"
    student_every: Batch = 5
    gan_weight: Weight = 0.0
    critic_gan_weight: Weight = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gan_weight and self.critic_gan_weight != MethodSettings.critic_gan_weight:
            raise ValueError("--method.critic_gan_weight needs --method.gan_weight")
        if self.gan_weight and not self.critic_gan_weight:
            raise ValueError(
                "--method.gan_weight needs a --method.critic_gan_weight above 0: the classifier would learn nothing"
            )


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ScoredTrainConfig):
    """Distil a model of a pipeline into one that samples in 1 to 8 steps (consistency distillation, VideoLCM;
    docs/distillation.md). `export` and `generate` take the result in the teacher's place.

    Example: contentmotion distill --part content --latent_cache outputs/cache --output_dir outputs/content-lcm

    Attributes:
        pretrained_model_name_or_path: The teacher: a pipeline folder or hub id, for the content model a Stable
            Diffusion folder too; "emoji" is the model shipped with the package.
        part: Which of its models; "video" of a video model (train-video, ModelScope's folder).
        latent_cache: Latent cache, made by encode with the teacher's image VAE and autoencoder; for a video model with
            `--latents_only true`, and with the maps that the model follows.
        objective: "consistency" (VideoLCM's); "flow_map", which more steps make better, from a teacher of flow matching
            (UNets, motion models); "distribution_matching" (DMD2), with a critic of its own.
        method: Particulars of an objective.
        guidance_scale: Guidance of the teacher that the student learns to do without, `null + g * (cond - null)`;
            VideoLCM's w of 9 is 10. Take what the teacher is sampled with.
        guidance_interval: Two times of the noise schedule, such as 400 900: the teacher is guided between them alone.
        guidance_rescale: See `generate`.
        guidance_range: Two scales, such as 1 10: the student is told the scale, drawn between them in training, and is
            sampled with any of them, as LCM's UNets are (content model, all weights trained). It is scored and shown at
            guidance_scale.
        num_ddim_steps: Steps of the teacher's solver over the whole schedule; 8, a student's most, to 1000.
        huber_c: Below this, the loss is quadratic.
        content_noise: Of the motion model: noise on its content frames, see train-motion.
        condition_dropout_prob: Of a video model with conditions: see train-video.
        lora: Low-rank adapters (PEFT) instead of all weights.
        eval_latent_cache: Latent cache of clips that are not trained on: scores the student on them (heldout_loss,
            student_error), and makes the best one the result.
        heldout_steps: Score on these clips every n steps; validation_steps when not given.
        heldout_items: Score on this many of them, evenly spaced; the teacher samples each once in 50 steps.
        validation_prompts: Prompts of the preview pictures; captions of the cache when not given, and for motion.
    """

    pretrained_model_name_or_path: str = SHIPPED_MODEL
    part: Literal["content", "motion", "video"]
    latent_cache: str
    objective: Literal["consistency", "flow_map", "distribution_matching"] = "consistency"
    method: MethodSettings = MethodSettings()
    guidance_scale: Guidance = 10.0
    guidance_interval: tuple[Time, ...] | None = None
    guidance_rescale: Share = 0.0
    guidance_range: tuple[Guidance, ...] | None = None
    num_ddim_steps: Annotated[int, Range(8, 1000)] = 50
    huber_c: Positive = 0.001
    content_noise: Weight = 0.0
    condition_dropout_prob: Share = 0.5
    lora: LoraSettings = LoraSettings()
    eval_latent_cache: str | None = None
    heldout_steps: Count | None = None
    heldout_items: Batch = 16
    validation_prompts: tuple[str, ...] = ()
    learning_rate: Rate = 1e-5
    ema_decay: Annotated[float, Range(0, 1, above=True, below=True)] = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        require_interval("--guidance_interval", self.guidance_interval)
        matches = self.objective == "distribution_matching"
        if self.objective != "consistency" and self.guidance_range is not None:
            raise ValueError(f"--guidance_range is for --objective consistency, not {self.objective}")
        if self.objective == "flow_map" and self.lora.rank and self.part != "motion":
            raise ValueError("--objective flow_map trains a new embedding of a UNet, which no --lora.rank holds")
        if matches and self.max_train_steps < self.method.student_every:
            raise ValueError("--method.student_every is more than --max_train_steps: no step would be the student's")
        if matches and self.scale.cuda_graphs:
            raise ValueError("--scale.cuda_graphs is not for --objective distribution_matching, whose steps differ")
        matching = ("student_every", "gan_weight", "critic_gan_weight")
        unused = {"consistency": matching, "flow_map": (*matching, "solver", "num_ddim_steps")}
        for name in unused.get(self.objective, ("solver", "huber_c")):
            holder, block = (self.method, "method.") if hasattr(self.method, name) else (self, "")
            if getattr(holder, name) != getattr(type(holder), name):
                raise ValueError(f"--objective {self.objective} has no use for --{block}{name}")
        if matches and self.eval_latent_cache is not None:
            raise ValueError(
                "--objective distribution_matching matches no single samples, which held-out clips would score: score "
                "it with --eval.steps"
            )
        bounds = self.guidance_range
        if bounds is not None and not (len(bounds) == 2 and bounds[0] <= self.guidance_scale <= bounds[1]):
            raise ValueError("--guidance_range takes two guidance scales with --guidance_scale between them")
        if bounds is not None and (self.part != "content" or self.lora.rank):
            raise ValueError(
                "--guidance_range is for --part content with all weights trained: an adapter is not told its scale"
            )
        if self.heldout_steps and self.eval_latent_cache is None:
            raise ValueError("heldout_steps needs --eval_latent_cache")
        if self.eval_latent_cache is not None and not (self.heldout_steps or self.validation_steps):
            raise ValueError("eval_latent_cache needs --heldout_steps where validation_steps is 0")

    @property
    def guidance(self) -> dict[str, Any]:
        """How the teacher is guided, as a pipeline takes it."""
        return {name: getattr(self, name) for name in ("guidance_scale", "guidance_interval", "guidance_rescale")}

    @property
    def student_guidance(self) -> float:
        """The scale that the student is sampled with: 1 where guidance is built in."""
        return 1.0 if self.guidance_range is None else self.guidance_scale
