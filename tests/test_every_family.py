"""Every command on a tiny folder of every family of image models, from the command line; and folders of families that
are not known, refused in a line by each command."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from contentmotion import ContentMotionPipeline
from contentmotion.cli import main
from contentmotion.config import DemoConfig
from contentmotion.demo.studio import Request, Studio
from contentmotion.stages.content import load_content
from contentmotion.stages.image_vae import vae_scale_factor
from contentmotion.stages.stage import make_scheduler
from families import FAMILIES as TRANSFORMERS
from tiny import make_content_dit, make_image_vae, make_stable_diffusion_xl

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
STEP = (
    "--max_train_steps 1 --train_batch_size 2 --validation_steps 0 --report_to none --mixed_precision no "
    "--ema_decay 0.5 --lr_warmup_steps 1"
)
SMALL = "--model.hidden_size 16 --model.depth 1 --model.num_heads 2"


def make_dit() -> Any:
    """A class-conditional DiT on a VAE's latents, as ``train-content`` saves one."""
    dit = make_content_dit(0.1, in_channels=4, out_channels=4, sample_size=8, num_embeds_ada_norm=2)
    return ContentMotionPipeline(vae=make_image_vae(levels=2), unet=dit, scheduler=make_scheduler("linear", None))


FAMILIES: dict[str, Callable[[], Any]] = {"stable_diffusion_xl": make_stable_diffusion_xl, **TRANSFORMERS}
FAMILIES["dit"] = make_dit  # Stable Diffusion has a test file for each command


def commands(root: Path, clips: Path, side: int, asked: str, i3d: Path) -> Iterator[str]:
    """What a user runs, in order, on the family's folder ``root/stock``."""
    stock, auto, cache, pipe = f"{root}/stock", f"{root}/auto/autoencoder", f"{root}/cache", f"{root}/pipeline"
    size = f"--num_frames 4 --height {side} --width {side}"
    train = f"train-autoencoder --train_data_dir {clips} {size} --vae {stock} --output_dir {root}/auto {STEP} {SMALL} "
    train += "--model.head_dim 8 --model.patch_size 2 --model.motion_channels 2"
    yield f"{train} --dry_run"
    yield train
    text = f"--pretrained_model_name_or_path {stock} --text_features tokens" if "--" not in asked else ""
    yield f"encode --train_data_dir {clips} {size} --vae {stock} --autoencoder {auto} {text} --output_dir {cache}"
    content = f"train-content --latent_cache {cache} --pretrained_model_name_or_path {stock} {STEP}"
    yield f"{content} --output_dir {root}/content --dry_run"
    yield f"{content} --output_dir {root}/content"
    motion = f"train-motion --latent_cache {cache} --autoencoder {auto} {STEP} {SMALL} --model.content_patch_size 2 "
    motion += f"--pretrained_model_name_or_path {stock} --output_dir {root}/motion"
    yield f"{motion} --dry_run"
    yield motion
    parts = f"--autoencoder {auto} --motion_transformer {root}/motion/motion_transformer"
    yield f"export --pretrained_model_name_or_path {root}/content/content {parts} --output_dir {pipe} --dtype fp32"
    yield f"info {pipe}"
    distill = f"distill --part content --pretrained_model_name_or_path {pipe} --latent_cache {cache} {STEP} "
    yield f"{distill} --output_dir {root}/few --dry_run"
    yield f"{distill} --output_dir {root}/few"
    few = f"--pretrained_model_name_or_path {root}/few/content {parts} --num_inference_steps 1 --mixed_precision no"
    yield f"generate {asked} {few} --output_dir {root}/videos"
    sampled = f"--pretrained_model_name_or_path {pipe} --num_inference_steps 1 --mixed_precision no"
    yield f"evaluate --data_dir {clips} {sampled} --components content full --i3d {i3d} --output_dir {root}/scores"
    yield f"benchmark {pipe} --num_frames 4 --meta --output_dir {root}/benchmark"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("stable_diffusion_3", "z_image") else [])
        for name in FAMILIES
    ],
)
def test_every_command(
    name: str, clip_folder: Path, i3d_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # I3D itself has tests of its own, and takes seconds.
    monkeypatch.setattr(
        "contentmotion.evaluate.measures.i3d_features",
        lambda model, videos, **_: torch.nn.functional.pad(videos.double().mean(dim=(1, 2, 3)), (0, 397)),
    )
    FAMILIES[name]().save_pretrained(tmp_path / "stock")
    factor = vae_scale_factor(load_content(f"{tmp_path}/stock").components["vae"])
    by_class = name == "dit"
    for line in commands(tmp_path, clip_folder, 8 * factor, "--class_labels 1" if by_class else "rocket", i3d_file):
        assert main(line.split()) == 0, line
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 1
    scores = json.loads((tmp_path / "scores/scores.json").read_text())
    assert {"content", "full"} <= scores["parts"].keys()
    config = DemoConfig(pretrained_model_name_or_path=f"{tmp_path}/pipeline", mixed_precision="no", device="cpu")
    studio = Studio(config, tmp_path / "page")
    take = studio.generate(Request(prompt="1" if by_class else "rocket", steps=1), studio.main, lambda done, all: None)
    assert [file.suffix for file in take.files[0] if file.stat().st_size] == [".mp4", ".gif", ".png"]


UNKNOWN = {
    "PixArtSigmaPipeline": "PixArtTransformer2DModel",
    "FluxPipeline": "FluxTransformer2DModel",
    "AuraFlowPipeline": "AuraFlowTransformer2DModel",
}


@pytest.mark.parametrize("pipeline", UNKNOWN)
def test_unknown_families_are_refused_in_a_line(
    pipeline: str, chain: Path, clip_folder: Path, i3d_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By each command that takes an image model, before anything is written."""
    network = UNKNOWN[pipeline]
    stock, out = tmp_path / "stock", tmp_path / "out"
    index = {"_class_name": pipeline, "transformer": ["diffusers", network], "vae": ["diffusers", "AutoencoderKL"]}
    for path, settings in (("model_index.json", index), ("transformer/config.json", {"_class_name": network})):
        (stock / path).parent.mkdir(parents=True, exist_ok=True)
        (stock / path).write_text(json.dumps(settings))
    auto = f"--autoencoder {chain}/ae/autoencoder"
    parts = f"--pretrained_model_name_or_path {stock} {auto} --motion_transformer {chain}/motion/motion_transformer"
    content = f"--pretrained_model_name_or_path {stock} --latent_cache {chain}/cache"
    for line in (
        f"encode --train_data_dir {clip_folder} {auto} --pretrained_model_name_or_path {stock}",
        f"train-content {content}",
        f"train-content {content} --dry_run",
        f"train-motion {content} {auto}",
        f"train-motion {content} {auto} --dry_run",
        f"distill --part content {content}",
        f"distill --part content {content} --dry_run",
        f"generate rocket {parts}",
        f"export {parts}",
        f"evaluate --data_dir {clip_folder} --i3d {i3d_file} {parts}",
        f"demo {parts}",
        f"benchmark {stock} --meta",
    ):
        assert main([*line.split(), *(() if line.startswith("demo") else ("--output_dir", str(out)))]) == 1, line
        said = capsys.readouterr().err.strip()
        assert f"no family of image models with a {network} is known; known are Stable" in said, (line, said)
        assert "\n" not in said
        assert not out.exists() or not list(out.iterdir()), line
