"""One training step of each stage, as CMD Table 8 has it: counted, and timed with AdamW under autocast."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from contentmotion.cost.count import count_cost
from contentmotion.cost.measure import (
    GIB,
    free_memory,
    peak_memory_since,
    start_watching_memory,
    time_in_turns,
)
from contentmotion.cost.networks import build
from contentmotion.cost.report import number
from contentmotion.cost.results import TERA
from contentmotion.cost.stages import (
    Inputs,
    Size,
    Stage,
    Thunk,
    cmd_shape,
    content_stage,
    motion_stage,
    unet3d_stage,
)

# Weights, gradients and Adam's two averages, each in float32.
BYTES_PER_TRAINED_PARAMETER = 16
BACKWARD = 3  # forward, and twice as much backward: gradients of weights and of inputs
TRAINING_HEADINGS = (
    "training step", "parameters (M)", "TFLOPs", "paper's TFLOPs", "seconds", "peak GiB",
)  # fmt: skip


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


def training_stages(size: Size) -> dict[str, Stage]:
    """What CMD Table 8 lists: our three networks (SD 2.1), and ModelScope's."""
    shape = cmd_shape(size, 1024)

    def split_and_join(net: Any, new: Inputs, batch: int) -> Thunk:
        x = new.noise(batch, size.frames, *shape.content)
        return lambda: net(x)

    return {
        "CMD autoencoder": Stage("autoencoder", "autoencoder", split_and_join),
        "CMD content": content_stage("unet-sd21", shape, 1, 1),
        "CMD motion": motion_stage("motion-sd21", shape, 1, 1),
        "ModelScope": unet3d_stage(size, 1, 1),
    }


def benchmark_training(
    size: Size, device: torch.device | None, dtype: torch.dtype, repeats: int
) -> list[TrainingResult]:
    """Counts (and on a device times) one step of each; each network is built alone.

    Args:
        size: Of the clip.
        device: None counts without allocating anything.
        dtype: Of the forward pass; weights are float32.
        repeats: Timed steps.
    """
    meta = torch.device("meta")
    results = []
    for name, stage in training_stages(size).items():
        network = build(stage.network, meta)
        cost = count_cost(stage.prepare(network, Inputs(meta, torch.float32), 1))
        parameters = sum(p.numel() for p in network.parameters())
        result = TrainingResult(
            name=name,
            parameters=parameters,
            tflops=BACKWARD * cost.flops / TERA,
            paper_tflops=cost.layers / TERA,
        )
        if device is not None:
            _time_step(result, stage, device, dtype, repeats)
        results.append(result)
    return results


def _time_step(result: TrainingResult, stage: Stage, device: torch.device, dtype: torch.dtype, repeats: int) -> None:
    needed, free = BYTES_PER_TRAINED_PARAMETER * result.parameters, free_memory(device)
    if needed > free:
        result.note = f"does not fit: {needed / GIB:.1f} GiB and activations, {free / GIB:.1f} free"
        return
    before = start_watching_memory(device)
    network = build(stage.network, device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    forward = stage.prepare(network, Inputs(device, torch.float32), 1)

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


def training_rows(results: list[TrainingResult]) -> list[tuple[str, ...]]:
    """The cells under ``TRAINING_HEADINGS``."""
    return [
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


def training_json(results: list[TrainingResult]) -> list[dict[str, Any]]:
    """As plain data."""
    return [asdict(result) for result in results]
