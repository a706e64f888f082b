"""What people look at: the table, the sheets of pictures, and two scores.json side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from contentmotion.evaluate.measures import Measured, Scores, closest_pairs, columns
from contentmotion.saving import read_text
from contentmotion.tables import print_table
from contentmotion.video.write import write_contact_sheet

SHEET_CLIPS = 8
SHEET_FRAMES = 4
TITLES = {
    "real": "real clips",
    "real_halves": "two halves of the real clips",
    "heldout": "held-out captions, full",
}
# What two scores must share to be compared; the model and how it was sampled are what one compares.
SAME = ("features", "measures", "clips", "counts")
UNTOLD = {"content_sha256"}  # what older files do not say


def print_scores(scores: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """The table on the terminal: one line per rendition, the columns that were measured.

    Args:
        scores: As in scores.json.
        titles: Of the renditions.
    """
    parts: dict[str, Scores] = scores["parts"]
    shown = shown_columns(parts)
    titles = {"real": ""} | dict(titles) | TITLES
    rows = [[title, *cells(parts[name], shown)] for name, title in titles.items() if name in parts]
    print_table(["", *(columns()[key].heading for key in shown)], rows)
    for line in [*scores["notes"], *scores["problems"]]:
        Console().print(line, style="yellow", markup=False)


def shown_columns(parts: Mapping[str, Scores]) -> list[str]:
    """Keys of the columns for which some rendition has a number."""
    return [key for key in columns() if any(key in row for row in parts.values())]


def cells(row: Scores, keys: list[str]) -> list[str]:
    """A rendition's numbers as text, with their spread; empty where it has none."""
    texts = []
    for key in keys:
        number_format, spread = columns()[key].format, row.get(f"{key}_std")
        text = format(row[key], number_format) if key in row else ""
        texts.append(text if spread is None else f"{text} ±{format(spread, number_format)}")
    return texts


def write_sheets(output: Path, measured: list[Measured]) -> list[Path]:
    """The pictures: real clips beside what was made of them, and generated videos beside their nearest real clips.

    Args:
        output: Folder to write sheet.png and nearest.png in.
        measured: All renditions, the real clips first.

    Returns:
        The files written.
    """
    real, written = measured[0], []
    firsts = {m.rendition.name: m for m in reversed(measured)}  # of several seeds the first
    given = sorted(name for name in firsts if name.startswith("given_"))
    names = ("reconstruction", "full", "content", "motion", "generated", *given)
    columns = [real, *[firsts[name] for name in names if name in firsts][:2]]
    count = min(SHEET_CLIPS, *(len(m.shown) for m in columns))
    picks = [m.shown[:: len(m.shown) // count][:count] for m in columns]
    captions = []
    for row in zip(*picks, strict=True):
        named = [(m.rendition.title, m.rendition.clips.caption(i)) for m, i in zip(columns, row, strict=True)]
        same = len({caption for _, caption in named}) == 1
        title = " | ".join(title if same else f"{title}: {caption}" for title, caption in named)
        captions.append(f"{title}: {named[0][1]}" if same else title)
    videos = [m.videos.load("videos", rows) for m, rows in zip(columns, picks, strict=True)]
    written.append(_write(output / "sheet.png", videos, captions))
    generated = next((m for m in measured if m.rendition.from_caption), None)
    (output / "nearest.png").unlink(missing_ok=True)  # of other settings, maybe
    if generated is not None:
        written.append(_write_nearest(output / "nearest.png", generated, real))
    return written


def _write_nearest(path: Path, generated: Measured, real: Measured) -> Path:
    """The generated videos that come closest to a real clip, each beside it: copies would be among them."""
    ours, theirs, distances = closest_pairs(generated, real)
    captions = [
        f"generated: {generated.rendition.clips.caption(i)} | nearest real clip, RMSE {distance:.3f}: "
        f"{real.rendition.clips.caption(j)}"
        for i, j, distance in zip(ours, theirs, distances, strict=True)
    ]
    pictures = [m.store.load("thumbnails", rows) for m, rows in ((generated, ours), (real, theirs))]
    return _write(path, [x.transpose(0, 1, 4, 2, 3) for x in pictures], captions)


def _write(path: Path, columns: list[np.ndarray], captions: list[str]) -> Path:
    """Rows of videos (b, t, 3, h, w) side by side, a white line between them."""
    gap = np.full((*columns[0].shape[:4], 2), 255, np.uint8)
    joined = [x for column in columns for x in (gap, column)][1:]
    rows = np.concatenate(joined, axis=4).transpose(0, 1, 3, 4, 2)
    write_contact_sheet(path, list(rows), captions, num_columns=SHEET_FRAMES)
    return path


def compare(files: tuple[str, ...], *, unlike: bool = False) -> None:
    """Prints two or more scores.json side by side.

    Args:
        files: Their paths.
        unlike: Compare even where the numbers were made in different ways.

    Raises:
        ValueError: A file holds no scores, or their protocols differ.
    """
    loaded = {file: _load(file) for file in files}
    first, *others = loaded.items()
    for file, scores in others:
        differing = _differences(first[1]["protocol"], scores["protocol"])
        for name in first[1]["parts"].keys() & scores["parts"].keys():  # files that cannot be read are left out
            counts = [found["parts"][name].get("n") for found in (first[1], scores)]
            differing += [f"{name} is of {counts[0]} and {counts[1]} clips"] if counts[0] != counts[1] else []
        if differing and not unlike:
            raise ValueError(
                f"{first[0]} and {file} were not measured alike: {'; '.join(differing)} "
                "(--compare_unlike true compares them all the same)"
            )
    rows = []
    for name in dict.fromkeys(name for scores in loaded.values() for name in scores["parts"]):
        parts = {file: scores["parts"].get(name, {}) for file, scores in loaded.items()}
        for key in shown_columns(parts):
            heading = columns()[key].heading.replace("\n", " ")
            rows.append([TITLES.get(name, name), heading, *(cells(row, [key])[0] for row in parts.values())])
    print_table(["", "", *loaded], rows, text=(0, 1))
    for file, scores in others:
        for line in _differences(first[1]["protocol"], scores["protocol"], tuple(first[1]["protocol"])):
            Console().print(f"{file}: {line}", style="yellow", markup=False)


def _load(file: str) -> dict[str, Any]:
    try:
        scores = json.loads(read_text(file))
        missing = {"parts", "protocol"} - scores.keys()
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{file}: not a scores.json ({error})") from None
    if missing:
        raise ValueError(f"{file}: not a scores.json (it has no {' and no '.join(sorted(missing))})")
    return scores


def _differences(a: dict[str, Any], b: dict[str, Any], sections: tuple[str, ...] = SAME) -> list[str]:
    """What is not the same in these sections of two protocols; the run's own date and paths aside."""
    found = []
    for section in sections:
        left, right = a.get(section) or {}, b.get(section) or {}
        if section == "run":
            continue
        for key in sorted((left.keys() | right.keys()) - (UNTOLD - (left.keys() & right.keys()))):
            if left.get(key) != right.get(key):
                found.append(f"{section}.{key} is {left.get(key)} and {right.get(key)}")
    return found
