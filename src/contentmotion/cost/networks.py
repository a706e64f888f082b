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

from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.models.patch_vae import PatchVAE
from contentmotion.models.video_unet import VideoUNet
from contentmotion.saving import read_json
from contentmotion.stages.stage import META

# Of a decoder's 12 blocks 8 attend inside windows of 16x16 patches: what the few-step system takes to stay cheap.
CHEAP_DECODER_WINDOW = 16
BLOCK = 2**22
COMPONENTS = (
    "text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer", "motion_transformer", "autoencoder",
    "vae", "condition_encoder",
)  # fmt: skip
# Text encoders that a folder's config may name; another one is taken for the first.
TEXT_ENCODERS = (
    "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "Gemma2Model", "Qwen3Model", "Qwen3ForCausalLM",
)  # fmt: skip
_UNMEASURED = {"motion_mean": [0.0] * 8, "motion_std": [1.0] * 8}  # so that a pipeline takes it
_QWEN3_4B: dict[str, Any] = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
_SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_SANA_BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3


def _text(kind: str, **sizes: Any) -> nn.Module:
    """A text encoder of transformers, by the name of its class."""
    cls: Any = getattr(transformers, kind)
    return cls(cls.config_class(**sizes))


def _clip(hidden_size: int, num_layers: int, num_heads: int, kind: str = "CLIPTextModel") -> nn.Module:
    return _text(
        kind, hidden_size=hidden_size, intermediate_size=4 * hidden_size, num_hidden_layers=num_layers,
        num_attention_heads=num_heads, projection_dim=hidden_size,
    )  # fmt: skip


def _motion_xl(content_patch_size: int, text_dim: int, content_channels: int = 4) -> MotionDiT:
    """CMD Table 6."""
    return MotionDiT.from_preset(
        "DiT-XL/2", content_patch_size=content_patch_size, text_dim=text_dim, content_channels=content_channels,
        learn_sigma=True,
    )  # fmt: skip


def _autoencoder(channels: int, patch_size: int, window: int = 0) -> ContentMotionAutoencoder:
    """The paper's, or with windows the few-step one, of some family's latents."""
    return ContentMotionAutoencoder(
        in_channels=channels, patch_size=patch_size, attention_window=window, residual_decoding=bool(window),
        **_UNMEASURED,
    )  # fmt: skip


# By name; called on the device where the network is wanted ("meta": shapes alone).
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "clip-l": partial(_clip, 768, 12, 12),
    "clip-h": partial(_clip, 1024, 23, 16),  # OpenCLIP ViT-H/14 up to its last but one layer
    "clip-l-projected": partial(_clip, 768, 12, 12, "CLIPTextModelWithProjection"),
    "clip-g-projected": partial(_clip, 1280, 32, 20, "CLIPTextModelWithProjection"),
    "t5-xxl": partial(
        _text, "T5EncoderModel", d_model=4096, d_ff=10240, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu"
    ),
    "gemma-2-2b": partial(_text, "Gemma2Model"),
    "qwen3-4b": partial(_text, "Qwen3Model", **_QWEN3_4B),
    "qwen3-4b-lm": partial(_text, "Qwen3ForCausalLM", **_QWEN3_4B),
    "unet-sd15": partial(diffusers.UNet2DConditionModel, sample_size=64, cross_attention_dim=768),
    "unet-sd21": partial(
        diffusers.UNet2DConditionModel, sample_size=64, block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True,
    ),
    "unet-sdxl": partial(
        diffusers.UNet2DConditionModel, sample_size=128, block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    ),
    "transformer-sd35": partial(
        diffusers.SD3Transformer2DModel, sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24,
        caption_projection_dim=1536, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
    ),
    "transformer-sana": partial(
        diffusers.SanaTransformer2DModel, num_layers=28, num_attention_heads=36, num_cross_attention_heads=16,
        cross_attention_head_dim=72, cross_attention_dim=1152,
    ),
    "transformer-klein": partial(
        diffusers.Flux2Transformer2DModel, num_layers=5, num_single_layers=20, num_attention_heads=24,
        joint_attention_dim=7680, guidance_embeds=False,
    ),
    "transformer-z-image": diffusers.ZImageTransformer2DModel,
    "vae-sd": partial(diffusers.AutoencoderKL, latent_channels=4, **_SD_VAE),
    "vae-16": partial(diffusers.AutoencoderKL, latent_channels=16, **_SD_VAE),
    "vae-sana": partial(
        diffusers.AutoencoderDC, encoder_block_types=_SANA_BLOCKS, decoder_block_types=_SANA_BLOCKS
    ),
    "vae-klein": diffusers.AutoencoderKLFlux2,
    "vae-tiny": diffusers.AutoencoderTiny,
    "vae-tiny-16": partial(diffusers.AutoencoderTiny, latent_channels=16),
    # TAESD's blocks for latents of 32x32 pixels, one and none at the two finest levels: nobody trained it yet.
    "vae-tiny-sana": partial(
        diffusers.AutoencoderTiny, latent_channels=32, encoder_block_out_channels=(64,) * 6,
        decoder_block_out_channels=(64,) * 6, num_encoder_blocks=(1, 3, 3, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 3, 1, 0),
    ),
    "motion-sd15": partial(_motion_xl, 4, 768),
    "motion-sd21": partial(_motion_xl, 8, 1024),
    "motion-sdxl": partial(_motion_xl, 8, 1280),
    "autoencoder": partial(_autoencoder, 4, 2),
    "autoencoder-windows": partial(_autoencoder, 4, 2, CHEAP_DECODER_WINDOW),
}  # fmt: skip
# The paper's motion model and autoencoder for other latents: channels, pixels of a side, width of the pooled text.
# A patch is of 16x16 pixels, of SANA 32x32; the motion model sees the content frame in patches of 64x64.
for _family, (_channels, _factor, _text_dim) in {
    "sd35": (16, 8, 2048), "sana": (32, 32, 2304), "klein": (128, 16, 7680), "z-image": (16, 8, 2560),
}.items():  # fmt: skip
    _patch = max(1, 16 // _factor)
    NETWORKS |= {
        f"motion-{_family}": partial(_motion_xl, 64 // _factor, _text_dim, _channels),
        f"autoencoder-{_family}": partial(_autoencoder, _channels, _patch),
        f"autoencoder-windows-{_family}": partial(_autoencoder, _channels, _patch, CHEAP_DECODER_WINDOW),
    }

# Content models at their published sizes: networks by component, and what there is in place of the image VAE's decoder.
MODELS: dict[str, tuple[dict[str, str], str]] = {
    "sd15": ({"text_encoder": "clip-l", "unet": "unet-sd15", "vae": "vae-sd"}, "vae-tiny"),
    "sd21": ({"text_encoder": "clip-h", "unet": "unet-sd21", "vae": "vae-sd"}, "vae-tiny"),
    "sdxl": (
        {"text_encoder": "clip-l", "text_encoder_2": "clip-g-projected", "unet": "unet-sdxl", "vae": "vae-sd"},
        "vae-tiny",
    ),
    "sd35": (
        {
            "text_encoder": "clip-l-projected", "text_encoder_2": "clip-g-projected", "text_encoder_3": "t5-xxl",
            "transformer": "transformer-sd35", "vae": "vae-16",
        },
        "vae-tiny-16",
    ),
    "sana": ({"text_encoder": "gemma-2-2b", "transformer": "transformer-sana", "vae": "vae-sana"}, "vae-tiny-sana"),
    "klein": ({"text_encoder": "qwen3-4b-lm", "transformer": "transformer-klein", "vae": "vae-klein"}, "vae-klein"),
    "z-image": (
        {"text_encoder": "qwen3-4b", "transformer": "transformer-z-image", "vae": "vae-16"}, "vae-tiny-16",
    ),
}  # fmt: skip


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
        block = _random_block(device, dtype)
        with torch.no_grad():
            for parameter in network.parameters():
                for piece in parameter.view(-1).split(BLOCK):
                    piece.copy_(block[: len(piece)])
    return network


class _NoInit(TorchFunctionMode):
    """Leaves new weights as the memory was: drawing billions of them takes minutes on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@cache
def _random_block(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Small normal numbers, of which all weights are made: drawing billions would take minutes."""
    return (0.02 * torch.randn(BLOCK, device=device)).to(dtype)


def skeletons(folder: Path) -> dict[str, nn.Module | None]:
    """The networks of a pipeline folder by part, made from its configs on the meta device; no weights are read."""
    configs = {name: folder / name / "config.json" for name in COMPONENTS}
    return {name: skeleton(read_json(config)) if config.exists() else None for name, config in configs.items()}


def skeleton(config: dict) -> nn.Module:
    """The network that a ``config.json`` describes, on the meta device."""
    return build(partial(from_config, config), META)


def from_config(config: dict) -> nn.Module:
    """The network that a ``config.json`` describes, with new weights.

    Raises:
        ValueError: The config is not that of a network that is known here.
    """
    own = {cls.__name__: cls for cls in (ContentMotionAutoencoder, MotionDiT, PatchVAE, VideoUNet, ConditionEncoder)}
    name = config.get("_class_name")
    try:
        if name is None:
            kind = (config.get("architectures") or TEXT_ENCODERS)[0]
            text: Any = getattr(transformers, kind if kind in TEXT_ENCODERS else TEXT_ENCODERS[0])
            return text(text.config_class.from_dict(config))
        cls = own[name] if name in own else getattr(diffusers, name)
        return cls.from_config(config)  # type: ignore[reportReturnType]
    except (AttributeError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"a config of {name or 'a text encoder'} describes no network: {reason}") from error
