"""Command ``benchmark``: what a clip costs from prompt to file, as tables, markdown, JSON and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from contentmotion.config import SHIPPED_MODEL, SHIPPED_STUDENT, BenchmarkConfig
from contentmotion.cost.clip import System, SystemResult, cmd_system, count_systems, folder_system, time_systems
from contentmotion.cost.networks import MODELS
from contentmotion.run_dir import describe_hardware, prepare_output_dir, resolve_device, resolve_dtype
from contentmotion.saving import replacing_file, write_json
from contentmotion.stages.stage import META
from contentmotion.tables import markdown_table, number, print_table

# By name: made from the settings and the frames that an image decoder takes at a time.
Systems = dict[str, Callable[[BenchmarkConfig, int], System]]
SYSTEMS: Systems = {
    f"cmd-{model}{'-4' if few else ''}": partial(cmd_system, model, few)
    for model, few in (("sd15", False), ("sd21", False), *((model, True) for model in MODELS if model != "sd15"))
}
HEADINGS = (
    "system", "stage", "parameters (M)", "passes", "TFLOPs/pass", "TFLOPs", "share", "paper's TFLOPs", "seconds",
    "share of s", "peak GiB",
)  # fmt: skip
SUMMARY_HEADINGS = (
    "system", "sampling", "parameters (M)", "TFLOPs", "paper's TFLOPs", "seconds", "measured whole (s)", "Mpx/s",
    "peak GiB", "TFLOPs saved", "seconds saved",
)  # fmt: skip
NOTES = (
    "FLOPs are 2 x multiply-adds with attention, guidance counted. Paper's: multiply-adds of convolutions and linear "
    "layers, one pass a step, text encoder and image decoder left out (CMD Tables 8 and 9). Seconds: median call x "
    "calls, ± half of slowest - fastest; ~: extrapolated from one call. Networks that are larger than the memory "
    "together are timed one at a time, without a call to warm them up."
)
# Colour-blind safe (Okabe and Ito), by stage.
COLOURS = {
    "text": "#999999", "content": "#0072B2", "motion": "#56B4E9", "denoiser": "#D55E00", "autoencoder": "#009E73",
    "image decoder": "#E69F00", "video decoder": "#F0E442", "file": "#CC79A7",
}  # fmt: skip


def benchmark(
    config: BenchmarkConfig,
    known: Systems = SYSTEMS,
    further: Callable[[torch.device | None, torch.dtype], tuple[dict[str, Any], str]] | None = None,
) -> None:
    """Prints the tables; writes ``benchmark.json``, ``benchmark.md`` and ``benchmark.png``.

    Args:
        config: The command's settings.
        known: The systems; other names are pipeline folders.
        further: ``further(device, dtype)`` gives more facts for the JSON, and markdown behind the tables; its device is
            None where nothing is to run.

    Raises:
        ValueError: No such system, or a size that one of them does not make.
        OSError: The output folder is not writable.
    """
    device = META if config.meta else resolve_device(config.device)
    dtype = torch.float32 if config.meta else _dtype(config.dtype, device)
    chunk = 1 if device.type in ("cpu", "meta") else config.num_frames
    systems = [_find(name, known, config, chunk) for name in config.systems]
    results = count_systems(systems)
    output_dir = prepare_output_dir(config.output_dir, "benchmark", config)
    if device != META:
        time_systems(systems, results, device, dtype, config.repeats, config.whole_seconds)
    facts, extra = further(None if config.meta else device, dtype) if further else ({}, "")
    timed_on = f"{describe_hardware(device)}, {str(dtype).removeprefix('torch.')}"
    hardware = "counted, not run" if config.meta else timed_on
    title = f"contentmotion benchmark, {date.today()}, {hardware}, torch {torch.__version__}"
    facts = {"title": title, "date": str(date.today()), "hardware": hardware, "torch": torch.__version__} | facts
    write_json(output_dir / "benchmark.json", facts | {"systems": [result.as_json() for result in results]})
    text = f"# {title}\n\n{markdown_table(SUMMARY_HEADINGS, summary_rows(results))}\n"
    text += f"{markdown_table(HEADINGS, stage_rows(results))}\n{NOTES}\n{extra}"
    with replacing_file(output_dir / "benchmark.md") as partial:
        partial.write_text(text, encoding="utf-8")
    with replacing_file(output_dir / "benchmark.png") as partial:
        draw_bars(results).save(partial)
    if config.json:
        print((output_dir / "benchmark.json").read_text(encoding="utf-8"), end="")
        return
    print_table(HEADINGS, stage_rows(results), title="Stages of one clip", text=(0, 1))
    print_table(SUMMARY_HEADINGS, summary_rows(results), title=title, text=(0, 1))
    print(NOTES)
    print(extra.strip(), end="\n" * bool(extra))
    print(*(output_dir / f"benchmark.{kind}" for kind in ("md", "json", "png")), sep="\n")


def _find(name: str, known: Systems, config: BenchmarkConfig, chunk: int) -> System:
    if name in known:
        return known[name](config, chunk)
    if name not in (SHIPPED_MODEL, SHIPPED_STUDENT) and not Path(name).is_dir():
        names = ", ".join((*known, SHIPPED_MODEL, SHIPPED_STUDENT))
        raise ValueError(f"unknown system {name!r}: choose from {names}, or a pipeline folder")
    return folder_system(name, config, chunk)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return resolve_dtype("auto", device) or (torch.float16 if device.type == "cuda" else torch.float32)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def stage_rows(results: Sequence[SystemResult]) -> list[tuple[str, ...]]:
    """The cells under ``HEADINGS``."""
    rows = []
    for result in results:
        for stage in result.stages:
            counted = stage.parameters > 0  # a file is not
            if not counted and stage.seconds is None:
                continue
            rows.append(
                (
                    result.system,
                    stage.stage,
                    number(stage.parameters / 1e6) if counted else "",
                    str(stage.passes) if counted else "",
                    number(stage.tflops_per_pass) if counted else "",
                    number(stage.tflops) if counted else "",
                    f"{stage.tflops / result.tflops:.1%}" if counted and result.tflops else "",
                    _number(stage.paper_tflops),
                    _seconds(stage.seconds, stage.spread, extrapolated=stage.calls > 1) or stage.note,
                    f"{stage.seconds / result.seconds:.1%}" if stage.seconds is not None and result.seconds else "",
                    _number(stage.peak_gb),
                )
            )
    return rows


def summary_rows(results: Sequence[SystemResult]) -> list[tuple[str, ...]]:
    """The cells under ``SUMMARY_HEADINGS``; what is saved is against the dearest system."""
    dearest = max(results, key=lambda result: result.tflops)
    rows = []
    for result in results:
        seconds = result.measured_seconds or result.seconds
        saved = dearest.tflops / result.tflops if result.tflops else math.nan
        faster = dearest.seconds / result.seconds if dearest.seconds and result.seconds else None
        rows.append(
            (
                result.system,
                result.sampling,
                number(result.parameters / 1e6),
                number(result.tflops),
                number(result.paper_tflops),
                _number(result.seconds),
                _seconds(result.measured_seconds, result.measured_spread),
                "" if seconds is None else number(math.prod(result.size) / seconds / 1e6),
                _number(result.peak_gb),
                f"{number(saved)}x",
                "" if faster is None else f"{number(faster)}x ({faster / saved:.0%} of TFLOPs)",
            )
        )
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else number(value)


def _seconds(median: float | None, spread: float | None, extrapolated: bool = False) -> str:
    if median is None:
        return ""
    return "~" * extrapolated + number(median) + (f" ±{spread / median:.0%}" if spread and median else "")


def draw_bars(results: Sequence[SystemResult]) -> Image.Image:
    """One bar a system, as long as the logarithm of its cost, cut by the stages' shares: seconds, where all systems
    have them, else TFLOPs."""
    timed = all(result.seconds for result in results)
    unit = "seconds" if timed else "TFLOPs"
    costs = [[(s.stage, (s.seconds if timed else s.tflops) or 0.0) for s in result.stages] for result in results]
    totals = [sum(cost for _, cost in stages) for stages in costs]
    floor, top = min(t for t in totals if t > 0) / 3, max(totals)
    font, row, left, width = ImageFont.load_default(18), 44, 190, 760
    picture = Image.new("RGB", (left + width + 130, 90 + row * len(results)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((10, 10), f"{unit} per clip, prompt to pixels (length: logarithm; colours: shares)", "black", font)
    for i, (result, stages, total) in enumerate(zip(results, costs, totals, strict=True)):
        y, x = 46 + row * i, float(left)
        draw.text((10, y + 8), result.system[-18:], "black", font)
        length = width * math.log(max(total, floor) / floor) / math.log(top / floor) if top > floor else width
        for stage, cost in stages:
            end = x + (length * cost / total if total else 0.0)
            draw.rectangle((round(x), y, round(end), y + row - 12), fill=COLOURS.get(stage, COLOURS["text"]))
            x = end
        draw.text((x + 8, y + 8), number(total), "black", font)
    x = 10
    for stage in dict.fromkeys(name for stages in costs for name, cost in stages if cost):
        y = picture.height - 30
        draw.rectangle((x, y, x + 16, y + 16), fill=COLOURS.get(stage, COLOURS["text"]))
        draw.text((x + 22, y - 2), stage, "black", font)
        x += 40 + round(font.getlength(stage))
    return picture
