"""Consistency distillation: its formulas, one step by hand, the teacher untouched, exact resume, few-step sampling."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from contentmotion import diffusion
from contentmotion.config import DistillConfig, LoraSettings, MethodSettings, ScheduledEvaluation, TrainMotionConfig
from contentmotion.losses import consistency
from contentmotion.losses.consistency import consistency_loss, student_scheduler
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.sampling import resolve_sampling, warn_once
from contentmotion.stages.content.dit import DiTContent
from contentmotion.stages.stage import Stage
from contentmotion.train.distill import distill
from contentmotion.train.motion import train_motion
from families import FAMILIES
from tiny import make_content_dit, make_ddim

Configure = Callable[..., DistillConfig]
SEED = 12  # of a batch whose times include both ends of the schedule
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Linear(torch.nn.Module):
    """Multiplies by a factor."""

    def __init__(self, factor: float, null_factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
        self.null_factor = null_factor


class LinearStage(Stage):
    """Predicts a multiple of its input; another multiple for dropped conditions."""

    name, field = "content", "content"

    @classmethod
    def of(cls, scheduler: Any, factor: float, null_factor: float = 0.0) -> "LinearStage":
        return cls({"unet": Linear(factor, null_factor), "scheduler": scheduler})

    def encode(self, batch: Any, dropped: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        size = len(batch["content"])
        return {"dropped": torch.zeros(size, dtype=torch.bool) if dropped is None else dropped}

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: Any):
        dropped = condition["dropped"].view(-1, *[1] * (noisy.dim() - 1))
        return torch.where(dropped, self.network.null_factor, self.network.factor) * noisy


@pytest.mark.parametrize(
    ("prediction_type", "zero_snr"),
    [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True)],
)
def test_loss_is_what_diffusers_schedulers_give(prediction_type: str, zero_snr: bool) -> None:
    """VideoLCM Eq. 4-5 item by item: DDIM's step of the guided teacher, LCM's output at both ends."""
    kind = {"prediction_type": prediction_type, "clip_sample": False, "beta_schedule": "scaled_linear"}
    kind |= {"rescale_betas_zero_snr": zero_snr}
    scheduler = DDIMScheduler(**kind, timestep_spacing="trailing", steps_offset=1)
    config = DistillConfig(part="content", latent_cache="c", output_dir="o", guidance_scale=3.0, huber_c=0.01)
    lcm = student_scheduler(scheduler, 50)
    student, target = LinearStage.of(lcm, 0.9), LinearStage.of(lcm, 0.7)
    teacher = LinearStage.of(scheduler, 0.8, null_factor=0.5)
    x0 = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    batch = {"content": x0, "generator": torch.Generator().manual_seed(SEED)}
    loss = consistency_loss(student, target, teacher, batch, config)["loss"]

    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(x0.shape, generator=generator)
    starts = (torch.randint(50, (6,), generator=generator) + 1) * 20 - 1
    assert 999 in starts and 19 in starts, "both ends of the schedule are among the times"
    torch.testing.assert_close(lcm.alphas_cumprod, scheduler.alphas_cumprod)
    lcm.set_timesteps(50)
    scheduler.set_timesteps(50)
    assert set(starts.tolist()) <= set(lcm.timesteps.tolist())
    total = 0.0
    with torch.no_grad():
        for i, start in enumerate(starts.tolist()):
            noisy = scheduler.add_noise(x0[i : i + 1], noise[i : i + 1], starts[i : i + 1])
            output = 0.5 * noisy + 3.0 * (0.8 - 0.5) * noisy
            earlier = scheduler.step(output, start, noisy).prev_sample
            end = start - 20
            if end < 0:  # the grid's last step lands on the schedule's first time
                stepped = scheduler.step(output, start, noisy)
                alpha = scheduler.alphas_cumprod[0]
                eps = (noisy - scheduler.alphas_cumprod[start].sqrt() * stepped.pred_original_sample) / (
                    1 - scheduler.alphas_cumprod[start]
                ).sqrt()
                earlier, end = alpha.sqrt() * stepped.pred_original_sample + (1 - alpha).sqrt() * eps, 0
            said = lcm_output(lcm, 0.9 * noisy, start, noisy)
            aim = lcm_output(lcm, 0.7 * earlier, end, earlier)
            total += (((said - aim).square() + 0.01**2).sqrt() - 0.01).mean().item() / len(x0)
    assert loss.item() == pytest.approx(total, rel=1e-4)
    loss.backward()
    gradients = [stage.network.factor.grad for stage in (student, target, teacher)]
    assert gradients[0] is not None and gradients[1:] == [None, None]


def lcm_output(lcm: LCMScheduler, output: torch.Tensor, timestep: int, sample: torch.Tensor) -> torch.Tensor:
    """``f(x, t)`` as diffusers' scheduler computes it on the way to its step."""
    if timestep == 0:
        return sample  # f(x, 0) = x
    lcm.set_timesteps(50)
    return lcm.step(output, timestep, sample).denoised


def test_consistency_function_starts_at_the_identity() -> None:
    c_skip, c_out = diffusion.consistency_scalings(torch.tensor([0, 19, 999]))
    assert (c_skip[0], c_out[0]) == (1, 0)
    assert c_skip[1] < 1e-4 and c_out[2] == pytest.approx(1, abs=1e-6)
    lcm = LCMScheduler()
    for i, t in enumerate((0, 19, 999)):
        assert lcm.get_scalings_for_boundary_condition_discrete(torch.tensor(t)) == pytest.approx(
            (c_skip[i].item(), c_out[i].item()), rel=1e-5
        )


@pytest.mark.parametrize("part", ["content", "motion"])
def test_student_samples_in_few_steps(root: Path, distill_config: Configure, part: str) -> None:
    teacher_files = {path: path.read_bytes() for path in (root / "teacher").rglob("*") if path.is_file()}
    distill(distill_config(f"student-{part}", part, validation_steps=2, validation_prompts=("square",)))
    assert {path: path.read_bytes() for path in teacher_files} == teacher_files
    assert (root / f"student-{part}/preview-000002.png").exists()
    lines = [json.loads(line) for line in (root / f"student-{part}/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and all(line["loss"] > 0 for line in lines)
    if part == "content":
        pipe = load_pipeline(
            f"{root}/student-content/content", f"{root}/ae/autoencoder", f"{root}/motion/motion_transformer"
        )
        student, scheduler = pipe.unet, pipe.scheduler
        teacher = load_pipeline(f"{root}/teacher").unet
    else:
        pipe = load_pipeline(f"{root}/teacher", motion_transformer=f"{root}/student-motion/motion_transformer")
        student, scheduler = pipe.motion_transformer, pipe.motion_scheduler
        teacher = load_pipeline(f"{root}/teacher").motion_transformer
    assert isinstance(scheduler, LCMScheduler) and scheduler.config.original_inference_steps == 50
    before, after = teacher.state_dict(), student.state_dict()
    assert before.keys() == after.keys() and any(not torch.equal(before[k], after[k]) for k in before)
    pipe.set_progress_bar_config(disable=True)
    passes = []
    student.register_forward_hook(lambda *_: passes.append(1))
    pipe("a moving square", output_type="np", motion_num_inference_steps=4)
    assert len(passes) == 4


def test_a_student_that_is_told_the_guidance_scale(
    root: Path, distill_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    """It begins as its teacher, is sampled with any scale in one pass a step, and keeps which it has learned."""
    teacher = load_pipeline(f"{root}/teacher").stages["content"]
    told, noisy = teacher.telling_guidance(teacher.network), torch.randn(1, 3, 16, 16)
    condition = teacher.encode(teacher.text_features(["a square"]))
    with torch.no_grad():
        expected = teacher(noisy, torch.tensor(500), condition)
        own = teacher.replace(unet=told)(noisy, torch.tensor(500), condition | {"guidance": torch.tensor([7.0])})
    torch.testing.assert_close(own, expected)
    settings = {"guidance_range": (1.0, 6.0), "validation_steps": 2, "learning_rate": 1e-2}
    distill(distill_config("told", "content", **settings))
    assert (root / "told/preview-000002.png").exists()
    pipe = load_pipeline(f"{root}/told/content", f"{root}/ae/autoencoder", f"{root}/motion/motion_transformer")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.time_cond_proj_dim == 256
    passes: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    frames = [
        pipe("square", num_inference_steps=2, guidance_scale=guidance, generator=torch.Generator().manual_seed(0),
             motion_num_inference_steps=1, output_type="latent").content_frame
        for guidance in (1.0, 5.0)
    ]  # fmt: skip
    assert passes == [1] * 4 and not torch.equal(*frames)

    warn_once.cache_clear()
    pipe.register_to_config(guidance_scale=9.0)
    with caplog.at_level(logging.WARNING):
        scales = [resolve_sampling(pipe, 2, 1, scale, 1.0).guidance_scale for scale in (None, 1.0, 6.0, 6.5)]
    assert scales == [6.0, 1.0, 6.0, 6.5], "the default is as near to the model's own as it has learned"
    ours = [record.message for record in caplog.records if record.name.startswith("contentmotion")]
    assert ours == [
        "the content model was told guidance scales from 1 to 6 in training: what it makes of 6.5 is a guess"
    ]


def test_what_cannot_be_told_the_guidance_scale(root: Path, distill_config: Configure) -> None:
    for changes in ({"part": "motion"}, {"lora": LoraSettings(rank=4)}):
        with pytest.raises(ValueError, match="--guidance_range is for --part content with all weights trained"):
            distill_config("bad", **{"part": "content"} | changes, guidance_range=(1.0, 6.0))
    with pytest.raises(ValueError, match="--guidance_range takes two guidance scales with --guidance_scale between"):
        distill_config("bad", "content", guidance_range=(4.0, 6.0))
    dit = DiTContent({"vae": None, "unet": make_content_dit(), "scheduler": make_ddim()})
    with pytest.raises(ValueError, match="no DiTTransformer2DModel is told the guidance scale"):
        dit.telling_guidance(dit.network)


def test_teacher_is_frozen_and_target_is_the_average(
    root: Path, distill_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple] = []
    original = consistency.consistency_loss

    def spy(student: Any, target: Any, teacher: Any, *args: Any) -> dict:
        seen.append(tuple(next(n.network.parameters()).detach().clone() for n in (student, target, teacher)))
        return original(student, target, teacher, *args)

    monkeypatch.setattr(consistency, "consistency_loss", spy)
    distill(distill_config("spied", "motion", max_train_steps=4, checkpointing_steps=4, ema_decay=0.5))
    first = seen[0][0]
    average = first
    for step, (student, target, teacher) in enumerate(seen):
        assert torch.equal(teacher, first), "the teacher never changes"
        if step:
            # diffusers' EMAModel starts gently: its decay is (1 + n) / (10 + n) until that exceeds the one asked for.
            n = step - 1
            decay = min(0.5, (1 + n) / (10 + n)) if n > 0 else 0.0
            average = decay * average + (1 - decay) * student
        torch.testing.assert_close(target, average, atol=1e-6, rtol=1e-5)
    assert not torch.equal(seen[-1][0], first)


def test_resume_is_exact(root: Path, distill_config: Configure) -> None:
    settings = {"max_train_steps": 4, "checkpoints_total_limit": 9, "content_noise": 0.1}
    distill(distill_config("whole", "motion", **settings))
    out = root / "whole"
    expected = load_file(out / "motion_transformer" / WEIGHTS)
    for step in (3, 4):  # as if it had been killed after step 2
        (out / f"checkpoint-{step:06d}").rename(out / f"gone-{step}")
    distill(distill_config("whole", "motion", **settings))
    again = load_file(out / "motion_transformer" / WEIGHTS)
    assert all(torch.equal(again[key], expected[key]) for key in expected)


def test_two_players_distil_and_resume_exactly(root: Path, distill_config: Configure) -> None:
    """The critic at every step, the student at every second one; both optimizers come back."""
    settings = {
        "objective": "distribution_matching",
        "method": MethodSettings(student_every=2),
        "max_train_steps": 4,
        "checkpoints_total_limit": 9,
    }
    distill(distill_config("matched", "motion", **settings))
    out = root / "matched"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [("model/loss" in line, "critic/loss" in line) for line in lines] == [(False, True), (True, True)] * 2
    pipe = load_pipeline(f"{root}/teacher", motion_transformer=f"{out}/motion_transformer")
    assert isinstance(pipe.motion_scheduler, LCMScheduler)
    expected = load_file(out / "motion_transformer" / WEIGHTS)
    teacher = load_pipeline(f"{root}/teacher").motion_transformer.state_dict()
    assert any(not torch.equal(teacher[key], expected[key]) for key in expected)
    for step in (3, 4):
        (out / f"checkpoint-{step:06d}").rename(out / f"gone-{step}")
    distill(distill_config("matched", "motion", **settings))
    again = load_file(out / "motion_transformer" / WEIGHTS)
    assert all(torch.equal(again[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match="--method.student_every is more than --max_train_steps"):
        distill_config("bad", "motion", **settings | {"method": MethodSettings(student_every=5)})


def test_lcm_sampling_equals_diffusers(root: Path) -> None:
    """The distilled content model in diffusers' own Stable Diffusion pipeline gives the same latents."""
    pipe = load_pipeline(f"{root}/teacher")
    pipe.scheduler = student_scheduler(pipe.scheduler, 50)
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed
    ours = pipe("square", num_inference_steps=3, output_type="latent", generator=seed(0)).content_frame
    stock = StableDiffusionPipeline(
        None, pipe.text_encoder, pipe.tokenizer, pipe.unet, pipe.scheduler, None, None, requires_safety_checker=False
    )  # type: ignore[arg-type]
    stock.vae_scale_factor = 1
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        "square", num_inference_steps=3, guidance_scale=1.0, output_type="latent", generator=seed(0),
        height=16, width=16,
    ).images  # fmt: skip
    assert torch.equal(ours, theirs)


def test_defaults_and_one_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = load_pipeline(f"{root}/teacher")
    assert resolve_sampling(pipe, None, None, None, 1.0).__dict__ == {
        "steps": 50, "motion_steps": 50, "guidance_scale": 4.0, "motion_guidance_scale": 1.0,
        "guidance_interval": None, "motion_guidance_interval": None, "guidance_rescale": 0.0,
        "motion_guidance_rescale": 0.0, "unguided_steps": 0, "told_guidance": False,
    }  # fmt: skip
    assert resolve_sampling(pipe, 7, None, None, 1.0).motion_steps == 7
    pipe.scheduler = student_scheduler(pipe.scheduler, 50)
    mixed = resolve_sampling(pipe, None, None, None, 1.0)
    assert (mixed.steps, mixed.motion_steps, mixed.guidance_scale) == (4, 50, 1.0)
    assert resolve_sampling(pipe, 2, None, None, 1.0).motion_steps == 50
    pipe.motion_scheduler = student_scheduler(pipe.motion_scheduler, 50)
    assert resolve_sampling(pipe, 2, None, None, 1.0).motion_steps == 2
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            resolve_sampling(pipe, 50, 4, 7.5, 1.0)
        resolve_sampling(pipe, 8, 8, 1.0, 1.0)
    assert [record.message for record in caplog.records] == [
        "the content model was distilled to sample in 1 to 8 steps, its guidance built in: 50 steps at guidance 7.5 "
        "cost more and look worse than 4 steps at guidance 1"
    ]


def test_a_stable_diffusion_folder_is_a_teacher(root: Path, distill_config: Configure) -> None:
    """Content alone, without autoencoder and motion model: what `train-content` writes, or the hub has."""
    folder = f"{root}/content/content"
    distill(distill_config("from-sd", "content", pretrained_model_name_or_path=folder, validation_steps=2))
    assert json.loads((root / "from-sd/content/model_index.json").read_text())["scheduler"][1] == "LCMScheduler"
    assert (root / "from-sd/preview-000002.png").exists()
    with pytest.raises(ValueError, match="content model has a LCMScheduler; a teacher is a model with a DDIMScheduler"):
        distill(distill_config("bad", "content", pretrained_model_name_or_path=f"{root}/from-sd/content"))
    with pytest.raises(ValueError, match="eval.steps needs an autoencoder"):
        distill(distill_config(
            "bad", "content", pretrained_model_name_or_path=folder, eval=ScheduledEvaluation(steps=1, data_dir="x")
        ))  # fmt: skip


def test_bad_input(root: Path, distill_config: Configure) -> None:
    with pytest.raises(ValueError, match="no such checkpoint: nowhere"):
        distill(distill_config("bad", "content", pretrained_model_name_or_path="nowhere"))
    with pytest.raises(ValueError, match="no latent cache"):
        distill(distill_config("bad", "content", latent_cache=f"{root}/teacher"))
    with pytest.raises(ValueError, match="ema_decay must be above 0, below 1, got 0"):
        distill_config("bad", "content", ema_decay=0.0)
    pipe = load_pipeline(f"{root}/teacher")
    pipe.scheduler = student_scheduler(pipe.scheduler, 50)
    pipe.save_pretrained(root / "distilled")
    with pytest.raises(ValueError, match="content model has a LCMScheduler; a teacher is a model with a DDIMScheduler"):
        distill(distill_config("bad", "content", pretrained_model_name_or_path=f"{root}/distilled"))


@pytest.mark.parametrize("part", ["content", "motion"])
def test_bad_teachers(root: Path, distill_config: Configure, tmp_path: Path, part: str) -> None:
    """One line for each: a student, no scheduler, no scheduler's config, epsilon on a schedule that ends in noise."""
    name = "scheduler" if part == "content" else "motion_scheduler"

    def refuse(change: Callable[[Path], Any], match: str) -> None:
        folder = shutil.copytree(root / "teacher", tmp_path / "teacher", dirs_exist_ok=True)
        change(folder)
        with pytest.raises(ValueError, match=match) as error:
            distill(distill_config("bad", part, pretrained_model_name_or_path=str(folder)))
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
        shutil.rmtree(folder)

    def edit(path: str, **changes: Any) -> Callable[[Path], Any]:
        def change(folder: Path) -> None:
            values = json.loads((folder / path).read_text()) | changes
            (folder / path).write_text(json.dumps(values))

        return change

    refuse(lambda folder: shutil.rmtree(folder / name), "cannot load .*scheduler|scheduler_config.json")
    refuse(edit("model_index.json", **{name: [None, None]}), f"no {name}|{part} model has no scheduler")
    config = f"{name}/scheduler_config.json"
    refuse(edit(config, prediction_type="epsilon", rescale_betas_zero_snr=True), r"predicts the noise \(epsilon\)")


def test_motion_model_of_another_vae_than_the_cache(root: Path, tmp_path: Path) -> None:
    config = TrainMotionConfig(
        latent_cache=f"{root}/cache", autoencoder=f"{root}/ae/autoencoder", pretrained_model_name_or_path="emoji",
        max_train_steps=1, report_to="none", output_dir=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(ValueError, match="cache was not made with this vae"):
        train_motion(config)


def test_cache_of_another_autoencoder(root: Path, distill_config: Configure, tmp_path: Path) -> None:
    other = shutil.copytree(root / "cache", tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"autoencoder": "another"}))
    with pytest.raises(ValueError, match="was not made with this autoencoder"):
        distill(distill_config("bad", "motion", latent_cache=str(other)))


def test_guidance_that_previews_could_not_show_is_said_before_training(tmp_path: Path) -> None:
    """Stable Diffusion 3's stock pipeline has no such guidance; training knows it."""
    FAMILIES["stable_diffusion_3"]().save_pretrained(tmp_path / "teacher")
    settings: dict[str, Any] = {
        "part": "content", "pretrained_model_name_or_path": f"{tmp_path}/teacher", "latent_cache": f"{tmp_path}/none",
        "output_dir": f"{tmp_path}/out", "guidance_rescale": 0.5, "max_train_steps": 10,
    }  # fmt: skip
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline has no such .*; --validation_steps 0 trains"):
        distill(DistillConfig(**settings))
    with pytest.raises(ValueError, match="no latent cache"):
        distill(DistillConfig(**settings, validation_steps=0))
