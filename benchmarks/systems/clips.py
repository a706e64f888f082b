"""ModelScope, VideoLCM, Wan 2.1, LTX-Video and CogVideoX at their published sizes, usual steps and guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from contentmotion.config import BenchmarkConfig
from contentmotion.cost.clip import Pass, Size, System, image_decoder_pass, noise, ones, text_pass
from contentmotion.cost.networks import NETWORKS as OWN

Nets = Mapping[str, Any]
Passes = Callable[[Nets, torch.device, Size, int, int, int], list[Pass]]


def _t5(family: type, config: type, vocab_size: int) -> nn.Module:
    """The encoder of T5-XXL, or of its multilingual cousin."""
    return family(
        config(
            vocab_size=vocab_size, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = OWN | {
    # ModelScope's text-to-video model, which VideoLCM distils.
    "unet3d": lambda: diffusers.UNet3DConditionModel(sample_size=32, attention_head_dim=64, cross_attention_dim=1024),
    "wan": lambda: diffusers.WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096
    ),
    "vae-wan": diffusers.AutoencoderKLWan,
    "umt5-xxl": lambda: _t5(UMT5EncoderModel, UMT5Config, 256384),
    "ltx": diffusers.LTXVideoTransformer3DModel,
    "vae-ltx": diffusers.AutoencoderKLLTXVideo,
    "cogvideox": diffusers.CogVideoXTransformer3DModel,
    "vae-cogvideox": diffusers.AutoencoderKLCogVideoX,
    "t5-xxl": lambda: _t5(T5EncoderModel, T5Config, 32128),
}


def latent_frames(size: Size, stride: int) -> int:
    """Frames of a video VAE's latent that takes ``stride`` k + 1 frames (the clip's number rounded up)."""
    return math.ceil((size.frames - 1) / stride) + 1


def _denoiser(network: Any, call: Callable[..., object], steps: int, batch: int) -> Pass:
    return Pass("denoiser", network, call, steps, batch)


def _video_decoder(vae: Any, device: torch.device, *latent: int) -> Pass:
    """A video VAE's decoder, all frames in one call."""
    x = noise(device, vae.dtype, 1, *latent)
    return Pass("video decoder", vae, lambda: vae.decode(x).sample)


def unet3d(nets: Nets, device: torch.device, size: Size, steps: int, batch: int, chunk: int) -> list[Pass]:
    """ModelScope and VideoLCM."""
    net, latent = nets["unet3d"], (4, size.height // 8, size.width // 8)
    x = noise(device, net.dtype, batch, 4, size.frames, *latent[1:])
    times, text = ones(device, batch), noise(device, net.dtype, batch, 77, 1024)
    vae = nets["vae-tiny"] if "vae-tiny" in nets else nets["vae-sd"]
    return [
        text_pass(nets["clip-h"], 77, batch, device),
        _denoiser(net, lambda: net(x, times, encoder_hidden_states=text).sample, steps, batch),
        image_decoder_pass(vae, latent, size.frames, chunk, device),
    ]


def wan(nets: Nets, device: torch.device, size: Size, steps: int, batch: int, chunk: int) -> list[Pass]:
    """Wan 2.1, 1.3 B."""
    net, latent = nets["wan"], (16, latent_frames(size, 4), size.height // 8, size.width // 8)
    x, times = noise(device, net.dtype, batch, *latent), ones(device, batch)
    text = noise(device, net.dtype, batch, 512, 4096)
    return [
        text_pass(nets["umt5-xxl"], 512, batch, device),
        _denoiser(net, lambda: net(x, times, text).sample, steps, batch),
        _video_decoder(nets["vae-wan"], device, *latent),
    ]


def ltx(nets: Nets, device: torch.device, size: Size, steps: int, batch: int, chunk: int) -> list[Pass]:
    """LTX-Video, 2 B."""
    net, t, h, w = nets["ltx"], latent_frames(size, 8), size.height // 32, size.width // 32
    x, times = noise(device, net.dtype, batch, t * h * w, 128), ones(device, batch)
    text, mask = noise(device, net.dtype, batch, 128, 4096), noise(device, net.dtype, batch, 128).abs()
    return [
        text_pass(nets["t5-xxl"], 128, batch, device),
        _denoiser(net, lambda: net(x, text, times, mask, num_frames=t, height=h, width=w).sample, steps, batch),
        _video_decoder(nets["vae-ltx"], device, 128, t, h, w),
    ]


def cogvideox(nets: Nets, device: torch.device, size: Size, steps: int, batch: int, chunk: int) -> list[Pass]:
    """CogVideoX, 2 B."""
    net, t, h, w = nets["cogvideox"], latent_frames(size, 4), size.height // 8, size.width // 8
    x, times = noise(device, net.dtype, batch, t, 16, h, w), ones(device, batch)
    text = noise(device, net.dtype, batch, 226, 4096)
    return [
        text_pass(nets["t5-xxl"], 226, batch, device),
        _denoiser(net, lambda: net(x, text, times).sample, steps, batch),
        _video_decoder(nets["vae-cogvideox"], device, 16, t, h, w),
    ]


def _usual(
    name: str, passes: Passes, networks: tuple[str, ...], steps: int, guided: bool, multiple: int
) -> Callable[[BenchmarkConfig, int], System]:
    """A system as it is usually sampled; height and width must be multiples of ``multiple``."""

    def make(config: BenchmarkConfig, chunk: int) -> System:
        size = Size(config.num_frames, config.height or 512, config.width or 1024)
        for side in ("height", "width"):
            if getattr(size, side) % multiple:
                raise ValueError(f"{name}: {side} must be a multiple of {multiple}, got {getattr(size, side)}")
        own, batch = config.steps or steps, 2 if guided else 1
        names = ["vae-tiny" if n == "vae-sd" and config.decoder == "tiny" else n for n in networks]
        return System(
            name,
            f"{own} steps" + ", guided" * guided,
            size,
            {n: NETWORKS[n] for n in names},
            lambda nets, device: passes({n: nets[n] for n in names}, device, size, own, batch, chunk),
        )

    return make


SYSTEMS: dict[str, Callable[[BenchmarkConfig, int], System]] = {
    "videolcm": _usual("videolcm", unet3d, ("clip-h", "unet3d", "vae-sd"), 4, False, 64),
    "modelscope": _usual("modelscope", unet3d, ("clip-h", "unet3d", "vae-sd"), 50, True, 64),
    "wan-1.3b": _usual("wan-1.3b", wan, ("umt5-xxl", "wan", "vae-wan"), 50, True, 16),
    "wan-1.3b-4": _usual("wan-1.3b-4", wan, ("umt5-xxl", "wan", "vae-wan"), 4, False, 16),
    "ltx-2b": _usual("ltx-2b", ltx, ("t5-xxl", "ltx", "vae-ltx"), 40, True, 32),
    "ltx-2b-8": _usual("ltx-2b-8", ltx, ("t5-xxl", "ltx", "vae-ltx"), 8, False, 32),
    "cogvideox-2b": _usual("cogvideox-2b", cogvideox, ("t5-xxl", "cogvideox", "vae-cogvideox"), 50, True, 16),
}
