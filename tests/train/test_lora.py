"""Low-rank adapters: the base is untouched, what is saved loads in diffusers, training with them resumes exactly."""

import builtins
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet3DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from contentmotion import ContentMotionPipeline
from contentmotion.config import DistillConfig, LoraSettings
from contentmotion.losses import consistency
from contentmotion.losses.consistency import student_scheduler
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.stages.content.stable_diffusion import StableDiffusionContent
from contentmotion.stages.lora import add_adapters, merge_adapters, save_adapters
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import Stage
from contentmotion.train.distill import distill
from tiny import make_motion_dit

Configure = Callable[..., DistillConfig]
LORA = "lora/pytorch_lora_weights.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"


TARGETS = {"content": StableDiffusionContent.lora_targets, "motion": MotionStage.lora_targets}


class Tiny(Stage):
    name = "content"
    encode = forward = example = make = None  # type: ignore[assignment]


def with_adapters(network: torch.nn.Module, part: str, alpha: float | None = None) -> torch.nn.Module:
    """A copy of a frozen network with adapters that do something."""
    torch.manual_seed(3)
    adapted = copy.deepcopy(network.requires_grad_(False))
    add_adapters(adapted, 4, alpha, TARGETS[part])
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted


def stock(pipe: ContentMotionPipeline, unet: Any) -> Any:
    made = StableDiffusionPipeline(
        None, pipe.text_encoder, pipe.tokenizer, unet, pipe.scheduler, None, None, requires_safety_checker=False
    )  # type: ignore[arg-type]
    made.vae_scale_factor = 1
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe: Any) -> torch.Tensor:
    """A content frame of a stock pipeline."""
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    return pipe("square", **settings, generator=torch.Generator().manual_seed(0), height=16, width=16).images


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_stock_pipeline_with_the_adapters_is_the_student(root: Path, tmp_path: Path, alpha: float | None) -> None:
    pipe = load_pipeline(f"{root}/teacher")
    pipe.scheduler = student_scheduler(pipe.scheduler, 50)
    before = draw(stock(pipe, pipe.unet))
    student = with_adapters(pipe.unet, "content", alpha)
    expected = draw(stock(pipe, student))
    assert not torch.allclose(expected, before, atol=1e-2)
    save_adapters(StableDiffusionContent(pipe.components | {"unet": student}), tmp_path / "lora")

    theirs = stock(pipe, copy.deepcopy(pipe.unet))
    theirs.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(draw(theirs), expected, atol=1e-5, rtol=1e-5)
    assert torch.allclose(draw(stock(pipe, merge_adapters(student))), expected, atol=1e-4)

    ours = load_pipeline(f"{root}/teacher")
    ours.scheduler = LCMScheduler.from_pretrained(tmp_path / "lora")
    ours.load_lora_weights(tmp_path / "lora")
    ours.set_progress_bar_config(disable=True)
    frame = ours("square", num_inference_steps=3, output_type="latent", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(frame.content_frame, expected, atol=1e-5, rtol=1e-5)


def test_adapters_of_the_motion_model_and_of_a_video_unet() -> None:
    """Adapters on networks that diffusers has no LoRA loader for: same keys and class once they are merged."""
    motion = make_motion_dit(0.1, motion_channels=4, text_dim=8)
    content, z = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 4, 16)
    inputs = (z, torch.tensor([3, 500]), content, None, torch.randn(2, 8))
    adapted = with_adapters(motion, "motion").eval()
    assert not torch.allclose(adapted(*inputs), motion(*inputs), atol=1e-2)
    merged = merge_adapters(adapted)
    assert merged.state_dict().keys() == motion.state_dict().keys() and type(merged) is MotionDiT
    torch.testing.assert_close(merged(*inputs), adapted(*inputs), atol=1e-4, rtol=1e-4)

    unet = UNet3DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    video = with_adapters(unet, "content").eval()
    inputs = (torch.randn(1, 4, 2, 8, 8), torch.tensor([5]), torch.randn(1, 3, 8))
    assert not torch.allclose(video(*inputs).sample, unet(*inputs).sample, atol=1e-2)
    torch.testing.assert_close(merge_adapters(video)(*inputs).sample, video(*inputs).sample, atol=1e-3, rtol=1e-3)


def test_a_copy_shares_what_is_frozen() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4)).requires_grad_(False)
    student = Tiny({"unet": copy.deepcopy(network, {id(p): p for p in network.parameters()})})
    add_adapters(student.network, 2, None, ("2",))
    assert [name for name, p in student.named_parameters() if p.requires_grad] == [
        "unet.2.lora_A.default.weight", "unet.2.lora_B.default.weight",
    ]  # fmt: skip
    x = torch.randn(3, 4)
    assert torch.equal(student.network(x), network(x)), "adapters start as nothing"
    target = student.twin()
    own, copied = student.network, target.network
    assert own[0].weight is network[0].weight is copied[0].weight
    assert own[2].lora_A.default.weight is not copied[2].lora_A.default.weight
    assert torch.equal(own[2].lora_A.default.weight, copied[2].lora_A.default.weight)
    assert not any(p.requires_grad for p in target.parameters())


@pytest.mark.parametrize("part", ["content", "motion"])
def test_only_adapters_train_and_the_target_follows(
    root: Path, distill_config: Configure, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict, dict, dict]] = []
    original = consistency.consistency_loss

    def spy(*roles: Any) -> dict:
        states = tuple({k: v.clone() for k, v in r.network.state_dict().items()} for r in roles[:3])
        seen.append(states)
        return original(*roles)

    monkeypatch.setattr(consistency, "consistency_loss", spy)
    config = distill_config(
        f"lora-{part}", part, max_train_steps=3, ema_decay=0.5, learning_rate=1e-2,
        gradient_checkpointing=True, validation_steps=3,
        # This hardly trained teacher's blocks still are the identity: adapters inside would get no gradient.
        lora=LoraSettings(rank=2, target_modules=("proj_out",) if part == "motion" else ()),
    )  # fmt: skip
    distill(config)
    assert (root / f"lora-{part}/preview-000003.png").exists()
    base = seen[0][2]
    for student, target, teacher in seen:
        assert all(torch.equal(teacher[k], base[k]) for k in base)
        assert all(torch.equal(student[k], target[k]) for k in student if "lora" not in k)
        assert all(torch.equal(student[k], base[k.replace(".base_layer", "")]) for k in student if "lora" not in k)
    adapters = [k for k in seen[0][0] if "lora" in k]
    average = {k: seen[0][0][k] for k in adapters}
    for step, (student, target, _) in enumerate(seen):
        decay = min(0.5, step / (9 + step)) if step > 1 else 0.0  # diffusers' EMAModel starts gently
        average = {k: decay * average[k] + (1 - decay) * student[k] for k in adapters}
        assert all(torch.allclose(target[k], average[k], atol=1e-6) for k in adapters)
    assert any(not torch.equal(seen[-1][0][k], seen[0][0][k]) for k in adapters)

    out = root / f"lora-{part}"
    name = "content/unet" if part == "content" else "motion_transformer"
    saved = load_file(out / name / WEIGHTS)
    assert saved.keys() == base.keys() and any(not torch.equal(saved[k], base[k]) for k in saved)
    assert (out / LORA).exists() == (part == "content")
    if part == "content":  # the two files say the same
        with safe_open(out / LORA, "pt") as file:
            assert all(key.startswith("unet.") and ".lora" in key for key in file.keys())  # noqa: SIM118
        pipe = load_pipeline(f"{root}/teacher")
        pipe.scheduler = LCMScheduler.from_pretrained(out / "lora")
        fused = ContentMotionPipeline.from_pretrained(out / "content").unet
        expected = draw(stock(pipe, fused))
        adapted = stock(pipe, pipe.unet)
        adapted.load_lora_weights(out / "lora")
        torch.testing.assert_close(draw(adapted), expected, atol=1e-4, rtol=1e-4)


def test_resume_is_exact(root: Path, distill_config: Configure) -> None:
    settings = {"max_train_steps": 4, "checkpoints_total_limit": 9, "lora": LoraSettings(rank=2)}
    distill(distill_config("lora-whole", "content", **settings))
    out = root / "lora-whole"
    expected = load_file(out / LORA)
    for step in (3, 4):  # as if it had been killed after step 2
        (out / f"checkpoint-{step:06d}").rename(out / f"gone-{step}")
    distill(distill_config("lora-whole", "content", **settings))
    again = load_file(out / LORA)
    assert all(torch.equal(again[key], expected[key]) for key in expected)


def test_bad_input(distill_config: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no layer of the UNet2DConditionModel is called nothing"):
        distill(distill_config("bad", "content", lora=LoraSettings(rank=2, target_modules=("nothing",))))
    with pytest.raises(ValueError, match="need --lora.rank"):
        LoraSettings(alpha=2.0)
    original = builtins.__import__

    def without_peft(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError("no peft")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ImportError, match=r'^--lora.rank needs PEFT: pip install "contentmotion\[lora\]"$'):
        add_adapters(torch.nn.Linear(2, 2), 2, None, ("x",))
