"""How a pipeline samples: steps and guidance with their defaults, and the loop that both stages share."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import FlowMatchLCMScheduler, LCMScheduler
from torch import Tensor

from contentmotion.diffusion import guide
from contentmotion.stages.stage import Condition, Stage, join_conditions

logger = logging.getLogger(__name__)
DEFAULT_STEPS, DISTILLED_STEPS = 50, 4
MOST_DISTILLED_STEPS = 8  # beyond these, a consistency model only adds noise and removes it again


@dataclass(frozen=True)
class Sampling:
    """Settings of one run through a pipeline, without gaps.

    Attributes:
        steps: Denoising steps of the content frame.
        motion_steps: Denoising steps of the motion; 0 without a motion model.
        guidance_scale: Guidance of the content frame.
        motion_guidance_scale: Guidance of the motion.
    """

    steps: int
    motion_steps: int
    guidance_scale: float
    motion_guidance_scale: float

    @property
    def guided(self) -> bool:
        """Whether null conditions are needed."""
        return self.guidance_scale > 1 or self.motion_guidance_scale > 1

    @property
    def passes(self) -> int:
        """Network passes of one video, content and motion together; a guided step takes two."""
        guided, motion_guided = self.guidance_scale > 1, self.motion_guidance_scale > 1
        return self.steps * (1 + guided) + self.motion_steps * (1 + motion_guided)


def resolve_sampling(
    pipe: Any,
    num_inference_steps: int | None,
    motion_num_inference_steps: int | None,
    guidance_scale: float | None,
    motion_guidance_scale: float,
) -> Sampling:
    """Fills in what the caller left open, by what the two models are: ordinary ones or distilled ones.

    Args:
        pipe: Its ``scheduler`` and ``motion_scheduler`` (a video model has none) say what the models are.
        num_inference_steps: 50 when None, or 4 of a distilled model, which takes no more than its solver had.
        motion_num_inference_steps: The content frame's when None, where both models are of one kind.
        guidance_scale: The pipeline's ``default_guidance_scale`` when None, or 1 of a distilled model, whose guidance
            is inside.
        motion_guidance_scale: As it is.

    Raises:
        ValueError: Steps that are not positive.
    """
    for name, given in (
        ("num_inference_steps", num_inference_steps),
        ("motion_num_inference_steps", motion_num_inference_steps),
    ):
        if given is not None and given < 1:
            raise ValueError(f"{name} must be positive, got {given}")
    motion_scheduler = getattr(pipe, "motion_scheduler", None)
    distilled, motion_distilled = draws_in_few_steps(pipe), is_distilled(motion_scheduler)
    steps = num_inference_steps or (DISTILLED_STEPS if distilled else DEFAULT_STEPS)
    same_kind = distilled == motion_distilled or motion_scheduler is None
    own_steps = steps if same_kind else DISTILLED_STEPS if motion_distilled else DEFAULT_STEPS
    motion_steps = motion_num_inference_steps or own_steps
    if motion_scheduler is None:
        motion_steps = 0
    if guidance_scale is None:
        guidance_scale = 1.0 if distilled else pipe.default_guidance_scale
    first = "content" if hasattr(pipe, "motion_scheduler") else "video"
    if distilled:
        steps = _check_distilled(first, pipe.scheduler, steps, guidance_scale)
    if motion_distilled:
        motion_steps = _check_distilled("motion", motion_scheduler, motion_steps, motion_guidance_scale)
    return Sampling(steps, motion_steps, guidance_scale, motion_guidance_scale)


def _check_distilled(what: str, scheduler: Any, steps: int, guidance_scale: float) -> int:
    """The steps that a distilled model takes of those asked for; says once where it is asked for too much."""
    most = scheduler.config.get("original_inference_steps", steps)  # it has learned no other times
    if steps > MOST_DISTILLED_STEPS or guidance_scale > 1:
        taken = f"; it takes {most}" if steps > most else ""
        warn_once(
            f"the {what} model was distilled to sample in 1 to {MOST_DISTILLED_STEPS} steps, its guidance built in: "
            f"{steps} steps at guidance {guidance_scale:g} cost more and look worse than 4 steps at guidance 1{taken}"
        )
    return min(steps, most)


def steps_taken(steps: int, strength: float) -> int:
    """Denoising steps, of so many for a whole sample, that a given one takes which is re-drawn with this strength.

    At least one, unless the strength is 0; else diffusers' image-to-image pipelines count so.
    """
    return max(1, min(steps, int(steps * strength))) if strength > 0 else 0


def noise_to(scheduler: Any, sample: Tensor, noise: Tensor, first: int) -> Tensor:
    """A clean sample, float32, as noisy as it is before the step with this number; the timesteps are set."""
    timestep = scheduler.timesteps[first : first + 1]
    if hasattr(scheduler, "set_begin_index"):  # some take the level by the step's number, not by its time
        scheduler.set_begin_index(first)
    if hasattr(scheduler, "scale_noise"):  # flow matching
        return scheduler.scale_noise(sample, timestep, noise)
    return scheduler.add_noise(sample, noise, timestep)


def is_distilled(scheduler: Any) -> bool:
    """Whether a model with this scheduler is a consistency model (``contentmotion distill``)."""
    return isinstance(scheduler, (LCMScheduler, FlowMatchLCMScheduler))


def draws_in_few_steps(pipe: Any) -> bool:
    """Whether a pipeline's image (or video) model is distilled: a consistency model, or one whose stock pipeline's
    settings say so, as FLUX.2 [klein]'s."""
    settings = getattr(pipe, "config", {}).get("image_pipeline") or {}
    return is_distilled(pipe.scheduler) or bool(settings.get("is_distilled"))


@cache
def warn_once(message: str) -> None:
    """Logs a warning, each text once a process."""
    logger.warning(message)


def denoise(
    stage: Stage,
    latents: Tensor,
    condition: Condition,
    null: Condition | None,
    guidance_scale: float,
    *,
    scheduler: Any = None,
    first: int = 0,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step: Callable[[int, Tensor, Tensor], Tensor] = lambda step, timestep, latents: latents,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tensor:
    """The sampling loop of every stage.

    Args:
        stage: What denoises.
        latents: Initial noise, float32.
        condition: See ``Stage.encode``.
        null: The same of null (or negative) prompts; None where nothing is guided.
        guidance_scale: Above 1 guides; 1 or less is no guidance, and one network pass a step.
        scheduler: With its timesteps set; the stage's own when None.
        first: Number of the step to begin with: the latents are as noisy as they are before it.
        eta: For schedulers that know it.
        generator: Source of noise, for schedulers that add some.
        on_step: Gets (number, timestep, latents) after each step and returns the latents to go on with.
        interrupted: Asked before each step whether to stop there.

    Raises:
        ValueError: The network's numbers are not finite.
    """
    scheduler = scheduler or stage.scheduler
    guided = guidance_scale > 1 and null is not None
    both = join_conditions(null, condition) if guided and null is not None else condition
    accepted = inspect.signature(scheduler.step).parameters
    extra = {k: v for k, v in (("eta", eta), ("generator", generator)) if k in accepted}
    scale_input = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)  # flow matching's have none
    channels = latents.shape[1]
    for i, t in enumerate(scheduler.timesteps[first:]):
        if interrupted():
            break
        noisy = torch.cat([latents, latents]) if guided else latents
        output = stage(scale_input(noisy, t), t, both)
        # Without a learned variance; float32, for guidance is a difference of nearly equal numbers; a copy, for a
        # compiled network writes its next output to the same place.
        output = output[:, :channels].to(torch.float32, copy=True)
        if guided:
            output = guide(*output.chunk(2), guidance_scale)
        latents = on_step(i, t, scheduler.step(output, t, latents, **extra).prev_sample)
    require_finite(f"the {stage.name} model", latents)
    return latents


def require_finite(what: str, values: Tensor) -> None:
    """Raises ``ValueError``, which names what made them, where values are not finite."""
    if not torch.isfinite(values).all():
        raise ValueError(
            f"{what} made values that are not finite: its weights are damaged, or too large for the precision "
            "(try --mixed_precision no)"
        )
