"""Flow maps: a student that says at every time of a teacher's path how to get to any other (MeanFlow); more steps are
better. The network is made as in Decoupled MeanFlow."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from contentmotion import diffusion
from contentmotion.config import DistillConfig
from contentmotion.draws import rand, randn
from contentmotion.losses.consistency import compare_samples, guided_output
from contentmotion.losses.player import Player
from contentmotion.stages.stage import Condition, Stage

SAME_TIME = 0.25  # share of items whose two times are one: there the student learns the teacher's own velocity


def players(student: Stage, teacher: Stage, config: DistillConfig) -> list[Player]:
    """The student alone; the teacher stays as it is."""

    def loss(student: Stage, batch: dict[str, Any]) -> dict[str, Tensor]:
        return flow_map_loss(student, teacher, teacher.prepare(batch), config)

    return [Player(student, loss)]


def flow_map_loss(student: Stage, teacher: Stage, batch: dict[str, Any], config: DistillConfig) -> dict[str, Tensor]:
    """The student's mean velocity ``u(x_t, t, r)`` between two times must be ``v - (t - r) du/dt`` along the path.

    Args:
        student: What is trained.
        teacher: Frozen; its guided velocity v is the path's.
        batch: What ``prepare`` gave; "generator" is the source of all randomness.
        config: Guidance, and c of the loss, each item's ``sqrt(mse + c^2) - c``.

    Returns:
        "loss", and the student's samples at the second time over the batch's own there (``compare_samples``).

    Source: Geng et al. 2025 (MeanFlow, arXiv 2505.13447), Eq. 6-10, and Eq. 22 with p = 0.5; the teacher's velocity in
    the place of the data's, so that guidance is learned with it.
    """
    generator, schedule = batch["generator"], teacher.schedule
    x0 = teacher.clean_sample(batch)
    noise = randn(x0.shape, generator).to(x0)
    drawn = torch.stack([schedule.draw_times(len(x0), generator) for _ in range(2)])
    start, end = drawn.amax(dim=0).to(x0.device), drawn.amin(dim=0).to(x0.device)
    end = torch.where((rand((len(x0),), generator) < SAME_TIME).to(x0.device), start, end)
    noisy = schedule.add_noise(x0, noise, start)
    batch = teacher.with_text_features(batch)
    told = student.encode(batch) | {"target_timesteps": end}
    with torch.no_grad():
        velocity = guided_output(teacher, noisy, start, batch, config)
        slope = velocity_change(student, noisy, start, told, velocity)
    interval = diffusion.expand_to((start - end) / schedule.num_train_timesteps, noisy)
    torch.clear_autocast_cache()  # torch before 2.10 keeps weights there that it has cast without gradients
    mean = student(noisy, start, told).float()
    error = (mean - (velocity - interval * slope)).square().flatten(1).mean(dim=1)
    loss = ((error + config.huber_c**2).sqrt() - config.huber_c).mean()
    arrived, true = noisy - interval * mean.detach(), schedule.add_noise(x0, noise, end)
    return {"loss": loss} | compare_samples(arrived, true, teacher.time_axis)


def velocity_change(student: Stage, noisy: Tensor, start: Tensor, told: Condition, velocity: Tensor) -> Tensor:
    """``d/dt u(x_t, t, r)`` along the path, of the noise level as time: the derivative in the direction
    ``(dx, dt) = (v, 1)``, by forward differentiation (MeanFlow Eq. 8)."""
    times = student.schedule.num_train_timesteps

    def mean(noisy: Tensor, start: Tensor) -> Tensor:
        return student(noisy, start, told).float()

    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward derivative
        return torch.func.jvp(mean, (noisy, start), (velocity, torch.full_like(start, times)))[1]


def require_teacher(stage: Stage, what: str, num_ddim_steps: int) -> None:
    """Checks that a stage can be a teacher.

    Raises:
        ValueError: It is not one of flow matching.
    """
    scheduler = stage.components.get(stage.scheduler_name)
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"{what} has a {type(scheduler).__name__}; a flow map is distilled from a model of flow matching "
            "(train it with --prediction_type flow), or take --objective consistency"
        )


def student_scheduler(scheduler: Any, num_ddim_steps: int) -> FlowMapEulerDiscreteScheduler:
    """The student's scheduler: Euler's steps from one time to the next, both of which the network is told."""
    schedule = diffusion.NoiseSchedule.of(scheduler)
    return FlowMapEulerDiscreteScheduler(schedule.num_train_timesteps, schedule.shift)
