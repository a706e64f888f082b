"""One training step of each of CMD's networks and of other systems', as CMD Table 8 has it: counted, and timed under
autocast; with AdamW, or on a CPU, whose memory holds no averages for billions of weights, with plain gradient descent
and gradient checkpointing, where the network has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from contentmotion.config import BenchmarkConfig
from contentmotion.cost.clip import Pass, Size, cmd_system, noise
from contentmotion.cost.count import GIB, TERA
from contentmotion.cost.measure import free_memory, peak_memory_since, start_watching_memory, time_in_turns
from contentmotion.cost.networks import build
from contentmotion.stages.stage import META
from contentmotion.tables import markdown_table, number
from systems.clips import NETWORKS, ltx, unet3d, wan

# Weights, gradients and on a GPU Adam's two averages, each in float32.
BYTES_PER_TRAINED_PARAMETER = {"cpu": 8, "cuda": 16}
BACKWARD = 3  # forward, and twice as much backward: gradients of weights and of inputs
HEADINGS = ("training step", "parameters (M)", "TFLOPs", "paper's TFLOPs", "seconds", "peak GiB")
Networks = Mapping[str, nn.Module]


@dataclass(kw_only=True)
class TrainingResult:
    """One training step at batch 1.

    Attributes:
        name: What is trained.
        parameters: Of it.
        tflops: Forward and backward, 2 x multiply-adds with attention.
        paper_tflops: The paper's: multiply-adds of layers, forward alone.
        seconds: Median step.
        spread: Half of slowest less fastest.
        peak_gb: GiB, weights, gradients and optimizer included.
        note: Why it was not timed.
    """

    name: str
    parameters: int
    tflops: float
    paper_tflops: float
    seconds: float | None = None
    spread: float | None = None
    peak_gb: float | None = None
    note: str = ""


def training_passes(size: Size) -> dict[str, tuple[str, Callable[[Networks, torch.device], Pass]]]:
    """What CMD Table 8 lists, ours with Stable Diffusion 2.1: the network's name, and its forward pass."""
    config = BenchmarkConfig(num_frames=size.frames, height=size.height, width=size.width, steps=50)
    system = cmd_system("sd21", True, config, 1)

    def stage(name: str) -> Callable[[Networks, torch.device], Pass]:
        return lambda nets, device: next(one for one in system.passes(nets, device) if one.name == name)

    def autoencoder(nets: Networks, device: torch.device) -> Pass:
        x = noise(device, torch.float32, 1, size.frames, 4, size.height // 8, size.width // 8)
        return Pass("autoencoder", nets["autoencoder"], lambda: nets["autoencoder"](x))

    return {
        "CMD autoencoder": ("autoencoder", autoencoder),
        "CMD content": ("unet-sd21", stage("content")),
        "CMD motion": ("motion-sd21", stage("motion")),
        "ModelScope": ("unet3d", lambda nets, device: unet3d(nets, device, size, 1, 1, 1)[1]),
        "Wan 1.3B": ("wan", lambda nets, device: wan(nets, device, size, 1, 1, 1)[1]),
        "LTX-Video 2B": ("ltx", lambda nets, device: ltx(nets, device, size, 1, 1, 1)[1]),
    }


def training_steps(size: Size, device: torch.device | None, dtype: torch.dtype, repeats: int) -> list[TrainingResult]:
    """Counts (and on a device times) one step of each; each network is built alone.

    Args:
        size: Of the clip.
        device: None counts without allocating anything.
        dtype: Of the forward pass; weights are float32.
        repeats: Timed steps.
    """
    shapes = {name: build(make, META) for name, make in NETWORKS.items()}
    results = []
    for title, (name, forward) in training_passes(size).items():
        cost = forward(shapes, META).count()
        result = TrainingResult(
            name=title,
            parameters=sum(p.numel() for p in shapes[name].parameters()),
            tflops=BACKWARD * cost.flops / TERA,
            paper_tflops=cost.layers / TERA,
        )
        if device is not None:
            _time_step(result, name, forward, shapes, device, dtype, repeats)
        results.append(result)
    return results


def _time_step(
    result: TrainingResult, name: str, make: Callable[[Networks, torch.device], Pass], shapes: Networks,
    device: torch.device, dtype: torch.dtype, repeats: int,
) -> None:  # fmt: skip
    before = start_watching_memory(device)  # gives back the memory of the network before this one
    needed, free = BYTES_PER_TRAINED_PARAMETER.get(device.type, 16) * result.parameters, free_memory(device)
    if needed > free:
        result.note = f"does not fit: {needed / GIB:.1f} GiB and activations, {free / GIB:.1f} free"
        return
    network = build(NETWORKS[name], device).train()
    optimizer: torch.optim.Optimizer
    if device.type == "cpu":
        if network._supports_gradient_checkpointing:  # ModelScope's does not
            network.enable_gradient_checkpointing()  # type: ignore[reportCallIssue]
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-5)
    else:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    forward = make({**shapes, name: network}, device).call

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output: Any = forward()
        output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    timing = time_in_turns([step], repeats, device)[0]
    if isinstance(timing, str):
        result.note = timing
        return
    result.seconds, result.spread = timing.median, timing.spread
    peak = peak_memory_since(before, device)
    result.peak_gb = None if peak is None else peak / GIB


def training_report(results: list[TrainingResult], size: Size) -> tuple[dict[str, Any], str]:
    """The steps as plain data, and as a table in markdown."""
    rows = [
        (
            result.name,
            number(result.parameters / 1e6),
            number(result.tflops),
            number(result.paper_tflops),
            result.note if result.seconds is None else f"{number(result.seconds)} ±{number(result.spread or 0.0)}",
            "" if result.peak_gb is None else number(result.peak_gb),
        )
        for result in results
    ]
    title = f"One training step, batch 1, {size.frames} x {size.height} x {size.width}"
    return {"training": [asdict(result) for result in results]}, f"\n{title}:\n\n{markdown_table(HEADINGS, rows)}"
