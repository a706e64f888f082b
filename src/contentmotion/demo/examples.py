"""Two small clips, drawn here, for the page to take apart where nobody has a video at hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from contentmotion.video.write import write_video

SIDE, NUM_FRAMES, FPS, OVERSAMPLING = 128, 32, 8.0, 4


def write_examples(folder: Path) -> list[Path]:
    """Writes a bouncing ball and a turning wheel, 32 frames of 128x128 each; returns the files."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, draw in (("bouncing-ball", _ball), ("turning-wheel", _wheel)):
        frames = np.stack([_frame(draw, k / 16) for k in range(NUM_FRAMES)])
        paths.append(folder / f"{name}.mp4")
        write_video(paths[-1], frames, FPS)
    return paths


def _frame(draw, phase: float) -> np.ndarray:
    """One picture, drawn large and made smaller: smooth edges."""
    side = SIDE * OVERSAMPLING
    picture = Image.new("RGB", (side, side), "white")
    draw(ImageDraw.Draw(picture), side, phase)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _ball(draw: ImageDraw.ImageDraw, side: int, phase: float) -> None:
    radius, height = 0.14 * side, abs(math.sin(math.pi * phase))
    x, y = side / 2, side * (0.8 - 0.55 * height)
    shadow = radius * (1.1 - 0.5 * height)
    draw.ellipse((x - shadow, side * 0.93, x + shadow, side * 0.97), fill="#d0d0d0")
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="#e6482e")
    draw.ellipse((x - radius / 2, y - radius / 1.6, x - radius / 8, y - radius / 4), fill="#ffb4a2")


def _wheel(draw: ImageDraw.ImageDraw, side: int, phase: float) -> None:
    box, turn = (0.15 * side, 0.15 * side, 0.85 * side, 0.85 * side), 90 * phase
    for number, colour in enumerate(("#f9c22e", "#2e86de", "#f9c22e", "#2e86de")):
        draw.pieslice(box, turn + 90 * number, turn + 90 * (number + 1), fill=colour)
    draw.ellipse((0.44 * side, 0.44 * side, 0.56 * side, 0.56 * side), fill="#333333")
