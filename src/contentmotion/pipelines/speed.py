"""Switches that make a pipeline faster or smaller: memory layout, compiled and quantised networks, image decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Event
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from contentmotion.stages.image_vae import vae_latent_channels, vae_scale_factor

Quantization = Literal["none", "int8"]
T = TypeVar("T")


def use_channels_last(pipe: Any) -> None:
    """Stores the convolutions' weights in the order that GPUs' convolutions read; results agree to rounding."""
    for network in (pipe.unet, pipe.vae):
        for weight in network.parameters() if network is not None else ():
            if weight.dim() == 4:  # a video UNet's convolutions in time have five
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def use_vae(pipe: Any, vae: nn.Module) -> None:
    """Puts another image VAE in place of the pipeline's, such as an ``AutoencoderTiny`` of the same latents.

    Args:
        pipe: A pipeline.
        vae: One of diffusers' image VAEs, trained on the latents of the pipeline's own.

    Raises:
        ValueError: Its latents are of another shape.
    """
    own = (vae_latent_channels(pipe.vae), vae_scale_factor(pipe.vae))
    other = (vae_latent_channels(vae), vae_scale_factor(vae))
    if own != other:
        raise ValueError(
            f"the image decoder takes latents of {other[0]} channels, {other[1]}x smaller than the frames; "
            f"this model's have {own[0]} and are {own[1]}x smaller"
        )
    pipe.register_modules(vae=vae)


def compile_networks(pipe: Any, device: torch.device) -> None:
    """Compiles the networks, for one shape of inputs each: the first clip takes minutes, the others are faster.

    On CUDA the denoisers' steps run as CUDA graphs.
    """
    mode = "reduce-overhead" if device.type == "cuda" else None
    for network in _denoisers(pipe):
        network.compile(mode=mode, dynamic=False)
    # Called once a clip, not once a step: a graph would save nothing.
    for network in (getattr(pipe, "autoencoder", None), pipe.vae):
        if network is not None:
            network.decode = torch.compile(network.decode, dynamic=False)


def quantize_networks(pipe: Any, quantization: Quantization) -> None:
    """Stores the weights of the denoisers' linear layers in 8 bits, a scale per row; they compute as before.

    Raises:
        ImportError: torchao is not installed.
    """
    if quantization == "none":
        return
    try:
        from torchao.quantization import (  # type: ignore[reportMissingImports]
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError:
        raise ImportError("--quantization needs torchao: pip install 'contentmotion[quantization]'") from None
    for network in _denoisers(pipe):
        quantize_(network, Int8WeightOnlyConfig())


def enable_tiling(pipe: Any) -> None:
    """Decodes large frames in overlapping tiles: less memory, faint seams.

    Raises:
        ValueError: The image VAE does not know how.
    """
    if not hasattr(pipe.vae, "enable_tiling"):
        raise ValueError(f"vae_tiling: {type(pipe.vae).__name__} decodes whole frames only")
    pipe.vae.enable_tiling()


def _denoisers(pipe: Any) -> list[nn.Module]:
    found = (pipe.unet, getattr(pipe, "motion_transformer", None))
    return [network for network in found if network is not None]


def draw_side_by_side(
    pipe: Any,
    draw: Callable[[Any, int, Callable[[], object]], T],
    starts: Iterable[int],
    on_step: Callable[[], object],
    workers: int,
) -> Iterator[T]:
    """Draws batches, several at once, each in a thread with its share of the processor's cores.

    Small networks leave cores idle that work on the same batch: while some compute one batch's content frames, others
    are at another's motion or pixels.

    Args:
        pipe: Shared by the threads but for its schedulers, which count steps.
        draw: (pipeline, start, on_step) -> a batch.
        starts: What to call it with.
        on_step: Called by any of the threads after a denoising step.
        workers: How many batches at once.

    Yields:
        The batches in the order of ``starts``.
    """
    if workers == 1:
        yield from (draw(pipe, start, on_step) for start in starts)
        return
    stopped = Event()

    def step() -> None:
        if stopped.is_set():  # nobody waits for the rest: interrupted, or another batch failed
            raise InterruptedError
        on_step()

    total = torch.get_num_threads()
    share = max(1, total // workers)
    pools = [ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(share,)) for _ in range(workers)]
    twins = [_with_own_schedulers(pipe) for _ in range(workers)]
    try:
        # A page's progress bar finds its event through the context.
        jobs = [
            pools[k % workers].submit(copy_context().run, draw, twins[k % workers], start, step)
            for k, start in enumerate(starts)
        ]
        yield from (job.result() for job in jobs)
    finally:
        stopped.set()
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(total)  # a thread's number is also what later threads begin with


def _with_own_schedulers(pipe: Any) -> Any:
    twin = copy.copy(pipe)
    for name in ("scheduler", "motion_scheduler"):
        if getattr(pipe, name, None) is not None:
            setattr(twin, name, copy.deepcopy(getattr(pipe, name)))
    return twin
