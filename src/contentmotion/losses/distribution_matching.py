"""Distribution matching: a student whose samples are where a teacher's are, by a second network that learns where the
student's are (DMD2)."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contentmotion import diffusion
from contentmotion.config import DistillConfig
from contentmotion.draws import rand, randn
from contentmotion.losses.consistency import compare_samples, consistency_sample, guided_output
from contentmotion.losses.consistency import require_teacher as require_teacher
from contentmotion.losses.consistency import student_scheduler as student_scheduler
from contentmotion.losses.player import Player
from contentmotion.models.video_unet import enable_checkpointing, without_dropout
from contentmotion.stages.stage import Stage

# (steps, number): the student learns at each place of a sampling in one, two or four steps, one place after the other.
PLACES = ((1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3))
LEAST_TIME, MOST_TIME = 0.02, 0.98  # of the schedule, where teacher and critic are compared


def players(student: Stage, teacher: Stage, config: DistillConfig) -> list[Player]:
    """The student, on every ``student_every``-th step, and a critic that starts as the teacher, on every step."""
    network = without_dropout(copy.deepcopy(teacher.network)).requires_grad_(True)
    if config.gradient_checkpointing:
        enable_checkpointing(network)
    critic = teacher.replace(**{teacher.network_name: network})
    if config.method.gan_weight:
        critic.add_module("classifier", make_classifier(network, config.seed))

    def student_loss(student: Stage, batch: dict[str, Any]) -> dict[str, Tensor]:
        return matching_loss(student, critic, teacher, teacher.prepare(batch), config)

    def learn(critic: Stage, batch: dict[str, Any]) -> dict[str, Tensor]:
        return critic_loss(critic, student, teacher.prepare(batch), config)

    return [
        Player(student, student_loss, every=config.method.student_every),
        Player(critic, learn, name="critic", ema_decay=0),
    ]


def matching_loss(
    student: Stage, critic: Stage, teacher: Stage, batch: dict[str, Any], config: DistillConfig
) -> dict[str, Tensor]:
    """Moves the student's samples from where the critic, which denoises them, sees many of them to where the guided
    teacher does.

    Returns:
        "loss", whose gradient by the samples is ``(critic's - teacher's clean sample) / |sample - teacher's|``, with
        ``gan_weight`` and that of "gan_loss", by which they shall pass for real; and the samples over the batch's
        (``compare_samples``).

    Source: Yin et al. 2024 (DMD, arXiv 2311.18828), Eq. 7-8; DMD2 (arXiv 2405.14867), sections 4.2, 4.3 and 4.5.
    """
    generator, schedule = batch["generator"], teacher.schedule
    x0 = teacher.clean_sample(batch)
    batch = teacher.with_text_features(batch)
    sample = student_sample(student, batch, x0, config)
    share = LEAST_TIME + (MOST_TIME - LEAST_TIME) * rand((len(x0),), generator).to(x0.device)
    times = share * schedule.num_train_timesteps
    times = times if schedule.is_flow else times.long()
    noisy = schedule.add_noise(sample, randn(x0.shape, generator).to(x0), times)
    with torch.set_grad_enabled(config.method.gan_weight > 0):
        output, judged = output_and_logits(critic, noisy, times, batch)
    with torch.no_grad():
        true = schedule.predict_x0(guided_output(teacher, noisy, times, batch, config), noisy, times)
        false = schedule.predict_x0(output, noisy, times)
        size = (sample - true).abs().flatten(1).mean(dim=1).clamp(min=1e-6)
        direction = (false - true) / diffusion.expand_to(size, sample)
    losses = {"loss": 0.5 * F.mse_loss(sample, (sample - direction).detach())}
    if judged is not None:
        losses["gan_loss"] = F.softplus(-judged).mean()
        losses["loss"] = losses["loss"] + config.method.gan_weight * losses["gan_loss"]
    return losses | compare_samples(sample.detach(), x0, teacher.time_axis)


def critic_loss(critic: Stage, student: Stage, batch: dict[str, Any], config: DistillConfig) -> dict[str, Tensor]:
    """The critic learns to denoise what the student makes (DMD2, Eq. 5), as teachers are trained; and with
    ``gan_weight`` to tell it, noisy as it is, from the batch's clean samples with as much noise (section 4.3)."""
    generator, schedule = batch["generator"], critic.schedule
    x0 = critic.clean_sample(batch)
    batch = critic.with_text_features(batch)
    with torch.no_grad():
        sample = student_sample(student, batch, x0, config)
    noise = randn(x0.shape, generator).to(x0)
    times = schedule.draw_times(len(x0), generator).to(x0.device)
    noisy = schedule.add_noise(sample, noise, times)
    output, false = output_and_logits(critic, noisy, times, batch)
    losses = {"loss": F.mse_loss(output, schedule.target(sample, noise, times))}
    if false is not None:
        real = schedule.add_noise(x0, randn(x0.shape, generator).to(x0), times)
        true = output_and_logits(critic, real, times, batch)[1]
        losses["gan_loss"] = F.softplus(false).mean() + F.softplus(-true).mean()
        losses["loss"] = losses["loss"] + config.method.critic_gan_weight * losses["gan_loss"]
    return losses


def student_sample(student: Stage, batch: dict[str, Any], like: Tensor, config: DistillConfig) -> Tensor:
    """What the student, a consistency model, makes of noise of this shape in some of its steps, as its scheduler
    samples; the last step has a gradient. The batch's "step" says which of ``PLACES`` it is."""
    steps, number = PLACES[batch["step"] // config.method.student_every % len(PLACES)]
    student.set_timesteps(steps, like.shape, like.device)
    times, generator = student.scheduler.timesteps.to(like.device), batch["generator"]
    noisy = randn(like.shape, generator).to(like)
    for i in range(number):
        with torch.no_grad():
            clean = consistency_sample(student, noisy, times[i].expand(len(like)), batch)
        noisy = student.schedule.add_noise(clean, randn(like.shape, generator).to(like), times[i + 1].expand(len(like)))
    torch.clear_autocast_cache()  # torch before 2.10 keeps weights there that it has cast without gradients
    return consistency_sample(student, noisy, times[number].expand(len(like)), batch)


def output_and_logits(critic: Stage, noisy: Tensor, times: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Any]:
    """The critic's output under the condition, without a learned variance; and of its classifier, if it has one, a
    logit for each place of its network's bottleneck, positive where samples look real there."""
    seen: list[Tensor] = []
    classifier: Any = getattr(critic, "classifier", None)
    network: Any = critic.network
    see = lambda module, args, features: seen.append(features)  # noqa: E731
    with nullcontext() if classifier is None else network.mid_block.register_forward_hook(see):
        output = critic(noisy, times, critic.encode(batch)).float()[:, : noisy.shape[1]]
    return output, None if classifier is None else classifier(seen[0]).float()


def make_classifier(network: Any, seed: int) -> nn.Module:
    """What looks at each place of a UNet's bottleneck; at first it cannot tell anything from anything.

    Raises:
        ValueError: A network without a bottleneck.
    """
    if getattr(network, "mid_block", None) is None:
        raise ValueError(
            f"--method.gan_weight: a {type(network).__name__} has no bottleneck for a classifier to look at, as UNets "
            "have; leave it at 0"
        )
    torch.manual_seed(seed)
    width = network.config.block_out_channels[-1]
    last = nn.Conv2d(width, 1, 1)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, width, 1), nn.SiLU(), last).to(network.device)
