"""Switches that make a pipeline faster or smaller: memory layout, compiled and quantised networks, image decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from contentmotion.stages.image_vae import vae_latent_channels, vae_scale_factor

DENOISERS, DECODERS = ("unet", "transformer", "motion_transformer"), ("autoencoder", "vae")


def use_channels_last(pipe: Any) -> None:
    """Stores the convolutions' weights in the order that GPUs' convolutions read; results agree to rounding."""
    for network in _networks(pipe, ("unet", "vae")):
        for weight in network.parameters():
            if weight.dim() == 4:  # a video UNet's convolutions in time have five
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def use_vae(pipe: Any, vae: nn.Module) -> None:
    """Puts another of diffusers' image VAEs in place of the pipeline's, such as an ``AutoencoderTiny``, trained on the
    latents of the pipeline's own.

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
    for network in _networks(pipe, DENOISERS):
        network.compile(mode=mode, dynamic=False)
    # Called once a clip, not once a step: a graph would save nothing.
    for network in _networks(pipe, DECODERS):
        network.decode = torch.compile(network.decode, dynamic=False)


Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], object], Any]]


class Replayed:
    """A function of tensors that is recorded at the first call with such shapes, and replayed at the others.

    Args:
        call: The function. Arguments that are no tensors decide, as shapes do, what is the same call.
        record: Makes of a call without arguments, whose tensors stay in their places, what does it again, and the
            output that this writes anew.
    """

    def __init__(self, call: Callable[..., Any], record: Recorder) -> None:
        self.call, self.record = call, record
        self._known: dict[Any, tuple[list[Any], Callable[[], object], Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, form = tree_flatten((args, kwargs))
        kinds = [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else repr(x) for x in leaves]
        key = (str(form), *kinds)
        if key not in self._known:
            held = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
            own_args, own_kwargs = tree_unflatten(held, form)
            self._known[key] = held, *self.record(lambda: self.call(*own_args, **own_kwargs))
        held, replay, output = self._known[key]
        for mine, given in zip(held, leaves, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given)
        replay()
        return tree_map_only(Tensor, torch.clone, output)


def cuda_recorder(device: torch.device, generator: torch.Generator | None = None) -> Recorder:
    """Records calls as CUDA graphs, which share their memory: what one leaves must be read before another is replayed.
    Each replay draws from where the generators, the device's and the given one, stand then.

    Raises:
        ValueError: Another device than CUDA.
    """
    if device.type != "cuda":
        raise ValueError(f"cuda_graphs needs a CUDA GPU, and this run is on {device.type}")
    pool, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        here = torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):  # what is made at a first call must not be part of the graph
            for _ in range(2):
                call()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if generator is not None:
            graph.register_generator_state(generator)
        # "thread_local": threads that read data use CUDA meanwhile. On the stream that was warmed up, for autograd
        # remembers where gradients go.
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            output = call()
        return graph.replay, output

    return record


def replay_networks(pipe: Any, device: torch.device) -> None:
    """Has the networks' calls recorded as CUDA graphs: one launch each in place of hundreds, the same numbers. Weights
    may change in their places alone from then on.

    Raises:
        ValueError: Another device than CUDA.
    """
    record = cuda_recorder(device)
    for network in _networks(pipe, DENOISERS):
        network.forward = Replayed(network.forward, record)
    for network in _networks(pipe, DECODERS):
        network.decode = Replayed(network.decode, record)


def quantize_networks(pipe: Any, quantization: str) -> None:
    """With "int8" stores the denoisers' linear layers' weights in 8 bits, a scale per row; they compute as before.

    Raises:
        ImportError: torchao is not installed.
    """
    if quantization == "none":
        return
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("--quantization needs torchao: pip install 'contentmotion[quantization]'") from None
    for network in _networks(pipe, DENOISERS):
        quantize_(network, Int8WeightOnlyConfig())


def enable_tiling(pipe: Any) -> None:
    """Decodes large frames in overlapping tiles: less memory, faint seams.

    Raises:
        ValueError: The image VAE does not know how.
    """
    if not hasattr(pipe.vae, "enable_tiling"):
        raise ValueError(f"vae_tiling: {type(pipe.vae).__name__} decodes whole frames only")
    pipe.vae.enable_tiling()


def _networks(pipe: Any, names: Sequence[str]) -> list[Any]:
    """Those of a pipeline's components that it has."""
    return [network for name in names if (network := getattr(pipe, name, None)) is not None]
