"""The picture of `contentmotion inspect`: histograms above a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from contentmotion.saving import replacing_file
from contentmotion.video.write import write_contact_sheet

PANEL = (360, 190)
THUMBNAIL = (256, 128)
COLUMNS = 3
NUM_BINS = 24
BAR, GREY = (60, 110, 180), (120, 120, 120)


def write_picture(
    path: Path,
    title: str,
    histograms: dict[str, Sequence[float]],
    videos: Sequence[np.ndarray],
    captions: Sequence[str],
) -> None:
    """Writes a PNG.

    Args:
        path: The file.
        title: One line above everything.
        histograms: What each shows, and its values; those without values are left out.
        videos: Clips for the contact sheet, each uint8 (t, h, w, 3); may be empty.
        captions: One per clip.
    """
    panels = [_histogram(name, values) for name, values in histograms.items() if len(values)]
    rows = -(-len(panels) // COLUMNS)
    sheet = None
    if videos:
        with replacing_file(path) as partial:
            write_contact_sheet(partial, [_shrink(video) for video in videos], captions)
        with Image.open(path) as image:
            sheet = image.convert("RGB")
    top = 40
    width = max(COLUMNS * PANEL[0], sheet.width if sheet else 0)
    picture = Image.new("RGB", (width, top + rows * PANEL[1] + (sheet.height if sheet else 0)), "white")
    ImageDraw.Draw(picture).text((12, 10), title, fill="black", font=ImageFont.load_default(size=18))
    for number, panel in enumerate(panels):
        picture.paste(panel, (number % COLUMNS * PANEL[0], top + number // COLUMNS * PANEL[1]))
    if sheet:
        picture.paste(sheet, (0, top + rows * PANEL[1]))
    with replacing_file(path) as partial:
        picture.save(partial, format="PNG")


def _histogram(name: str, values: Sequence[float]) -> Image.Image:
    """One panel: bars from the lowest to the highest value, both written below, and the median."""
    width, height = PANEL
    panel = Image.new("RGB", PANEL, "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(size=14)
    left, right, base, ceiling = 14, width - 14, height - 28, 34
    low, high = float(np.min(values)), float(np.max(values))
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(values, bins=NUM_BINS, range=(low, high))
    step = (right - left) / NUM_BINS
    for k, count in enumerate(counts):
        if count:
            bar = max(2, (base - ceiling) * count / counts.max())
            draw.rectangle((left + k * step, base - bar, left + (k + 1) * step - 2, base), fill=BAR)
    draw.line((left, base + 1, right, base + 1), fill=GREY)
    draw.text((left, 10), name, fill="black", font=font)
    labels = (f"{np.min(values):.4g}", f"median {np.median(values):.4g}", f"{np.max(values):.4g}")
    for label, x, anchor in zip(labels, (left, (left + right) / 2, right), ("la", "ma", "ra"), strict=True):
        draw.text((x, base + 6), label, fill=GREY, font=font, anchor=anchor)
    return panel


def _shrink(video: np.ndarray) -> np.ndarray:
    """Frames no larger than a thumbnail."""
    height, width = video.shape[1:3]
    factor = min(1.0, THUMBNAIL[0] / width, THUMBNAIL[1] / height)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in video])
