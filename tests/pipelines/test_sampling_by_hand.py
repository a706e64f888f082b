"""What the pipelines sample, against loops written out here: guidance, DDIM's steps, motion statistics, conditions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from contentmotion import ContentMotionPipeline
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.pipelines.sampling import resolve_sampling
from contentmotion.pipelines.video_latent import VideoLatentPipeline
from tiny import (
    make_autoencoder,
    make_content_dit,
    make_ddim,
    make_image_unet,
    make_motion_dit,
    make_pipeline,
    make_text,
    make_video_unet,
)

PROMPTS = ["a crying cat", "rocket"]
STATISTICS = {"motion_mean": [3.0, -2.0], "motion_std": [0.25, 4.0]}  # far from 0 and 1
STEPS, STRIDE = 4, 250


@torch.no_grad()
def ddim(
    scheduler: Any, x: Tensor, guidance: float, predict: Callable[[Tensor, int, bool], Tensor],
    interval: tuple[int, int] = (0, 999), rescale: float = 0.0,
) -> Tensor:  # fmt: skip
    """Song et al. 2021, Eq. 12 with sigma = 0, of v (Salimans & Ho 2022) or the noise, at 999, 749, 499, 249.

    ``predict(x, t, null)`` is the network's output under the prompt or under the null condition.
    """
    for t in (999, 749, 499, 249):
        now = scheduler.alphas_cumprod[t]
        then = scheduler.alphas_cumprod[t - STRIDE] if t >= STRIDE else torch.tensor(1.0)
        null, conditional = (predict(x, t, is_null)[:, : x.shape[1]] for is_null in (True, False))
        output = (1 - guidance) * null + guidance * conditional
        if rescale:  # Lin et al. 2024, Eq. 15-16, item by item
            factors = [c.flatten().std() / g.flatten().std() for c, g in zip(conditional, output, strict=True)]
            output = torch.stack([(rescale * f + 1 - rescale) * g for f, g in zip(factors, output, strict=True)])
        if not interval[0] <= t <= interval[1]:
            output = conditional
        if scheduler.config.prediction_type == "v_prediction":
            x0, noise = now.sqrt() * x - (1 - now).sqrt() * output, now.sqrt() * output + (1 - now).sqrt() * x
        else:
            x0, noise = (x - (1 - now).sqrt() * output) / now.sqrt(), output
        x = then.sqrt() * x0 + (1 - then).sqrt() * noise
    return x


@torch.no_grad()
def read(tokenizer: Any, text_encoder: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """CLIP's last hidden states and its pooled feature."""
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    encoded = text_encoder(tokens)
    return encoded.last_hidden_state, encoded.pooler_output


def times(x: Tensor, t: int) -> Tensor:
    return torch.full((len(x),), t)


def text_models(negatives: list[str]) -> tuple[Any, Callable, Callable[[Tensor], Callable]]:
    """A text-to-video pipeline; its content model of (x, t, is_null); and of a content frame such a motion model."""
    pipe = make_pipeline(
        unet=make_image_unet(0.05), scheduler=make_ddim(prediction_type="v_prediction"),
        autoencoder=make_autoencoder(0.2, **STATISTICS), motion_transformer=make_motion_dit(0.1, text_dim=32),
        motion_scheduler=make_ddim("linear", prediction_type="v_prediction"),
    )  # fmt: skip
    given, null = (read(pipe.tokenizer, pipe.text_encoder, texts) for texts in (PROMPTS, negatives))

    def content_model(x: Tensor, t: int, is_null: bool) -> Tensor:
        return pipe.unet(x, t, encoder_hidden_states=null[0] if is_null else given[0]).sample

    def motion_model(content: Tensor) -> Callable[[Tensor, int, bool], Tensor]:
        return lambda x, t, is_null: pipe.motion_transformer(
            x, times(x, t), content, pooled_text=null[1] if is_null else given[1]
        )

    return pipe, content_model, motion_model


@torch.no_grad()
@pytest.mark.parametrize(("guidance", "motion_guidance"), [(6.0, 1.0), (1.0, 5.0), (4.0, 3.0)])
def test_text_to_video(guidance: float, motion_guidance: float) -> None:
    pipe, content_model, motion_model = text_models(negatives=["blurry", "blurry"])
    noise, motion_noise = torch.randn(2, 3, 16, 16), torch.randn(2, 2, 4, 16)
    content = ddim(pipe.scheduler, noise, guidance, content_model)
    motion = ddim(pipe.motion_scheduler, motion_noise, motion_guidance, motion_model(content))
    frames = pipe.autoencoder.decode(content, unstandardised(motion))
    out = pipe(
        PROMPTS, negative_prompt="blurry", num_inference_steps=STEPS, guidance_scale=guidance, output_type="latent",
        motion_guidance_scale=motion_guidance, latents=noise, motion_latents=motion_noise,
    )  # fmt: skip
    torch.testing.assert_close(out.content_frame, content, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(out.frames, frames, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("interval", "rescale", "motion_interval", "motion_rescale", "batches"),
    [
        ((300, 800), 0.0, None, 0.7, [2, 4, 4, 2] + [4] * 4),
        ((249, 749), 0.6, (900, 1000), 0.0, [2, 4, 4, 4] + [4, 2, 2, 2]),
    ],
)
def test_guidance_between_times_and_its_contrast_taken_back(
    interval: Any, rescale: float, motion_interval: Any, motion_rescale: float, batches: list[int]
) -> None:
    """Kynkaanniemi et al. 2024 and Lin et al. 2024, for both stages; a step without guidance is one pass."""
    pipe, content_model, motion_model = text_models(negatives=["", ""])
    noise, motion_noise = torch.randn(2, 3, 16, 16), torch.randn(2, 2, 4, 16)
    content = ddim(pipe.scheduler, noise, 6.0, content_model, interval, rescale)
    own = motion_interval or (0, 999)
    motion = ddim(pipe.motion_scheduler, motion_noise, 5.0, motion_model(content), own, motion_rescale)
    asked = {
        "guidance_scale": 6.0, "guidance_interval": interval, "guidance_rescale": rescale,
        "motion_guidance_scale": 5.0, "motion_guidance_interval": motion_interval,
        "motion_guidance_rescale": motion_rescale,
    }  # fmt: skip
    seen: list[int] = []
    for network in (pipe.unet, pipe.motion_transformer):
        network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    out = pipe(
        PROMPTS, num_inference_steps=STEPS, output_type="latent", latents=noise, motion_latents=motion_noise, **asked
    )
    assert seen == batches
    assert resolve_sampling(pipe, STEPS, None, **asked).passes == sum(batches) // 2
    torch.testing.assert_close(out.content_frame, content, atol=1e-4, rtol=1e-3)
    frames = pipe.autoencoder.decode(content, unstandardised(motion))
    torch.testing.assert_close(out.frames, frames, atol=1e-3, rtol=1e-3)


def test_intervals_and_shares_that_are_none() -> None:
    pipe = make_pipeline()
    for name in ("guidance", "motion_guidance"):
        for interval in ((900, 400), (400,), (-1, 4)):
            with pytest.raises(ValueError, match=f"^{name}_interval must be two times"):
                pipe("a cat", **{f"{name}_interval": interval})
        with pytest.raises(ValueError, match=f"^{name}_rescale must be from 0 to 1, got 1.5"):
            pipe("a cat", **{f"{name}_rescale": 1.5})


def unstandardised(motion: Tensor) -> Tensor:
    mean, std = (torch.tensor(STATISTICS[name]).view(1, 2, 1, 1) for name in ("motion_mean", "motion_std"))
    return motion * std + mean


@torch.no_grad()
def test_class_to_video() -> None:
    """Both models guided, with learned variances that sampling leaves out, and the noise predicted."""
    kind = {"prediction_type": "epsilon", "timestep_spacing": "trailing"}
    pipe = ContentMotionPipeline(
        unet=make_content_dit(0.1, out_channels=6), scheduler=make_ddim("linear", **kind),
        autoencoder=make_autoencoder(0.2, **STATISTICS),
        motion_transformer=make_motion_dit(0.1, num_classes=3, learn_sigma=True),
        motion_scheduler=make_ddim("linear", **kind),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    noise, motion_noise = torch.randn(2, 3, 16, 16), torch.randn(2, 2, 4, 16)
    labels, null = torch.tensor([2, 0]), torch.tensor([3, 3])

    def content_model(x: Tensor, t: int, is_null: bool) -> Tensor:
        return pipe.unet(x, timestep=times(x, t), class_labels=null if is_null else labels).sample

    def motion_model(x: Tensor, t: int, is_null: bool) -> Tensor:
        return pipe.motion_transformer(x, times(x, t), content, class_labels=null if is_null else labels)

    content = ddim(pipe.scheduler, noise, 4.0, content_model)
    motion = ddim(pipe.motion_scheduler, motion_noise, 3.0, motion_model)
    out = pipe(
        class_labels=[2, 0], num_inference_steps=STEPS, guidance_scale=4.0, motion_guidance_scale=3.0, latents=noise,
        motion_latents=motion_noise, output_type="latent",
    )  # fmt: skip
    scale = content.abs().max().item()
    torch.testing.assert_close(out.content_frame, content, atol=1e-4 * scale, rtol=1e-3)
    frames = pipe.autoencoder.decode(content, unstandardised(motion))
    torch.testing.assert_close(out.frames, frames, atol=1e-4 * frames.abs().max().item(), rtol=1e-3)


@torch.no_grad()
def test_text_and_map_to_video() -> None:
    """Guidance is of the prompt alone: the map is in both passes."""
    tokenizer, text_encoder = make_text()
    torch.manual_seed(0)
    encoder = ConditionEncoder(("mask",), latent_channels=3, vae_scale_factor=1, hidden_channels=8, out_channels=4)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipe = VideoLatentPipeline(
        vae=None, text_encoder=text_encoder, tokenizer=tokenizer, unet=make_video_unet(0.05, extra_channels=4),
        scheduler=make_ddim(prediction_type="v_prediction"), condition_encoder=encoder.eval(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    noise, mask = torch.randn(2, 4, 3, 16, 16), (torch.rand(2, 4, 1, 16, 16) > 0.5).float()
    channels = {"mask": torch.cat([mask, torch.rand(2, 4, 3, 16, 16)], dim=2)}
    given, null = read(tokenizer, text_encoder, PROMPTS)[0], read(tokenizer, text_encoder, ["", ""])[0]
    joined = encoder(channels, 4, 16, 16, present=None, batch_size=2)

    def model(x: Tensor, t: int, is_null: bool) -> Tensor:
        both = torch.cat([x, joined], dim=2).transpose(1, 2)
        return pipe.unet(both, t, encoder_hidden_states=null if is_null else given).sample.transpose(1, 2)

    # Slices of the channels, not of the frames: the loop above is about (b, c, ...).
    flipped = ddim(
        pipe.scheduler, noise.transpose(1, 2), 7.0,
        lambda x, t, is_null: model(x.transpose(1, 2), t, is_null).transpose(1, 2),
    )  # fmt: skip
    out = pipe(
        PROMPTS, conditions=channels, num_inference_steps=STEPS, guidance_scale=7.0, latents=noise, output_type="latent"
    )
    torch.testing.assert_close(out.frames, flipped.transpose(1, 2), atol=1e-3, rtol=1e-3)
