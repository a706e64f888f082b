"""The mathematics of diffusion: a noise schedule, and pure functions.

A noisy sample is ``x_t = alpha x_0 + sigma noise`` for every kind of model here: with DDPM's ``alpha^2 = alpha_bar``,
``sigma^2 = 1 - alpha_bar`` of a table, with flow matching's straight line ``alpha = 1 - sigma``. Levels ``(b,)``
broadcast over samples ``(b, ...)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Real, Shaped
from torch import Tensor

from contentmotion.draws import Source, randint, randn

PREDICTION_TYPES = EPSILON, V, SAMPLE, FLOW = "epsilon", "v_prediction", "sample", "flow"


def expand_to(levels: Real[Tensor, " b"], sample: Tensor) -> Tensor:
    """``(b,)`` -> ``(b, 1, 1, ...)``, float32, on the sample's device."""
    return levels.to(sample.device, torch.float32).view(-1, *[1] * (sample.dim() - 1))


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Moves a flow's noise levels towards the noise, for large images (Esser et al. 2024, Eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """How noisy a sample is at each time, and what the network says about it.

    Attributes:
        prediction_type: "epsilon", "v_prediction", "sample", or "flow" for flow matching's velocity.
        alphas_cumprod: DDPM's table ``(T,)``; None for flow matching, whose ``sigma(t)`` is ``t / T``.
        num_train_timesteps: T: times run from 0 (the sample) to T - 1, or with flow matching to T (noise alone).
        shift: Flow matching: how far training and sampling times are moved towards the noise; 1 not at all.

    Raises:
        ValueError: Unknown prediction type.
    """

    prediction_type: str
    alphas_cumprod: Float[Tensor, " T"] | None = None
    num_train_timesteps: int = 1000
    shift: float = 1.0
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)  # of each device that asked

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"unknown prediction_type {self.prediction_type!r}: choose from {', '.join(PREDICTION_TYPES)}"
            )

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """The schedule that one of diffusers' schedulers samples with.

        Raises:
            ValueError: A scheduler of another kind of diffusion.
        """
        config, kind = scheduler.config or {}, type(scheduler).__name__
        if kind.startswith(("FlowMatch", "FlowMap")) or config.get("prediction_type") == "flow_prediction":
            # Dynamic shifting depends on an image's size in sampling; other solvers of flows call the shift flow_shift.
            shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", config.get("flow_shift", 1.0))
            return cls(FLOW, None, config.num_train_timesteps, shift)
        if hasattr(scheduler, "alphas_cumprod"):
            return cls(config.prediction_type, scheduler.alphas_cumprod, config.num_train_timesteps)
        raise ValueError(f"{kind}: neither a DDPM nor a flow-matching schedule")

    @property
    def is_flow(self) -> bool:
        """Whether it is flow matching's straight line."""
        return self.alphas_cumprod is None

    def alpha_sigma(self, timesteps: Shaped[Tensor, " b"], sample: Tensor) -> tuple[Tensor, Tensor]:
        """``alpha(t)`` and ``sigma(t)``, each ``(b, 1, 1, ...)`` to broadcast over a sample; times are whole numbers of
        DDPM, any number in [0, T] of flow matching."""
        if self.alphas_cumprod is None:
            sigma = expand_to(timesteps / self.num_train_timesteps, sample)
            return 1 - sigma, sigma
        alpha_bar = expand_to(self.table(timesteps.device)[timesteps], sample)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def table(self, device: torch.device) -> Float[Tensor, " T"]:
        """``alphas_cumprod`` on a device; it goes there once, for the processor waits for such a copy."""
        assert self.alphas_cumprod is not None, "flow matching has no table"
        if device not in self._tables:
            with torch.inference_mode(False):  # or training would refuse what sampling has left here
                self._tables[device] = self.alphas_cumprod.to(device)
        return self._tables[device]

    def draw_times(
        self, batch_size: int, generator: Source, logit_mean: float = 0.0, logit_std: float = 1.0
    ) -> Shaped[Tensor, " b"]:
        """Training times: uniform for DDPM; for flow matching logit-normal, then shifted.

        Args:
            batch_size: How many.
            generator: Source of randomness.
            logit_mean: Flow matching: mean of the level's logit; positive trains more where noise is strong.
            logit_std: Its deviation.

        Source: Esser et al. 2024 (SD 3), section 3.1.
        """
        if not self.is_flow:
            return randint(self.num_train_timesteps, (batch_size,), generator)
        sigma = torch.sigmoid(logit_mean + logit_std * randn((batch_size,), generator))
        return shift_sigma(sigma, self.shift) * self.num_train_timesteps

    def solver_times(self, num_steps: int, device: torch.device | None = None) -> Shaped[Tensor, " {num_steps}+1"]:
        """Times that split the schedule into a solver's steps, the sample first: ``LCMScheduler``'s for DDPM, evenly
        spaced levels, shifted, for flow matching."""
        if self.is_flow:
            levels = torch.linspace(0, 1, num_steps + 1, device=device)
            return shift_sigma(levels, self.shift) * self.num_train_timesteps
        stride = self.num_train_timesteps // num_steps
        return (torch.arange(num_steps + 1, device=device) * stride - 1).clamp(min=0)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Shaped[Tensor, " b"]) -> Tensor:
        """``x_t`` (Ho et al. 2020, Eq. 4; Lipman et al. 2023, Eq. 22). Of a predicted sample and noise it is DDIM's
        step, or Euler's, to that time (Song et al. 2021, Eq. 12 with sigma = 0)."""
        alpha, sigma = self.alpha_sigma(timesteps, x0)
        return alpha * x0 + sigma * noise

    def heun_weight(
        self, start: Shaped[Tensor, " b"], end: Shaped[Tensor, " b"], sample: Tensor
    ) -> Float[Tensor, "b ..."]:
        """What Heun's step adds to DDIM's (Euler's), as a multiple of how much more noise is predicted at its end than
        at its start: 0 where either is undefined, of steps that end in the sample and DDPM's that begin in noise alone.

        Source: Karras et al. 2022 (EDM, arXiv 2206.00364), Algorithm 1, for ``x / alpha`` by ``sigma / alpha``; of a
        flow for ``x`` by ``sigma``, the velocity's difference being the noise's over alpha at the end.
        """
        (alpha, sigma), (later_alpha, later_sigma) = self.alpha_sigma(start, sample), self.alpha_sigma(end, sample)
        over = later_alpha if self.is_flow else alpha
        defined = (over > 0) & (later_sigma > 0) & (expand_to(end, sample) > 0)
        return torch.where(defined, (alpha * later_sigma - sigma * later_alpha) / (2 * over), 0.0)

    def target(self, x0: Tensor, noise: Tensor, timesteps: Shaped[Tensor, " b"]) -> Tensor:
        """What the network should output.

        ``v_prediction``: Salimans & Ho 2022, appendix D; ``flow``: the velocity of a straight line from the sample to
        the noise (Liu et al. 2023, Eq. 1, with time running towards the noise as in diffusers).
        """
        if self.prediction_type == EPSILON:
            return noise
        if self.prediction_type == SAMPLE:
            return x0
        if self.prediction_type == FLOW:
            return noise - x0
        alpha, sigma = self.alpha_sigma(timesteps, x0)
        return alpha * noise - sigma * x0

    def predict_x0(self, output: Tensor, noisy: Tensor, timesteps: Shaped[Tensor, " b"]) -> Tensor:
        """The clean sample that the network's output stands for."""
        alpha, sigma = self.alpha_sigma(timesteps, noisy)
        if self.prediction_type == EPSILON:
            return (noisy - sigma * output) / alpha
        if self.prediction_type == SAMPLE:
            return output
        if self.prediction_type == FLOW:
            return noisy - sigma * output
        return alpha * noisy - sigma * output

    def predict_noise(self, output: Tensor, noisy: Tensor, timesteps: Shaped[Tensor, " b"]) -> Tensor:
        """The noise that the network's output stands for."""
        alpha, sigma = self.alpha_sigma(timesteps, noisy)
        if self.prediction_type == EPSILON:
            return output
        if self.prediction_type == SAMPLE:
            return (noisy - alpha * output) / sigma
        if self.prediction_type == FLOW:
            return noisy + alpha * output
        return alpha * output + sigma * noisy

    def snr_weights(self, timesteps: Shaped[Tensor, " b"], gamma: float, sample: Tensor) -> Tensor:
        """Weights of the squared error that make it one of clean samples weighted by ``min(SNR, gamma)``, to broadcast
        over a sample.

        Source: Hang et al. 2023 (min-SNR), section 3.4.
        """
        alpha, sigma = self.alpha_sigma(timesteps, sample)
        capped = (alpha.square() / sigma.square()).clamp(max=gamma)
        if self.prediction_type == SAMPLE:
            return capped
        # A velocity's error is the clean sample's over sigma squared, the noise's that times alpha squared.
        weight = capped * sigma.square()
        return weight / alpha.square().clamp(min=1e-8) if self.prediction_type == EPSILON else weight


def consistency_scalings(timesteps: Int[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """``c_skip`` and ``c_out`` of ``f(x, t) = c_skip x + c_out x0``, so that ``f(x, 0) = x``.

    Source: Luo et al. 2023 (LCM, arXiv 2310.04378), section 4.1, scaled as in diffusers' LCMScheduler.
    """
    sigma_data, timestep_scaling = 0.5, 10.0
    scaled = timesteps.float() * timestep_scaling
    c_skip = sigma_data**2 / (scaled.square() + sigma_data**2)
    return c_skip, scaled / (scaled.square() + sigma_data**2).sqrt()


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """``mean(sqrt((a - b)^2 + c^2) - c)``: like the absolute error, smooth below c (VideoLCM section 3.2)."""
    return ((a - b).square() + c**2).sqrt().mean() - c


def guide(null: Tensor, conditional: Tensor, guidance_scale: float | Tensor, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022) in diffusers' convention: papers' ``w`` is ``guidance_scale - 1``.

    Args:
        null: What the network says of the null condition (b, ...).
        conditional: What it says of the condition.
        guidance_scale: One for all, or to broadcast over the items; 1 is no guidance.
        rescale: How far each item's deviation, which guidance makes larger, is brought back to that of
            ``conditional``: 0 not, 1 wholly (Lin et al. 2024, arXiv 2305.08891, Eq. 15-16).
    """
    guided = null + guidance_scale * (conditional - null)
    if rescale == 0:
        return guided
    axes = tuple(range(1, guided.dim()))
    tamed = guided * (conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
    return rescale * tamed + (1 - rescale) * guided


Interval = Sequence[float]  # two times, the one nearer to the sample first; both belong to it


def within(times: Any, interval: Interval | None) -> Any:
    """Whether guidance is applied at a time, or at each of several; at all of them without an interval.

    Source: Kynkaanniemi et al. 2024 (arXiv 2404.07724): near the noise it narrows what is drawn, near the sample it
    does nothing.
    """
    low, high = interval or (-math.inf, math.inf)
    return (times >= low) & (times <= high)


def slerp(first: Float[Tensor, "b ..."], second: Float[Tensor, "b ..."], shares: Float[Tensor, " b"]) -> Tensor:
    """Between two batches along the great circle: what is between two draws of noise is as long as they are, which the
    mean of them is not. Parallel ones are interpolated linearly.

    Source: Shoemake 1985; White 2016 (Sampling Generative Networks), section 2.
    """
    a, b = first.float().flatten(1), second.float().flatten(1)
    shares = shares.to(a)
    cosine = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(torch.finfo(a.dtype).tiny)
    angle = torch.arccos(cosine.clamp(-1, 1))
    sine = torch.sin(angle)
    bent = sine > 1e-3
    sine = torch.where(bent, sine, 1.0)
    of_first = torch.where(bent, torch.sin((1 - shares) * angle) / sine, 1 - shares)
    of_second = torch.where(bent, torch.sin(shares * angle) / sine, shares)
    return (of_first[:, None] * a + of_second[:, None] * b).to(first.dtype).view_as(first)


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
    alpha_bar_prev = torch.where(timesteps > 0, alphas[(timesteps - 1).clamp(min=0)], 1.0)
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
