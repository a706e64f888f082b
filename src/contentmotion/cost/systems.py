"""The systems that are compared, at their usual steps and guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from contentmotion.cost.stages import (
    CMDShape,
    Inputs,
    Size,
    Stage,
    Thunk,
    autoencoder_stage,
    cmd_shape,
    content_stage,
    file_stage,
    image_decoder_stage,
    motion_stage,
    text_stage,
    unet3d_stage,
    video_decoder_stage,
)
from contentmotion.stages.image_vae import vae_scale_factor

Decoder = Literal["auto", "full", "tiny"]


@dataclass(frozen=True)
class System:
    """A way from prompts to clips.

    Attributes:
        name: Its name on the command line.
        sampling: Steps and guidance, in words.
        stages: In order.
    """

    name: str
    sampling: str
    stages: tuple[Stage, ...]


def _cmd(sd: Literal["sd15", "sd21"], size: Size, steps: int, guided: bool, decoder: Decoder, chunk: int) -> System:
    """The paper's pipeline; motion without guidance, as our pipeline samples it by default."""
    few = steps <= 8
    text, text_dim = ("clip-l", 768) if sd == "sd15" else ("clip-h", 1024)
    shape, batch = cmd_shape(size, text_dim), 2 if guided else 1
    tiny = decoder == "tiny" or (decoder == "auto" and few)
    stages = (
        text_stage(text, 77, batch),
        content_stage(f"unet-{sd}", shape, steps, batch),
        motion_stage(f"motion-{sd}", shape, steps, 1),
        autoencoder_stage("autoencoder-windows" if few else "autoencoder", shape),
        image_decoder_stage("vae-tiny" if tiny else "vae-sd", shape.content, size.frames, chunk),
        file_stage(),
    )
    words = f"{steps} + {steps} steps" + ", content guided" * guided + ", windows" * few + ", tiny decoder" * tiny
    return System(f"cmd-{sd}", words, stages)


def _video(name: str, stages: Callable[[Size, int, int, Decoder, int], tuple[Stage, ...]]) -> Callable[..., System]:
    def make(size: Size, steps: int, guided: bool, decoder: Decoder, chunk: int) -> System:
        batch = 2 if guided else 1
        made = stages(size, steps, batch, decoder, chunk)
        return System(name, f"{steps} steps" + ", guided" * guided, (*made, file_stage()))

    return make


def _unet3d(size: Size, steps: int, batch: int, decoder: Decoder, chunk: int) -> tuple[Stage, ...]:
    vae = "vae-tiny" if decoder == "tiny" else "vae-sd"
    decode = image_decoder_stage(vae, (4, *size.latent), size.frames, chunk)
    return text_stage("clip-h", 77, batch), unet3d_stage(size, steps, batch), decode


def _wan(size: Size, steps: int, batch: int, decoder: Decoder, chunk: int) -> tuple[Stage, ...]:
    latent = (16, size.latent_frames(4), *size.latent)

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        x, times, text = new.noise(batch, *latent), new.ids(batch), new.noise(batch, 512, 4096)
        return lambda: net(x, times, text).sample

    text = text_stage("umt5-xxl", 512, batch)
    return text, Stage("denoiser", "wan", prepare, steps, batch), video_decoder_stage("vae-wan", latent)


def _ltx(size: Size, steps: int, batch: int, decoder: Decoder, chunk: int) -> tuple[Stage, ...]:
    t, h, w = size.latent_frames(8), size.height // 32, size.width // 32

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        x, times = new.noise(batch, t * h * w, 128), new.ids(batch)
        text, mask = new.noise(batch, 128, 4096), new.noise(batch, 128).abs()
        return lambda: net(x, text, times, mask, num_frames=t, height=h, width=w).sample

    text = text_stage("t5-xxl", 128, batch)
    return text, Stage("denoiser", "ltx", prepare, steps, batch), video_decoder_stage("vae-ltx", (128, t, h, w))


def _cogvideox(size: Size, steps: int, batch: int, decoder: Decoder, chunk: int) -> tuple[Stage, ...]:
    t = size.latent_frames(4)

    def prepare(net: Any, new: Inputs, batch: int) -> Thunk:
        x, times, text = new.noise(batch, t, 16, *size.latent), new.ids(batch), new.noise(batch, 226, 4096)
        return lambda: net(x, text, times).sample

    decode = video_decoder_stage("vae-cogvideox", (16, t, *size.latent))
    return text_stage("t5-xxl", 226, batch), Stage("denoiser", "cogvideox", prepare, steps, batch), decode


@dataclass(frozen=True)
class Usual:
    """How a system is usually sampled.

    Attributes:
        make: ``make(size, steps, guided, decoder, chunk)``.
        steps: Steps.
        guided: With classifier-free guidance.
        multiple: What height and width must be multiples of.
    """

    make: Callable[..., System]
    steps: int
    guided: bool
    multiple: int


SYSTEMS = {
    "cmd-sd15": Usual(lambda *a: _cmd("sd15", *a), 50, True, 64),
    "cmd-sd21": Usual(lambda *a: _cmd("sd21", *a), 50, True, 64),
    "cmd-sd21-4": Usual(lambda *a: _cmd("sd21", *a), 4, False, 64),
    "videolcm": Usual(_video("videolcm", _unet3d), 4, False, 64),
    "modelscope": Usual(_video("modelscope", _unet3d), 50, True, 64),
    "wan-1.3b": Usual(_video("wan-1.3b", _wan), 50, True, 16),
    "ltx-2b": Usual(_video("ltx-2b", _ltx), 40, True, 32),
    "ltx-2b-8": Usual(_video("ltx-2b-8", _ltx), 8, False, 32),
    "cogvideox-2b": Usual(_video("cogvideox-2b", _cogvideox), 50, True, 16),
}


def make_system(name: str, size: Size, steps: int | None, decoder: Decoder, chunk: int) -> System:
    """One of ``SYSTEMS``.

    Args:
        name: Its name.
        size: The clip's.
        steps: In place of its usual ones.
        decoder: Image decoder of those that decode frame by frame; "auto": tiny for few-step CMD.
        chunk: Frames that an image decoder takes at a time.

    Raises:
        ValueError: No such system, or a size that it cannot make.
    """
    if name not in SYSTEMS:
        raise ValueError(f"unknown system {name!r}: choose from {', '.join(SYSTEMS)}, shipped, or a pipeline folder")
    usual = SYSTEMS[name]
    for side in ("height", "width"):
        if getattr(size, side) % usual.multiple:
            raise ValueError(f"{name}: {side} must be a multiple of {usual.multiple}, got {getattr(size, side)}")
    system = usual.make(size, steps or usual.steps, usual.guided, decoder, chunk)
    return replace(system, name=name)


def folder_system(
    name: str, parts: dict[str, Any], size: Size, steps: tuple[int, int], guided: bool, chunk: int
) -> System:
    """A pipeline folder's system; its stages' networks are called after its parts.

    Args:
        name: What the table calls it.
        parts: Its networks by part (``networks.skeletons``).
        size: The clip's.
        steps: Of the content frame and of the motion.
        guided: Whether the content frame is guided.
        chunk: Frames that the image decoder takes at a time.

    Raises:
        ValueError: A part is missing, it is class-conditional, or it does not make this size.
    """
    text, unet, motion, own = (parts[n] for n in ("text_encoder", "unet", "motion_transformer", "autoencoder"))
    if text is None or unet is None or motion is None or own is None:
        raise ValueError(f"{name}: a text-conditional pipeline with all its parts is needed")
    factor, patch = vae_scale_factor(parts["vae"]), own.config.patch_size
    multiple = factor * math.lcm(patch * motion.config.patch_size, 2 ** (len(unet.config.block_out_channels) - 1))
    if size.height % multiple or size.width % multiple:
        raise ValueError(f"{name}: height and width must be multiples of {multiple}, got {size.height}x{size.width}")
    h, w = size.height // factor, size.width // factor
    shape = CMDShape(
        content=(own.config.in_channels, h, w),
        motion=(own.config.motion_channels, size.frames, h // patch + w // patch),
        tokens=text.config.max_position_embeddings,
        text_dim=text.config.hidden_size,
    )
    batch = 2 if guided else 1
    stages = [
        text_stage("text_encoder", shape.tokens, batch),
        content_stage("unet", shape, steps[0], batch),
        motion_stage("motion_transformer", shape, steps[1], 1),
        autoencoder_stage("autoencoder", shape),
    ]
    if parts["vae"] is not None:
        stages.append(image_decoder_stage("vae", shape.content, size.frames, chunk))
    sampling = f"{steps[0]} + {steps[1]} steps" + ", content guided" * guided
    return System(name, sampling, (*stages, file_stage()))
