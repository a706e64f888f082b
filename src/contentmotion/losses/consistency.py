"""Consistency distillation: a student that says at every time of a teacher's path where the path ends (VideoLCM)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, LCMScheduler
from torch import Tensor

from contentmotion import diffusion
from contentmotion.config import DistillConfig
from contentmotion.draws import rand, randint, randn
from contentmotion.losses.player import Player
from contentmotion.stages.stage import Stage, join_conditions


def players(student: Stage, teacher: Stage, config: DistillConfig) -> list[Player]:
    """The student, its moving average as the target; the teacher stays as it is."""
    target = student.twin()

    def loss(student: Stage, batch: dict[str, Any]) -> dict[str, Tensor]:
        return consistency_loss(student, target, teacher, teacher.prepare(batch), config)

    return [Player(student, loss, target=target)]


def consistency_loss(
    student: Stage, target: Stage, teacher: Stage, batch: dict[str, Any], config: DistillConfig
) -> dict[str, Tensor]:
    """The student at a time must say what its average says one step of the teacher's solver later.

    Args:
        student: What is trained.
        target: Its moving average.
        teacher: Frozen; gives noise schedule and prediction type (see ``require_teacher``).
        batch: What ``prepare`` gave; "generator" is the source of all randomness.
        config: Guidance, steps of the teacher's solver, Huber's c.

    Returns:
        "loss", and the student's clean samples over the batch's at the same points (``compare_samples``).

    Source: VideoLCM Eq. 4-5; Luo et al. 2023 (LCM), Algorithm 1, with a fixed guidance scale or with one that the
    student is told. For flow matching DDIM's step is Euler's.
    """
    generator, schedule = batch["generator"], teacher.schedule
    x0 = teacher.clean_sample(batch)
    noise = randn(x0.shape, generator).to(x0)
    times = schedule.solver_times(config.num_ddim_steps, x0.device)
    interval = randint(config.num_ddim_steps, (len(x0),), generator).to(x0.device)
    start, end = times[interval + 1], times[interval]
    noisy = schedule.add_noise(x0, noise, start)
    batch = teacher.with_text_features(batch)
    if config.guidance_range is not None:
        low, high = config.guidance_range
        batch = batch | {"guidance": low + (high - low) * rand((len(x0),), generator).to(x0.device)}
    with torch.no_grad():
        output = guided_output(teacher, noisy, start, batch, config)
        said = schedule.predict_noise(output, noisy, start)
        earlier = schedule.add_noise(schedule.predict_x0(output, noisy, start), said, end)
        if config.method.solver == "heun":
            then = schedule.predict_noise(guided_output(teacher, earlier, end, batch, config), earlier, end)
            earlier = earlier + schedule.heun_weight(start, end, earlier) * (then - said)
        target_sample = consistency_sample(target, earlier, end, batch)
    sample = consistency_sample(student, noisy, start, batch)
    ratios = compare_samples(sample.detach(), x0, teacher.time_axis)
    return {"loss": diffusion.pseudo_huber(sample, target_sample, config.huber_c)} | ratios


def consistency_sample(stage: Stage, noisy: Tensor, timesteps: Tensor, batch: dict[str, Any]) -> Tensor:
    """``f(x, t)``, the clean sample that a consistency model says, with ``f(x, 0) = x``.

    Of a flow the boundary holds by itself: ``x - sigma v`` is x where there is no noise.
    """
    schedule = stage.schedule
    output = stage(noisy, timesteps, stage.encode(batch)).float()[:, : noisy.shape[1]]  # no learned variance
    x0 = schedule.predict_x0(output, noisy, timesteps)
    if schedule.is_flow:
        return x0
    c_skip, c_out = (diffusion.expand_to(c, noisy) for c in diffusion.consistency_scalings(timesteps))
    return c_skip * noisy + c_out * x0


def guided_output(
    stage: Stage, noisy: Tensor, timesteps: Tensor, batch: dict[str, Any], config: DistillConfig
) -> Tensor:
    """The network's output under classifier-free guidance, by the batch's "guidance" (b,) or else the config's, without
    a learned variance."""
    condition, channels = stage.encode(batch), noisy.shape[1]
    scale = diffusion.expand_to(batch["guidance"], noisy) if "guidance" in batch else config.guidance_scale
    if not isinstance(scale, Tensor) and scale == 1:
        return stage(noisy, timesteps, condition).float()[:, :channels]
    null = stage.encode(batch, torch.ones(len(noisy), dtype=torch.bool, device=noisy.device))
    twice = torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), join_conditions(null, condition)
    unguided, conditional = stage(*twice).float()[:, :channels].chunk(2)
    guided = diffusion.guide(unguided, conditional, scale, config.guidance_rescale)
    applied = diffusion.within(timesteps, config.guidance_interval)
    return torch.where(diffusion.expand_to(applied.float(), noisy) > 0, guided, conditional)


def compare_samples(samples: Tensor, true: Tensor, time_axis: int | None) -> dict[str, Tensor]:
    """Geometric means over the items of ratios that are 1 where a student's clean samples (b, c, ...) are like true.

    Returns:
        "x0_std_ratio", of their channels' deviations, and with a ``time_axis`` "motion_ratio", of mean absolute
        differences of consecutive frames.
    """

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        tiny = torch.finfo(a.dtype).tiny
        return (a.clamp(min=tiny).log() - b.clamp(min=tiny).log()).mean().exp()

    deviations = [x.flatten(2).std(dim=2) for x in (samples, true)]  # each (b, c)
    least = 1e-4 * true.flatten(1).std(dim=1, keepdim=True)  # a channel that says nothing must not decide
    ratios = {"x0_std_ratio": ratio(*(torch.maximum(x, least) for x in deviations))}
    if time_axis is not None and samples.shape[time_axis] > 1:
        moved, truly = (x.diff(dim=time_axis).abs().flatten(1).mean(dim=1) for x in (samples, true))
        ratios["motion_ratio"] = ratio(moved, truly)
    return ratios


def require_teacher(stage: Stage, what: str, num_ddim_steps: int) -> None:
    """Checks that a stage, called so in the message, can be a teacher for a solver of so many steps.

    Raises:
        ValueError: A distilled model, one without a scheduler, or a noise schedule that its prediction type, or the
            solver's steps, do not go with.
    """
    scheduler = stage.components.get(stage.scheduler_name)
    if scheduler is None:
        raise ValueError(f"{what} has no scheduler: it says which noise the model was trained with")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return
    if not isinstance(scheduler, DDIMScheduler):
        raise ValueError(
            f"{what} has a {type(scheduler).__name__}; a teacher is a model with a DDIMScheduler (of flow matching: "
            "FlowMatchEulerDiscreteScheduler), not one that was distilled"
        )
    if scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[-1] <= 0:
        raise ValueError(
            f"{what} predicts the noise (epsilon) on a schedule that ends in nothing but noise "
            "(rescale_betas_zero_snr): there its prediction says nothing about the picture. Train it with "
            "v_prediction, or take rescale_betas_zero_snr out of its scheduler_config.json if it was trained without"
        )
    times = scheduler.config.num_train_timesteps
    if num_ddim_steps > times:
        raise ValueError(f"num_ddim_steps {num_ddim_steps} is more than the {times} times {what} was trained on")
    reached = times // num_ddim_steps * num_ddim_steps
    if reached < 0.95 * times:  # steps are whole numbers of times, as LCMScheduler has them
        raise ValueError(
            f"num_ddim_steps {num_ddim_steps} would end at time {reached} of {times}, where the noise begins: take "
            f"{times // (times // num_ddim_steps)}, or another number that {times} can nearly be divided by"
        )


def student_scheduler(scheduler: Any, num_ddim_steps: int) -> LCMScheduler | FlowMatchLCMScheduler:
    """The student's scheduler: the teacher's noise schedule, sampled as a consistency model."""
    # All values by name: from_config leaves those out that are the teacher class's defaults, and LCM's differ.
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        settings.pop("stochastic_sampling", None)  # LCM's always is
        return FlowMatchLCMScheduler.from_config(settings)  # type: ignore[return-value]
    return LCMScheduler.from_config(settings, original_inference_steps=num_ddim_steps)  # type: ignore[return-value]
