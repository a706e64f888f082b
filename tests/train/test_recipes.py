"""The recipes through the command line: the paper's with all their layers, narrow and on small clips, three steps each;
the tiny one as it is."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from contentmotion.cli import main
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import MotionDiT

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZE = "--num_frames 4 --height 16 --width 16"
STEP = (
    "--max_train_steps 3 --train_batch_size 2 --gradient_accumulation_steps 1 --logging_steps 1 --validation_steps 0"
    " --report_to none --mixed_precision no --dataloader_num_workers 0"
)
NARROW = "--hidden_size 16 --num_heads 2"


def run(command: str, recipe: str, stage: str, *flags: str) -> None:
    words = [word for flag in flags for word in flag.split()]
    assert main([command, "--config", str(CONFIGS / recipe / f"{stage}.yaml"), *words]) == 0


@pytest.fixture(scope="module")
def tiny(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's image model, standing in for Stable Diffusion: same layout, other sizes."""
    root = tmp_path_factory.mktemp("tiny")
    data = f"--train_data_dir {clip_folder} {SIZE}"
    run("train-vae", "tiny", "vae", data, STEP, f"--output_dir {root}/vae")
    vae, ae = f"--vae {root}/vae/vae", f"{root}/ae/autoencoder"
    run("train-autoencoder", "tiny", "autoencoder", data, STEP, vae, f"--output_dir {root}/ae")
    run("encode", "tiny", "encode", data, vae, f"--autoencoder {ae} --output_dir {root}/cache")
    run("train-content", "tiny", "content", STEP, vae, f"--cache_dir {root}/cache --output_dir {root}/content")
    return root


@pytest.mark.parametrize("recipe", ["ucf101", "webvid-sd15", "webvid-sd21"])
def test_paper_recipe_takes_steps(recipe: str, clip_folder: Path, tiny: Path, tmp_path: Path) -> None:
    data = f"--train_data_dir {clip_folder} {SIZE}"
    text = recipe != "ucf101"
    vae = f"--vae {tiny}/vae/vae" if text else ""
    image_model = f"--pretrained_model_name_or_path {tiny}/content/content" if text else ""
    ae = f"--autoencoder {tmp_path}/ae/autoencoder"
    cache = f"--cache_dir {tmp_path}/cache"
    narrow_dit = "" if text else NARROW
    content_patch = "--content_patch_size 4" if text else ""  # 8 does not divide the small frames
    run("train-autoencoder", recipe, "autoencoder", data, STEP, vae, NARROW, f"--head_dim 8 --output_dir {tmp_path}/ae")
    run("encode", recipe, "encode", data, vae, ae, f"--output_dir {tmp_path}/cache")
    run("train-content", recipe, "content", STEP, cache, image_model, narrow_dit, f"--output_dir {tmp_path}/content")
    run(
        "train-motion", recipe, "motion", STEP, cache, image_model, NARROW, ae, content_patch,
        f"--output_dir {tmp_path}/motion",
    )  # fmt: skip
    for stage in ("ae", "content", "motion"):
        lines = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3], stage
    parts = (tmp_path / "content/content", tmp_path / "motion/motion_transformer")
    assert all(any(part.rglob("*.safetensors")) for part in parts)


@pytest.mark.parametrize("recipe", ["ucf101", "webvid-sd15", "webvid-sd21"])
def test_paper_recipe_builds_at_full_size(recipe: str) -> None:
    """On the meta device: forward and backward pass of the autoencoder and the motion model."""
    own = yaml.safe_load((CONFIGS / recipe / "autoencoder.yaml").read_text())
    own_motion = yaml.safe_load((CONFIGS / recipe / "motion.yaml").read_text())
    pixels = recipe == "ucf101"
    channels, factor = (3, 1) if pixels else (4, 8)
    h, w = (own.get(name, 64) // factor for name in ("height", "width"))
    with torch.device("meta"):
        autoencoder = ContentMotionAutoencoder(
            in_channels=channels, residual_decoding=own["residual_decoding"], content_mode="softmax"
        )
        sizes = {k: own_motion[k] for k in ("hidden_size", "depth", "content_patch_size") if k in own_motion}
        condition = {"num_classes": 101} if pixels else {"text_dim": 1024}
        motion = MotionDiT(content_channels=channels, learn_sigma=own_motion["learn_sigma"], **condition, **sizes)
        x = torch.empty(1, 16, channels, h, w)
        encoded = autoencoder.encode(x)
        decoded = autoencoder.decode(encoded.content, encoded.motion_latent)
        given = {"class_labels": torch.zeros(1, dtype=torch.long)} if pixels else {"pooled_text": torch.empty(1, 1024)}
        output = motion(encoded.motion_latent, torch.zeros(1, dtype=torch.long), encoded.content, **given)
    assert decoded.shape == x.shape
    assert output.shape == (1, 16, 16, (h + w) // 2)
    (decoded.square().mean() + output.square().mean()).backward()
    assert all(p.grad is not None for p in autoencoder.parameters())
    assert 75e6 < autoencoder.num_parameters() < 85e6
    assert motion.num_parameters() / 1e6 == pytest.approx(460 if pixels else 680, rel=0.03)
