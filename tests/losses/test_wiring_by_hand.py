"""What objectives hand to their losses, whom they take for a teacher, and how autoencoders are trained, by arithmetic
written out."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, LCMScheduler
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from contentmotion.config import DistillConfig, MethodSettings, PerceptualLoss, TrainContentConfig
from contentmotion.diffusion import NoiseSchedule
from contentmotion.losses import consistency, diffusion, flow_map, reconstruction
from contentmotion.losses import distribution_matching as matching
from contentmotion.stages.stage import Stage

FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)


class Plain(Stage):
    """Of any components; what it says is its scale times the noisy sample."""

    name, field = "content", "content"

    def __init__(self, components: Mapping[str, Any]) -> None:
        super().__init__(components)

    def encode(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> dict[str, Tensor]:
        return {}

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"prepared": True}

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        return self.network.weight * noisy


def make_stage(scheduler: Any = FLOW) -> Plain:
    return Plain({"unet": nn.Linear(1, 1, bias=False), "scheduler": scheduler})


def ddim(**changes: Any) -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, **changes)


def make_config(**changes: Any) -> DistillConfig:
    return DistillConfig(latent_cache="x", output_dir="x", part="content", **changes)


def recorder(monkeypatch: pytest.MonkeyPatch, module: Any, *names: str) -> list[tuple]:
    """The arguments of each call of some of a module's functions."""
    seen: list[tuple] = []
    for name in names:
        monkeypatch.setattr(module, name, lambda *args, name=name: seen.append((name, *args)))
    return seen


def test_losses_get_the_networks_that_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, other, batch, config = make_stage(), make_stage(), make_stage(), {"x": 1}, make_config()
    ready = batch | {"prepared": True}
    seen = recorder(monkeypatch, consistency, "consistency_loss")
    (player,) = consistency.players(student, teacher, config)
    player.loss(other, batch)
    assert player.module is student and player.target not in (None, student, teacher)
    assert seen == [("consistency_loss", other, player.target, teacher, ready, config)]

    seen = recorder(monkeypatch, flow_map, "flow_map_loss")
    (player,) = flow_map.players(student, teacher, config)
    player.loss(other, batch)
    assert player.module is student and player.target is None
    assert seen == [("flow_map_loss", other, teacher, ready, config)]


@pytest.mark.parametrize("sparing", [False, True])
def test_student_and_critic(sparing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, other, batch = make_stage(), make_stage(), make_stage(), {"x": 1}
    ready = batch | {"prepared": True}
    teacher.network.requires_grad_(False)
    method = MethodSettings(student_every=3, gan_weight=0.1 * sparing)
    config = make_config(objective="distribution_matching", gradient_checkpointing=sparing, seed=7, method=method)
    seen = recorder(monkeypatch, matching, "matching_loss", "critic_loss", "enable_checkpointing")
    judge = nn.Identity()
    monkeypatch.setattr(matching, "make_classifier", lambda *args: seen.append(("make_classifier", *args)) or judge)
    first, second = matching.players(student, teacher, config)
    critic: Any = second.module
    assert (first.module, first.every, first.name) == (student, 3, "model")
    assert (second.every, second.name, second.ema_decay) == (1, "critic", 0)
    assert critic.network is not teacher.network and torch.equal(critic.network.weight, teacher.network.weight)
    assert critic.network.weight.requires_grad and not teacher.network.weight.requires_grad
    network = critic.network
    assert seen == ([("enable_checkpointing", network), ("make_classifier", network, 7)] if sparing else [])
    assert getattr(critic, "classifier", None) is (judge if sparing else None)
    seen.clear()
    first.loss(other, batch)
    second.loss(other, batch)
    assert seen == [
        ("matching_loss", other, critic, teacher, ready, config), ("critic_loss", other, student, ready, config)
    ]  # fmt: skip


def test_a_student_is_sampled_as_its_scheduler_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of four steps: of clean samples of zeros and noise of ones, the noise levels alone are left."""
    seen: list[tuple[Tensor, Tensor]] = []

    def clean(stage: Any, noisy: Tensor, times: Tensor, batch: Any) -> Tensor:
        seen.append((noisy, times))
        return 0 * noisy

    monkeypatch.setattr(matching, "consistency_sample", clean)
    monkeypatch.setattr(matching, "randn", lambda shape, source: torch.ones(shape))
    student = make_stage(consistency.student_scheduler(ddim(), 50))
    config = make_config(objective="distribution_matching", method=MethodSettings(student_every=2))
    matching.student_sample(student, {"step": 10, "generator": None}, torch.zeros(3, 2), config)
    times = student.scheduler.timesteps
    levels = [1, *((1 - student.scheduler.alphas_cumprod[t]) ** 0.5 for t in times[1:3])]
    assert len(times) == 4 and [t.tolist() for _, t in seen] == [[t] * 3 for t in times[:3]]
    for (noisy, _), level in zip(seen, levels, strict=True):
        torch.testing.assert_close(noisy, torch.full((3, 2), float(level)))


@pytest.mark.parametrize("scheduler", [ddim(prediction_type="sample"), FLOW])
def test_samples_are_moved_by_the_difference_over_their_distance(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where the critic sees them to where the teacher does; a distance of nothing is a millionth."""
    sample = torch.tensor([[0.0, 2.0], [1.0, 1.0]], requires_grad=True)
    true, false = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[3.0, 0.0], [1.0, 3.0]])
    seen: list[Any] = []
    monkeypatch.setattr(matching, "student_sample", lambda *args: sample)
    monkeypatch.setattr(matching, "rand", lambda shape, source: torch.tensor([0.12345, 0.5]))
    monkeypatch.setattr(matching, "output_and_logits", lambda critic, noisy, times, batch: (false, seen.append(times)))
    monkeypatch.setattr(matching, "guided_output", lambda *args: true)
    monkeypatch.setattr(matching, "compare_samples", lambda *args: seen.append(args) or {})
    monkeypatch.setattr(NoiseSchedule, "predict_x0", lambda self, output, noisy, times: output)
    teacher = make_stage(scheduler)
    teacher.time_axis = 7  # type: ignore[misc]
    batch = {"content": torch.ones(2, 2), "generator": torch.Generator()}
    losses = matching.matching_loss(teacher, teacher, teacher, batch, make_config())
    losses["loss"].backward()
    expected = torch.tensor([[2 / 2, 1 / 2], [0, 2e6]]) / 4  # distances 2 and 0
    torch.testing.assert_close(sample.grad, expected)
    exact = torch.tensor([138.512, 500.0])
    torch.testing.assert_close(seen[0], exact if scheduler is FLOW else exact.long())
    assert list(losses) == ["loss"] and torch.equal(seen[1][1], batch["content"]) and seen[1][2] == 7


def test_a_classifier_is_a_normalised_perceptron_of_each_place() -> None:
    network = SimpleNamespace(
        mid_block=object(), config=SimpleNamespace(block_out_channels=(4, 8, 6)), device=torch.device("cpu")
    )
    judge, x = matching.make_classifier(network, 3), torch.randn(2, 6, 3, 3)
    inner, last = judge[1], judge[3]
    again = matching.make_classifier(network, 3)
    assert torch.equal(inner.weight, again[1].weight) and not last.weight.any() and not last.bias.any()
    last.weight.data, last.bias.data = torch.randn(1, 6, 1, 1), torch.tensor([0.5])
    h = (x - x.mean((1, 2, 3), keepdim=True)) / (x.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    h = torch.einsum("oc,bchw->bohw", inner.weight[..., 0, 0], h) + inner.bias[:, None, None]
    expected = torch.einsum("oc,bchw->bohw", last.weight[..., 0, 0], h / (1 + (-h).exp())) + 0.5
    torch.testing.assert_close(judge(x), expected)


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (None, 50, "^mine has no scheduler: it says which noise the model was trained with$"),
        (FLOW, 999_999, None),
        (LCMScheduler(), 50, "^mine has a LCMScheduler; a teacher is a model with a DDIMScheduler .of flow matching: "
         "FlowMatchEulerDiscreteScheduler., not one that was distilled$"),
        (ddim(rescale_betas_zero_snr=True), 50, r"^mine predicts the noise \(epsilon\) on a schedule that ends in "
         r"nothing but noise \(rescale_betas_zero_snr\): there its prediction says nothing about the picture. Train it "
         "with v_prediction, or take rescale_betas_zero_snr out of its scheduler_config.json if it was trained "
         "without$"),
        (ddim(), 50, None),
        (ddim(rescale_betas_zero_snr=True, prediction_type="v_prediction"), 50, None),
        (ddim(), 1000, None),
        (ddim(), 1001, "^num_ddim_steps 1001 is more than the 1000 times mine was trained on$"),
        (ddim(), 300, "^num_ddim_steps 300 would end at time 900 of 1000, where the noise begins: take 333, or another "
         "number that 1000 can nearly be divided by$"),
        (ddim(), 950, None),
    ],
)  # fmt: skip
def test_who_is_a_teacher_of_consistency(scheduler: Any, steps: int, message: str | None) -> None:
    stage = make_stage(scheduler)
    if message is None:
        assert consistency.require_teacher(stage, "mine", steps) is None
        return
    with pytest.raises(ValueError, match=message):
        consistency.require_teacher(stage, "mine", steps)


def test_who_is_a_teacher_of_a_flow_map() -> None:
    assert flow_map.require_teacher(make_stage(FLOW), "mine", 50) is None
    with pytest.raises(ValueError, match="^mine has a DDIMScheduler; a flow map is distilled from a model of flow"):
        flow_map.require_teacher(make_stage(ddim()), "mine", 50)


def test_students_are_sampled_on_their_teachers_noise() -> None:
    lcm = consistency.student_scheduler(ddim(beta_start=0.002, num_train_timesteps=500), 10)
    assert isinstance(lcm, LCMScheduler) and lcm.config.original_inference_steps == 10
    assert (lcm.config.beta_start, lcm.config.num_train_timesteps, lcm.config.clip_sample) == (0.002, 500, False)
    flow = consistency.student_scheduler(FLOW, 10)
    assert isinstance(flow, FlowMatchLCMScheduler) and flow.config.shift == 3.0
    assert flow_map.student_scheduler(FLOW, 10).config.shift == 3.0


def test_a_flows_times_are_drawn_as_the_config_says() -> None:
    """By its noise levels' mean: the logistic function of 2, nearly."""
    stage = make_stage(FlowMatchEulerDiscreteScheduler())
    seen: list[Tensor] = []
    stage.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    config = TrainContentConfig(latent_cache="x", output_dir="x", prediction_type="flow", logit_mean=2.0, logit_std=0.1)
    (player,) = diffusion.players(stage, config)
    player.loss(stage, {"content": torch.randn(500, 2, 3), "generator": torch.Generator().manual_seed(0)})
    logit = (seen[0] / (1000 - seen[0])).log()
    assert (logit.mean().item(), logit.std().item()) == (pytest.approx(2, abs=0.02), pytest.approx(0.1, abs=0.02))


def test_errors_by_quarters_of_the_schedule() -> None:
    split = diffusion.split_by_time(2.0 ** torch.arange(6), torch.tensor([0, 249, 250, 750, 999, 1000]), 1000)
    assert {name: value.item() for name, value in split.items()} == {
        "loss_t0-249#sum": 3, "loss_t0-249#count": 2, "loss_t250-499#sum": 4, "loss_t250-499#count": 1,
        "loss_t500-749#sum": 0, "loss_t500-749#count": 0, "loss_t750-999#sum": 56, "loss_t750-999#count": 3,
    }  # fmt: skip


class Fourfold(nn.Module):
    """An image VAE: latents are four times the pixels, scaled by a half."""

    config, dtype = FrozenDict(scaling_factor=0.5), torch.float32

    def encode(self, x: Tensor) -> dict[int, Tensor]:
        return {0: 4 * x}

    def decode(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=z / 4)


def test_latents_are_taken_or_made() -> None:
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3, 1, 1)
    made = reconstruction.latents_of({"frames": frames}, Fourfold())
    torch.testing.assert_close(made.flatten(), 2 * torch.tensor([-1, -0.6, 1]))
    assert reconstruction.latents_of({"latents": made, "frames": frames}, None) is made


def test_a_few_frames_are_judged_by_their_pixels_from_a_step_on() -> None:
    """The same of what is true and of what is decoded, which is 0.4 off in latents, 0.2 in pixels."""
    latents = torch.linspace(-1.2, 1.2, 18).view(2, 3, 3, 1, 1)
    seen: list[tuple[Tensor, Tensor]] = []

    def lpips(true: Tensor, decoded: Tensor) -> Tensor:
        seen.append((true, decoded))
        return (2 * decoded - true).mean((1, 2, 3))

    model: Any = lambda x: x + 0.4  # noqa: E731
    config: Any = SimpleNamespace(
        perceptual=PerceptualLoss(weight=3.0, start_step=3, frames=2, difference_weight=0.0)
    )  # fmt: skip
    (player,) = reconstruction.autoencoder_players(model, Fourfold(), lpips, config)  # type: ignore[arg-type]
    assert player.module is model

    def loss(step: int) -> dict[str, Tensor]:
        return player.loss(model, {"latents": latents, "step": step, "generator": torch.Generator().manual_seed(step)})

    early = loss(3)
    assert not seen and list(early) == ["loss"] and early["loss"].item() == pytest.approx(0.16)
    late = loss(4)
    ((true, decoded),) = seen
    pixels = (latents / 2).flatten(0, 1)  # of six frames
    chosen = [next(i for i, frame in enumerate(pixels) if torch.allclose(frame, row)) for row in true]
    assert sorted(i // 3 for i in chosen) == [0, 0, 1, 1] and len(set(chosen)) == 4
    torch.testing.assert_close(decoded, true + 0.2)
    distance = (true + 0.4).mean().item()
    assert {name: value.item() for name, value in late.items()} == pytest.approx(
        {"loss": 0.16 + 3 * distance, "mse": 0.16, "lpips": distance}
    )
    config.perceptual = PerceptualLoss(difference_weight=0.5)
    both = reconstruction.autoencoder_loss(model, {"latents": latents}, None, None, config.perceptual)
    assert list(both) == ["loss", "mse"] and both["mse"].item() == pytest.approx(0.16)


def test_drawn_frames_are_different_ones_of_each_clip_and_the_same_of_each_video() -> None:
    frames, clips = torch.arange(5.0).expand(400, 5), 10 * torch.arange(400.0)[:, None]
    video = (frames + clips)[..., None, None, None]
    one, other = reconstruction.draw_frames((video, -video), 2, torch.Generator().manual_seed(0))
    assert one.shape == (400, 2, 1, 1, 1) and torch.equal(one, -other)
    chosen = one[..., 0, 0, 0] - clips
    counts = [(chosen == k).sum().item() for k in range(5)]
    assert sum(counts) == 800 and all(count == pytest.approx(160, abs=45) for count in counts)
    assert (chosen[:, 0] != chosen[:, 1]).all()
    (whole,) = reconstruction.draw_frames((video,), 9, torch.Generator().manual_seed(0))
    assert torch.equal(whole.sort(dim=1).values, video)


def test_an_image_vae_decodes_what_a_little_noise_was_put_on(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.randn(8, 3, 4, 4)
    monkeypatch.setattr(reconstruction, "randn", lambda shape, source: noise)
    images = torch.randint(256, (8, 1, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    class Doubling(nn.Module):
        def encode(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(latents=2 * x)

        def decode(self, z: Tensor) -> SimpleNamespace:
            return SimpleNamespace(sample=z)

    vae, config = Doubling(), SimpleNamespace(latent_noise=0.3)
    (player,) = reconstruction.image_vae_players(vae, config)  # type: ignore[arg-type]
    losses = player.loss(vae, {"frames": images, "generator": torch.Generator()})
    x = images[:, 0].double() / 127.5 - 1
    spread = (2 * x).transpose(0, 1).flatten(1).std(dim=1)[:, None, None]
    expected = (2 * x + 0.3 * spread * noise - x).square().mean().item()
    assert player.module is vae and {k: v.item() for k, v in losses.items()} == pytest.approx({"loss": expected})


def test_divisors_of_any_precision_weigh_in_full() -> None:
    vae: Any = SimpleNamespace(divisors=torch.tensor([3.0, 1.0], dtype=torch.float64))
    weights: Any = reconstruction.channel_weights(vae, torch.zeros(1))
    assert weights.dtype == torch.float32 and weights.shape == (2, 1, 1)
    torch.testing.assert_close(weights.flatten(), torch.tensor([3.0, 1.0]) / math.sqrt(5))


class Wide(Plain):
    """Says a variance, too."""

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        return torch.cat([self.network.weight * noisy, 0.4 * torch.ones_like(noisy)], dim=1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_is_known_costs_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four frames the first two: what is lost is what is lost of the others, over all four."""
    stage = Wide({"unet": nn.Linear(1, 1, bias=False), "scheduler": ddim(prediction_type=kind)})
    content, noise = torch.randn(5, 2, 4, 3), torch.randn(5, 2, 4, 3)
    times = torch.tensor([1, 20, 300, 700, 999])
    monkeypatch.setattr(NoiseSchedule, "draw_times", lambda *args: times)
    losses = []
    for frames, extra in ((slice(4), {"known": torch.tensor([[True, True, False, False]] * 5)}), (slice(2, 4), {})):
        monkeypatch.setattr(diffusion, "randn", lambda shape, source, frames=frames: noise[:, :, frames])
        batch = {"content": content[:, :, frames], "generator": torch.Generator()} | extra
        losses.append(diffusion.diffusion_loss(stage, batch))
    for name in ("mse", "bound", "loss"):
        assert losses[0][name].item() == pytest.approx(losses[1][name].item() / 2, rel=1e-4), name
    with pytest.raises(ValueError, match="^learn_sigma is DDPM's: a model of flow matching has no variance to learn$"):
        diffusion.diffusion_loss(stage.replace(scheduler=FLOW), batch)


def test_what_a_critic_tells_apart_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it denoises without an error, the classifier's is left: ln 2 of a logit of 0, ln(1 + e) of 1."""
    logits = iter([torch.zeros(2, 1), -torch.ones(2, 1)])  # of samples, then of clips
    monkeypatch.setattr(matching, "student_sample", lambda *args: torch.ones(2, 3))
    monkeypatch.setattr(matching, "randn", lambda shape, source: torch.zeros(shape))
    monkeypatch.setattr(matching, "output_and_logits", lambda critic, noisy, *args: (0 * noisy, next(logits)))
    batch = {"content": torch.ones(2, 3), "generator": torch.Generator()}
    method = MethodSettings(gan_weight=1.0, critic_gan_weight=0.25)
    config = make_config(method=method, objective="distribution_matching")
    losses = matching.critic_loss(make_stage(ddim()), make_stage(ddim()), batch, config)
    told = math.log(2) + math.log(1 + math.e)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx({"gan_loss": told, "loss": told / 4})


def test_ratios_of_samples_to_clips() -> None:
    """Deviations by channel and item, where what a clip's channel lacks is its own deviation's ten-thousandth; motion
    by item. Geometric means of both."""
    true = torch.tensor([[[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]], [[40.0, -40.0, 40.0], [20.0, 0.0, 20.0]]])
    samples = torch.tensor([[[2.0, -2.0, 2.0], [0.0, 0.0, 0.0]], [[40.0, -40.0, 40.0], [5.0, 0.0, 5.0]]])
    ratios = consistency.compare_samples(samples, true, 2)
    assert {k: v.item() for k, v in ratios.items()} == pytest.approx(
        {"x0_std_ratio": (2 * 1 * 1 * 0.25) ** 0.25, "motion_ratio": (2 * 85 / 100) ** 0.5}
    )
    spoken = samples + 1e-3 * torch.tensor([[[0.0] * 3, [1.0, -1, 1]]])
    loud = consistency.compare_samples(spoken[:1], true[:1], None)
    least = 1e-4 * true[0].std().item()
    own = torch.tensor([1e-3, -1e-3, 1e-3]).std().item()
    assert list(loud) == ["x0_std_ratio"] and loud["x0_std_ratio"].item() == pytest.approx((2 * own / least) ** 0.5)
    assert list(consistency.compare_samples(samples[:, :, None], true[:, :, None], 2)) == ["x0_std_ratio"]


def test_a_flow_maps_two_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drawn by itself; what arrives is the mean velocity's way from the first."""
    drawn = iter([torch.tensor([100.0, 800.0]), torch.tensor([500.0, 300.0])])
    seen: list[Any] = []
    monkeypatch.setattr(NoiseSchedule, "draw_times", lambda *args: next(drawn))
    monkeypatch.setattr(flow_map, "rand", lambda shape, source: torch.ones(shape))
    monkeypatch.setattr(flow_map, "velocity_change", lambda *args: seen.append(args) or 0 * args[1])
    monkeypatch.setattr(flow_map, "compare_samples", lambda *args: seen.append(args) or {})
    student, condition = make_stage(), {"k": torch.ones(2)}
    monkeypatch.setattr(student, "encode", lambda *args: condition)
    student.network.weight.data.fill_(3.0)
    batch = {"content": torch.randn(2, 4, 3), "generator": torch.Generator().manual_seed(0)}
    flow_map.flow_map_loss(student, make_stage(), batch, make_config(guidance_scale=1.0))
    _, noisy, start, told, _ = seen[0]
    assert start.tolist() == [500, 800] and told.pop("target_timesteps").tolist() == [100, 300] and told == condition
    torch.testing.assert_close(seen[1][0], noisy - torch.tensor([0.4, 0.5])[:, None, None] * 3 * noisy)


def test_schedules_of_schedulers() -> None:
    flow = NoiseSchedule.of(FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True))
    assert flow.shift == 1.0 and flow.is_flow, "it depends on the picture's size in sampling"
    config = FrozenDict(prediction_type="flow_prediction", num_train_timesteps=400, flow_shift=5.0)
    flow = NoiseSchedule.of(SimpleNamespace(config=config))
    assert (flow.shift, flow.num_train_timesteps) == (5.0, 400)
    assert NoiseSchedule.of(SimpleNamespace(config=FrozenDict(dict(config) | {"flow_shift": 1.0}))).shift == 1.0
    assert NoiseSchedule.of(ddim(num_train_timesteps=500)).num_train_timesteps == 500
    with pytest.raises(ValueError, match="^SimpleNamespace: neither a DDPM nor a flow-matching schedule$"):
        NoiseSchedule.of(SimpleNamespace(config=FrozenDict()))
