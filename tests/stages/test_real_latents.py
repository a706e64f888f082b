"""FLUX.2's real latents: emoji clips through a pretrained tiny autoencoder of them, whose weights lie outside the
repository."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from contentmotion import ContentMotionPipeline
from contentmotion.losses.diffusion import diffusion_loss
from contentmotion.pipelines.inputs import as_videos
from contentmotion.stages.content import content_stage
from contentmotion.stages.image_vae import decode_frames, encode_frames, vae_latent_channels, vae_scale_factor
from families import FAMILIES
from tiny import make_autoencoder, make_ddim, make_motion_dit

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from content_modes import load_taef2  # type: ignore[import-not-found]  # noqa: E402


@pytest.fixture(scope="module")
def clips(shared_data: Path) -> Tensor:
    """(4, 16, 3, 64, 64) in [-1, 1]."""
    paths = sorted((shared_data / "fluent-emoji-anim/videos").glob("*.mp4"))[::120]
    return as_videos("video", [str(path) for path in paths[:4]], 16, 64, 64, "crop")


@pytest.fixture(scope="module")
def vae(shared_data: Path, clips: Tensor) -> Any:
    """With the statistics of these clips' packed latents, as FLUX.2's own has those of its data."""
    return load_taef2(shared_data / "taef2", clips)


@pytest.fixture(scope="module")
def latents(vae: Any, clips: Tensor) -> Tensor:
    return encode_frames(vae, clips)


def test_clips_come_back(vae: Any, clips: Tensor, latents: Tensor) -> None:
    assert (vae_latent_channels(vae), vae_scale_factor(vae)) == (128, 16)
    assert latents.shape == (4, 16, 128, 4, 4)
    std, mean = torch.std_mean(latents, dim=(0, 1, 3, 4))
    torch.testing.assert_close(mean, torch.zeros(128), atol=1e-3, rtol=0)
    torch.testing.assert_close(std, torch.ones(128), atol=1e-2, rtol=0)
    error = (decode_frames(vae, latents) - clips).square().mean(dim=(1, 2, 3, 4)) / 4
    assert (-10 * error.log10()).mean() > 27


def test_an_autoencoder_learns_them(latents: Tensor) -> None:
    sizes = {"num_frames": 16, "sample_height": 4, "sample_width": 4, "patch_size": 1}
    model = make_autoencoder(in_channels=128, hidden_size=64, num_heads=2, head_dim=32, **sizes).train()
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(20):
        losses.append((model(latents) - latents).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.93 * losses[0]


def test_a_klein_of_these_latents(vae: Any, latents: Tensor) -> None:
    """Is trained on them, sampled by the stock pipeline, and decoded by the tiny autoencoder."""
    stock = FAMILIES["flux2_klein"]()
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel.from_config(stock.transformer.config, in_channels=128).eval()
    stock = type(stock)(**stock.components | {"transformer": transformer, "vae": vae})
    stage = content_stage(stock.components)
    batch: dict[str, Any] = {"content": latents[:, 0], "caption": ["a cat"] * 4}
    loss = diffusion_loss(stage, batch | {"generator": torch.Generator().manual_seed(0)})["loss"]
    loss.backward()
    assert 0.5 < loss < 10 and all(p.grad is not None for p in transformer.proj_out.parameters())
    sizes = {"num_frames": 16, "sample_height": 4, "sample_width": 4, "motion_mean": [0.0] * 2, "motion_std": [1.0] * 2}
    autoencoder = make_autoencoder(0.1, in_channels=128, patch_size=1, **sizes)
    motion = make_motion_dit(0.1, content_channels=128, text_dim=24)
    pipe = ContentMotionPipeline.from_image_pipeline(stock, autoencoder, motion, make_ddim("linear"))
    for one in (pipe, stock):
        one.set_progress_bar_config(disable=True)
    video = pipe("a cat", num_inference_steps=1, output_type="np", generator=torch.Generator().manual_seed(0))
    assert video.frames.shape == (1, 16, 64, 64, 3) and video.content_frame.std() > 0.01
