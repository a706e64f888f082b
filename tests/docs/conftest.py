"""A folder in which the documentation's commands can be given as they are written."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def workshop(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's folders, clips called ``my_videos`` and ``clips``, and small stand-ins of Stable Diffusion under
    its hub ids: a folder of a model's name goes before the hub."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("configs", "runs", "src"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("my_videos", "clips"):
        shutil.copytree(clip_folder, folder / name)
    first = folder / "stable-diffusion-v1-5/stable-diffusion-v1-5"
    make_stable_diffusion(first)
    (folder / "stabilityai").mkdir()
    (folder / "stabilityai/stable-diffusion-2-1-base").symlink_to(first)
    (folder / "VAE").symlink_to(first / "vae")
    return folder


def make_stable_diffusion(folder: Path) -> None:
    """A Stable Diffusion folder of real, untrained, tiny parts; latents of 4 channels, half as wide as the frames."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from contentmotion.stages.text import make_text_encoder

    torch.manual_seed(0)
    tokenizer, text_encoder = make_text_encoder(["a moving square"], vocab_size=300, hidden_size=32, num_layers=1)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=8,
            cross_attention_dim=32,
            norm_num_groups=8,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
