"""Each family from its stock folder: encoded, fine-tuned in full and with adapters, moved; what stock pipelines make of
the results."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from contentmotion.commands.encode import encode
from contentmotion.config import EncodeConfig, LoraSettings, TrainContentConfig
from contentmotion.data.cache import LatentCache, collate_latents
from contentmotion.losses.diffusion import diffusion_loss
from contentmotion.stages.content import content_stage, load_content
from contentmotion.train.content import train_content
from families import FAMILIES as TRANSFORMERS
from families import PROMPTS
from tiny import CLIPS, STEPS, make_autoencoder, make_stable_diffusion, make_stable_diffusion_xl

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
FAMILIES: dict[str, Callable[[], Any]] = {
    "stable_diffusion": make_stable_diffusion, "stable_diffusion_xl": make_stable_diffusion_xl, **TRANSFORMERS
}  # fmt: skip
SIZES = {"sana": 64}  # pixels of a clip's side, where not 16
LATENTS = {
    "stable_diffusion": (4, 8),
    "stable_diffusion_xl": (4, 8),
    "stable_diffusion_3": (16, 8),
    "sana": (8, 4),
    "flux2_klein": (16, 4),
    "z_image": (16, 8),
}


@pytest.fixture(scope="module")
def family(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's stock folder ``stock``, an untrained autoencoder ``ae`` of its latents, and a ``cache`` with features
    per token."""

    @cache
    def make(name: str) -> Path:
        root = tmp_path_factory.mktemp(name)
        FAMILIES[name]().save_pretrained(root / "stock")
        channels, side = LATENTS[name]
        autoencoder = make_autoencoder(in_channels=channels, sample_height=side, sample_width=side, patch_size=2)
        autoencoder.save_pretrained(root / "ae")
        side = SIZES.get(name, 16)
        encode(
            EncodeConfig(
                train_data_dir=str(clip_folder), **CLIPS | {"height": side, "width": side}, vae=f"{root}/stock",
                autoencoder=f"{root}/ae", pretrained_model_name_or_path=f"{root}/stock", text_features="tokens",
                output_dir=f"{root}/cache", cache_dtype="fp32",
            )
        )  # fmt: skip
        return root

    return make


def loss_of(folder: Path, cache_dir: Path) -> float:
    """The training loss of a folder's content model, over fixed noise and times."""
    stage, latents = load_content(str(folder)), LatentCache(cache_dir)
    losses = []
    for seed in range(4):
        batch = collate_latents([latents[i] for i in range(4)]) | {"generator": torch.Generator().manual_seed(seed)}
        with torch.no_grad():
            losses.append(diffusion_loss(stage, batch)["loss"].item())
    return sum(losses) / len(losses)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a pipeline's folder, by part and name."""
    found = {}
    for file in folder.rglob("*.safetensors"):
        found |= {f"{file.parent.name}/{name}": value for name, value in load_file(file).items()}
    return found


def draw(pipe: Any, name: str) -> torch.Tensor:
    """A stock pipeline's picture."""
    pipe.set_progress_bar_config(disable=True)
    side = SIZES.get(name, 16)
    stage = content_stage(pipe.components)
    return pipe(
        prompt=PROMPTS[0], height=side, width=side, num_inference_steps=2, guidance_scale=stage.stock_guidance(1.0),
        output_type="pt", generator=torch.Generator().manual_seed(0), **stage.stock_arguments,
    ).images  # fmt: skip


def config(root: Path, output: str, **changes: Any) -> TrainContentConfig:
    settings = STEPS | {"max_train_steps": 12, "checkpointing_steps": 12, "learning_rate": 4e-3, "train_batch_size": 4}
    return TrainContentConfig(
        **settings | changes, latent_cache=f"{root}/cache", pretrained_model_name_or_path=f"{root}/stock",
        output_dir=f"{root}/{output}", ema_decay=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_fine_tuning(name: str, family: Callable[[str], Path]) -> None:
    """A dozen steps lower the loss, change the denoiser alone, and the stock pipeline's picture."""
    root = family(name)
    train_content(config(root, "content"))
    before, after = loss_of(root / "stock", root / "cache"), loss_of(root / "content/content", root / "cache")
    assert after < 0.97 * before
    old, new = weights(root / "stock"), weights(root / "content/content")
    assert old.keys() == new.keys()
    changed = {key.partition("/")[0] for key, value in old.items() if not torch.equal(value, new[key])}
    assert changed == {"unet" if name.startswith("stable_diffusion") and "3" not in name else "transformer"}
    index, again = (
        json.loads((f / "model_index.json").read_text()) for f in (root / "stock", root / "content/content")
    )
    assert index == again
    pictures = [draw(DiffusionPipeline.from_pretrained(f), name) for f in (root / "stock", root / "content/content")]
    assert (pictures[0] - pictures[1]).abs().mean() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters(name: str, family: Callable[[str], Path]) -> None:
    """The adapters alone change the stock pipeline's picture as the folder does that they are merged in."""
    root = family(name)
    settings = {"lora": LoraSettings(rank=2), "learning_rate": 1e-2, "max_train_steps": 8}
    train_content(config(root, "adapted", **settings, gradient_checkpointing=True))
    assert loss_of(root / "adapted/content", root / "cache") < loss_of(root / "stock", root / "cache")
    stock = DiffusionPipeline.from_pretrained(root / "stock")
    plain = draw(stock, name)
    stock.load_lora_weights(root / "adapted/lora")
    merged = draw(DiffusionPipeline.from_pretrained(root / "adapted/content"), name)
    torch.testing.assert_close(draw(stock, name), merged, atol=1e-4, rtol=1e-3)
    assert (plain - merged).abs().mean() > 1e-4


def test_what_a_family_does_not_do(family: Callable[[str], Path]) -> None:
    root = family("z_image")
    with pytest.raises(ValueError, match="train_text_encoder: the text encoders of a ZImageTransformer2DModel stay"):
        train_content(config(root, "refused", train_text_encoder=True))
    with pytest.raises(ValueError, match="was not made with this"):
        other = family("stable_diffusion_3")
        train_content(
            TrainContentConfig(
                **STEPS, latent_cache=f"{other}/cache", pretrained_model_name_or_path=f"{root}/stock",
                output_dir=f"{root}/refused",
            )
        )  # fmt: skip
