"""How a pipeline samples: steps and guidance with their defaults, and the loop that both stages share."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import LCMScheduler
from torch import Tensor

from contentmotion.diffusion import guide

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
        return self.guidance_scale != 1 or self.motion_guidance_scale != 1

    @property
    def passes(self) -> int:
        """Network passes of one video, content and motion together; a guided step takes two."""
        guided, motion_guided = self.guidance_scale != 1, self.motion_guidance_scale != 1
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
    distilled, motion_distilled = is_distilled(pipe.scheduler), is_distilled(motion_scheduler)
    steps = num_inference_steps or (DISTILLED_STEPS if distilled else DEFAULT_STEPS)
    same_kind = distilled == motion_distilled or motion_scheduler is None
    own_steps = steps if same_kind else DISTILLED_STEPS if motion_distilled else DEFAULT_STEPS
    motion_steps = motion_num_inference_steps or own_steps
    if motion_scheduler is None:
        motion_steps = 0
    if guidance_scale is None:
        guidance_scale = 1.0 if distilled else pipe.default_guidance_scale
    first = "content" if hasattr(pipe, "motion_scheduler") else "video"
    steps = _check_distilled(first, pipe.scheduler, steps, guidance_scale)
    motion_steps = _check_distilled("motion", motion_scheduler, motion_steps, motion_guidance_scale)
    return Sampling(steps, motion_steps, guidance_scale, motion_guidance_scale)


def _check_distilled(what: str, scheduler: Any, steps: int, guidance_scale: float) -> int:
    """The steps that a model takes of those asked for; says once where a distilled one is asked for too much."""
    if not is_distilled(scheduler) or not steps:
        return steps
    most = scheduler.config.original_inference_steps  # it has learned no other times
    if steps > MOST_DISTILLED_STEPS or guidance_scale != 1:
        taken = f"; it takes {most}" if steps > most else ""
        _warn_once(
            f"the {what} model was distilled to sample in 1 to {MOST_DISTILLED_STEPS} steps, its guidance built in: "
            f"{steps} steps at guidance {guidance_scale:g} cost more and look worse than 4 steps at guidance 1{taken}"
        )
    return min(steps, most)


def is_distilled(scheduler: Any) -> bool:
    """Whether a model with this scheduler is a consistency model (``contentmotion distill``)."""
    return isinstance(scheduler, LCMScheduler)


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def denoise(
    scheduler: Any,
    latents: Tensor,
    guidance_scale: float,
    model: Callable[[Tensor, Tensor, bool], Tensor],
    *,
    eta: float,
    generator: torch.Generator | list[torch.Generator] | None,
    on_step: Callable[[int, Tensor, Tensor], Tensor],
) -> Tensor:
    """The sampling loop of either stage.

    Args:
        scheduler: With its timesteps set.
        latents: Initial noise.
        guidance_scale: 1 is no guidance.
        model: ``model(noisy, timestep, guided)``; a guided batch is doubled, null conditions first.
        eta: For schedulers that know it.
        generator: Source of noise, for schedulers that add some.
        on_step: Gets (number, timestep, latents) after each step and returns the latents to go on with.
    """
    guided = guidance_scale != 1.0
    accepted = inspect.signature(scheduler.step).parameters
    extra = {k: v for k, v in (("eta", eta), ("generator", generator)) if k in accepted}
    dtype, channels = latents.dtype, latents.shape[1]
    for i, t in enumerate(scheduler.timesteps):
        noisy = torch.cat([latents, latents]) if guided else latents
        output = model(scheduler.scale_model_input(noisy, t), t, guided)
        # Without a learned variance; float32, for guidance is a difference of nearly equal numbers; a copy, for a
        # compiled network writes its next output to the same place.
        output = output[:, :channels].to(torch.float32, copy=True)
        if guided:
            null, conditional = output.chunk(2)
            output = guide(null, conditional, guidance_scale)
        latents = scheduler.step(output, t, latents, **extra).prev_sample
        latents = on_step(i, t, latents)
    return latents.to(dtype)
