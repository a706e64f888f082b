"""Tiny real models, and the five commands that train them, in one place: a test takes what it is about as an argument,
and the rest from here.

An untrained model has the same weights every time; ``std`` draws every parameter anew with that deviation, for layers
that start at zero hide what comes before them. Heavy imports are inside the functions: tests of the command line do
without.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        DiTTransformer2DModel,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    from contentmotion import ContentMotionAutoencoder, ContentMotionPipeline, MotionDiT
    from contentmotion.evaluate.i3d import InceptionI3d
    from contentmotion.models.patch_vae import PatchVAE
    from contentmotion.models.video_unet import VideoUNet

# Settings of commands: two steps of two clips; of the configs' `model` blocks.
STEPS: dict[str, Any] = {
    "max_train_steps": 2, "train_batch_size": 2, "logging_steps": 1, "checkpointing_steps": 1, "validation_steps": 0,
    "report_to": "none", "mixed_precision": "no", "lr_warmup_steps": 1,
}  # fmt: skip
CLIPS: dict[str, Any] = {"num_frames": 4, "height": 16, "width": 16}
NARROW: dict[str, Any] = {"hidden_size": 16, "depth": 1, "num_heads": 2}
UNET: dict[str, Any] = {
    "block_out_channels": (32, 32), "text_hidden_size": 32, "text_num_layers": 1, "vocab_size": 600,
}  # fmt: skip
# The first temporal layer of a video UNet has 8 heads, whatever its widths: of 32 channels each it takes the longest.
NARROW_HEADS = ("contentmotion.models.video_unet._temporal_head_dim", lambda widths: 8)
CAPTIONS = ("a crying cat", "rocket", "a moving square")


def make_autoencoder(std: float | None = None, **changes: Any) -> ContentMotionAutoencoder:
    """Of pixels, 4 frames of 16x16, 2 motion channels."""
    from contentmotion import ContentMotionAutoencoder

    sizes = {"num_frames": 4, "sample_height": 16, "sample_width": 16, "head_dim": 8, "motion_channels": 2}
    return _make(ContentMotionAutoencoder, std, NARROW | sizes | {"in_channels": 3} | changes)


def make_motion_dit(std: float | None = None, **changes: Any) -> MotionDiT:
    """For that autoencoder; without a condition, unless ``text_dim`` or ``num_classes`` is given."""
    from contentmotion import MotionDiT

    return _make(MotionDiT, std, NARROW | {"motion_channels": 2, "content_channels": 3} | changes)


def make_image_unet(std: float | None = None, **changes: Any) -> UNet2DConditionModel:
    """A Stable Diffusion UNet of two levels on 16x16 pixels, for text features of width 32."""
    from diffusers import UNet2DConditionModel

    sizes = {
        "sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8, "cross_attention_dim": 32, "norm_num_groups": 8,
    }  # fmt: skip
    return _make(UNet2DConditionModel, std, sizes | changes)


def make_content_dit(std: float | None = None, **changes: Any) -> DiTTransformer2DModel:
    """A class-conditional DiT on 16x16 pixels, of three classes."""
    from diffusers import DiTTransformer2DModel

    sizes = {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 3, "out_channels": 3, "num_layers": 1,
        "sample_size": 16, "patch_size": 2, "num_embeds_ada_norm": 3,
    }  # fmt: skip
    return _make(DiTTransformer2DModel, std, sizes | changes)


def make_video_unet(std: float | None = None, **changes: Any) -> VideoUNet:
    """On 4 frames of 16x16 pixels, for text features of width 32."""
    from contentmotion.models.video_unet import make_video_unet as make

    sizes = {
        "latent_channels": 3, "extra_channels": 0, "block_out_channels": (32, 32), "layers_per_block": 1,
        "num_attention_heads": 2, "cross_attention_dim": 32, "sample_size": (16, 16), "num_frames": 4,
    }  # fmt: skip
    with patch(*NARROW_HEADS):
        return _make(make, std, sizes | changes)


def make_image_vae(std: float | None = None, levels: int = 3, **changes: Any) -> AutoencoderKL:
    """Stable Diffusion's kind, 4 channels; ``levels`` of them halve sizes ``levels - 1`` times."""
    from diffusers import AutoencoderKL

    sizes = {
        "block_out_channels": (8,) * levels, "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels, "latent_channels": 4, "norm_num_groups": 4,
    }  # fmt: skip
    return _make(AutoencoderKL, std, sizes | changes)


def make_patch_vae(std: float | None = None, **changes: Any) -> PatchVAE:
    """Our own kind, which halves sizes once."""
    from contentmotion.models.patch_vae import PatchVAE

    return _make(PatchVAE, std, {"latent_channels": 4, "block_out_channels": (8, 8), "num_layers": 1} | changes)


def make_text(captions: Sequence[str] = CAPTIONS, **changes: Any) -> tuple[Any, Any]:
    """Tokenizer and text encoder, of width 32."""
    import torch

    from contentmotion.stages.text import make_text_encoder

    torch.manual_seed(0)
    tokenizer, encoder = make_text_encoder(
        captions, **{"vocab_size": 300, "hidden_size": 32, "num_layers": 1} | changes
    )
    return tokenizer, encoder.eval()


def make_ddim(beta_schedule: str = "scaled_linear", **changes: Any) -> Any:
    """Stable Diffusion's DDIM; v-prediction comes with a schedule that ends in noise alone."""
    from diffusers import DDIMScheduler

    settings: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    if changes.get("prediction_type") == "v_prediction":
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DDIMScheduler(beta_schedule=beta_schedule, **settings | changes)


def make_pipeline(std: float = 0.1, **components: Any) -> ContentMotionPipeline:
    """Text to 4 frames of 16x16 pixels; other components may be given."""
    from contentmotion import ContentMotionPipeline

    tokenizer, text_encoder = make_text()
    statistics = {"motion_mean": [0.0] * 4, "motion_std": [1.0] * 4}
    own = {
        "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": make_image_unet(), "scheduler": make_ddim(),
        "autoencoder": make_autoencoder(std, hidden_size=32, head_dim=16, motion_channels=4, **statistics),
        "motion_transformer": make_motion_dit(std, hidden_size=32, motion_channels=4, text_dim=32),
        "motion_scheduler": make_ddim("linear"),
    }  # fmt: skip
    pipe = ContentMotionPipeline(**own | components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """The stock pipeline, of 4-channel latents of 8x8, a half of the frames' size."""
    import torch
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer, first = make_text(num_layers=2)
    torch.manual_seed(1)
    second = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(first.config.to_dict() | {"projection_dim": 24}))
    unet = make_image_unet(
        0.1, sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=64, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
    )  # fmt: skip
    scheduler = make_ddim(set_alpha_to_one=False, steps_offset=1)
    parts = (make_image_vae(levels=2), first, second.eval(), tokenizer, tokenizer, unet, scheduler)
    return StableDiffusionXLPipeline(*parts)


def make_stable_diffusion() -> StableDiffusionPipeline:
    """The same of Stable Diffusion 1 and 2."""
    from diffusers import StableDiffusionPipeline

    tokenizer, text_encoder = make_text()
    unet = make_image_unet(0.1, sample_size=8, in_channels=4, out_channels=4)
    scheduler = make_ddim(set_alpha_to_one=False, steps_offset=1)
    parts = (make_image_vae(levels=2), text_encoder, tokenizer, unet, scheduler, None, None)
    return StableDiffusionPipeline(*parts, requires_safety_checker=False)


@functools.cache
def thin_i3d() -> type[InceptionI3d]:
    """A class: the Kinetics-400 I3D, of an eighth of its channels, with its 400 logits, on its 224x224 pixels."""
    import torch

    from contentmotion.evaluate.i3d import MIXED_CHANNELS, NUM_CLASSES, InceptionI3d, Mixed, Unit3d

    class ThinI3d(InceptionI3d):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.Conv3d_1a_7x7 = Unit3d(3, 8, 7, stride=2)
            self.Conv3d_2b_1x1 = Unit3d(8, 8)
            self.Conv3d_2c_3x3 = Unit3d(8, 24, 3)
            for name, channels in MIXED_CHANNELS.items():
                self.add_module(name, Mixed(*(count // 8 for count in channels)))
            self.logits = torch.nn.Module()
            self.logits.conv3d = torch.nn.Conv3d(128, NUM_CLASSES, 1)

    return ThinI3d


def save_stable_diffusion(folder: Path) -> Path:
    """A stock Stable Diffusion folder, its 4-channel latents a half of the frames' size."""
    from diffusers import StableDiffusionPipeline

    tokenizer, text_encoder = make_text()
    unet = make_image_unet(in_channels=4, out_channels=4)
    scheduler = make_ddim(set_alpha_to_one=False, steps_offset=1)
    parts = (make_image_vae(levels=2), text_encoder, tokenizer, unet, scheduler, None, None)
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def run_chain(clips: Path, root: Path) -> None:
    """Models of pixels from a folder of videos, two steps each, as the five commands make them.

    Args:
        clips: Videos with captions, of splits "train" and "test".
        root: Gets ``ae/autoencoder``, ``content/content``, ``motion/motion_transformer``, all of them exported as
            ``teacher``; the caches ``cache`` (split "train") and ``unseen`` ("test"), and the same of whole clips with
            sketches, ``latents`` and ``unseen-latents``.
    """
    from contentmotion.commands.encode import encode
    from contentmotion.commands.export import export
    from contentmotion.config import (
        AutoencoderSizes,
        ContentSizes,
        EncodeConfig,
        ExportConfig,
        MotionSizes,
        TrainAutoencoderConfig,
        TrainContentConfig,
        TrainMotionConfig,
    )
    from contentmotion.train.autoencoder import train_autoencoder
    from contentmotion.train.content import train_content
    from contentmotion.train.motion import train_motion

    data = CLIPS | {"train_data_dir": str(clips)}
    sizes = AutoencoderSizes(head_dim=8, **NARROW)
    train_autoencoder(TrainAutoencoderConfig(**data, **STEPS, model=sizes, output_dir=f"{root}/ae"))
    for split, cache, latents in (("train", "cache", "latents"), ("test", "unseen", "unseen-latents")):
        own = {"autoencoder": f"{root}/ae/autoencoder", "output_dir": f"{root}/{cache}"}
        encode(EncodeConfig(**data, **own, split=split))
        own = {"latents_only": True, "conditions": ("sketch",), "output_dir": f"{root}/{latents}"}
        encode(EncodeConfig(**data, **own, split=split))
    common = STEPS | {"latent_cache": f"{root}/cache", "learning_rate": 1e-2}
    train_content(TrainContentConfig(**common, model=ContentSizes(**UNET), output_dir=f"{root}/content"))
    parts = {"pretrained_model_name_or_path": f"{root}/content/content", "autoencoder": f"{root}/ae/autoencoder"}
    dit = MotionSizes(content_patch_size=2, **NARROW)
    train_motion(TrainMotionConfig(**common, **parts, model=dit, output_dir=f"{root}/motion"))
    motion = f"{root}/motion/motion_transformer"
    export(ExportConfig(**parts, motion_transformer=motion, output_dir=f"{root}/teacher", dtype="fp32"))


def randomize(module: Any, std: float) -> Any:
    """Draws every parameter anew."""
    import torch

    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


def _make(make: Any, std: float | None, settings: dict[str, Any]) -> Any:
    import torch

    torch.manual_seed(0)
    module = make(**settings)
    return (module if std is None else randomize(module, std)).eval()
