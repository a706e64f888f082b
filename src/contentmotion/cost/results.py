"""What a benchmark found: one row per stage, one summary per system; plain data that JSON holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from contentmotion.cost.count import Cost
from contentmotion.cost.measure import GIB, Timing
from contentmotion.cost.stages import PAPER_STAGES, Stage

TERA = 1e12


@dataclass(kw_only=True)
class StageResult:
    """One stage of one system.

    Attributes:
        stage: Its name.
        parameters: Of its network.
        passes: Items through the network per clip (a guided step is two).
        tflops_per_pass: FLOPs of one pass / 1e12: 2 x multiply-adds, attention included.
        tflops: Of all passes.
        paper_tflops: In the convention of CMD's tables: multiply-adds of convolutions and linear layers, one pass per
            step; None for stages that they leave out.
        seconds: Per clip: the median call times the number of calls.
        spread: Half the distance between fastest and slowest call, times the number of calls.
        calls: Calls per clip; above 1, seconds are extrapolated from one call's.
        weights_gb: GiB of its weights.
        peak_gb: GiB of weights and of what a call needs beside them.
        note: Why it was not timed.
    """

    stage: str
    parameters: int
    passes: int
    calls: int
    tflops_per_pass: float
    tflops: float
    paper_tflops: float | None
    seconds: float | None = None
    spread: float | None = None
    weights_gb: float | None = None
    peak_gb: float | None = None
    note: str = ""


@dataclass(kw_only=True)
class SystemResult:
    """One system.

    Attributes:
        system: Its name.
        sampling: Steps and guidance, in words.
        size: Frames, height and width of its clip.
        stages: In order.
        measured_seconds: The whole pipeline from prompt to file, run and timed as one; None where it was not.
        measured_spread: Half the distance between fastest and slowest run.
    """

    system: str
    sampling: str
    size: tuple[int, int, int]
    stages: list[StageResult] = field(default_factory=list)
    measured_seconds: float | None = None
    measured_spread: float | None = None

    @property
    def tflops(self) -> float:
        """From prompt to pixels."""
        return sum(stage.tflops for stage in self.stages)

    @property
    def paper_tflops(self) -> float:
        """In the paper's convention: without guidance, text encoder and image decoder."""
        return sum(stage.paper_tflops or 0.0 for stage in self.stages)

    @property
    def parameters(self) -> int:
        """Of all networks."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Sum over the stages; None unless all of them were timed."""
        parts = [stage.seconds for stage in self.stages]
        return None if None in parts else sum(part for part in parts if part is not None)

    @property
    def peak_gb(self) -> float | None:
        """GiB with all networks in memory, at the stage that needs most beside them."""
        if any(stage.peak_gb is None or stage.weights_gb is None for stage in self.stages):
            return None
        beside = [stage.peak_gb - stage.weights_gb for stage in self.stages]  # type: ignore[operator]
        return sum(stage.weights_gb or 0.0 for stage in self.stages) + max(beside)

    def as_json(self) -> dict[str, Any]:
        """Its fields and totals."""
        totals = {name: getattr(self, name) for name in ("parameters", "tflops", "paper_tflops", "seconds", "peak_gb")}
        return asdict(self) | totals


def stage_result(stage: Stage, parameters: int, cost: Cost) -> StageResult:
    """A stage's row, counted but not timed.

    Args:
        stage: What runs.
        parameters: Of its network.
        cost: Of one pass.
    """
    passes = stage.calls * stage.batch
    paper = cost.layers * stage.calls / TERA if stage.name in PAPER_STAGES else None
    return StageResult(
        stage=stage.name,
        parameters=parameters,
        passes=passes,
        calls=stage.calls,
        tflops_per_pass=cost.flops / TERA,
        tflops=cost.flops * passes / TERA,
        paper_tflops=paper,
    )


def add_timing(row: StageResult, timing: Timing | str, weight_bytes: int) -> None:
    """Fills in what was measured, or why it was not."""
    row.weights_gb = weight_bytes / GIB
    if isinstance(timing, str):
        row.note = timing
        return
    row.seconds, row.spread = row.calls * timing.median, row.calls * timing.spread
    if timing.peak_bytes is not None:
        row.peak_gb = (weight_bytes + timing.peak_bytes) / GIB
