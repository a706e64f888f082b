"""The formulas against diffusers' schedulers and against closed forms."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler

from contentmotion import diffusion
from contentmotion.diffusion import NoiseSchedule


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_against_diffusers(prediction_type: str) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    schedule = NoiseSchedule.of(scheduler)
    x0, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    t = torch.tensor([1, 500, 998])
    noisy = schedule.add_noise(x0, noise, t)
    torch.testing.assert_close(noisy, scheduler.add_noise(x0, noise, t), rtol=0, atol=0)
    target = schedule.target(x0, noise, t)
    if prediction_type == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(x0, noise, t))
    torch.testing.assert_close(schedule.predict_x0(target, noisy, t), x0, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(schedule.predict_noise(target, noisy, t), noise, atol=1e-2, rtol=1e-2)
    scheduler.set_timesteps(1000)
    for i, step in enumerate(t.tolist()):
        predicted = scheduler.step(target[i : i + 1], step, noisy[i : i + 1]).pred_original_sample
        torch.testing.assert_close(predicted, x0[i : i + 1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_steps_as_diffusers_euler(shift: float) -> None:
    """A whole trajectory, step by step: Euler's step is the predicted sample and noise mixed at the next level."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = NoiseSchedule.of(scheduler)
    assert (schedule.prediction_type, schedule.shift) == ("flow", shift)
    scheduler.set_timesteps(7)
    x = torch.randn(2, 3, 4, 4)
    times = torch.cat([scheduler.timesteps, torch.zeros(1)])
    for i in range(7):
        velocity = torch.sin(3 * x) + times[i] / 1000
        expected = scheduler.step(velocity, scheduler.timesteps[i], x).prev_sample
        now, later = times[i].repeat(2), times[i + 1].repeat(2)
        x0, noise = schedule.predict_x0(velocity, x, now), schedule.predict_noise(velocity, x, now)
        torch.testing.assert_close(schedule.add_noise(x0, noise, later), expected, atol=1e-5, rtol=1e-5)
        x = expected


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_samples_as_diffusers_lcm(shift: float) -> None:
    scheduler = FlowMatchLCMScheduler(shift=shift)
    schedule = NoiseSchedule.of(scheduler)
    scheduler.set_timesteps(4)
    x = torch.randn(2, 3, 4, 4)
    times = torch.cat([scheduler.timesteps, torch.zeros(1)])
    for i in range(4):
        velocity = torch.cos(x)
        expected = scheduler.step(
            velocity, scheduler.timesteps[i], x, generator=torch.Generator().manual_seed(i)
        ).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        x0 = schedule.predict_x0(velocity, x, times[i].repeat(2))
        ours = schedule.add_noise(x0, noise, times[i + 1].repeat(2))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        x = expected


def test_flow_matching_is_a_straight_line() -> None:
    schedule = NoiseSchedule("flow")
    x0, noise, t = torch.randn(3, 5), torch.randn(3, 5), torch.tensor([0.0, 250.0, 1000.0])
    noisy, sigma = schedule.add_noise(x0, noise, t), (t / 1000)[:, None]
    torch.testing.assert_close(noisy, (1 - sigma) * x0 + sigma * noise)
    torch.testing.assert_close(schedule.target(x0, noise, t), noise - x0)


def test_flow_times_are_logit_normal_and_shifted() -> None:
    """Shift s moves the median level 1/2 to s / (1 + s); the logit's mean and deviation are those asked for."""
    generator = torch.Generator().manual_seed(0)
    level = NoiseSchedule("flow", shift=3.0).draw_times(20_000, generator) / 1000
    assert level.median().item() == pytest.approx(0.75, abs=0.01)
    level = NoiseSchedule("flow").draw_times(20_000, generator, logit_mean=-1.0, logit_std=0.5) / 1000
    logit = (level / (1 - level)).log()
    assert (logit.mean().item(), logit.std().item()) == (pytest.approx(-1, abs=0.02), pytest.approx(0.5, abs=0.02))


def test_solver_times() -> None:
    ddpm = NoiseSchedule.of(DDIMScheduler())
    assert ddpm.solver_times(4).tolist() == [0, 249, 499, 749, 999]
    shifted = NoiseSchedule("flow", shift=3.0).solver_times(4)
    torch.testing.assert_close(shifted, 1000 * torch.tensor([0, 0.5, 0.75, 0.9, 1.0]))


def test_unknown_prediction_type() -> None:
    with pytest.raises(ValueError, match="unknown prediction_type 'x0'"):
        NoiseSchedule("x0")
    with pytest.raises(ValueError, match="neither a DDPM nor a flow-matching schedule"):
        NoiseSchedule.of(type("Other", (), {"config": None})())


def test_consistency_scalings_are_those_of_lcm() -> None:
    """Ten times the time, as LCMScheduler has it: at 1 the noisy sample is as good as gone already."""
    c_skip, c_out = diffusion.consistency_scalings(torch.tensor([0, 1, 2]))
    assert c_skip.tolist() == pytest.approx([1, 0.25 / 100.25, 0.25 / 400.25])
    assert c_out.tolist() == pytest.approx([0, 10 / 100.25**0.5, 20 / 400.25**0.5])


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
    noisy = NoiseSchedule("epsilon", alphas).add_noise(x0, noise, t)
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


def test_slerp_keeps_the_length_and_turns_evenly() -> None:
    a, b = torch.tensor([[2.0, 0.0, 0.0]] * 3), torch.tensor([[0.0, 2.0, 0.0]] * 3)
    between = diffusion.slerp(a, b, torch.tensor([0.0, 1 / 3, 1.0]))
    expected = [[2, 0, 0], [2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6), 0], [0, 2, 0]]
    assert torch.allclose(between, torch.tensor(expected), atol=1e-6)
    assert torch.allclose(
        diffusion.slerp(a, 2 * a, torch.tensor([0.0, 0.5, 1.0])), torch.tensor([1.0, 1.5, 2.0])[:, None] * a
    )
    assert torch.equal(diffusion.slerp(0 * a, b, torch.ones(3)), b), "zero has no direction"


def test_slerp_of_any_lengths_and_precision() -> None:
    """By the law of sines, pair by pair: lengths 2 and 3 at 60 degrees, 1 and 1 at a right angle."""
    a = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[1.5, 1.5 * 3**0.5], [1.0, 0.0]])
    shares = torch.tensor([0.25, 0.5], dtype=torch.float64)
    of_a = torch.tensor([[math.sin(math.pi / 4) / math.sin(math.pi / 3)], [0.5**0.5]])
    of_b = torch.tensor([[math.sin(math.pi / 12) / math.sin(math.pi / 3)], [0.5**0.5]])
    torch.testing.assert_close(diffusion.slerp(a, b, shares), of_a * a + of_b * b)
    half = diffusion.slerp(a.bfloat16(), b.bfloat16(), shares)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), of_a * a + of_b * b, atol=0.02)
