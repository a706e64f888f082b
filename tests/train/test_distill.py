"""Consistency distillation: its formulas, one step by hand, the teacher untouched, exact resume, few-step sampling."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from contentmotion import diffusion
from contentmotion.config import (
    DistillConfig,
    EncodeConfig,
    ExportConfig,
    TrainAutoencoderConfig,
    TrainContentConfig,
    TrainMotionConfig,
)
from contentmotion.data.encode import encode
from contentmotion.export import export
from contentmotion.loading import load_pipeline
from contentmotion.sampling import _warn_once, resolve_sampling
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.content import train_content
from contentmotion.train.distill import consistency_loss, distill, make_lcm_scheduler
from contentmotion.train.motion import train_motion

STEPS: dict[str, Any] = {
    "max_train_steps": 2, "train_batch_size": 2, "logging_steps": 1, "checkpointing_steps": 1,
    "validation_steps": 0, "report_to": "none", "mixed_precision": "no", "lr_warmup_steps": 1,
}  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def root(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of pixels (``teacher``) and a cache, each part trained for two steps."""
    root = tmp_path_factory.mktemp("distill")
    data = {"train_data_dir": str(clip_folder), "num_frames": 4, "height": 16, "width": 16}
    sizes = {"hidden_size": 16, "depth": 1, "num_heads": 2}
    train_autoencoder(TrainAutoencoderConfig(**data, **STEPS, **sizes, head_dim=8, output_dir=f"{root}/ae"))
    encode(EncodeConfig(**data, autoencoder=f"{root}/ae/autoencoder", output_dir=f"{root}/cache"))
    common = STEPS | {"cache_dir": f"{root}/cache", "learning_rate": 1e-2}
    train_content(
        TrainContentConfig(
            **common, output_dir=f"{root}/content", block_out_channels=(32, 32), text_hidden_size=32,
            text_num_layers=1, vocab_size=600,
        )
    )  # fmt: skip
    parts = {"pretrained_model_name_or_path": f"{root}/content/content", "autoencoder": f"{root}/ae/autoencoder"}
    train_motion(TrainMotionConfig(**common, **parts, **sizes, content_patch_size=2, output_dir=f"{root}/motion"))
    motion = f"{root}/motion/motion_transformer"
    export(ExportConfig(**parts, motion_transformer=motion, output_dir=f"{root}/teacher", dtype="fp32"))
    return root


def distill_config(root: Path, name: str, part: str, **changes: Any) -> DistillConfig:
    settings: dict[str, Any] = STEPS | {
        "pretrained_model_name_or_path": f"{root}/teacher", "cache_dir": f"{root}/cache", "part": part,
        "output_dir": f"{root}/{name}", "learning_rate": 1e-3, "guidance_scale": 3.0,
    }  # fmt: skip
    return DistillConfig(**settings | changes)


class LinearDenoiser(torch.nn.Module):
    """Predicts a multiple of its input; another multiple for dropped conditions."""

    def __init__(self, factor: float, null_factor: float = 0.0) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
        self.null_factor = null_factor

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, batch: dict, dropped: torch.Tensor):
        return torch.where(diffusion.expand_to(dropped, noisy) > 0, self.null_factor, self.factor) * noisy


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_what_diffusers_schedulers_give(prediction_type: str) -> None:
    """VideoLCM Eq. 4-5 item by item: DDIM's step of the guided teacher, LCM's output at both ends."""
    kind = {"prediction_type": prediction_type, "clip_sample": False, "beta_schedule": "scaled_linear"}
    if prediction_type == "v_prediction":
        kind |= {"rescale_betas_zero_snr": True}
    scheduler = DDIMScheduler(**kind, timestep_spacing="trailing", steps_offset=1)
    config = DistillConfig(part="content", cache_dir="c", output_dir="o", guidance_scale=3.0, huber_c=0.01)
    student, target, teacher = LinearDenoiser(0.9), LinearDenoiser(0.7), LinearDenoiser(0.8, null_factor=0.5)
    x0 = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    batch = {"generator": torch.Generator().manual_seed(7)}
    loss = consistency_loss(student, target, teacher, batch, x0, scheduler, config)["loss"]

    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(x0.shape, generator=generator)
    starts = (torch.randint(50, (6,), generator=generator) + 1) * 20 - 1
    lcm = make_lcm_scheduler(scheduler, 50)
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
    assert student.factor.grad is not None and target.factor.grad is None and teacher.factor.grad is None


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
def test_student_samples_in_few_steps(root: Path, part: str) -> None:
    teacher_files = {path: path.read_bytes() for path in (root / "teacher").rglob("*") if path.is_file()}
    distill(distill_config(root, f"student-{part}", part, validation_steps=2, validation_prompts=("square",)))
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


def test_teacher_is_frozen_and_target_is_the_average(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contentmotion.train import distill as module

    seen: list[tuple] = []
    original = module.consistency_loss

    def spy(student: Any, target: Any, teacher: Any, *args: Any) -> dict:
        seen.append(tuple(next(n.transformer.parameters()).detach().clone() for n in (student, target, teacher)))
        return original(student, target, teacher, *args)

    monkeypatch.setattr(module, "consistency_loss", spy)
    distill(distill_config(root, "spied", "motion", max_train_steps=4, checkpointing_steps=4, ema_decay=0.5))
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


def test_resume_is_exact(root: Path) -> None:
    settings = {"max_train_steps": 4, "checkpoints_total_limit": 9, "content_noise": 0.1}
    distill(distill_config(root, "whole", "motion", **settings))
    out = root / "whole"
    expected = load_file(out / "motion_transformer" / WEIGHTS)
    for step in (3, 4):  # as if it had been killed after step 2
        (out / f"checkpoint-{step:06d}").rename(out / f"gone-{step}")
    distill(distill_config(root, "whole", "motion", **settings))
    again = load_file(out / "motion_transformer" / WEIGHTS)
    assert all(torch.equal(again[key], expected[key]) for key in expected)


def test_lcm_sampling_equals_diffusers(root: Path) -> None:
    """The distilled content model in diffusers' own Stable Diffusion pipeline gives the same latents."""
    pipe = load_pipeline(f"{root}/teacher")
    pipe.scheduler = make_lcm_scheduler(pipe.scheduler, 50)
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
    }  # fmt: skip
    assert resolve_sampling(pipe, 7, None, None, 1.0).motion_steps == 7
    pipe.scheduler = make_lcm_scheduler(pipe.scheduler, 50)
    mixed = resolve_sampling(pipe, None, None, None, 1.0)
    assert (mixed.steps, mixed.motion_steps, mixed.guidance_scale) == (4, 50, 1.0)
    assert resolve_sampling(pipe, 2, None, None, 1.0).motion_steps == 50
    pipe.motion_scheduler = make_lcm_scheduler(pipe.motion_scheduler, 50)
    assert resolve_sampling(pipe, 2, None, None, 1.0).motion_steps == 2
    _warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            resolve_sampling(pipe, 50, 4, 7.5, 1.0)
        resolve_sampling(pipe, 8, 8, 1.0, 1.0)
    assert [record.message for record in caplog.records] == [
        "the content model was distilled to sample in 1 to 8 steps, its guidance built in: 50 steps at guidance 7.5 "
        "cost more and look worse than 4 steps at guidance 1"
    ]


def test_bad_input(root: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint: nowhere"):
        distill(distill_config(root, "bad", "content", pretrained_model_name_or_path="nowhere"))
    with pytest.raises(ValueError, match="no latent cache"):
        distill(distill_config(root, "bad", "content", cache_dir=f"{root}/teacher"))
    with pytest.raises(ValueError, match="ema_decay must be positive"):
        distill_config(root, "bad", "content", ema_decay=0.0)
    pipe = load_pipeline(f"{root}/teacher")
    pipe.scheduler = make_lcm_scheduler(pipe.scheduler, 50)
    pipe.save_pretrained(root / "distilled")
    with pytest.raises(ValueError, match="content model has a LCMScheduler; a teacher is a model with a DDIMScheduler"):
        distill(distill_config(root, "bad", "content", pretrained_model_name_or_path=f"{root}/distilled"))
