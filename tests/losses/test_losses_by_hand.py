"""Objectives against arithmetic written out, on a network that is a line: what is drawn, what is aimed at, how it is
weighed, where gradients go."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from contentmotion.config import DistillConfig, MethodSettings, PerceptualLoss, TrainContentConfig
from contentmotion.losses import consistency, diffusion, flow_map
from contentmotion.losses import distribution_matching as matching
from contentmotion.losses.consistency import consistency_loss
from contentmotion.losses.diffusion import diffusion_loss
from contentmotion.losses.reconstruction import autoencoder_loss, image_vae_loss
from contentmotion.pipelines.sampling import denoise
from contentmotion.stages.stage import Stage
from contentmotion.stages.video import VideoStage
from tiny import make_image_unet, make_motion_dit, make_pipeline, make_video_unet, randomize

KINDS = ("epsilon", "v_prediction", "sample")


class Line(nn.Module):
    """``slope x + number``; with ``spread`` as many channels more, all of it."""

    def __init__(self, slope: float, spread: float | None) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.spread = None if spread is None else nn.Parameter(torch.tensor(spread))

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        out = self.slope * x + number[:, None, None]
        return out if self.spread is None else torch.cat([out, self.spread.expand_as(x)], dim=1)


class LineStage(Stage):
    """The condition is a number, 0 where it is dropped; remembers what it was called with."""

    name = "content"
    field = "content"

    def __init__(self, scheduler: Any, slope: float = 0.3, spread: float | None = None) -> None:
        super().__init__({"unet": Line(slope, spread), "scheduler": scheduler})
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def encode(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> dict[str, Tensor]:
        number = batch["number"]
        return {"number": number if dropped is None else torch.where(dropped, 0.0, number)}

    def clean_sample(self, batch: Mapping[str, Any]) -> Tensor:
        return to_clean(batch)

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        self.calls.append((noisy.detach(), timesteps, condition["number"]))
        return self.network(noisy, condition["number"])


def to_clean(batch: Mapping[str, Any]) -> Tensor:
    """What is denoised is not what is in the cache, as with motion."""
    return (batch["content"] - 5) / 3


def make_batch(items: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    content = 6 * torch.randn(items, 2, 3, generator=generator) + 8
    return {"content": content, "number": 1 + torch.rand(items, generator=generator), "generator": generator}


def make_scheduler(kind: str) -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="linear", prediction_type=kind, clip_sample=False)


def unmix(stage: LineStage, x0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the last call: alpha bar (b, 1, 1), its square roots' noise, and what the network should have said."""
    noisy, timesteps, _ = stage.calls[-1]
    a = stage.scheduler.alphas_cumprod.double()[timesteps].view(-1, 1, 1)
    noise = (noisy - a.sqrt() * x0) / (1 - a).sqrt()
    target = {"epsilon": noise, "sample": x0, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x0}
    return a, noise, target[stage.scheduler.config.prediction_type], noisy.double()


@pytest.mark.parametrize("kind", KINDS)
def test_diffusion_loss(kind: str) -> None:
    stage, batch = LineStage(make_scheduler(kind)), make_batch(2000)
    losses = diffusion_loss(stage, batch)
    _, noise, target, noisy = unmix(stage, to_clean(batch))
    assert abs(noise.mean()) < 0.05 and noise.std().item() == pytest.approx(1, abs=0.03)
    times = stage.calls[-1][1].float()
    assert times.min() < 10 and times.max() > 989 and times.mean().item() == pytest.approx(499.5, abs=25)
    errors = (0.3 * noisy + batch["number"][:, None, None] - target).square()
    assert losses["loss"].item() == pytest.approx(errors.mean().item(), rel=1e-4)
    early = times < 250
    assert losses["loss_t0-249#count"] == early.sum()
    assert losses["loss_t0-249#sum"].item() == pytest.approx(errors[early].mean((1, 2)).sum().item(), rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_conditions_is_dropped(share: float) -> None:
    stage, batch = LineStage(make_scheduler("sample")), make_batch(2000)
    diffusion_loss(stage, batch, dropout_prob=share)
    null = stage.calls[-1][2] == 0
    assert null.float().mean().item() == pytest.approx(share, abs=0.04 if share == 0.3 else 0)
    assert torch.equal(stage.calls[-1][2][~null], batch["number"][~null])


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_weighed_by_the_capped_signal_to_noise_ratio(kind: str) -> None:
    """Hang et al. 2023: min(SNR, gamma) on the clean sample's error, whatever is predicted."""
    stage, batch = LineStage(make_scheduler(kind)), make_batch(500)
    loss = diffusion_loss(stage, batch, snr_gamma=5.0)["loss"]
    a, _, _, noisy = unmix(stage, to_clean(batch))
    output = 0.3 * noisy + batch["number"][:, None, None]
    x0 = {
        "epsilon": (noisy - (1 - a).sqrt() * output) / a.sqrt(), "sample": output,
        "v_prediction": a.sqrt() * noisy - (1 - a).sqrt() * output,
    }[kind]  # fmt: skip
    expected = ((a / (1 - a)).clamp(max=5) * (x0 - to_clean(batch)).square()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_learned_variance(kind: str) -> None:
    """The hybrid loss of Nichol & Dhariwal 2021: squared error plus the bound, which trains the variance alone."""
    stage, batch = LineStage(make_scheduler(kind), spread=0.4), make_batch(3000)
    losses = diffusion_loss(stage, batch)
    x0, alphas, times = to_clean(batch).double(), stage.scheduler.alphas_cumprod.double(), stage.calls[-1][1]
    a, _, target, noisy = unmix(stage, x0)
    slope, spread = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, 0.4))
    output = slope * noisy + batch["number"][:, None, None]
    mse = (output - target).square().mean()
    predicted = {
        "epsilon": (noisy - (1 - a).sqrt() * output) / a.sqrt(), "sample": output,
        "v_prediction": a.sqrt() * noisy - (1 - a).sqrt() * output,
    }[kind].detach()  # fmt: skip
    before = torch.where(times > 0, alphas[times - 1], 1.0).view(-1, 1, 1)
    beta = 1 - a / before
    smallest = (1 - alphas[0]) / (1 - alphas[1]) * (1 - alphas[1] / alphas[0])  # the variance's lower limit at t = 1
    variance = (beta * (1 - before) / (1 - a)).clamp(min=smallest)

    def mean(x: Tensor) -> Tensor:
        return before.sqrt() * beta / (1 - a) * x + (a / before).sqrt() * (1 - before) / (1 - a) * noisy

    learned = torch.exp((0.5 + spread / 2) * beta.log() + (0.5 - spread / 2) * variance.log())
    model = Normal(mean(predicted), learned.sqrt())
    later = kl_divergence(Normal(mean(x0), variance.sqrt()), model)
    bound = torch.where(times.view(-1, 1, 1) > 0, later, -model.log_prob(x0)).mean() / math.log(2)
    assert (times == 0).any() and (times == 1).any()
    assert losses["mse"].item() == pytest.approx(mse.item(), rel=1e-3)
    assert losses["bound"].item() == pytest.approx(bound.item(), rel=1e-3)
    assert losses["loss"].item() == pytest.approx((mse + bound).item(), rel=1e-3)
    losses["loss"].backward()
    (by_slope,) = torch.autograd.grad(mse, slope, retain_graph=True)
    (by_spread,) = torch.autograd.grad(bound, spread)
    assert stage.network.slope.grad.item() == pytest.approx(by_slope.item(), rel=1e-3)
    assert stage.network.spread.grad.item() == pytest.approx(by_spread.item(), rel=1e-3)


def test_the_configs_numbers_reach_the_loss() -> None:
    stage, batch = LineStage(make_scheduler("epsilon")), make_batch(64)
    config = TrainContentConfig(latent_cache="x", output_dir="x", conditioning_dropout_prob=0.5, snr_gamma=2.0)
    (player,) = diffusion.players(stage, config)
    assert player.module is stage
    losses = [
        objective(batch | {"generator": torch.Generator().manual_seed(7)})["loss"].item()
        for objective in (
            lambda batch: player.loss(stage, batch),
            lambda batch: diffusion_loss(stage, batch, dropout_prob=0.5, snr_gamma=2.0),
            lambda batch: diffusion_loss(stage, batch, dropout_prob=0.5),
            lambda batch: diffusion_loss(stage, batch, snr_gamma=2.0),
        )
    ]
    assert losses[0] == losses[1] and len(set(losses)) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_consistency_loss(kind: str, guidance: float) -> None:
    """Luo et al. 2023, Algorithm 1: one guided DDIM step of the teacher, then the average's clean sample."""
    student, target, teacher = (LineStage(make_scheduler(kind), slope) for slope in (0.3, 0.5, -0.2))
    batch, c = make_batch(200), 0.01
    config = DistillConfig(
        pretrained_model_name_or_path="x", latent_cache="x", output_dir="x", part="content", guidance_scale=guidance,
        num_ddim_steps=10, huber_c=c,
    )  # fmt: skip
    losses = consistency_loss(student, target, teacher, batch, config)
    losses["loss"].backward()
    noisy, start, number = student.calls[-1]
    assert set(start.tolist()) == set(range(99, 1000, 100)) and torch.equal(number, batch["number"])
    end = torch.where(start > 99, start - 100, 0)
    alphas, number = teacher.scheduler.alphas_cumprod.double(), number[:, None, None].double()
    noisy, x0 = noisy.double(), to_clean(batch).double()
    noise = (noisy - root(alphas, start) * x0) / root(1 - alphas, start)
    assert noise.std().item() == pytest.approx(1, abs=0.1)

    def clean_and_noise(x: Tensor, t: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        a, s = root(alphas, t), root(1 - alphas, t)
        if kind == "epsilon":
            return (x - s * output) / a, output
        x0 = output if kind == "sample" else a * x - s * output
        return x0, (x - a * x0) / s

    def consistent(x: Tensor, t: Tensor, slope: Tensor) -> Tensor:
        scaled = 10.0 * t.double().view(-1, 1, 1)
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
        return skip * x + out * clean_and_noise(x, t, slope * x + number)[0]

    guided = -0.2 * noisy + guidance * number  # the null condition's number is 0
    clean, implied = clean_and_noise(noisy, start, guided)
    earlier = root(alphas, end) * clean + root(1 - alphas, end) * implied
    aim = consistent(earlier, end, torch.tensor(0.5))
    slope = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    sample = consistent(noisy, start, slope)
    loss = (((sample - aim) ** 2 + c**2).sqrt() - c).mean()
    (gradient,) = torch.autograd.grad(loss, slope)
    assert losses["loss"].item() == pytest.approx(loss.item(), rel=1e-3)
    assert student.network.slope.grad.item() == pytest.approx(gradient.item(), rel=1e-3)
    assert target.network.slope.grad is None and teacher.network.slope.grad is None
    deviations = sample.detach().flatten(2).std(2) / x0.flatten(2).std(2)
    assert losses["x0_std_ratio"].item() == pytest.approx(deviations.log().mean().exp().item(), rel=1e-3)


def test_the_teacher_is_guided_between_times_and_its_contrast_taken_back() -> None:
    """Item by item, as sampling does it."""
    config = DistillConfig(
        latent_cache="x", output_dir="x", part="content", guidance_scale=3.0, guidance_interval=(300.0, 700.0),
        guidance_rescale=0.6,
    )  # fmt: skip
    stage, batch = LineStage(make_scheduler("epsilon"), slope=0.3, spread=0.4), make_batch(5)
    noisy, times = to_clean(batch), torch.tensor([299, 300, 512, 700, 701])
    output = consistency.guided_output(stage, noisy, times, batch, config)
    for i, time in enumerate(times.tolist()):
        conditional, null = 0.3 * noisy[i] + batch["number"][i], 0.3 * noisy[i]
        guided = 3 * conditional - 2 * null
        guided = 0.6 * conditional.std() / guided.std() * guided + 0.4 * guided
        torch.testing.assert_close(output[i], guided if 300 <= time <= 700 else conditional)


def test_the_student_is_told_the_scale_that_the_teacher_is_guided_by() -> None:
    """Luo et al. 2023, Algorithm 1: drawn anew for every item."""
    seen: dict[str, Tensor] = {}

    class Told(LineStage):
        def encode(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> dict[str, Tensor]:
            seen[str(self.network.slope.item())] = batch["guidance"]
            return super().encode(batch, dropped)

    def loss(kind: type[LineStage], **guidance: Any) -> float:
        stages = [kind(make_scheduler("epsilon"), slope) for slope in (0.25, 0.5, -0.25)]
        config = DistillConfig(latent_cache="x", output_dir="x", part="content", **guidance)
        return consistency_loss(*stages, make_batch(200), config)["loss"].item()

    assert loss(Told, guidance_scale=3.0, guidance_range=(3.0, 3.0)) == pytest.approx(
        loss(LineStage, guidance_scale=3.0)
    )
    loss(Told, guidance_scale=3.0, guidance_range=(2.0, 6.0))
    scales = seen["0.25"]
    assert torch.equal(scales, seen["0.5"]) and torch.equal(scales, seen["-0.25"])
    assert 2 <= scales.min() < 2.2 and 5.8 < scales.max() <= 6 and scales.mean().item() == pytest.approx(4, abs=0.3)

    stage, batch = (
        LineStage(make_scheduler("epsilon"), slope=0.3),
        make_batch(3) | {"guidance": torch.tensor([1.0, 2.0, 5.0])},
    )
    noisy, times = to_clean(batch), torch.tensor([5, 500, 900])
    output = consistency.guided_output(
        stage, noisy, times, batch, config=DistillConfig(latent_cache="x", output_dir="x", part="content")
    )
    expected = 0.3 * noisy + (batch["guidance"] * batch["number"])[:, None, None]
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("kind", [*KINDS, "zero_snr", "flow"])
def test_heuns_step_of_the_teacher(kind: str) -> None:
    """Karras et al. 2022, Algorithm 1, on ``x / alpha``; of a flow on x. Where its slope is not defined, Euler's."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=2.0) if kind == "flow" else None
    prediction = "v_prediction" if kind == "zero_snr" else kind
    if scheduler is None:
        zero = {"rescale_betas_zero_snr": kind == "zero_snr"}
        scheduler = DDIMScheduler(beta_schedule="linear", prediction_type=prediction, clip_sample=False, **zero)
    student, target, teacher = (LineStage(scheduler, slope) for slope in (0.3, 0.5, -0.2))
    config = DistillConfig(
        latent_cache="x", output_dir="x", part="content", guidance_scale=3.0, num_ddim_steps=10,
        method=MethodSettings(solver="heun"),
    )  # fmt: skip
    consistency_loss(student, target, teacher, make_batch(200), config)
    (x, start, number), (reached, end, _) = student.calls[-1], target.calls[-1]
    x, number = x.double(), 3 * number.double()[:, None, None]  # guided three times; the null condition's is 0
    assert len(teacher.calls) == 2 and len(set(start.tolist())) == 10

    def said(x: Tensor) -> Tensor:
        return -0.2 * x + number

    if kind == "flow":
        s, r = (t.double().view(-1, 1, 1) / 1000 for t in (start, end))
        euler = x + (r - s) * said(x)
        expected = torch.where(r > 0, x + (r - s) * (said(x) + said(euler)) / 2, euler)
    else:
        a, b = (scheduler.alphas_cumprod.double()[t].view(-1, 1, 1) for t in (start, end))

        def clean(x: Tensor, a: Tensor) -> Tensor:
            if prediction == "epsilon":
                return (x - (1 - a).sqrt() * said(x)) / a.sqrt()
            return said(x) if prediction == "sample" else a.sqrt() * x - (1 - a).sqrt() * said(x)

        def slope(y: Tensor, a: Tensor) -> Tensor:
            return (y - clean(a.sqrt() * y, a)) / ((1 - a) / a).sqrt()

        y, way = x / a.sqrt(), ((1 - b) / b).sqrt() - ((1 - a) / a).sqrt()
        euler = torch.where(a > 0, b.sqrt() * (y + way * slope(y, a)), b.sqrt() * clean(x, a) + (1 - b).sqrt() * x)
        heun = b.sqrt() * (y + way * (slope(y, a) + slope(euler / b.sqrt(), b)) / 2)
        expected = torch.where((a > 0) & (end.view(-1, 1, 1) > 0), heun, euler)  # time 0 is the sample's
    torch.testing.assert_close(reached.double(), expected, atol=1e-4, rtol=1e-4)
    assert (expected - euler).abs().mean() > 0.002, "far more than the tolerance"


def lcm_says(alphas: Tensor, call: tuple[Tensor, Tensor, Tensor], slope: Any) -> Tensor:
    """The clean sample that a line predicting the noise gives as a consistency model."""
    noisy, time, number = call
    a, scaled = alphas[time].view(-1, 1, 1), 10.0 * time.view(-1, 1, 1)
    clean = (noisy - (1 - a).sqrt() * (slope * noisy + number[:, None, None])) / a.sqrt()
    return 0.25 / (scaled**2 + 0.25) * noisy + scaled / (scaled**2 + 0.25).sqrt() * clean


@pytest.mark.parametrize("place", [0, 2])
def test_distribution_matching(place: int) -> None:
    """Yin et al. 2024: the samples' gradient is the critic's clean sample less the guided teacher's, over its distance;
    the critic learns to denoise them. Of two steps, the second begins as the scheduler's first ends."""
    lcm = consistency.student_scheduler(make_scheduler("epsilon"), 50)
    student, critic, teacher = (
        LineStage(scheduler, slope)
        for scheduler, slope in ((lcm, 0.3), (make_scheduler("epsilon"), 0.5), (make_scheduler("epsilon"), -0.2))
    )
    config = DistillConfig(
        latent_cache="x", output_dir="x", part="content", objective="distribution_matching", guidance_scale=3.0,
        method=MethodSettings(student_every=2),
    )  # fmt: skip
    batch = make_batch(400) | {"step": 2 * place}
    losses = matching.matching_loss(student, critic, teacher, batch, config)
    losses["loss"].backward()
    alphas, number = teacher.scheduler.alphas_cumprod, batch["number"][:, None, None]
    lcm.set_timesteps(2 if place else 1)
    assert [int(call[1][0]) for call in student.calls] == lcm.timesteps.tolist()
    assert student.calls[0][0].std().item() == pytest.approx(1, abs=0.05)
    if place:
        a = alphas[student.calls[1][1][0]]
        fresh = (student.calls[1][0] - a.sqrt() * lcm_says(alphas, student.calls[0], 0.3)) / (1 - a).sqrt()
        assert fresh.std().item() == pytest.approx(1, abs=0.05)
    slope = torch.tensor(0.3, requires_grad=True)
    sample = lcm_says(alphas, student.calls[-1], slope)
    noisy, times = critic.calls[-1][:2]
    assert times.min() >= 20 and times.max() <= 980 and len(set(times.tolist())) > 200
    a = alphas[times].view(-1, 1, 1)
    noise = (noisy - a.sqrt() * sample.detach()) / (1 - a).sqrt()
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    true = (noisy - (1 - a).sqrt() * (-0.2 * noisy + 3 * number)) / a.sqrt()
    false = (noisy - (1 - a).sqrt() * (0.5 * noisy + number)) / a.sqrt()
    wanted = (false - true) / (sample.detach() - true).abs().mean((1, 2), keepdim=True)
    (gradient,) = torch.autograd.grad(sample, slope, wanted / sample.numel())
    assert student.network.slope.grad is not None and student.network.slope.grad.item() == pytest.approx(
        gradient.item(), rel=1e-3
    )
    assert critic.network.slope.grad is None and teacher.network.slope.grad is None

    student.network.slope.grad = None
    loss = matching.critic_loss(critic, student, batch, config)["loss"]
    loss.backward()
    noisy, times = critic.calls[-1][:2]
    a = alphas[times].view(-1, 1, 1)
    noise = (noisy - a.sqrt() * lcm_says(alphas, student.calls[-1], 0.3)) / (1 - a).sqrt()
    assert loss.item() == pytest.approx((0.5 * noisy + number - noise).square().mean().item(), rel=1e-3)
    assert student.network.slope.grad is None and critic.network.slope.grad is not None


class Bottleneck(Line):
    """A line with features."""

    def __init__(self, slope: float) -> None:
        super().__init__(slope, None)
        self.mid_block = nn.Tanh()

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        return super().forward(x, number) + self.mid_block(self.slope * x)


def test_a_critic_that_tells_samples_from_clips() -> None:
    """Yin et al. 2024 (DMD2), section 4.3: the non-saturating loss of a GAN, on the critic's features of noisy ones."""
    lcm = consistency.student_scheduler(make_scheduler("epsilon"), 50)
    student, critic, teacher = (
        LineStage(lcm),
        LineStage(make_scheduler("epsilon")),
        LineStage(make_scheduler("epsilon")),
    )
    critic.components["unet"] = critic.unet = Bottleneck(0.5)
    critic.classifier = judge = nn.Linear(3, 1)
    alphas, batch = teacher.scheduler.alphas_cumprod, make_batch(300)
    number, slopes = batch["number"][:, None, None], []
    for method in (MethodSettings(), MethodSettings(gan_weight=0.3, critic_gan_weight=0.7)):
        config = DistillConfig(
            latent_cache="x", output_dir="x", part="content", objective="distribution_matching", guidance_scale=1.0,
            method=method,
        )  # fmt: skip
        student.network.slope.grad = None
        losses = matching.matching_loss(student, critic, teacher, make_batch(300) | {"step": 0}, config)
        losses["loss"].backward()
        slopes.append(student.network.slope.grad.item())
    noisy, times = critic.calls[-1][:2]
    a, slope = alphas[times].view(-1, 1, 1), torch.tensor(0.3, requires_grad=True)
    noise = (noisy - a.sqrt() * lcm_says(alphas, student.calls[-1], 0.3)) / (1 - a).sqrt()
    noisy = a.sqrt() * lcm_says(alphas, student.calls[-1], slope) + (1 - a).sqrt() * noise
    fooled = (1 + torch.exp(-judge(torch.tanh(0.5 * noisy)))).log().mean()
    (gradient,) = torch.autograd.grad(fooled, slope)
    assert losses["gan_loss"].item() == pytest.approx(fooled.item(), rel=1e-3)
    assert slopes[1] - slopes[0] == pytest.approx(0.3 * gradient.item(), rel=1e-2)

    student.network.slope.grad = judge.weight.grad = critic.network.slope.grad = None
    losses = matching.critic_loss(critic, student, batch | {"step": 0}, config)
    losses["loss"].backward()
    (made, times, _), (real, again, _) = critic.calls[-2:]
    a = alphas[times].view(-1, 1, 1)
    noises = [
        (x - a.sqrt() * clean) / (1 - a).sqrt()
        for x, clean in ((made, lcm_says(alphas, student.calls[-1], 0.3)), (real, to_clean(batch)))
    ]
    assert torch.equal(times, again) and all(x.std().item() == pytest.approx(1, abs=0.05) for x in noises)
    assert not torch.allclose(*noises, atol=0.1)
    false, true = (judge(torch.tanh(0.5 * x)) for x in (made, real))
    told = (1 + false.exp()).log().mean() + (1 + (-true).exp()).log().mean()
    denoised = (0.5 * made + number + torch.tanh(0.5 * made) - noises[0]).square().mean()
    assert losses["gan_loss"].item() == pytest.approx(told.item(), rel=1e-3)
    assert losses["loss"].item() == pytest.approx((denoised + 0.7 * told).item(), rel=1e-3)
    assert student.network.slope.grad is None and judge.weight.grad is not None

    with pytest.raises(ValueError, match="--method.gan_weight: a MotionDiT has no bottleneck"):
        matching.make_classifier(make_motion_dit(), 0)
    unet = make_image_unet()
    logits = matching.make_classifier(unet, 0)(torch.randn(2, 32, 4, 4))
    assert logits.shape == (2, 1, 4, 4) and not logits.any(), "at first it cannot tell"


class Swell(nn.Module):
    """The mean velocity of ``dx/ds = rate x`` from one level of noise to another, ``wrong`` times."""

    def __init__(self, rate: float, wrong: float = 1.0) -> None:
        super().__init__()
        self.rate, self.wrong = rate, nn.Parameter(torch.tensor(wrong))

    def forward(self, x: Tensor, way: Tensor) -> Tensor:
        same = way.abs() < 1e-6
        way = torch.where(same, 1.0, way)
        return self.wrong * torch.where(same, self.rate, -torch.expm1(-self.rate * way) / way) * x


class SwellStage(LineStage):
    """Of a teacher without a target, the velocity itself; remembers its times."""

    def __init__(self, scheduler: Any, rate: float, wrong: float = 1.0) -> None:
        super().__init__(scheduler)
        self.components["unet"] = self.unet = Swell(rate, wrong)

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        target = condition.get("target_timesteps", timesteps)
        self.calls.append((noisy.detach(), timesteps, target))
        way = ((timesteps - target) / 1000).float().expand(len(noisy)).view(-1, 1, 1)
        return self.network(noisy, way)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func.jvp's own
def test_an_exact_flow_map_has_no_loss_and_is_sampled_alike_in_any_steps() -> None:
    """Geng et al. 2025: the mean velocity, and no other, obeys the identity that is trained; at one time it is the
    teacher's velocity."""
    flow = FlowMatchEulerDiscreteScheduler(shift=2.0)
    euler = flow_map.student_scheduler(flow, 50)
    teacher, config = (
        SwellStage(flow, 0.7),
        DistillConfig(latent_cache="x", output_dir="x", part="content", guidance_scale=1.0),
    )
    exact, wrong = SwellStage(euler, 0.7), SwellStage(euler, 0.7, wrong=1.1)
    losses = [flow_map.flow_map_loss(stage, teacher, make_batch(300), config) for stage in (exact, wrong)]
    assert losses[0]["loss"] < 1e-3 < losses[1]["loss"] / 50
    _, start, end = exact.calls[-1]
    assert (end <= start).all() and 0.15 < (end == start).float().mean() < 0.35

    losses[1]["loss"].backward()  # by hand: what is aimed at has no gradient
    noisy, start, end = wrong.calls[-1]
    way = ((start - end) / 1000).view(-1, 1, 1)
    factor = torch.where(way > 0, -torch.expm1(-0.7 * way) / way.clamp(min=1e-9), 0.7)  # u = factor x
    change = torch.where(way > 0, (0.7 * torch.exp(-0.7 * way) - factor) / way.clamp(min=1e-9), -0.245)  # of it by t
    aim = 0.7 * noisy - way * 1.1 * (factor * 0.7 + change) * noisy
    size = torch.tensor(1.1, requires_grad=True)
    errors = (size * factor * noisy - aim).square().mean((1, 2))
    expected = ((errors + config.huber_c**2).sqrt() - config.huber_c).mean()
    assert losses[1]["loss"].item() == pytest.approx(expected.item(), rel=1e-3)
    (gradient,) = torch.autograd.grad(expected, size)
    assert wrong.network.wrong.grad is not None and teacher.network.wrong.grad is None
    assert wrong.network.wrong.grad.item() == pytest.approx(gradient.item(), rel=1e-3)

    noise, told = torch.randn(2, 2, 3), {"number": torch.zeros(2)}
    for steps in (1, 2, 5):
        exact.set_timesteps(steps, noise.shape, noise.device)
        exact.calls.clear()
        sample = denoise(exact, noise, told, None, 1.0)
        torch.testing.assert_close(sample, noise * math.exp(-0.7), atol=1e-5, rtol=1e-4)
        times = [(float(t), float(r)) for _, t, r in exact.calls]
        assert times[0][0] == 1000 and times[-1][1] == 0 and [r for _, r in times[:-1]] == [t for t, _ in times[1:]]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func.jvp's own
@pytest.mark.parametrize("part", ["content", "motion", "video"])
def test_the_change_of_a_mean_velocity_is_that_of_finite_differences(part: str) -> None:
    """Of the real networks, along the path."""
    flow = flow_map.student_scheduler(FlowMatchEulerDiscreteScheduler(), 50)
    transformer = make_motion_dit(0.1, hidden_size=32, depth=3, motion_channels=4, text_dim=32)
    pipe = make_pipeline(unet=make_image_unet(), motion_transformer=transformer, scheduler=flow, motion_scheduler=flow)
    # At 32 channels each is a norm's own group, which takes out what the times' embeddings add to it.
    video = VideoStage(pipe.components | {"unet": make_video_unet(block_out_channels=(64, 64))})
    plain = video if part == "video" else pipe.stages[part]
    stage = plain.replace(**{plain.network_name: randomize(plain.telling_target(plain.network), 0.08)}).eval()
    batch = {"caption": ["a cat", "rocket"], "content": torch.randn(2, 3, 16, 16)}
    noisy = torch.randn(2, *{"content": (3, 16, 16), "motion": (4, 4, 16), "video": (4, 3, 16, 16)}[part])
    batch |= {"latents": noisy}
    told, velocity = stage.encode(batch), torch.randn_like(noisy)
    start, end, h = torch.tensor([900.0, 400.0]), torch.tensor([300.0, 400.0]), 5e-5  # of a tick in 20
    ending, elsewhere = ({**told, "target_timesteps": time} for time in (end, end - 100))
    with torch.no_grad():
        change = flow_map.velocity_change(stage, noisy, start, ending, velocity)
        later, earlier = (stage(noisy + s * velocity, start + 1000 * s, ending) for s in (h, -h))
        other = stage(noisy, start, elsewhere)
    expected = (later - earlier) / (2 * h)
    torch.testing.assert_close(change, expected, atol=0.02 * expected.abs().max().item(), rtol=0)
    assert expected.abs().max() > 0.1 and not torch.allclose(stage(noisy, start, ending), other, atol=1e-4)
    with pytest.raises(ValueError, match="target_timesteps|class_labels|step_length"):
        stage(noisy, start, told)


def root(levels: Tensor, t: Tensor) -> Tensor:
    return levels[t].sqrt().view(-1, 1, 1)


def test_a_students_target_is_a_copy_of_it() -> None:
    student, teacher = (LineStage(make_scheduler("epsilon"), slope) for slope in (0.3, -0.2))
    student._like = lambda components: LineStage(components["scheduler"], components["unet"].slope.item())  # type: ignore
    config = DistillConfig(pretrained_model_name_or_path="x", latent_cache="x", output_dir="x", part="content")
    (player,) = consistency.players(student, teacher, config)
    assert player.module is student and player.target is not None
    assert player.target.network.slope is not student.network.slope
    assert player.target.network.slope.item() == student.network.slope.item()


def test_autoencoder_loss_is_of_pixels_and_of_flicker() -> None:
    """Channels that were divided by 3 and 1 weigh 9 to 1; an error that comes and goes costs twice."""
    latents = torch.zeros(1, 3, 2, 1, 1)
    error = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 0.0]])[None, :, :, None, None]  # still; for one frame

    class Whitened(nn.Module):
        divisors = torch.tensor([3.0, 1.0])

    def loss(vae: nn.Module | None, difference_weight: float) -> float:
        model: Any = lambda x: x + error  # noqa: E731
        perceptual = PerceptualLoss(difference_weight=difference_weight)
        return float(autoencoder_loss(model, {"latents": latents}, vae, None, perceptual)["loss"])

    assert loss(None, 0.0) == pytest.approx((3 * 1 + 4) / 6)
    assert loss(Whitened(), 0.0) == pytest.approx((3 * 1 * 9 / 5 + 4 * 1 / 5) / 6)
    assert loss(None, 0.5) == pytest.approx((3 * 1 + 4) / 6 + 0.5 * (4 + 4) / 4)


def test_noise_on_latents_is_each_channels_own() -> None:
    """0.1 of one deviation for all would be nothing to a loud channel, and all of a quiet one."""
    seen = []

    class Loud(torch.nn.Module):
        def encode(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(latents=x * torch.tensor([10.0, 1.0, 0.1]).view(1, 3, 1, 1))

        def decode(self, z: Tensor) -> SimpleNamespace:
            seen.append(z)
            return SimpleNamespace(sample=z)

    images = torch.randint(256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for strength in (0.0, 0.1):
        image_vae_loss(Loud(), images, strength, torch.Generator().manual_seed(1))
    share = (seen[1] - seen[0]).transpose(0, 1).flatten(1).std(1) / seen[0].transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(share, torch.full((3,), 0.1), atol=0.01, rtol=0)
