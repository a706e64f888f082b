"""Training a denoiser, of content, motion or whole videos: one loss, one set of schedules, one way through the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from transformers import PreTrainedModel

from contentmotion import diffusion
from contentmotion.config import TrainDenoiserConfig
from contentmotion.data.cache import LatentCache, collate_latents
from contentmotion.draws import rand, randint, randn
from contentmotion.train.loop import Batch, Player, Scheduled, fit
from contentmotion.train.metrics import COUNT, SUM
from contentmotion.train.processes import is_on_cpu, on_main
from contentmotion.train.scoring import Scorer


def diffusion_loss(
    denoiser: nn.Module,
    batch: Batch,
    x0: Tensor,
    scheduler: DDIMScheduler,
    dropout_prob: float,
    snr_gamma: float | None = None,
) -> dict[str, Tensor]:
    """Denoising loss at random times; with a learned variance, DiT's hybrid of it and the variational bound.

    Args:
        denoiser: See ``contentmotion.stages.denoisers``. Twice the channels of ``x0`` mean a learned variance.
        batch: "generator" is the source of all randomness.
        x0: Clean samples (b, c, ...).
        scheduler: Gives the noise schedule and the prediction type.
        dropout_prob: Share of items with the null condition.
        snr_gamma: Weighs the squared error of each item (see ``snr_weights``); None: not at all.

    Returns:
        "loss", its parts, and the squared error by quarters of the noise schedule (``Metrics`` divides by the counts).

    Source: CMD Eq. 7-8; Nichol & Dhariwal 2021, Eq. 14-16 for the hybrid.
    """
    generator, b = batch["generator"], len(x0)
    noise = randn(x0.shape, generator).to(x0)
    timesteps = randint(scheduler.config.num_train_timesteps, (b,), generator).to(x0.device)
    dropped = rand((b,), generator) < dropout_prob
    alphas = scheduler.alphas_cumprod.to(x0.device)
    noisy = diffusion.add_noise(x0, noise, alphas[timesteps])
    output = denoiser(noisy, timesteps, batch, dropped).float()
    prediction, prediction_type = output[:, : x0.shape[1]], scheduler.config.prediction_type
    target = diffusion.training_target(prediction_type, x0, noise, alphas[timesteps])
    errors = (prediction.detach() - target).square().flatten(1).mean(dim=1)
    by_time = split_by_time(errors, timesteps, scheduler.config.num_train_timesteps)
    if snr_gamma is None:
        mse = F.mse_loss(prediction, target)
    else:
        weights = diffusion.expand_to(snr_weights(prediction_type, alphas[timesteps], snr_gamma), prediction)
        mse = (weights * (prediction - target).square()).mean()
    if output.shape[1] == x0.shape[1]:
        return {"loss": mse} | by_time
    predicted_x0 = diffusion.predict_x0(prediction_type, prediction, noisy, alphas[timesteps])
    bound = diffusion.variational_bound(x0, noisy, predicted_x0, output[:, x0.shape[1] :], timesteps, alphas).mean()
    return {"loss": mse + bound, "mse": mse.detach(), "bound": bound.detach()} | by_time


def snr_weights(prediction_type: str, alpha_bar: Tensor, gamma: float) -> Tensor:
    """Weights of the squared error that make it one of clean samples weighted by ``min(SNR, gamma)``.

    Args:
        prediction_type: What the network predicts.
        alpha_bar: Cumulative product of each item's time (b,).
        gamma: Greatest weight.

    Source: Hang et al. 2023 (min-SNR), section 3.4.
    """
    capped = (alpha_bar / (1 - alpha_bar)).clamp(max=gamma)
    if prediction_type == "sample":
        return capped
    # The noise's error is the clean sample's times the SNR, the velocity's times SNR + 1.
    noise_weight = capped * (1 - alpha_bar)
    return noise_weight if prediction_type == "v_prediction" else noise_weight / alpha_bar.clamp(min=1e-8)


def split_by_time(errors: Tensor, timesteps: Tensor, num_timesteps: int) -> dict[str, Tensor]:
    """Sums and counts of items' errors (b,) by quarters of the noise schedule; the first has least noise."""
    quarter = timesteps * 4 // num_timesteps
    found: dict[str, Tensor] = {}
    for k in range(4):
        chosen = quarter == k
        name = f"loss_t{k * num_timesteps // 4}-{(k + 1) * num_timesteps // 4 - 1}"
        # Picking the chosen ones would make the processor wait for the GPU to say how many.
        found[f"{name}{SUM}"], found[f"{name}{COUNT}"] = torch.where(chosen, errors, 0).sum(), chosen.sum()
    return found


def make_scheduler(beta_schedule: str, prediction_type: str | None) -> DDIMScheduler:
    """Noise schedule of a model trained from scratch.

    v-prediction comes with a schedule that ends in pure noise (Lin et al. 2024): without it, what a model makes of a
    plain background depends on the noise's mean.

    Args:
        beta_schedule: "scaled_linear" (Stable Diffusion) or "linear" (DiT).
        prediction_type: v_prediction when None.
    """
    prediction_type = prediction_type or "v_prediction"
    scaled = beta_schedule == "scaled_linear"
    return DDIMScheduler(
        beta_schedule=beta_schedule,
        beta_start=0.00085 if scaled else 0.0001,
        beta_end=0.012 if scaled else 0.02,
        prediction_type=prediction_type,
        clip_sample=False,
        rescale_betas_zero_snr=prediction_type != "epsilon",
        timestep_spacing="trailing",
        steps_offset=1,  # what diffusers asks of Stable Diffusion folders; "trailing" does not use it
    )


def train_denoiser(
    config: TrainDenoiserConfig,
    cache: LatentCache,
    denoiser: nn.Module,
    clean_sample: Callable[[Batch], Tensor],
    scheduler: DDIMScheduler,
    preview: Callable[[int], None] | None,
    score: Scorer | None,
    save: Callable[[], object],
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
) -> None:
    """Trains what requires a gradient in ``denoiser`` on a latent cache; ``prepare`` adds what it wants to a batch,
    ``save`` writes the result.
    """

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        batch = prepare(batch)
        dropout_prob = config.conditioning_dropout_prob
        return diffusion_loss(model, batch, clean_sample(batch), scheduler, dropout_prob, config.snr_gamma)

    freeze_all_but(denoiser, config.trainable_modules)

    if is_on_cpu():
        use_plain_attention(denoiser)
    at: list[Scheduled] = [(config.validation_steps, lambda step: on_main(lambda: preview(step) if preview else None))]
    at += [(config.eval.steps, score)] if score else []
    fit([Player(denoiser, loss)], cache, config, collate=collate_latents, at=at, save=save)


def freeze_all_but(module: nn.Module, words: Sequence[str]) -> None:
    """Leaves to be trained only the parameters with one of the words in their names; all where there are none.

    Raises:
        ValueError: No parameter has such a name.
    """
    if not words:
        return
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and any(word in name for word in words))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(f"trainable_modules: no parameter to train has {' or '.join(words)} in its name")


def use_plain_attention(module: nn.Module) -> None:
    """Makes diffusers' and transformers' attention layers multiply plainly: trained on a CPU, that is faster.

    The fused backward pass is several times slower there (docs/log.md); results agree to rounding.
    """
    for part in module.modules():
        if isinstance(part, Attention):
            part.set_processor(AttnProcessor())
        elif isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
