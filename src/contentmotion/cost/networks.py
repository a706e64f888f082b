"""The networks that are compared, at their published sizes, with random weights: time does not depend on weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.models.patch_vae import PatchVAE
from contentmotion.models.video_unet import VideoUNet

# Of a decoder's 12 blocks 8 attend inside windows of 16x16 patches: what the few-step system takes to stay cheap.
CHEAP_DECODER_WINDOW = 16
BLOCK = 2**22
_UNMEASURED = {"motion_mean": [0.0] * 8, "motion_std": [1.0] * 8}  # so that a pipeline takes it


def _clip(hidden_size: int, num_layers: int, num_heads: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
    )
    return CLIPTextModel(config)


def _t5(family: type, config: type, vocab_size: int) -> nn.Module:
    """The encoder of T5-XXL, or of its multilingual cousin."""
    return family(
        config(
            vocab_size=vocab_size, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def _sd_vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
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


def _motion_xl(content_patch_size: int, text_dim: int) -> MotionDiT:
    """CMD Table 6."""
    return MotionDiT.from_preset("DiT-XL/2", content_patch_size=content_patch_size, text_dim=text_dim, learn_sigma=True)


# By name; called on the device where the network is wanted ("meta": shapes alone).
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    # CMD: Stable Diffusion 1.5 with CLIP ViT-L/14, 2.1 with OpenCLIP ViT-H/14 (its last but one layer).
    "clip-l": lambda: _clip(768, 12, 12),
    "clip-h": lambda: _clip(1024, 23, 16),
    "unet-sd15": lambda: diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
    "unet-sd21": _sd21_unet,
    "motion-sd15": lambda: _motion_xl(4, 768),
    "motion-sd21": lambda: _motion_xl(8, 1024),
    "autoencoder": lambda: ContentMotionAutoencoder(residual_decoding=False, **_UNMEASURED),
    "autoencoder-windows": lambda: ContentMotionAutoencoder(attention_window=CHEAP_DECODER_WINDOW, **_UNMEASURED),
    "vae-sd": _sd_vae,
    "vae-tiny": diffusers.AutoencoderTiny,
    # ModelScope's text-to-video model, which VideoLCM distils.
    "unet3d": lambda: diffusers.UNet3DConditionModel(sample_size=32, attention_head_dim=64, cross_attention_dim=1024),
    "wan": lambda: diffusers.WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096
    ),
    "vae-wan": diffusers.AutoencoderKLWan,
    "umt5-xxl": lambda: _t5(UMT5EncoderModel, UMT5Config, 256384),
    "ltx": diffusers.LTXVideoTransformer3DModel,
    "vae-ltx": lambda: diffusers.AutoencoderKLLTXVideo(),  # pyright reads the class otherwise
    "cogvideox": diffusers.CogVideoXTransformer3DModel,
    "vae-cogvideox": lambda: diffusers.AutoencoderKLCogVideoX(),  # pyright reads the class otherwise
    "t5-xxl": lambda: _t5(T5EncoderModel, T5Config, 32128),
}


def build(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """One of ``NETWORKS``, in evaluation mode.

    Args:
        name: Its name.
        device: Where it lives; "meta" allocates nothing.
        dtype: Of its weights, from the start: no copy in float32 is made.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, _NoInit():
            network = NETWORKS[name]()
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
    for name in ("text_encoder", "unet", "motion_transformer", "autoencoder", "vae", "condition_encoder"):
        file = folder / name / "config.json"
        parts[name] = skeleton(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
    return parts


def skeleton(config: dict) -> nn.Module:
    """The network that a ``config.json`` describes, on the meta device."""
    name = config.get("_class_name")
    own = {cls.__name__: cls for cls in (ContentMotionAutoencoder, MotionDiT, PatchVAE, VideoUNet, ConditionEncoder)}
    with torch.device("meta"):
        if name is None:
            return CLIPTextModel(CLIPTextConfig.from_dict(config)).eval()
        cls = own[name] if name in own else getattr(diffusers, name)
        return cls.from_config(config).eval()
