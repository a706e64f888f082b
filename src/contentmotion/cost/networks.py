"""Networks without their weights: at published sizes, or as a folder's configs describe them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel

from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.models.patch_vae import PatchVAE
from contentmotion.models.video_unet import VideoUNet
from contentmotion.saving import read_json

# Of a decoder's 12 blocks 8 attend inside windows of 16x16 patches: what the few-step system takes to stay cheap.
CHEAP_DECODER_WINDOW = 16
BLOCK = 2**22
COMPONENTS = (
    "text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer", "motion_transformer", "autoencoder",
    "vae", "condition_encoder",
)  # fmt: skip
_UNMEASURED = {"motion_mean": [0.0] * 8, "motion_std": [1.0] * 8}  # so that a pipeline takes it


def _clip(hidden_size: int, num_layers: int, num_heads: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
    )
    return CLIPTextModel(config)


# Text encoders that a folder's config may name, besides CLIP's.
TEXT_ENCODERS = ("CLIPTextModelWithProjection", "T5EncoderModel", "Gemma2Model", "Qwen3Model", "Qwen3ForCausalLM")
_QWEN3_4B: dict[str, Any] = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
_T5_XXL: dict[str, Any] = {
    "d_model": 4096, "d_ff": 10240, "num_heads": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def _text(kind: str, **sizes: Any) -> nn.Module:
    """A text encoder of transformers, by the name of its class."""
    cls: Any = getattr(transformers, kind)
    return cls(cls.config_class(**sizes))


def _projected_clip(hidden_size: int, num_layers: int, num_heads: int) -> nn.Module:
    return _text(
        "CLIPTextModelWithProjection", hidden_size=hidden_size, intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers, num_attention_heads=num_heads, projection_dim=hidden_size,
    )  # fmt: skip


def _sd35_medium() -> diffusers.SD3Transformer2DModel:
    return diffusers.SD3Transformer2DModel(
        sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, caption_projection_dim=1536,
        pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
    )  # fmt: skip


def _sana_600m() -> diffusers.SanaTransformer2DModel:
    return diffusers.SanaTransformer2DModel(
        num_layers=28, num_attention_heads=36, num_cross_attention_heads=16, cross_attention_head_dim=72,
        cross_attention_dim=1152,
    )  # fmt: skip


def _klein_4b() -> diffusers.Flux2Transformer2DModel:
    return diffusers.Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )


def _sana_vae() -> diffusers.AutoencoderDC:
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    return diffusers.AutoencoderDC(encoder_block_types=blocks, decoder_block_types=blocks)


def _tiny_sana_vae() -> diffusers.AutoencoderTiny:
    """TAESD's blocks for latents of 32x32 pixels, one and none at the two finest levels: nobody trained it yet."""
    return diffusers.AutoencoderTiny(
        latent_channels=32, encoder_block_out_channels=(64,) * 6, decoder_block_out_channels=(64,) * 6,
        num_encoder_blocks=(1, 3, 3, 3, 3, 3), num_decoder_blocks=(3, 3, 3, 3, 1, 0),
    )  # fmt: skip


def _autoencoder(channels: int, patch_size: int, window: int) -> ContentMotionAutoencoder:
    """The paper's, few-step or not, of another family's latents."""
    return ContentMotionAutoencoder(
        in_channels=channels, patch_size=patch_size, attention_window=window, residual_decoding=bool(window),
        **_UNMEASURED,
    )  # fmt: skip


def _sd_vae(latent_channels: int = 4) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        latent_channels=latent_channels,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )


def _sd21_unet() -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024, use_linear_projection=True,
    )  # fmt: skip


def _sdxl_unet() -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def _motion_xl(content_patch_size: int, text_dim: int, content_channels: int = 4) -> MotionDiT:
    """CMD Table 6."""
    return MotionDiT.from_preset(
        "DiT-XL/2", content_patch_size=content_patch_size, text_dim=text_dim, content_channels=content_channels,
        learn_sigma=True,
    )  # fmt: skip


# By name; called on the device where the network is wanted ("meta": shapes alone).
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    # CMD: Stable Diffusion 1.5 with CLIP ViT-L/14, 2.1 with OpenCLIP ViT-H/14 (its last but one layer).
    "clip-l": lambda: _clip(768, 12, 12),
    "clip-h": lambda: _clip(1024, 23, 16),
    "unet-sd15": lambda: diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
    "unet-sd21": _sd21_unet,
    "unet-sdxl": _sdxl_unet,
    "motion-sd15": lambda: _motion_xl(4, 768),
    "motion-sd21": lambda: _motion_xl(8, 1024),
    "motion-sdxl": lambda: _motion_xl(8, 1280),
    "autoencoder": lambda: ContentMotionAutoencoder(residual_decoding=False, **_UNMEASURED),
    "autoencoder-windows": lambda: ContentMotionAutoencoder(attention_window=CHEAP_DECODER_WINDOW, **_UNMEASURED),
    "vae-sd": _sd_vae,
    "vae-tiny": diffusers.AutoencoderTiny,
    "clip-l-projected": lambda: _projected_clip(768, 12, 12),
    "clip-g-projected": lambda: _projected_clip(1280, 32, 20),
    "t5-xxl": lambda: _text("T5EncoderModel", **_T5_XXL),
    "gemma-2-2b": lambda: _text("Gemma2Model"),
    "qwen3-4b": lambda: _text("Qwen3Model", **_QWEN3_4B),
    "qwen3-4b-lm": lambda: _text("Qwen3ForCausalLM", **_QWEN3_4B),
    "transformer-sd35": _sd35_medium,
    "transformer-sana": _sana_600m,
    "transformer-klein": _klein_4b,
    "transformer-z-image": diffusers.ZImageTransformer2DModel,
    "vae-16": lambda: _sd_vae(16),
    "vae-sana": _sana_vae,
    "vae-klein": diffusers.AutoencoderKLFlux2,
    "vae-tiny-16": lambda: diffusers.AutoencoderTiny(latent_channels=16),
    "vae-tiny-sana": _tiny_sana_vae,
}
# The paper's motion model and autoencoder for other latents: channels, pixels of a side, width of the pooled text.
# A patch is of 16x16 pixels, of SANA 32x32; the motion model sees the content frame in patches of 64x64.
for _family, (_channels, _factor, _text_dim) in {
    "sd35": (16, 8, 2048), "sana": (32, 32, 2304), "klein": (128, 16, 7680), "z-image": (16, 8, 2560),
}.items():  # fmt: skip
    _patch = max(1, 16 // _factor)
    NETWORKS |= {
        f"motion-{_family}": partial(_motion_xl, 64 // _factor, _text_dim, _channels),
        f"autoencoder-{_family}": partial(_autoencoder, _channels, _patch, 0),
        f"autoencoder-windows-{_family}": partial(_autoencoder, _channels, _patch, CHEAP_DECODER_WINDOW),
    }


def build(make: str | Callable[[], nn.Module], device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network with small random weights, in evaluation mode.

    Args:
        make: Makes it; or the name of one of ``NETWORKS``.
        device: Where it lives; "meta" allocates nothing.
        dtype: Of its weights, from the start: no copy in float32 is made.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, _NoInit():
            network = (NETWORKS[make] if isinstance(make, str) else make)()
    finally:
        torch.set_default_dtype(default)
    network = nn.Module.to(network, dtype).eval()  # diffusers' own `to` has words of caution about trained weights
    if device.type != "meta":
        fill(network)
    return network


class _NoInit(TorchFunctionMode):
    """Leaves new weights as the memory was: drawing billions of them takes minutes on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Gives a network small normal weights: one block of random numbers, over and over."""
    for parameter in network.parameters():
        flat = parameter.view(-1)
        block = _random_block(parameter.device, parameter.dtype)
        for start in range(0, len(flat), BLOCK):
            piece = flat[start : start + BLOCK]
            piece.copy_(block[: len(piece)])


@cache
def _random_block(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return (0.02 * torch.randn(BLOCK, device=device)).to(dtype)


def skeletons(folder: Path) -> dict[str, nn.Module | None]:
    """The networks of a pipeline folder by part, made from its configs on the meta device; no weights are read."""
    parts: dict[str, nn.Module | None] = {}
    for name in COMPONENTS:
        there = (folder / name / "config.json").exists()
        parts[name] = skeleton(read_json(folder / name / "config.json")) if there else None
    return parts


def skeleton(config: dict) -> nn.Module:
    """The network that a ``config.json`` describes, on the meta device."""
    return build(lambda: from_config(config), torch.device("meta"))


def from_config(config: dict) -> nn.Module:
    """The network that a ``config.json`` describes, with new weights.

    Raises:
        ValueError: The config is not that of a network that is known here.
    """
    own = {cls.__name__: cls for cls in (ContentMotionAutoencoder, MotionDiT, PatchVAE, VideoUNet, ConditionEncoder)}
    name = config.get("_class_name")
    try:
        if name is None:
            kind = (config.get("architectures") or [CLIPTextModel.__name__])[0]
            text: Any = getattr(transformers, kind) if kind in TEXT_ENCODERS else CLIPTextModel
            return text(text.config_class.from_dict(config))
        cls = own[name] if name in own else getattr(diffusers, name)
        return cls.from_config(config)  # type: ignore[reportReturnType]
    except (AttributeError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"a config of {name or 'a text encoder'} describes no network: {reason}") from error
