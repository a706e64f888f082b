"""Distilling a video model: with conditions, with LoRA, resumed; what the student is."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler
from safetensors.torch import load_file

from contentmotion.commands.encode import encode
from contentmotion.config import DistillConfig, EncodeConfig, LoraSettings, MethodSettings, TrainVideoConfig, VideoSizes
from contentmotion.cost.plan import print_plan
from contentmotion.losses import distribution_matching
from contentmotion.pipelines.loading import load_video_pipeline
from contentmotion.stages.video import VideoStage
from contentmotion.train.distill import distill, make_student
from contentmotion.train.video import train_video
from tiny import STEPS, UNET, make_ddim, make_text, make_video_unet

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
ENCODER = "condition_encoder/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def root(chain: Path) -> Path:
    """A teacher of pixels that takes sketches and masks (``run/video``), 4 frames of 16x16."""
    sizes = VideoSizes(num_attention_heads=2, **UNET)
    config = TrainVideoConfig(
        **STEPS, latent_cache=f"{chain}/latents", conditions=("sketch", "mask"), model=sizes, learning_rate=1e-3,
        output_dir=f"{chain}/run",
    )  # fmt: skip
    train_video(config)
    return chain


def distill_config(root: Path, name: str, **changes: Any) -> DistillConfig:
    given = {"pretrained_model_name_or_path": f"{root}/run/video", "latent_cache": f"{root}/latents", "part": "video"}
    given |= {"guidance_scale": 3.0, "learning_rate": 1e-3, "output_dir": f"{root}/{name}"}
    return DistillConfig(**STEPS | given | changes)


def run(root: Path, name: str, **changes: Any) -> Path:
    distill(distill_config(root, name, **changes))
    return root / name


def test_student_follows_conditions_in_few_steps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contentmotion.train.held_out.MIN_POINTS", 2)
    before = {path: path.read_bytes() for path in (root / "run/video").rglob("*") if path.is_file()}
    folder = run(root, "student", validation_steps=2, eval_latent_cache=f"{root}/unseen-latents")
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "preview-000002.png").exists()
    assert json.loads((folder / "best.json").read_text())["step"] == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert all(line["motion_ratio"] > 0 and line["x0_std_ratio"] > 0 for line in trained)
    pipe = load_video_pipeline(str(folder / "video"))
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, LCMScheduler) and pipe.condition_names == ("sketch", "mask")
    assert pipe.frame_rate == 8, "the clips'"
    sketch = torch.ones(1, 4, 1, 16, 16)
    videos: Any = pipe("a square", conditions={"sketch": sketch}, output_type="pt", generator=torch.Generator())
    assert videos.frames.shape == (1, 4, 3, 16, 16)
    teacher = load_file(root / "run/video" / WEIGHTS)
    student = load_file(folder / "video" / WEIGHTS)
    assert any(not torch.equal(teacher[name], student[name]) for name in teacher)
    parts = [load_file(f / "video" / ENCODER) for f in (root / "run", folder)]
    assert any(not torch.equal(parts[0][name], parts[1][name]) for name in parts[0])  # trained with it


@pytest.mark.parametrize("rank", [0, 2])
def test_a_student_has_no_dropout_of_its_own(rank: int) -> None:
    tokenizer, text_encoder = make_text()
    unet = make_video_unet()
    teacher = VideoStage({
        "vae": None, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": make_ddim(),
    })  # fmt: skip
    student = make_student(teacher, distill_config(Path("x"), "x", lora=LoraSettings(rank=rank)))
    shares = [
        [module.p for module in stage.network.modules() if isinstance(module, torch.nn.Dropout)]
        for stage in (teacher, student)
    ]
    assert max(shares[0]) > 0 == max(shares[1])
    critic = distribution_matching.players(student, teacher, distill_config(Path("x"), "x"))[1].module.network
    assert max(module.p for module in critic.modules() if isinstance(module, torch.nn.Dropout)) == 0


def test_lora_leaves_the_condition_encoder_alone(root: Path) -> None:
    folder = run(root, "lora", lora=LoraSettings(rank=2))
    parts = [load_file(f / "video" / ENCODER) for f in (root / "run", folder)]
    assert all(torch.equal(parts[0][name], parts[1][name]) for name in parts[0])
    teacher, student = (load_file(f / "video" / WEIGHTS) for f in (root / "run", folder))
    changed = {name for name in teacher if not torch.equal(teacher[name], student[name])}
    assert changed and all(".to_" in name or ".ff." in name for name in changed)


@pytest.mark.parametrize("objective", ["consistency", "distribution_matching"])
def test_resumed_is_the_same_as_not_stopped(root: Path, objective: str) -> None:
    """The critic's classifier, too, which tells nothing from anything at first."""
    settings: dict[str, Any] = {"objective": objective}
    if objective == "distribution_matching":
        settings |= {"method": MethodSettings(student_every=1, gan_weight=0.1)}
    whole = run(root, f"whole-{objective}", **settings)
    run(root, f"parts-{objective}", **settings, max_train_steps=1)
    parts = run(root, f"parts-{objective}", **settings)
    if "method" in settings:
        lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
        assert lines[0]["critic/gan_loss"] == pytest.approx(2 * math.log(2))
    one, other = (load_file(folder / "video" / WEIGHTS) for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_bad_input(root: Path, tiny_pipeline_dir: Path, clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="is not a video model"):
        run(root, "bad", pretrained_model_name_or_path=str(tiny_pipeline_dir))
    with pytest.raises(ValueError, match="was distilled|one that was distilled"):
        run(root, "bad", pretrained_model_name_or_path=f"{root}/student/video")
    encode(
        EncodeConfig(
            train_data_dir=str(clip_folder), num_frames=4, height=16, width=16, latents_only=True,
            output_dir=f"{root}/plain",
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match="holds no sketch"):
        run(root, "bad", latent_cache=f"{root}/plain")


def test_dry_run_counts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(distill_config(root, "dry"))
    print_plan(distill_config(root, "dry", lora=LoraSettings(rank=2)))
    assert capsys.readouterr().out.count("trained parameters") == 2 and not (root / "dry").exists()
