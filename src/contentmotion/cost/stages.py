"""The stages of a clip's way from prompt to file: which network, how many passes, on what."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Thunk = Callable[[], object]
STAGES = ("text", "content", "motion", "denoiser", "autoencoder", "image decoder", "video decoder", "file")
# What the paper's tables count; they leave out text encoder and image decoder.
PAPER_STAGES = ("content", "motion", "denoiser", "autoencoder")


@dataclass(frozen=True)
class Size:
    """A clip's size in pixels."""

    frames: int
    height: int
    width: int

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of an 8x smaller latent."""
        return self.height // 8, self.width // 8

    def latent_frames(self, stride: int) -> int:
        """Frames of a video VAE's latent that takes ``stride`` k + 1 frames (the clip's number rounded up)."""
        return math.ceil((self.frames - 1) / stride) + 1


class Inputs:
    """Random inputs of a network, on its device and in its number format."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def noise(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, device=self.device).to(self.dtype)

    def ids(self, *shape: int) -> Tensor:
        """Whole numbers that every vocabulary and every schedule has: tokens, or diffusion times."""
        return torch.full(shape, 1, dtype=torch.long, device=self.device)


@dataclass(frozen=True)
class Stage:
    """One step on the way from a prompt to a file.

    Attributes:
        name: One of ``STAGES``.
        network: Its name in ``networks.NETWORKS``, or the part's in a pipeline folder.
        prepare: ``prepare(network, inputs, batch)`` gives a function that does one call of the network.
        calls: Calls per clip.
        batch: Items per call: 2 with classifier-free guidance, the null condition beside the prompt. A pass is one
            item through the network, so a clip takes ``calls * batch`` passes.
    """

    name: str
    network: str
    prepare: Callable[[Any, Inputs, int], Thunk]
    calls: int = 1
    batch: int = 1


@dataclass(frozen=True)
class CMDShape:
    """Shapes inside one of our pipelines.

    Attributes:
        content: Channels, height and width of a content frame.
        motion: Channels, frames and places of a motion latent.
        tokens: Tokens of a prompt.
        text_dim: Width of the text features.
    """

    content: tuple[int, int, int]
    motion: tuple[int, int, int]
    tokens: int
    text_dim: int


def text_stage(network: str, tokens: int, batch: int) -> Stage:
    """A text encoder; ``batch`` is 2 where guidance needs the null prompt, too."""

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        ids = new.ids(batch, tokens)
        return lambda: net(ids).last_hidden_state

    return Stage("text", network, prepare, batch=batch)


def content_stage(network: str, shape: CMDShape, steps: int, batch: int) -> Stage:
    """CMD's content model: an image UNet."""

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        x, times, text = (
            new.noise(batch, *shape.content),
            new.ids(batch),
            new.noise(batch, shape.tokens, shape.text_dim),
        )
        return lambda: net(x, times, encoder_hidden_states=text).sample

    return Stage("content", network, prepare, steps, batch)


def motion_stage(network: str, shape: CMDShape, steps: int, batch: int) -> Stage:
    """CMD's motion model."""

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        z, times = new.noise(batch, *shape.motion), new.ids(batch)
        content, pooled = new.noise(batch, *shape.content), new.noise(batch, shape.text_dim)
        return lambda: net(z, times, content, pooled_text=pooled)

    return Stage("motion", network, prepare, steps, batch)


def autoencoder_stage(network: str, shape: CMDShape) -> Stage:
    """CMD's autoencoder, its decoder."""

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        content, z = new.noise(batch, *shape.content), new.noise(batch, *shape.motion)
        return lambda: net.decode(content, z)

    return Stage("autoencoder", network, prepare)


def image_decoder_stage(network: str, latent: tuple[int, int, int], frames: int, chunk: int) -> Stage:
    """An image VAE's decoder, ``chunk`` frames at a time."""

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        x = new.noise(batch, *latent)
        return lambda: net.decode(x).sample

    chunk = math.gcd(frames, chunk)
    return Stage("image decoder", network, prepare, frames // chunk, chunk)


def video_decoder_stage(network: str, latent: tuple[int, ...]) -> Stage:
    """A video VAE's decoder, all frames in one call."""

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        x = new.noise(batch, *latent)
        return lambda: net.decode(x).sample

    return Stage("video decoder", network, prepare)


def file_stage() -> Stage:
    """Writing the mp4 (no network)."""
    return Stage("file", "", lambda net, new, batch: lambda: None)


def cmd_shape(size: Size, text_dim: int) -> CMDShape:
    """Shapes at the paper's settings (CMD Table 5: 8x smaller latents, patches of 2, 8 motion channels)."""
    h, w = size.latent
    return CMDShape((4, h, w), (8, size.frames, h // 2 + w // 2), 77, text_dim)


def unet3d_stage(size: Size, steps: int, batch: int) -> Stage:
    """ModelScope's denoiser."""

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        x, times, text = new.noise(batch, 4, size.frames, *size.latent), new.ids(batch), new.noise(batch, 77, 1024)
        return lambda: net(x, times, encoder_hidden_states=text).sample

    return Stage("denoiser", "unet3d", prepare, steps, batch)
