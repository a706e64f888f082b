"""The formulas against diffusers' schedulers and against closed forms."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from contentmotion import diffusion


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_against_diffusers(prediction_type: str) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    x0, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    t = torch.tensor([1, 500, 998])
    alpha_bar = scheduler.alphas_cumprod[t]
    noisy = diffusion.add_noise(x0, noise, alpha_bar)
    torch.testing.assert_close(noisy, scheduler.add_noise(x0, noise, t))
    target = diffusion.training_target(prediction_type, x0, noise, alpha_bar)
    if prediction_type == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(x0, noise, t))
    torch.testing.assert_close(
        diffusion.predict_x0(prediction_type, target, noisy, alpha_bar), x0, atol=1e-3, rtol=1e-3
    )
    scheduler.set_timesteps(1000)
    for i, step in enumerate(t.tolist()):
        predicted = scheduler.step(target[i : i + 1], step, noisy[i : i + 1]).pred_original_sample
        torch.testing.assert_close(predicted, x0[i : i + 1], atol=1e-3, rtol=1e-3)


def test_unknown_prediction_type() -> None:
    for function in (diffusion.training_target, diffusion.predict_x0):
        with pytest.raises(ValueError, match="unknown prediction_type 'x0'"):
            function("x0", torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1))


def test_guidance_conventions() -> None:
    null, conditional, w = torch.tensor(1.0), torch.tensor(3.0), 6.5
    torch.testing.assert_close(diffusion.guide(null, conditional, 1.0), conditional)
    papers = (1 + w) * conditional - w * null  # CMD Algorithm 1
    torch.testing.assert_close(diffusion.guide(null, conditional, 1 + w), papers)


def test_posterior_is_bayes_rule() -> None:
    """Density of x_{t-1} given x_0 times that of x_t given x_{t-1}, compared on a grid."""
    a, prev, x0, xt = 0.5, 0.7, 0.3, -0.4
    alpha = a / prev
    mean, variance = diffusion.posterior(
        torch.full((1, 1), x0), torch.full((1, 1), xt), torch.tensor([a]), torch.tensor([prev])
    )
    x = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    log_p = -((x - math.sqrt(prev) * x0) ** 2) / (2 * (1 - prev)) - (xt - math.sqrt(alpha) * x) ** 2 / (2 * (1 - alpha))
    p = log_p.softmax(0)
    assert mean.item() == pytest.approx((p * x).sum().item(), abs=1e-4)
    assert variance.item() == pytest.approx((p * (x - (p * x).sum()) ** 2).sum().item(), abs=1e-4)


def test_variational_bound_vanishes_for_the_truth() -> None:
    """With the true x_0 and the posterior's own variance the KL terms are 0; any other variance costs."""
    alphas = DDIMScheduler(beta_schedule="linear").alphas_cumprod
    x0, noise, t = torch.randn(4, 3, 8), torch.randn(4, 3, 8), torch.tensor([1, 10, 500, 999])
    noisy = diffusion.add_noise(x0, noise, alphas[t])
    exact = diffusion.variational_bound(x0, noisy, x0, torch.full_like(x0, -1.0), t, alphas)
    torch.testing.assert_close(exact, torch.zeros(4), atol=1e-4, rtol=0)
    wide = diffusion.variational_bound(x0, noisy, x0, torch.full_like(x0, 1.0), t, alphas)
    wrong = diffusion.variational_bound(x0, noisy, x0 + 1, torch.full_like(x0, -1.0), t, alphas)
    assert (wide[:2] > 1e-4).all()
    assert (wrong[:3] > 1e-4).all()


def test_variational_bound_at_time_zero_is_a_gaussian_likelihood() -> None:
    alphas = DDIMScheduler(beta_schedule="linear").alphas_cumprod
    x0 = torch.zeros(1, 1, 1)
    bound = diffusion.variational_bound(x0, x0, x0, torch.ones(1, 1, 1), torch.tensor([0]), alphas)
    variance = 1 - alphas[0].item()
    assert bound.item() == pytest.approx(0.5 * math.log2(2 * math.pi * variance), abs=1e-3)
