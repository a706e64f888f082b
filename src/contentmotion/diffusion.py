"""The mathematics of diffusion as pure functions, one equation each.

``alpha_bar`` is the cumulative signal level of a noise schedule, ``x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar)
noise``; tensors of levels have shape ``(b,)`` and broadcast over the samples ``(b, ...)``.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor


def expand_to(levels: Real[Tensor, " b"], sample: Tensor) -> Tensor:
    """``(b,)`` -> ``(b, 1, 1, ...)``, float32, on the sample's device."""
    return levels.to(sample.device, torch.float32).view(-1, *[1] * (sample.dim() - 1))


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Float[Tensor, " b"]) -> Tensor:
    """Forward process (Ho et al. 2020, Eq. 4)."""
    a = expand_to(alpha_bar, x0)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def training_target(prediction_type: str, x0: Tensor, noise: Tensor, alpha_bar: Float[Tensor, " b"]) -> Tensor:
    """What a network of the given prediction type should output (v: Salimans & Ho 2022, appendix D).

    Raises:
        ValueError: Unknown prediction type.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        a = expand_to(alpha_bar, x0)
        return a.sqrt() * noise - (1 - a).sqrt() * x0
    raise ValueError(f"unknown prediction_type {prediction_type!r}: epsilon, v_prediction or sample")


def predict_x0(prediction_type: str, output: Tensor, noisy: Tensor, alpha_bar: Float[Tensor, " b"]) -> Tensor:
    """The clean sample that a network's output stands for.

    Raises:
        ValueError: Unknown prediction type.
    """
    a = expand_to(alpha_bar, noisy)
    if prediction_type == "epsilon":
        return (noisy - (1 - a).sqrt() * output) / a.sqrt()
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return a.sqrt() * noisy - (1 - a).sqrt() * output
    raise ValueError(f"unknown prediction_type {prediction_type!r}: epsilon, v_prediction or sample")


def predict_noise(prediction_type: str, output: Tensor, noisy: Tensor, alpha_bar: Float[Tensor, " b"]) -> Tensor:
    """The noise that a network's output stands for.

    Raises:
        ValueError: Unknown prediction type.
    """
    if prediction_type == "epsilon":
        return output
    a = expand_to(alpha_bar, noisy)
    if prediction_type == "v_prediction":
        return a.sqrt() * output + (1 - a).sqrt() * noisy
    x0 = predict_x0(prediction_type, output, noisy, alpha_bar)
    return (noisy - a.sqrt() * x0) / (1 - a).sqrt()


def ddim_step(x0: Tensor, noise: Tensor, alpha_bar_prev: Float[Tensor, " b"]) -> Tensor:
    """Deterministic step to a lower noise level (Song et al. 2021, Eq. 12 with sigma = 0)."""
    return add_noise(x0, noise, alpha_bar_prev)


def consistency_scalings(
    timesteps: Int[Tensor, " b"], sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """``c_skip`` and ``c_out`` of ``f(x, t) = c_skip x + c_out x0``, so that ``f(x, 0) = x``.

    Source: Luo et al. 2023 (LCM, arXiv 2310.04378), section 4.1, scaled as in diffusers' LCMScheduler.
    """
    scaled = timesteps.float() * timestep_scaling
    c_skip = sigma_data**2 / (scaled.square() + sigma_data**2)
    return c_skip, scaled / (scaled.square() + sigma_data**2).sqrt()


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """``mean(sqrt((a - b)^2 + c^2) - c)``: like the absolute error, smooth below c (VideoLCM section 3.2)."""
    return ((a - b).square() + c**2).sqrt().mean() - c


def guide(null: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) in diffusers' convention: 1 is no guidance.

    The papers' ``w`` is ``guidance_scale - 1``.
    """
    return null + guidance_scale * (conditional - null)


def posterior(
    x0: Tensor, noisy: Tensor, alpha_bar: Float[Tensor, " b"], alpha_bar_prev: Float[Tensor, " b"]
) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``q(x_{t-1} | x_t, x_0)`` (Ho et al. 2020, Eq. 6-7)."""
    a, prev = expand_to(alpha_bar, x0), expand_to(alpha_bar_prev, x0)
    beta = 1 - a / prev
    mean = (prev.sqrt() * beta * x0 + (a / prev).sqrt() * (1 - prev) * noisy) / (1 - a)
    return mean, beta * (1 - prev) / (1 - a)


def variational_bound(
    x0: Tensor,
    noisy: Tensor,
    predicted_x0: Tensor,
    variance_output: Tensor,
    timesteps: Int[Tensor, " b"],
    alphas_cumprod: Float[Tensor, " T"],
) -> Float[Tensor, " b"]:
    """One term of the variational bound with a learned variance, in bits per dimension.

    The variance is interpolated between its bounds in the logarithm, by a network output in about [-1, 1]; the mean
    gets no gradient from this term. At t = 0 the data's likelihood is that of a Gaussian density (latents are
    continuous), so the term may be negative there.

    Source: Nichol & Dhariwal 2021, Eq. 14-16; CMD Eq. 8 trains with it (``learn_sigma``).
    """
    alphas = alphas_cumprod.to(x0.device)
    alpha_bar = alphas[timesteps]
    alpha_bar_prev = torch.where(timesteps > 0, alphas[(timesteps - 1).clamp(min=0)], torch.ones_like(alpha_bar))
    true_mean, true_variance = posterior(x0, noisy, alpha_bar, alpha_bar_prev)
    mean, _ = posterior(predicted_x0.detach(), noisy, alpha_bar, alpha_bar_prev)
    beta = expand_to(1 - alpha_bar / alpha_bar_prev, x0)
    # The posterior's variance is 0 at t = 0: use that of t = 1 there, as the paper does.
    floor = expand_to((1 - alphas[:1]) * (1 - alphas[1:2] / alphas[:1]) / (1 - alphas[1:2]), x0)
    log_min = true_variance.clamp(min=floor).log()
    share = (variance_output + 1) / 2
    log_variance = share * beta.log() + (1 - share) * log_min
    squared = (true_mean - mean).square()
    kl = 0.5 * (log_variance - log_min + (log_min - log_variance).exp() + squared * (-log_variance).exp() - 1)
    nll = 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean).square() * (-log_variance).exp())
    per_item = torch.where(expand_to(timesteps, x0) > 0, kl, nll).flatten(1).mean(1)
    return per_item / math.log(2)
