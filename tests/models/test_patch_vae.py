"""The image VAE for small domains: principal components, and diffusers' way of calling a VAE."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderTiny

from contentmotion.models.patch_vae import PatchVAE
from contentmotion.saving import hash_weights
from contentmotion.stages.image_vae import (
    decode_frames,
    encode_frames,
    pixels_per_latent,
    vae_latent_channels,
    vae_scale_factor,
)
from contentmotion.video.pixels import to_float, to_uint8


def fitted(latent_channels: int, whitening: float = 0.0) -> tuple[PatchVAE, torch.Tensor]:
    """A VAE of 2x2 patches whose components were measured on smooth random images, and those images."""
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4), (8, 8), mode="bilinear") * 2 - 1
    vae = PatchVAE(latent_channels=latent_channels, block_out_channels=(8, 8), num_layers=1).eval()
    vae.fit_components(images, whitening)
    return vae, images


def test_all_components_lose_nothing() -> None:
    vae, images = fitted(12)
    torch.testing.assert_close(vae(images), images, atol=1e-5, rtol=0)


def test_components_are_orthonormal_sorted_and_best() -> None:
    vae, images = fitted(5)
    torch.testing.assert_close(vae.basis.T @ vae.basis, torch.eye(5), atol=1e-5, rtol=0)
    latents = vae.encode(images).latents
    variances = latents.var((0, 2, 3))
    assert (variances[:-1] >= variances[1:]).all()
    assert (latents.square().mean() * vae.config.scaling_factor**2).item() == pytest.approx(1, rel=1e-3)
    pixels = torch.nn.functional.pixel_unshuffle(images, 2).permute(0, 2, 3, 1).flatten(0, 2)
    singular = torch.linalg.svdvals((pixels - pixels.mean(0)).double())
    lost = (vae(images) - images).square().sum().item()
    assert lost == pytest.approx(singular[5:].square().sum().item(), rel=1e-3)


@pytest.mark.parametrize("whitening", [0.5, 1.0])
def test_whitened_components_differ_less_and_say_the_same(whitening: float) -> None:
    plain, images = fitted(5)
    white, _ = fitted(5, whitening)
    before = plain.encode(images).latents.std((0, 2, 3))
    scaled = white.encode(images).latents.std((0, 2, 3)) * white.config.scaling_factor
    torch.testing.assert_close(scaled / scaled[0], (before / before[0]) ** (1 - whitening), atol=1e-3, rtol=1e-2)
    assert scaled.square().mean().item() == pytest.approx(1, rel=0.02)
    torch.testing.assert_close(white(images), plain(images), atol=1e-5, rtol=0)
    white.conv_in, white.blocks = plain.conv_in, plain.blocks
    assert hash_weights(white) != hash_weights(plain), "a cache of the one is none of the other"


def test_components_that_are_not_there_are_not_blown_up() -> None:
    vae = PatchVAE(latent_channels=12, block_out_channels=(8, 8), num_layers=1).eval()
    flat = torch.rand(64, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, 8) * 2 - 1
    vae.fit_components(flat, whitening=1.0)
    noisy = flat + 0.003 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    latents = vae.encode(noisy).latents * vae.config.scaling_factor
    assert latents.std((0, 2, 3)).max() < 10


def test_frames_round_trip_through_the_vae() -> None:
    vae, images = fitted(12)
    frames = images.view(2, 32, 3, 8, 8)
    latents = encode_frames(vae, frames, chunk_size=7)
    assert latents.shape == (2, 32, 12, 4, 4)
    torch.testing.assert_close(decode_frames(vae, latents, chunk_size=5), frames, atol=1e-5, rtol=0)
    assert (vae_scale_factor(vae), vae_latent_channels(vae)) == (2, 12)
    assert (vae_scale_factor(None), vae_latent_channels(None)) == (1, 3)
    assert encode_frames(None, frames) is frames


def test_saved_and_loaded(tmp_path) -> None:
    vae, images = fitted(5, 0.5)
    vae.save_pretrained(tmp_path)
    again = PatchVAE.from_pretrained(tmp_path)
    torch.testing.assert_close(again.encode(images).latents, vae.encode(images).latents)
    torch.testing.assert_close(again(images), vae(images))
    assert again.config.scaling_factor == vae.config.scaling_factor


def test_pixels_to_bytes_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels).min() == -1 and to_float(levels).max() == 1


def test_too_many_channels() -> None:
    with pytest.raises(ValueError, match="at most 12, got 13"):
        PatchVAE(latent_channels=13, block_out_channels=(8, 8))


def test_pixels_per_latent_of_every_kind_of_vae() -> None:
    """One rule for what is loaded and for what lies on a disk."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    deep = AutoencoderDC(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), latent_channels=8, attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock"), decoder_block_types=("ResBlock", "ResBlock"),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
    )  # fmt: skip
    for vae, factor in ((None, 1), (tiny, 4), (deep, 2), (PatchVAE(block_out_channels=(8, 8, 8)), 4)):
        assert vae_scale_factor(vae) == factor
        assert vae is None or pixels_per_latent(vae.config) == factor
