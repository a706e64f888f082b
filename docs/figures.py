"""The figures of the documentation: python docs/figures.py [OUT]

Writes decomposition.png (an example clip of the page through the shipped autoencoder), uses.png (what else the shipped
model is good for), architecture.svg, cost-stages.svg (from benchmarks/results/2026-11-21-benchmark-counted.json) and,
for "Few steps", distillation.svg (logs of the shipped student) into docs/images, or into OUT. Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from contentmotion import load_pipeline
from contentmotion.commands.reconstruct import (
    clip_shape,
    decompose,
    load_parts,
    motion_planes,
    to_pixels,
    weight_maps,
)
from contentmotion.config import SHIPPED_MODEL
from contentmotion.demo.examples import write_examples
from contentmotion.pipelines.interpolation import prompts_between
from contentmotion.saving import replacing_file
from contentmotion.video.reader import read_clip

ROOT = Path(__file__).resolve().parents[1]
COUNTED = ROOT / "benchmarks/results/2026-11-21-benchmark-counted.json"
SHOWN_FRAMES = (0, 3, 6, 9, 12, 15)
CONTENT, MOTION, BOTH, FROZEN = "#d5e8f7", "#fbe3cd", "#e4e0f3", "#e8e8e8"
LOGS = {
    "content, 8 solver steps (shipped)": "content.jsonl",
    "content, 50 solver steps (second version)": "content-50-solver-steps.jsonl",
    "motion, 50 solver steps (shipped)": "motion.jsonl",
}  # fmt: skip
STAGES = {
    "text": "text encoder", "content": "content model", "motion": "motion model", "denoiser": "denoiser",
    "autoencoder": "autoencoder", "image decoder": "image decoder", "video decoder": "video decoder",
}  # fmt: skip
# Text stays text, and the same input gives the same file.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "contentmotion", "font.family": "sans-serif", "font.size": 9}


def main() -> None:
    """Draws them all."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images"
    out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)
    for name, draw in (
        ("decomposition.png", draw_decomposition),
        ("uses.png", draw_uses),
        ("architecture.svg", draw_architecture),
        ("cost-stages.svg", draw_cost),
        ("distillation.svg", draw_distillation),
    ):
        figure = draw()
        suffix = Path(name).suffix[1:]
        with replacing_file(out / name) as partial:
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(partial, format=suffix, dpi=110, bbox_inches="tight", metadata=metadata)
            if suffix == "png":  # 256 colours: a third of the bytes
                colours = Image.open(partial).convert("RGB").quantize(256, dither=Image.Dither.NONE)
                colours.save(partial, format=suffix, optimize=True)
        plt.close(figure)
        print(f"{out / name}: {(out / name).stat().st_size / 1000:.0f} kB")


def draw_decomposition() -> plt.Figure:
    """A clip, the weights of its content frame, the frame, the two motion planes, and what is made of them again."""
    vae, autoencoder = load_parts(SHIPPED_MODEL, None)
    num_frames, height, width = clip_shape(vae, autoencoder)
    with tempfile.TemporaryDirectory() as folder:
        path = write_examples(Path(folder))[0]
        frames = read_clip(path, num_frames=num_frames, height=height, width=width).frames
    found = decompose(vae, autoencoder, torch.from_numpy(frames).permute(0, 3, 1, 2))
    rows = {
        "clip": to_pixels(found.original),
        "weights": weight_maps(found.weights, height, width),
        "put together": to_pixels(found.decoded),
    }
    z_x, z_y = motion_planes(found.motion_latent, autoencoder.config.sample_height // autoencoder.config.patch_size)

    figure = plt.figure(figsize=(10, 4.6))
    columns = len(SHOWN_FRAMES)
    grid = figure.add_gridspec(3, columns + 4, hspace=0.25, wspace=0.12)
    for row, (title, pictures) in enumerate(rows.items()):
        for column, k in enumerate(SHOWN_FRAMES):
            heading = f"frame {k}" if row == 0 else ""
            axes = _show(figure.add_subplot(grid[row, column]), pictures[k], heading)
            if column == 0:
                axes.set_ylabel(title, fontsize=8)
    _show(figure.add_subplot(grid[0:2, columns : columns + 4]), to_pixels(found.content[None])[0], "content frame")
    _show(figure.add_subplot(grid[2, columns : columns + 2]), np.asarray(z_x), "z_x: time to the right")
    _show(figure.add_subplot(grid[2, columns + 2 : columns + 4]), np.asarray(z_y), "z_y: time downwards")
    figure.suptitle(f"{path.stem}: PSNR {found.psnr:.1f} dB; every frame the content frame {found.psnr_frozen:.1f} dB")
    return figure


def draw_uses() -> plt.Figure:
    """A picture that moves, its motion given to others, the video edited, other motion, what lies between prompts."""
    pipe = load_pipeline(SHIPPED_MODEL)
    pipe.set_progress_bar_config(disable=True)

    def make(prompt: str | list[str], **given: Any) -> np.ndarray:
        count = 1 if isinstance(prompt, str) else len(prompt)
        generators = [torch.Generator().manual_seed(3) for _ in range(count)]
        return pipe(prompt, generator=generators, num_inference_steps=20, output_type="np", **given).frames

    picture = pipe("red heart", generator=torch.Generator().manual_seed(3), output_type="np").content_frame[0]
    heart = make("red heart", image=picture)[0]
    between = make(prompts_between("red heart", "fire", 8))
    rows = {
        "a picture,\nanimated": heart[::2],
        "fire, with\nits motion": make("fire", motion_video=heart)[0, ::2],
        "panda, with\nits motion": make("panda", motion_video=heart)[0, ::2],
        "edited:\na blue heart": make("a blue heart", video=heart, strength=0.8)[0, ::2],
        "the same,\nother motion": make("red heart", video=heart, motion_strength=0.9)[0, ::2],
        "red heart\nto fire": between[:, 6],
    }
    figure, axes = plt.subplots(len(rows), 8, figsize=(7.4, 5.4), gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    for row, (title, frames) in zip(axes, rows.items(), strict=True):
        for place, frame in zip(row, frames, strict=True):
            _show(place, (frame * 255).round().astype(np.uint8), "")
            place.set_frame_on(False)
        row[0].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
    for column, place in enumerate(axes[0]):
        place.set_title(f"frame {2 * column}", fontsize=8, loc="left", pad=3)
    for column, place in enumerate(axes[-1]):
        place.set_xlabel(f"{column}/7", fontsize=8)
    return figure


def _show(axes: Axes, picture: np.ndarray, title: str) -> Axes:
    axes.imshow(picture, cmap="gray", interpolation="nearest")
    axes.set_title(title, fontsize=8, loc="left", pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def draw_architecture() -> plt.Figure:
    """Training above, sampling below: boxes are networks, plain words are what flows."""
    figure, axes = plt.subplots(figsize=(12, 5))
    axes.set_xlim(0, 120)
    axes.set_ylim(0, 46)
    axes.axis("off")
    axes.text(0, 44.5, "The autoencoder (trained first): a video is taken apart and put together", weight="bold")
    _word(axes, 5, 34, "video\nt x H x W")
    _box(axes, 21, 34, "image VAE\n(frozen, frame by frame)", FROZEN)
    _box(axes, 40, 34, "encoder\n(TimeSformer)", BOTH)
    _word(axes, 62, 38.5, "content frame: c x h x w\na weighted mean of the frames", CONTENT)
    _word(axes, 62, 29.5, "motion latent\nz_x: D x t x H',  z_y: D x t x W'", MOTION)
    _box(axes, 84, 34, "decoder\n(TimeSformer)", BOTH)
    _box(axes, 100, 34, "image VAE", FROZEN)
    _word(axes, 114, 34, "video")
    for start, end in (((9, 34), (12, 34)), ((30, 34), (34, 34)), ((46, 35), (51, 38)), ((46, 33), (50, 30)),
                       ((73, 38), (78, 35)), ((74, 30), (78, 33)), ((90, 34), (95, 34)),
                       ((105, 34), (111, 34))):  # fmt: skip
        _arrow(axes, start, end)
    axes.plot([0, 120], [23.5, 23.5], color="#bbbbbb", linewidth=0.8)
    axes.text(0, 20.5, "Sampling: two diffusion models, one after the other", weight="bold")
    _word(axes, 5, 10, "prompt")
    _box(axes, 21, 10, "text encoder\n(frozen)", FROZEN)
    _box(axes, 44, 14.5, "content model\nStable Diffusion's UNet\n50 steps, or 4 distilled", CONTENT)
    _box(axes, 68, 5.5, "motion model\nDiT; sees the content frame\n50 steps, or 4 distilled", MOTION)
    _box(axes, 88, 10.5, "decoder", BOTH)
    _box(axes, 101, 10.5, "image VAE", FROZEN)
    _word(axes, 114, 10.5, "video")
    for start, end in (((8, 10), (14, 10)), ((27, 11), (34, 13.5)), ((27, 8.5), (57, 5.5)), ((54, 12.5), (60, 9)),
                       ((54, 15), (83.5, 11.5)), ((79, 6.5), (83.5, 9.5)), ((92, 10.5), (95.5, 10.5)),
                       ((106, 10.5), (111, 10.5))):  # fmt: skip
        _arrow(axes, start, end)
    return figure


def _box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    style = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "#444444"}
    axes.text(x, y, text, ha="center", va="center", bbox=style, fontsize=8)


def _word(axes: Axes, x: float, y: float, text: str, colour: str | None = None) -> None:
    style = {"boxstyle": "square,pad=0.4", "facecolor": colour, "edgecolor": "none"} if colour else None
    axes.text(x, y, text, ha="center", va="center", bbox=style, fontsize=8, style="italic")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#444444"})


def draw_cost() -> plt.Figure:
    """Which share of a clip's TFLOPs each stage takes, one bar a system, the sums written beside."""
    counted = json.loads(COUNTED.read_text(encoding="utf-8"))
    systems = sorted(counted["systems"], key=lambda system: sum(stage["tflops"] for stage in system["stages"]))
    figure, axes = plt.subplots(figsize=(9, 3.6))
    colours = dict(zip(STAGES, plt.get_cmap("Set2").colors, strict=False))  # type: ignore[attr-defined]
    left = np.zeros(len(systems))
    totals = np.array([sum(stage["tflops"] for stage in system["stages"]) for system in systems])
    for name, label in STAGES.items():
        values = [sum(s["tflops"] for s in system["stages"] if s["stage"] == name) for system in systems]
        if any(values):
            shares = np.array(values) / totals
            axes.barh(range(len(systems)), shares, left=left, color=colours[name], label=label)
            left += shares
    labels = [f"{s['system']}  ({s['sampling']}): {t:,.1f}" for s, t in zip(systems, totals, strict=True)]
    axes.set_yticks(range(len(systems)), labels)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title(f"TFLOPs of one clip, 16 x 512 x 1024, and where they go ({counted['date']})", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.1), ncols=3, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def draw_distillation() -> plt.Figure:
    """What to expect of a distillation: loss, and deviation of the student's pictures over the guided teacher's."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3))
    for name, file in LOGS.items():
        text = (ROOT / "benchmarks/results/emoji-lcm-training" / file).read_text(encoding="utf-8")
        lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
        for axes, key in zip(panels, ("loss", "x0_std_ratio"), strict=True):
            values = np.array([line.get(key, np.nan) for line in lines])
            width = max(1, len(values) // 40)
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot([line["step"] for line in lines][width - 1 :], smooth, label=name)
            axes.set(title=key, xlabel="step", xscale="log")
    panels[0].set_yscale("log")
    panels[0].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
