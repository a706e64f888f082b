"""Training video UNets: from scratch, inflated, with conditions; resume, bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

import warm
from contentmotion.commands.encode import encode
from contentmotion.config import DistillConfig, EncodeConfig, TrainVideoConfig, VideoSizes
from contentmotion.cost.plan import print_plan
from contentmotion.pipelines.loading import load_video_pipeline
from contentmotion.stages.content import load_content
from contentmotion.stages.video import VideoStage, make_condition_encoder
from contentmotion.train.distill import distill
from contentmotion.train.video import train_video
from tiny import STEPS, UNET

SETTINGS: dict[str, Any] = STEPS | {"learning_rate": 1e-3, "model": VideoSizes(num_attention_heads=2, **UNET)}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def cache(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pixels of whole clips, 4 frames of 16x16."""
    folder = tmp_path_factory.mktemp("video") / "latents"
    sizes = {"num_frames": 4, "height": 16, "width": 16}
    encode(EncodeConfig(train_data_dir=str(clip_folder), latents_only=True, output_dir=str(folder), **sizes))
    return folder


def settings(cache: Path, folder: Path, **changes: Any) -> TrainVideoConfig:
    return TrainVideoConfig(**SETTINGS | {"latent_cache": str(cache), "output_dir": str(folder)} | changes)


def test_from_scratch_with_conditions(cache: Path, tmp_path: Path) -> None:
    train_video(settings(cache, tmp_path / "run", conditions=("mask", "first_frame"), validation_steps=2))
    pipe = load_video_pipeline(str(tmp_path / "run/video"))
    assert pipe.condition_names == ("mask", "first_frame") and pipe.clip_shape == (4, 16, 16)
    assert (tmp_path / "run/preview-000002.png").exists()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    # In a process that has trained nothing, too: diffusers loads no class whose module is not imported.
    code = "import sys; from contentmotion.pipelines.loading import load_any_pipeline; load_any_pipeline(sys.argv[1])"
    process = warm.python(code, str(tmp_path / "run/video"))
    assert process.wait(240) == 0, process.communicate()
    # and on from there: the condition encoder is trained on, not made anew
    again = settings(
        cache, tmp_path / "again", conditions=("mask", "first_frame"), max_train_steps=1, learning_rate=1e-9,
        pretrained_model_name_or_path=str(tmp_path / "run/video"),
    )  # fmt: skip
    train_video(again)
    files = [
        tmp_path / f"{run}/video/condition_encoder/diffusion_pytorch_model.safetensors" for run in ("run", "again")
    ]
    first, second = (load_file(file) for file in files)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_resumed_is_the_same_as_not_stopped(cache: Path, tmp_path: Path) -> None:
    train_video(settings(cache, tmp_path / "whole", conditions=("mask",)))
    train_video(settings(cache, tmp_path / "parts", conditions=("mask",), max_train_steps=1))
    train_video(settings(cache, tmp_path / "parts", conditions=("mask",)))
    whole, parts = (load_file(tmp_path / run / "video" / WEIGHTS) for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_inflated_from_an_image_model(cache: Path, tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    name = str(tiny_pipeline_dir)  # 8-group norms, 3 channels: a Stable Diffusion UNet of pixels
    train_video(
        settings(cache, tmp_path / "run", pretrained_model_name_or_path=name, max_train_steps=1, learning_rate=1e-9)
    )
    pipe, parts = load_video_pipeline(str(tmp_path / "run/video")), load_content(name).components
    x, hidden = torch.randn(1, 3, 4, 16, 16), torch.randn(1, 5, 32)
    unet: UNet2DConditionModel = parts["unet"]
    with torch.no_grad():
        found = pipe.unet(x, 7, encoder_hidden_states=hidden).sample
        wanted = torch.stack([unet(f, 7, encoder_hidden_states=hidden).sample for f in x.unbind(2)], dim=2)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    # its conditions come later
    wide = settings(
        cache, tmp_path / "wide", pretrained_model_name_or_path=str(tmp_path / "run/video"), conditions=("mask",)
    )
    train_video(wide)
    assert load_video_pipeline(str(tmp_path / "wide/video")).condition_names == ("mask",)
    other = settings(
        cache, tmp_path / "no", pretrained_model_name_or_path=str(tmp_path / "wide/video"), conditions=("first_frame",)
    )
    with pytest.raises(ValueError, match="takes mask: give --conditions the same names"):
        train_video(other)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_clips_of_another_size_than_the_image_model(
    clip_folder: Path, tmp_path: Path, tiny_pipeline_dir: Path, checkpointing: bool
) -> None:
    """The model says the size it was trained on, and its previews, conditions included, and students have it too."""
    wide = {"num_frames": 2, "height": 16, "width": 24, "latents_only": True, "conditions": ("sketch",)}
    encode(EncodeConfig(train_data_dir=str(clip_folder), output_dir=f"{tmp_path}/cache", **wide))
    more = {"conditions": ("sketch",), "validation_steps": 1, "max_train_steps": 1}
    name = str(tiny_pipeline_dir)
    train_video(
        settings(
            tmp_path / "cache", tmp_path / "run", **more, pretrained_model_name_or_path=name,
            gradient_checkpointing=checkpointing,
        )
    )  # fmt: skip
    assert load_video_pipeline(str(tmp_path / "run/video")).clip_shape == (2, 16, 24)
    assert (tmp_path / "run/preview-000001.png").exists()
    distill(
        DistillConfig(
            part="video", pretrained_model_name_or_path=f"{tmp_path}/run/video", latent_cache=f"{tmp_path}/cache",
            output_dir=f"{tmp_path}/student", gradient_checkpointing=checkpointing, max_train_steps=1,
            train_batch_size=1, validation_steps=1, report_to="none", mixed_precision="no",
        )
    )  # fmt: skip
    assert load_video_pipeline(str(tmp_path / "student/video")).clip_shape == (2, 16, 24)


def test_conditions_come_from_the_batch_alone() -> None:
    def stage(*conditions: str) -> VideoStage:
        encoder = make_condition_encoder(VideoSizes(), 3, None, conditions)
        return VideoStage({"unet": torch.nn.Identity(), "condition_encoder": encoder})

    batch = {"latents": torch.randn(3, 4, 3, 8, 8), "generator": torch.Generator().manual_seed(5)}
    same = batch | {"generator": torch.Generator().manual_seed(5)}
    one, two = (stage("mask", "first_frame").prepare(b) for b in (batch, same))
    assert torch.equal(one["conditions"]["mask"], two["conditions"]["mask"])
    assert torch.equal(one["present"]["mask"], two["present"]["mask"])
    assert stage().prepare(batch) is batch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": ("sketch",)}, "holds no sketch: run `contentmotion encode --latents_only true --conditions"),
        ({"pretrained_model_name_or_path": "./nowhere"}, "no such checkpoint"),
        ({"vae": "emoji"}, "was not made with this vae"),
    ],
)
def test_bad_input(cache: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_video(settings(cache, tmp_path / "run", **changes))


def test_a_cache_of_content_frames_is_refused(clip_folder: Path, tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    shutil.copytree(tiny_pipeline_dir / "autoencoder", tmp_path / "ae")
    encode(
        EncodeConfig(
            train_data_dir=str(clip_folder), autoencoder=str(tmp_path / "ae"), output_dir=str(tmp_path / "cache"),
            num_frames=4, height=16, width=16,
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match="holds no latents of whole clips"):
        train_video(settings(tmp_path / "cache", tmp_path / "run"))


def test_dry_run_counts(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(settings(cache, tmp_path / "run", conditions=("mask",), gradient_checkpointing=True))
    assert "trained parameters" in capsys.readouterr().out and not (tmp_path / "run").exists()
