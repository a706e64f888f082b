"""Command ``benchmark``: what a clip costs from prompt to file, of several systems side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from contentmotion.config import SHIPPED_MODEL, BenchmarkConfig
from contentmotion.cost import report
from contentmotion.cost.count import Cost, count_cost
from contentmotion.cost.measure import GIB, free_memory, time_in_turns
from contentmotion.cost.networks import build, skeletons
from contentmotion.cost.results import StageResult, SystemResult, add_timing, stage_result
from contentmotion.cost.stages import Inputs, Size, Stage
from contentmotion.cost.systems import SYSTEMS, System, folder_system, make_system
from contentmotion.cost.training import (
    TRAINING_HEADINGS,
    benchmark_training,
    training_json,
    training_rows,
)
from contentmotion.cost.whole import time_whole
from contentmotion.loading import load_scheduler, resolve_name
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.sampling import is_distilled
from contentmotion.run_dir import describe_hardware, prepare_output_dir, resolve_device, resolve_dtype
from contentmotion.video.write import write_video

META = torch.device("meta")
SHIPPED = {"shipped": None, "shipped-4": 4}  # the model that comes with the package: as it is sampled, and in 4 steps


def benchmark(config: BenchmarkConfig) -> None:
    """Prints the tables; writes ``benchmark.json``, ``benchmark.md`` and ``benchmark.png``.

    Raises:
        ValueError: No such system, or a size that one of them does not make.
        OSError: The output folder is not writable.
    """
    device = META if config.meta else resolve_device(config.device)
    dtype = torch.float32 if config.meta else _dtype(config.dtype, device)
    bench = Bench(config, device, dtype)
    output_dir = prepare_output_dir(config.output_dir, "benchmark", config)
    results = bench.run()
    size = Size(config.num_frames, config.height or 512, config.width or 1024)
    training = []
    if config.training:
        training = benchmark_training(size, None if config.meta else device, dtype, config.repeats)

    hardware = (
        "counted, not run" if config.meta else f"{describe_hardware(device)}, {str(dtype).removeprefix('torch.')}"
    )
    title = f"contentmotion benchmark, {date.today()}, {hardware}, torch {torch.__version__}"
    console = Console(highlight=False)
    if results and not config.json:
        console.print(report.rich_table(report.HEADINGS, report.stage_rows(results), "Stages of one clip"))
        console.print(report.rich_table(report.SUMMARY_HEADINGS, report.summary_rows(results), title))
        console.print(report.NOTES)
    extra = ""
    if training:
        rows = training_rows(training)
        shown = f"One training step, batch 1, {size.frames} x {size.height} x {size.width}"
        if not config.json:
            console.print(report.rich_table(TRAINING_HEADINGS, rows, shown))
        extra = f"\n{shown}:\n\n{report.markdown_table(TRAINING_HEADINGS, rows)}"
    facts = {"title": title, "date": str(date.today()), "hardware": hardware, "torch": torch.__version__}
    report.write_report(output_dir, title, results, facts | {"training": training_json(training)}, extra)
    if config.json:
        print((output_dir / "benchmark.json").read_text(encoding="utf-8"), end="")
        return
    print(output_dir / "benchmark.md", output_dir / "benchmark.json", output_dir / "benchmark.png", sep="\n")


class Bench:
    """The systems of one run and the networks that they share.

    Args:
        config: The command's settings.
        device: Where; "meta" counts only.
        dtype: Of the networks.

    Raises:
        ValueError: No such system, or a size that one of them does not make.
    """

    def __init__(self, config: BenchmarkConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.shapes: dict[str, nn.Module] = {}  # on the meta device, by name
        self.networks: dict[str, nn.Module | str] = {}  # on the device; a line where one does not fit
        self.systems: list[tuple[System, Size, str]] = []  # with the prefix of its networks' names
        chunk = 1 if device.type in ("cpu", "meta") else config.num_frames
        for name in config.systems:
            if name in SYSTEMS:
                size = Size(config.num_frames, config.height or 512, config.width or 1024)
                self.systems.append((make_system(name, size, config.steps, config.decoder, chunk), size, ""))
            else:
                self.systems.append(self._open_folder(name, chunk))

    def _open_folder(self, name: str, chunk: int) -> tuple[System, Size, str]:
        path = SHIPPED_MODEL if name in SHIPPED else name
        if path != SHIPPED_MODEL and not Path(path).is_dir():
            names = ", ".join((*SYSTEMS, *SHIPPED))
            raise ValueError(f"unknown system {name!r}: choose from {names}, or a pipeline folder")
        folder = Path(resolve_name(path))
        parts = skeletons(folder)
        self.shapes |= {f"{path}|{part}": network for part, network in parts.items() if network is not None}
        own: Any = parts["autoencoder"]
        if own is None:
            raise ValueError(f"{name} is no pipeline folder: it has no autoencoder")
        factor = 1 if parts["vae"] is None else 2 ** (len(parts["vae"].config.block_out_channels) - 1)
        size = Size(
            self.config.num_frames,
            self.config.height or own.config.sample_height * factor,
            self.config.width or own.config.sample_width * factor,
        )
        few = SHIPPED.get(name)
        distilled = [few is not None or is_distilled(load_scheduler(folder / f"{m}scheduler")) for m in ("", "motion_")]
        steps = [self.config.steps or few or (4 if one else 50) for one in distilled]
        system = folder_system(name, parts, size, (steps[0], steps[1]), not distilled[0], chunk)
        return system, size, f"{path}|"

    def run(self) -> list[SystemResult]:
        """Counts every stage; on a device times them in turns, and whole pipelines of ours where they are short."""
        results = [
            SystemResult(
                system=system.name,
                sampling=system.sampling,
                size=(size.frames, size.height, size.width),
                stages=[self._count(stage, prefix) for stage in system.stages],
            )
            for system, size, prefix in self.systems
        ]
        if self.device == META:
            return results
        with tempfile.TemporaryDirectory() as folder:
            self._time(results, Path(folder))
            for (system, size, prefix), result in zip(self.systems, results, strict=True):
                time_whole(self, system, size, prefix, result, Path(folder))
        return results

    def _count(self, stage: Stage, prefix: str) -> StageResult:
        if not stage.network:
            return stage_result(stage, 0, Cost(layers=0, attention=0))
        shape = self.shape(prefix + stage.network)
        cost = count_cost(stage.prepare(shape, Inputs(META, torch.float32), 1))
        return stage_result(stage, sum(p.numel() for p in shape.parameters()), cost)

    def _time(self, results: list[SystemResult], folder: Path) -> None:
        jobs: list[Callable[[], object]] = []
        rows: list[tuple[StageResult, int]] = []
        inputs = Inputs(self.device, self.dtype)
        for (system, size, prefix), result in zip(self.systems, results, strict=True):
            for stage, row in zip(system.stages, result.stages, strict=True):
                if not stage.network:
                    jobs.append(lambda size=size: write_video(folder / "clip.mp4", moving_square(size), 8))
                    rows.append((row, 0))
                    continue
                network = self.network(prefix + stage.network)
                weight_bytes = row.parameters * self.dtype.itemsize
                if isinstance(network, str):
                    add_timing(row, network, weight_bytes)
                    continue
                jobs.append(stage.prepare(network, inputs, stage.batch))
                rows.append((row, weight_bytes))
        with torch.inference_mode():
            timings = time_in_turns(jobs, self.config.repeats, self.device)
        for (row, weight_bytes), timing in zip(rows, timings, strict=True):
            add_timing(row, timing, weight_bytes)

    def shape(self, name: str) -> nn.Module:
        """A network without its weights, for counting."""
        if name not in self.shapes:
            self.shapes[name] = build(name, META)
        return self.shapes[name]

    def network(self, name: str) -> nn.Module | str:
        """A network on the device, made once; or one line about why it is not there."""
        if name not in self.networks:
            self._make_network(name)
        return self.networks[name]

    def _make_network(self, name: str) -> None:
        needed = sum(p.numel() for p in self.shape(name).parameters()) * self.dtype.itemsize
        free = free_memory(self.device)
        if needed > 0.9 * free:
            self.networks[name] = f"does not fit: {needed / GIB:.1f} GiB, {free / GIB:.1f} free"
            return
        path, bar, _ = name.rpartition("|")
        try:
            if bar:
                parts = load_pipeline(path, dtype=self.dtype).to(self.device).components
                own = {f"{path}|{part}": network for part, network in parts.items() if isinstance(network, nn.Module)}
                self.networks |= own
            else:
                self.networks[name] = build(name, self.device, self.dtype)
        except (RuntimeError, MemoryError) as error:
            self.networks[name] = " ".join(str(error).split())[:120]


def moving_square(size: Size) -> np.ndarray:
    """A clip that costs a codec about what a generated one does: a colour ramp and a square that moves over it."""
    frames = np.empty((size.frames, size.height, size.width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, size.height)[:, None]
    frames[..., 1] = np.linspace(255, 0, size.width)
    frames[..., 2] = 128
    side = size.height // 4
    for k in range(size.frames):
        left = k * (size.width - side) // max(1, size.frames - 1)
        frames[k, side : 2 * side, left : left + side] = 230
    return frames


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return resolve_dtype("auto", device) or (torch.float16 if device.type == "cuda" else torch.float32)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
