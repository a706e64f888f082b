"""How a pipeline samples: steps and guidance with their defaults, and the loop that both stages share."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchLCMScheduler, LCMScheduler, SCMScheduler, TCDScheduler
from torch import Tensor

from contentmotion.diffusion import Interval, guide, within
from contentmotion.stages.stage import Condition, Stage, join_conditions

logger = logging.getLogger(__name__)
DEFAULT_STEPS, DISTILLED_STEPS, SPRINT_STEPS = 50, 4, 2
FEW_STEP_SCHEDULERS = (LCMScheduler, TCDScheduler, FlowMatchLCMScheduler, FlowMapEulerDiscreteScheduler, SCMScheduler)
MOST_TURBO_STEPS = 9
MOST_DISTILLED_STEPS = 8  # beyond these, a consistency model only adds noise and removes it again


@dataclass(frozen=True)
class Sampling:
    """Settings of one run through a pipeline, without gaps; those of the motion have its name in front.

    Attributes:
        steps: Denoising steps; 0 of the motion without a motion model.
        guidance_scale: See ``diffusion.guide``.
        guidance_interval: Times between which it is guided; None: all.
        guidance_rescale: See ``diffusion.guide``.
        unguided_steps: Steps of the two outside of these intervals.
        told_guidance: Whether the content model is told its guidance scale: such steps are one pass, too.
    """

    steps: int
    motion_steps: int
    guidance_scale: float
    motion_guidance_scale: float
    guidance_interval: Interval | None = None
    motion_guidance_interval: Interval | None = None
    guidance_rescale: float = 0.0
    motion_guidance_rescale: float = 0.0
    unguided_steps: int = 0
    told_guidance: bool = False

    def of(self, stage: str) -> dict[str, Any]:
        """Steps and guidance of the stage with this name, as ``LatentPipeline._sample`` takes them."""
        names = ("steps", "guidance_scale", "guidance_interval", "guidance_rescale")
        return {name: getattr(self, f"motion_{name}" if stage == "motion" else name) for name in names}

    @property
    def content_guided(self) -> bool:
        """Whether the content frame needs null conditions."""
        return self.guidance_scale > 1 and not self.told_guidance

    @property
    def guided(self) -> bool:
        """Whether null conditions are needed."""
        return self.content_guided or self.motion_guidance_scale > 1

    @property
    def passes(self) -> int:
        """Network passes of one video, content and motion together; a guided step takes two."""
        guided, motion_guided = self.content_guided, self.motion_guidance_scale > 1
        return self.steps * (1 + guided) + self.motion_steps * (1 + motion_guided) - self.unguided_steps


def resolve_sampling(
    pipe: Any,
    num_inference_steps: int | None,
    motion_num_inference_steps: int | None,
    guidance_scale: float | None,
    motion_guidance_scale: float,
    guidance_interval: Interval | None = None,
    motion_guidance_interval: Interval | None = None,
    guidance_rescale: float = 0.0,
    motion_guidance_rescale: float = 0.0,
) -> Sampling:
    """Fills in what the caller left open, by what the two models are: ordinary ones or distilled ones.

    Args:
        pipe: Its ``scheduler`` and ``motion_scheduler`` (a video model has none) say what the models are.
        num_inference_steps: 50 when None, or 4 of a distilled model (SANA-Sprint: 2), which takes no more than its
            solver had.
        motion_num_inference_steps: The content frame's when None, where both models are of one kind.
        guidance_scale: The pipeline's ``default_guidance_scale`` when None, as near to it as a model that is told the
            scale has learned, or 1 of a distilled model whose guidance is inside.
        motion_guidance_scale: As it is, and so are the others.

    Raises:
        ValueError: Steps that are not positive, an interval that is none, shares that are not from 0 to 1, or an
            interval or a share for a model that is told the guidance scale.
    """
    intervals = {"guidance_interval": guidance_interval, "motion_guidance_interval": motion_guidance_interval}
    for name, interval in intervals.items():
        if interval is not None and not (len(interval) == 2 and 0 <= interval[0] <= interval[1]):
            raise ValueError(f"{name} must be two times of the schedule, the lower one first, got {interval}")
    rescales = {"guidance_rescale": guidance_rescale, "motion_guidance_rescale": motion_guidance_rescale}
    for name, share in rescales.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {share}")
    counts = {"num_inference_steps": num_inference_steps, "motion_num_inference_steps": motion_num_inference_steps}
    for name, given in counts.items():
        if given is not None and given < 1:
            raise ValueError(f"{name} must be positive, got {given}")
    motion_scheduler = getattr(pipe, "motion_scheduler", None)
    told = any(stage.told_guidance for stage in pipe.stages.values())
    if told and (guidance_interval is not None or guidance_rescale):
        name = "guidance_rescale" if guidance_interval is None else "guidance_interval"
        raise ValueError(f"{name}: this content model is told the guidance scale, and is not guided by a null prompt")
    distilled, motion_distilled = draws_in_few_steps(pipe), is_distilled(motion_scheduler)
    default, motion_default = (DISTILLED_STEPS if few else DEFAULT_STEPS for few in (distilled, motion_distilled))
    steps = num_inference_steps or (SPRINT_STEPS if isinstance(pipe.scheduler, SCMScheduler) else default)
    own_steps = (num_inference_steps if distilled == motion_distilled else None) or motion_default
    motion_steps = 0 if motion_scheduler is None else motion_num_inference_steps or own_steps
    guidance_scale = _guidance_of(pipe, guidance_scale, unguided=distilled and not told)
    first = "content" if hasattr(pipe, "motion_scheduler") else "video"
    if distilled:
        steps = _check_distilled(first, pipe.scheduler, steps, 1.0 if told else guidance_scale)
    elif (steps > MOST_TURBO_STEPS or guidance_scale > 1) and (name := _called_turbo(pipe)):
        warn_once(
            f"{name} is called as models are that sample in few steps without guidance (SDXL-Turbo in 1 to 4, "
            f"Z-Image-Turbo in 9); its folder does not say whether it is one. If so, {steps} steps at guidance "
            f"{guidance_scale:g} look worse than --num_inference_steps 4 --guidance_scale 1"
        )
    if motion_distilled:
        motion_steps = _check_distilled("motion", motion_scheduler, motion_steps, motion_guidance_scale)
    sampling = Sampling(
        steps, motion_steps, guidance_scale, motion_guidance_scale, **intervals, **rescales, told_guidance=told
    )
    unguided = _steps_outside(pipe.scheduler, steps, guidance_interval) if sampling.content_guided else 0
    if motion_guidance_scale > 1:
        unguided += _steps_outside(motion_scheduler, motion_steps, motion_guidance_interval)
    return replace(sampling, unguided_steps=unguided)


def _guidance_of(pipe: Any, given: float | None, unguided: bool) -> float:
    """The guidance scale that was given, or the pipeline's, as near to it as a model that is told the scale has
    learned; says once where a given one is further."""
    low, high = next(filter(None, (stage.guidance_range for stage in pipe.stages.values())), (-math.inf, math.inf))
    if given is None:
        given = 1.0 if unguided else min(max(float(pipe.default_guidance_scale), low), high)
    if not low <= given <= high:
        warn_once(
            f"the content model was told guidance scales from {low:g} to {high:g} in training: what it makes of "
            f"{given:g} is a guess"
        )
    return given


def _steps_outside(scheduler: Any, steps: int, interval: Interval | None) -> int:
    """Steps of a scheduler at times outside an interval; 0 where they depend on the picture's size, too."""
    if interval is None or not steps or scheduler.config.get("use_dynamic_shifting"):
        return 0
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(steps)
    return sum(not within(time, interval) for time in own.timesteps.tolist())


def _check_distilled(what: str, scheduler: Any, steps: int, guidance_scale: float) -> int:
    """The steps that a distilled model takes of those asked for; says once where it is asked for too much."""
    most = scheduler.config.get("original_inference_steps", steps)  # it has learned no other times
    many = steps > MOST_DISTILLED_STEPS and not isinstance(scheduler, FlowMapEulerDiscreteScheduler)
    if many or guidance_scale > 1:
        taken = f"; it takes {most}" if steps > most else ""
        warn_once(
            f"the {what} model was distilled to sample in 1 to {MOST_DISTILLED_STEPS} steps, its guidance built in: "
            f"{steps} steps at guidance {guidance_scale:g} cost more and look worse than 4 steps at guidance 1{taken}"
        )
    return min(steps, most)


def _called_turbo(pipe: Any) -> str:
    """The name of a pipeline's folder or repository, where it has a word in it that such models go by; else ""."""
    parts = Path(str(getattr(pipe, "config", {}).get("_name_or_path") or "")).parts
    name = next((part for part in parts if part.startswith("models--")), parts[-1] if parts else "")
    return name.removeprefix("models--").replace("--", "/") if re.search("turbo|lightning", name.lower()) else ""


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
    """Whether a model with this scheduler is a student of few steps: of ``contentmotion distill``, with an LCM- or
    TCD-LoRA fused, or SANA-Sprint."""
    return isinstance(scheduler, FEW_STEP_SCHEDULERS)


def draws_in_few_steps(pipe: Any) -> bool:
    """Whether a pipeline's image (or video) model is distilled: a consistency model, or one whose stock pipeline's
    settings say so, as FLUX.2 [klein]'s."""
    settings = getattr(pipe, "config", {}).get("image_pipeline") or {}
    return is_distilled(pipe.scheduler) or bool(settings.get("is_distilled"))


@contextmanager
def times_at_hand(scheduler: Any, device: torch.device) -> Iterator[None]:
    """A sampling loop on a GPU, a stock pipeline's too, that does not wait in every step.

    Networks take a step's time from the GPU, and schedulers look levels up by it, for which the processor would wait
    until the GPU is done. Inside, where the scheduler's timesteps are to be set, they are on the GPU, and the scheduler
    gets the same ones from its own memory; numbers on the CPU stay what they are.
    """
    if device.type == "cpu":
        yield
        return
    times: list[Tensor] = []  # once they are set: on the CPU, and on the device
    set_on = scheduler.set_timesteps

    def set_timesteps(*args: Any, **settings: Any) -> None:
        asked = inspect.signature(set_on).bind(*args, **settings)
        asked.arguments["device"] = "cpu"
        set_on(*asked.args, **asked.kwargs)
        times[:] = scheduler.timesteps, scheduler.timesteps.to(device)
        scheduler.timesteps = times[1]

    def with_time(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)  # pipelines ask what it takes
        def call(sample: Tensor, timestep: Tensor, *args: Any, **settings: Any) -> Any:
            # Loops have it from the device's timesteps: it is known which of them it is without looking at it.
            if timestep.untyped_storage()._cdata == times[1].untyped_storage()._cdata:
                timestep = times[0][timestep.storage_offset()]
            scheduler.timesteps = times[0]
            try:
                return method(sample, timestep, *args, **settings)
            finally:
                scheduler.timesteps = times[1]

        return call

    own = {"set_timesteps": wraps(set_on)(set_timesteps)}
    own |= {n: with_time(getattr(scheduler, n)) for n in ("step", "scale_model_input") if hasattr(scheduler, n)}
    scheduler.__dict__.update(own)
    try:
        yield
    finally:
        for name in own:
            del scheduler.__dict__[name]
        if times:
            scheduler.timesteps = times[0]


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
    guidance_interval: Interval | None = None,
    guidance_rescale: float = 0.0,
    first: int = 0,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step: Callable[[int, Tensor, Tensor], Tensor] = lambda step, timestep, latents: latents,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tensor:
    """The sampling loop of every stage.

    Args:
        stage: What denoises; its scheduler's timesteps are set.
        latents: Initial noise, float32.
        condition: See ``Stage.encode``.
        null: The same of null (or negative) prompts; None where nothing is guided.
        guidance_scale: Above 1 guides; 1 or less is no guidance, and one network pass a step.
        guidance_interval: Times between which it does; None: at all of them.
        guidance_rescale: See ``diffusion.guide``.
        first: Number of the step to begin with: the latents are as noisy as they are before it.
        eta: For schedulers that know it.
        generator: Source of noise, for schedulers that add some.
        on_step: Gets (number, timestep, latents) after each step and returns the latents to go on with.
        interrupted: Asked before each step whether to stop there.
    """
    scheduler, times = stage.scheduler, stage.scheduler.timesteps[first:]
    both = condition if null is None else join_conditions(null, condition)
    guides = guidance_scale > 1 and null is not None and not stage.told_guidance
    is_map = isinstance(scheduler, FlowMapEulerDiscreteScheduler)
    if stage.told_guidance:
        condition = condition | {"guidance": torch.full((len(latents),), guidance_scale, device=latents.device)}
    where = [guides] * len(times)
    if guides and guidance_interval is not None:  # a GPU is asked for its times only then
        where = [within(t, guidance_interval) for t in times.tolist()]
    accepted = inspect.signature(scheduler.step).parameters
    extra = {k: v for k, v in (("eta", eta), ("generator", generator)) if k in accepted}
    scale_input = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)  # flow matching's have none
    channels = latents.shape[1]
    for i, (t, guided) in enumerate(zip(times, where, strict=True)):
        if interrupted():
            break
        noisy, told = (torch.cat([latents, latents]), both) if guided else (latents, condition)
        if is_map:  # it is told where a step leads
            told = told | {"target_timesteps": times[i + 1] if i + 1 < len(times) else torch.zeros_like(t)}
        output = stage(scale_input(noisy, t), t, told)
        # Without a learned variance; float32, for guidance is a difference of nearly equal numbers; a copy, for a
        # compiled network writes its next output to the same place.
        output = output[:, :channels].to(torch.float32, copy=True)
        if guided:
            output = guide(*output.chunk(2), guidance_scale, guidance_rescale)
        latents = on_step(i, t, scheduler.step(output, t, latents, **extra).prev_sample)
    return latents


class FiniteValues:
    """``require_finite`` for a pipeline: values on a GPU are looked at when ``now`` asks, all at once, for each look
    makes the processor wait until they are there."""

    def __init__(self) -> None:
        self._noted: list[tuple[str, Tensor]] = []

    def require(self, what: str, values: Tensor) -> None:
        """Takes note; raises ``ValueError`` here, of values on a CPU that are not finite."""
        self._noted.append((what, torch.isfinite(values).all()))
        if values.device.type == "cpu":
            self.now()

    def now(self) -> None:
        """Raises ``ValueError``, which names what made them first, where noted values are not finite."""
        noted, self._noted = self._noted, []
        flags = torch.stack([finite for _, finite in noted]).cpu().tolist() if noted else []
        for (what, _), finite in zip(noted, flags, strict=True):
            if not finite:
                raise ValueError(
                    f"{what} made values that are not finite: its weights are damaged, or too large for the precision "
                    "(try --mixed_precision no)"
                )


def require_finite(what: str, values: Tensor) -> None:
    """Raises ``ValueError``, which names what made them, where values are not finite."""
    finite = FiniteValues()
    finite.require(what, values)
    finite.now()
