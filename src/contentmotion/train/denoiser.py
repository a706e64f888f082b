"""Training a denoiser, of content, motion or whole videos: one loss, one set of schedules, one way through the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from transformers import PreTrainedModel

from contentmotion import diffusion
from contentmotion.config import TrainDenoiserConfig
from contentmotion.data.cache import LatentCache, collate_latents
from contentmotion.run_dir import resolve_device
from contentmotion.train.loop import Batch, fit


def diffusion_loss(
    denoiser: nn.Module, batch: Batch, x0: Tensor, scheduler: DDIMScheduler, dropout_prob: float
) -> dict[str, Tensor]:
    """Denoising loss at random times; with a learned variance, DiT's hybrid of it and the variational bound.

    Args:
        denoiser: See ``contentmotion.denoisers``. Twice the channels of ``x0`` mean a learned variance.
        batch: "generator" is the source of all randomness.
        x0: Clean samples (b, c, ...).
        scheduler: Gives the noise schedule and the prediction type.
        dropout_prob: Share of items with the null condition.

    Source: CMD Eq. 7-8; Nichol & Dhariwal 2021, Eq. 14-16 for the hybrid.
    """
    generator, b = batch["generator"], len(x0)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (b,), generator=generator).to(x0.device)
    dropped = torch.rand(b, generator=generator) < dropout_prob
    alphas = scheduler.alphas_cumprod.to(x0.device)
    noisy = diffusion.add_noise(x0, noise, alphas[timesteps])
    output = denoiser(noisy, timesteps, batch, dropped).float()
    prediction, prediction_type = output[:, : x0.shape[1]], scheduler.config.prediction_type
    target = diffusion.training_target(prediction_type, x0, noise, alphas[timesteps])
    mse = F.mse_loss(prediction, target)
    if output.shape[1] == x0.shape[1]:
        return {"loss": mse}
    predicted_x0 = diffusion.predict_x0(prediction_type, prediction, noisy, alphas[timesteps])
    bound = diffusion.variational_bound(x0, noisy, predicted_x0, output[:, x0.shape[1] :], timesteps, alphas).mean()
    return {"loss": mse + bound, "mse": mse.detach(), "bound": bound.detach()}


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
    evaluate: Callable[[int], dict[str, float]] | None,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
) -> None:
    """Trains what requires a gradient in ``denoiser`` on a latent cache; ``prepare`` adds what it wants to a batch."""

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        batch = prepare(batch)
        dropout_prob = config.conditioning_dropout_prob
        return diffusion_loss(model, batch, clean_sample(batch), scheduler, dropout_prob)

    if resolve_device("auto").type == "cpu":
        use_plain_attention(denoiser)
    fit(
        denoiser, loss, cache, config,
        collate=collate_latents, preview=preview, evaluate=evaluate, eval_steps=config.eval_steps,
    )  # fmt: skip


def use_plain_attention(module: nn.Module) -> None:
    """Makes diffusers' and transformers' attention layers multiply plainly: trained on a CPU, that is faster.

    The fused backward pass is several times slower there (docs/log.md); results agree to rounding.
    """
    for part in module.modules():
        if isinstance(part, Attention):
            part.set_processor(AttnProcessor())
        elif isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
