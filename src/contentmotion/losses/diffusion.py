"""Denoising at random times: how every teacher is trained (CMD Eq. 7-8)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contentmotion import diffusion
from contentmotion.config import TrainDenoiserConfig
from contentmotion.draws import rand, randn
from contentmotion.losses.player import COUNT, SUM, Player
from contentmotion.stages.stage import Stage


def players(stage: Stage, config: TrainDenoiserConfig) -> list[Player]:
    """The stage alone, trained by ``diffusion_loss``."""

    def loss(stage: Stage, batch: dict[str, Any]) -> dict[str, Tensor]:
        return diffusion_loss(
            stage, batch, dropout_prob=config.conditioning_dropout_prob, snr_gamma=config.snr_gamma,
            logit_mean=config.logit_mean, logit_std=config.logit_std,
        )  # fmt: skip

    return [Player(stage, loss)]


def diffusion_loss(
    stage: Stage, batch: dict[str, Any], *, dropout_prob: float = 0.0, snr_gamma: float | None = None,
    logit_mean: float = 0.0, logit_std: float = 1.0,
) -> dict[str, Tensor]:  # fmt: skip
    """Squared error of the network's output; with a learned variance, DiT's hybrid of it and the variational bound.

    Args:
        stage: What denoises. Twice the channels of a clean sample mean a learned variance.
        batch: Items of a latent cache; "generator" is the source of all randomness.
        dropout_prob: Share of items with the null condition.
        snr_gamma: Weighs the squared error of each item (``NoiseSchedule.snr_weights``); None: not at all.
        logit_mean: Of a flow's times, see ``NoiseSchedule.draw_times``.
        logit_std: Likewise.

    Returns:
        "loss", its parts, and the squared error by quarters of the noise schedule (``Metrics`` divides by the counts).

    Source: CMD Eq. 7-8; Nichol & Dhariwal 2021, Eq. 14-16 for the hybrid.
    """
    schedule, generator = stage.schedule, batch["generator"]
    batch = stage.prepare(batch)
    x0 = stage.clean_sample(batch)
    noise = randn(x0.shape, generator).to(x0)
    timesteps = schedule.draw_times(len(x0), generator, logit_mean, logit_std).to(x0.device)
    dropped = rand((len(x0),), generator) < dropout_prob
    noisy = schedule.add_noise(x0, noise, timesteps)
    output = stage(noisy, timesteps, stage.encode(batch, dropped)).float()
    prediction, variance = output[:, : x0.shape[1]], output[:, x0.shape[1] :]
    target = schedule.target(x0, noise, timesteps)
    if "known" in batch:  # there is nothing to predict of what was given, nor is it uncertain
        known = batch["known"][:, None, :, None]
        prediction, variance = torch.where(known, target, prediction), torch.where(known, -1.0, variance)
    errors = (prediction.detach() - target).square().flatten(1).mean(dim=1)
    by_time = split_by_time(errors, timesteps, schedule.num_train_timesteps)
    if snr_gamma is None:
        mse = F.mse_loss(prediction, target)
    else:
        weights = schedule.snr_weights(timesteps, snr_gamma, prediction)
        mse = (weights * (prediction - target).square()).mean()
    if output.shape[1] == x0.shape[1]:
        return {"loss": mse} | by_time
    if schedule.alphas_cumprod is None:
        raise ValueError("learn_sigma is DDPM's: a model of flow matching has no variance to learn")
    predicted_x0 = schedule.predict_x0(prediction, noisy, timesteps)
    table = schedule.table(x0.device)
    bound = diffusion.variational_bound(x0, noisy, predicted_x0, variance, timesteps, table).mean()
    return {"loss": mse + bound, "mse": mse.detach(), "bound": bound.detach()} | by_time


def split_by_time(errors: Tensor, timesteps: Tensor, num_timesteps: int) -> dict[str, Tensor]:
    """Sums and counts of items' errors (b,) by quarters of the noise schedule; the first has least noise."""
    quarter = (timesteps * 4 // num_timesteps).clamp(max=3)
    split: dict[str, Tensor] = {}
    for k in range(4):
        chosen = quarter == k
        name = f"loss_t{k * num_timesteps // 4}-{(k + 1) * num_timesteps // 4 - 1}"
        # Picking the chosen ones would make the processor wait for the GPU to say how many.
        split[f"{name}{SUM}"], split[f"{name}{COUNT}"] = errors.where(chosen, 0).sum(), chosen.sum()
    return split
