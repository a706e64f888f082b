"""Consistency distillation's mathematics: its loss, the student's scheduler, sampling through a denoiser."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor, nn

from contentmotion import diffusion
from contentmotion.config import DistillConfig
from contentmotion.draws import randint, randn
from contentmotion.pipelines.sampling import denoise
from contentmotion.train.loop import Batch


def consistency_loss(
    student: nn.Module,
    target: nn.Module,
    teacher: nn.Module,
    batch: Batch,
    x0: Tensor,
    scheduler: DDIMScheduler,
    config: DistillConfig,
    time_axis: int | None = None,
) -> dict[str, Tensor]:
    """Consistency distillation: the student at a time must say what its average says one teacher's step later.

    The three networks are denoisers (``contentmotion.stages.denoisers``); see there for their arguments.

    Args:
        student: What is trained.
        target: The student's moving average.
        teacher: Frozen.
        batch: "generator" is the source of all randomness.
        x0: Clean samples (b, c, ...).
        scheduler: The teacher's noise schedule and prediction type (see ``require_teacher``).
        config: Guidance, steps of the teacher's solver, Huber's c.
        time_axis: Axis of ``x0`` that counts frames, if one does.

    Returns:
        "loss", and what the student says over what the guided teacher says of the clean samples, at the same points:
        "x0_std_ratio", of their deviations; with a ``time_axis`` "motion_ratio", of the change from frame to frame.

    Source: VideoLCM Eq. 4-5; Luo et al. 2023 (LCM), Algorithm 1 with a fixed guidance scale.
    """
    generator, b = batch["generator"], len(x0)
    kind, alphas = scheduler.config.prediction_type, scheduler.alphas_cumprod.to(x0.device)
    skip = scheduler.config.num_train_timesteps // config.num_ddim_steps
    noise = randn(x0.shape, generator).to(x0)
    start = (randint(config.num_ddim_steps, (b,), generator) + 1) * skip - 1
    start, end = start.to(x0.device), (start - skip).clamp(min=0).to(x0.device)
    noisy = diffusion.add_noise(x0, noise, alphas[start])
    kept, dropped = torch.zeros(b, dtype=torch.bool), torch.ones(b, dtype=torch.bool)

    def network(denoiser: nn.Module, x: Tensor, t: Tensor, drop: Tensor = kept) -> Tensor:
        return denoiser(x, t, batch, drop).float()[:, : x0.shape[1]]  # without a learned variance

    def consistency(denoiser: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        c_skip, c_out = (diffusion.expand_to(c, x) for c in diffusion.consistency_scalings(t))
        return c_skip * x + c_out * diffusion.predict_x0(kind, network(denoiser, x, t), x, alphas[t])

    with torch.no_grad():
        output = network(teacher, noisy, start)
        if config.guidance_scale != 1:
            output = diffusion.guide(network(teacher, noisy, start, dropped), output, config.guidance_scale)
        clean = diffusion.predict_x0(kind, output, noisy, alphas[start])
        implied = diffusion.predict_noise(kind, output, noisy, alphas[start])
        earlier = diffusion.ddim_step(clean, implied, alphas[end])
        aim = consistency(target, earlier, end)
    said = consistency(student, noisy, start)
    ratios = compare_predictions(said.detach(), clean, time_axis)
    return {"loss": diffusion.pseudo_huber(said, aim, config.huber_c)} | ratios


def compare_predictions(said: Tensor, clean: Tensor, time_axis: int | None) -> dict[str, Tensor]:
    """Geometric means over the items of ratios that are 1 where a student is like its teacher.

    Args:
        said: The student's clean samples (b, c, ...).
        clean: The teacher's.
        time_axis: Axis that counts frames, if one does.

    Returns:
        "x0_std_ratio", and with a ``time_axis`` "motion_ratio": mean absolute differences of consecutive frames.
    """

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        tiny = torch.finfo(a.dtype).tiny
        return (a.clamp(min=tiny).log() - b.clamp(min=tiny).log()).mean().exp()

    ratios = {"x0_std_ratio": ratio(said.flatten(1).std(dim=1), clean.flatten(1).std(dim=1))}
    if time_axis is not None and said.shape[time_axis] > 1:
        moved, true = (x.diff(dim=time_axis).abs().flatten(1).mean(dim=1) for x in (said, clean))
        ratios["motion_ratio"] = ratio(moved, true)
    return ratios


def require_teacher(scheduler: Any, what: str, num_ddim_steps: int) -> DDIMScheduler:
    """The scheduler of a teacher, if it can be one.

    Args:
        scheduler: Of the model to distil.
        what: The model, for the message.
        num_ddim_steps: Steps of the solver that distillation takes.

    Raises:
        ValueError: A distilled model, one without a scheduler, or a noise schedule that its prediction type, or the
            solver's steps, do not go with.
    """
    if scheduler is None:
        raise ValueError(f"{what} has no scheduler: it says which noise the model was trained with")
    if not isinstance(scheduler, DDIMScheduler):
        raise ValueError(
            f"{what} has a {type(scheduler).__name__}; a teacher is a model with a DDIMScheduler, not one that was "
            "distilled"
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
    return scheduler


def make_lcm_scheduler(scheduler: DDIMScheduler, num_ddim_steps: int) -> LCMScheduler:
    """The student's scheduler: the teacher's noise schedule, sampled as a consistency model."""
    # All values by name: from_config leaves those out that are the teacher class's defaults, and LCM's differ.
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    lcm = LCMScheduler.from_config(settings, original_inference_steps=num_ddim_steps)
    assert isinstance(lcm, LCMScheduler)
    return lcm


@torch.no_grad()
def sample(
    denoiser: nn.Module, batch: Batch, noise: Tensor, scheduler: Any, num_inference_steps: int, guidance_scale: float
) -> Tensor:
    """Clean samples, by the loop that the pipelines have (``sampling.denoise``).

    Args:
        denoiser: See ``contentmotion.stages.denoisers``.
        batch: The conditions; "generator" is where a scheduler that adds noise draws it.
        noise: Initial noise (b, c, ...).
        scheduler: The teacher's or the student's.
        num_inference_steps: Steps.
        guidance_scale: 1 is none.
    """
    scheduler.set_timesteps(num_inference_steps, device=noise.device)
    b = len(noise)
    kept, dropped = torch.zeros(b, dtype=torch.bool), torch.ones(b, dtype=torch.bool)

    def model(noisy: Tensor, t: Tensor, guided: bool) -> Tensor:
        times = t.to(noisy.device).expand(b)
        halves = zip(noisy.chunk(2), (dropped, kept), strict=True) if guided else [(noisy, kept)]
        return torch.cat([denoiser(x, times, batch, drop) for x, drop in halves])

    return denoise(
        scheduler, noise * scheduler.init_noise_sigma, guidance_scale, model,
        eta=0.0, generator=batch["generator"], on_step=lambda step, t, latents: latents,
    )  # fmt: skip
