"""The recipes through the command line: the paper's with all their layers, narrow and on small clips, three steps each;
the tiny one as it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel

from contentmotion.cli import main
from contentmotion.config import CONDITION_NAMES
from contentmotion.cost.networks import build
from contentmotion.cost.plan import network_call
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.models.video_unet import enable_checkpointing, inflate_unet
from contentmotion.pipelines.loading import load_video_pipeline
from contentmotion.stages.video import VideoStage

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZE = "--num_frames 4 --height 16 --width 16"
STEP = (
    "--max_train_steps 3 --train_batch_size 2 --gradient_accumulation_steps 1 --logging_steps 1 --validation_steps 0"
    " --report_to none --mixed_precision no --dataloader_num_workers 0"
)
NARROW = "--model.hidden_size 16 --model.num_heads 2"


def run(command: str, recipe: str, stage: str, *flags: str) -> None:
    words = [word for flag in flags for word in flag.split()]
    assert main([command, "--config", str(CONFIGS / recipe / f"{stage}.yaml"), *words]) == 0


def steps(folder: Path) -> list[int]:
    """Those that a run noted."""
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tiny(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's image model, standing in for Stable Diffusion: same layout, other sizes."""
    root = tmp_path_factory.mktemp("tiny")
    data = f"--train_data_dir {clip_folder} {SIZE}"
    run("train-vae", "tiny", "vae", data, STEP, f"--output_dir {root}/vae")
    vae, ae = f"--vae {root}/vae/vae", f"{root}/ae/autoencoder"
    run("train-autoencoder", "tiny", "autoencoder", data, STEP, vae, f"--output_dir {root}/ae")
    run("encode", "tiny", "encode", data, vae, f"--autoencoder {ae} --output_dir {root}/cache")
    run("train-content", "tiny", "content", STEP, vae, f"--latent_cache {root}/cache --output_dir {root}/content")
    return root


@pytest.mark.parametrize("recipe", ["ucf101", "webvid-sd15", "webvid-sd21"])
def test_paper_recipe_takes_steps(recipe: str, clip_folder: Path, tiny: Path, tmp_path: Path) -> None:
    data = f"--train_data_dir {clip_folder} {SIZE}"
    text = recipe != "ucf101"
    vae = f"--vae {tiny}/vae/vae" if text else ""
    image_model = f"--pretrained_model_name_or_path {tiny}/content/content" if text else ""
    ae = f"--autoencoder {tmp_path}/ae/autoencoder"
    cache = f"--latent_cache {tmp_path}/cache"
    narrow_dit = "" if text else NARROW
    content_patch = "--model.content_patch_size 4" if text else ""  # 8 does not divide the small frames
    run(
        "train-autoencoder",
        recipe,
        "autoencoder",
        data,
        STEP,
        vae,
        NARROW,
        f"--model.head_dim 8 --output_dir {tmp_path}/ae",
    )
    run("encode", recipe, "encode", data, vae, ae, f"--output_dir {tmp_path}/cache")
    run("train-content", recipe, "content", STEP, cache, image_model, narrow_dit, f"--output_dir {tmp_path}/content")
    run(
        "train-motion", recipe, "motion", STEP, cache, image_model, NARROW, ae, content_patch,
        f"--output_dir {tmp_path}/motion",
    )  # fmt: skip
    for stage in ("ae", "content", "motion"):
        assert steps(tmp_path / stage) == [1, 2, 3], stage
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
            in_channels=channels, residual_decoding=own["model"]["residual_decoding"], content_mode="softmax"
        )
        sizes = own_motion["model"]
        condition = {"num_classes": 101} if pixels else {"text_dim": 1024}
        motion = MotionDiT(content_channels=channels, **condition, **sizes)
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


def test_videolcm_takes_steps(clip_folder: Path, tiny: Path, tmp_path: Path) -> None:
    """Stable Diffusion 2.1's UNet with all its blocks, narrow: inflated, taught conditions, distilled."""
    shutil.copytree(tiny / "content/content", tmp_path / "sd")
    text_width = json.loads((tmp_path / "sd/text_encoder/config.json").read_text())["hidden_size"]
    image_vae = json.loads((tmp_path / "sd/vae/config.json").read_text())
    shutil.rmtree(tmp_path / "sd/unet")
    UNet2DConditionModel(
        in_channels=image_vae["latent_channels"], out_channels=image_vae["latent_channels"], sample_size=8,
        block_out_channels=(32, 32, 64, 64), attention_head_dim=(1, 1, 2, 2), cross_attention_dim=text_width,
        use_linear_projection=True,
    ).save_pretrained(tmp_path / "sd/unet")  # fmt: skip
    image_model, cache = f"--pretrained_model_name_or_path {tmp_path}/sd", f"--latent_cache {tmp_path}/cache"
    run(
        "encode", "videolcm", "encode", image_model, f"--vae {tmp_path}/sd --train_data_dir {clip_folder}",
        "--num_frames 2 --height 32 --width 32 --conditions sketch --dataloader_num_workers 0",
        f"--output_dir {tmp_path}/cache",
    )  # fmt: skip
    learned = ("sketch", "mask", "first_frame")
    run(
        "train-video", "videolcm", "video", STEP, cache, image_model, f"--conditions {' '.join(learned)}",
        f"--output_dir {tmp_path}/teacher",
    )  # fmt: skip
    teacher = f"--pretrained_model_name_or_path {tmp_path}/teacher/video"
    run("distill", "videolcm", "distill", STEP, cache, teacher, f"--output_dir {tmp_path}/student")
    assert [steps(tmp_path / stage) for stage in ("teacher", "student")] == [[1, 2, 3]] * 2
    before, after = (load_video_pipeline(str(tmp_path / part / "video")) for part in ("teacher", "student"))
    assert len(after.unet.down_blocks) == 4 and set(after.condition_names) == set(learned)
    moved = [not torch.equal(a, b) for a, b in zip(before.unet.parameters(), after.unet.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)  # the first steps of the warm-up are too short for weights of 1


def test_videolcm_builds_at_full_size() -> None:
    """On the meta device: forward and backward pass of the inflated UNet with all conditions, blocks recomputed."""
    own = yaml.safe_load((CONFIGS / "videolcm/encode.yaml").read_text())
    frames, latent = 16, (4, own["height"] // 8, own["width"] // 8)
    meta = torch.device("meta")
    with meta:
        image_unet = build("unet-sd21", meta)
        encoder = ConditionEncoder(
            conditions=CONDITION_NAMES, latent_channels=4, vae_scale_factor=8, hidden_channels=64, out_channels=8
        )
        unet = inflate_unet(image_unet, frames, extra_channels=8)
        enable_checkpointing(unet)
        components = {"unet": unet, "condition_encoder": encoder, "text_encoder": build("clip-h", meta)}
        output = network_call(VideoStage(components), (frames, *latent))()
    assert output.shape == (1, frames, *latent)
    output.square().mean().backward()
    assert all(p.grad is not None for network in (unet, encoder) for p in network.parameters())
    temporal = unet.num_parameters() - sum(p.numel() for p in image_unet.parameters())
    assert unet.num_parameters() / 1e6 == pytest.approx(1410, rel=0.03) and temporal > 0.5e9, temporal
