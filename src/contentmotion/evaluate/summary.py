"""What people look at: the table, the sheets of pictures, and two scores.json side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from contentmotion.evaluate.measures import Measured, Scores, columns, rmse
from contentmotion.evaluate.retrieval import nearest
from contentmotion.saving import read_json
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
    """The table on the terminal: one line per rendition, the columns that were measured; `scores` as in scores.json."""
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


def write_sheets(output: Path, measured: list[Measured]) -> None:
    """Pictures: the real clips (measured first) beside what was made of them, and videos beside their nearest clips."""
    real = measured[0]
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
    _write(output / "sheet.png", videos, captions)
    (output / "nearest.png").unlink(missing_ok=True)  # of other settings, maybe
    generated = next((m for m in measured if m.rendition.from_caption), None)
    if generated is not None:
        _write_nearest(output / "nearest.png", generated, real)


def _write_nearest(path: Path, generated: Measured, real: Measured) -> None:
    """The generated videos that come closest to a real clip, each beside it: copies would be among them."""
    thumbnails = generated.values("thumbnails")
    where, squares = nearest(thumbnails, real.values("thumbnails", real.gallery))
    order = squares.argsort()[:SHEET_CLIPS].tolist()
    ours, theirs = [generated.indices[k] for k in order], [real.gallery[where[k]] for k in order]
    captions = [
        f"generated: {generated.rendition.clips.caption(i)} | nearest real clip, RMSE {distance:.3f}: "
        f"{real.rendition.clips.caption(j)}"
        for i, j, distance in zip(ours, theirs, rmse(squares[order], thumbnails[0].size), strict=True)
    ]
    pictures = [thumbnails[order], real.store.load("thumbnails", theirs)]
    _write(path, [x.transpose(0, 1, 4, 2, 3) for x in pictures], captions)


def _write(path: Path, columns: list[np.ndarray], captions: list[str]) -> None:
    """Rows of videos (b, t, 3, h, w) side by side, a white line between them."""
    gap = np.full((*columns[0].shape[:4], 2), 255, np.uint8)
    joined = [x for column in columns for x in (gap, column)][1:]
    rows = np.concatenate(joined, axis=4).transpose(0, 1, 3, 4, 2)
    write_contact_sheet(path, list(rows), captions, num_columns=SHEET_FRAMES)


def compare(files: tuple[str, ...], *, unlike: bool = False) -> None:
    """Prints two or more scores.json side by side.

    Raises:
        ValueError: A file holds no scores, or their protocols differ (which passes where they may be ``unlike``).
    """
    loaded = {file: read_scores(file) for file in files}
    (first_file, first), *others = loaded.items()
    for file, scores in others:
        differing = _differences(first["protocol"], scores["protocol"], SAME)
        for name in first["parts"].keys() & scores["parts"].keys():  # files that cannot be read are left out
            a, b = (found["parts"][name].get("n") for found in (first, scores))
            differing += [f"{name} is of {a} and {b} clips"] if a != b else []
        if differing and not unlike:
            raise ValueError(
                f"{first_file} and {file} were not measured alike: {'; '.join(differing)} "
                "(--compare_unlike true compares them all the same)"
            )
    rows = []
    for name in dict.fromkeys(name for scores in loaded.values() for name in scores["parts"]):
        parts = {file: scores["parts"].get(name, {}) for file, scores in loaded.items()}
        for key in shown_columns(parts):
            heading = columns()[key].heading.replace("\n", " ")
            rows.append([TITLES.get(name, name), heading, *(cells(row, [key])[0] for row in parts.values())])
    print_table(["", "", *loaded], rows, text=(0, 1))
    told = [section for section in first["protocol"] if section != "run"]  # whose date and paths always differ
    for file, scores in others:
        for line in _differences(first["protocol"], scores["protocol"], told):
            Console().print(f"{file}: {line}", style="yellow", markup=False)


def read_scores(file: str) -> dict[str, Any]:
    """What a scores.json holds.

    Raises:
        ValueError: It is none.
        OSError: It cannot be read.
    """
    try:
        scores = read_json(Path(file))
    except ValueError as error:
        raise ValueError(f"not a scores.json: {error}") from None
    if missing := [name for name in ("parts", "protocol") if not isinstance(scores.get(name), dict)]:
        raise ValueError(f"{file}: not a scores.json (it has no {' and no '.join(missing)})")
    return scores


def _differences(a: dict[str, Any], b: dict[str, Any], sections: Iterable[str]) -> list[str]:
    """What is not the same in these sections of two protocols."""
    found = []
    for section in sections:
        left, right = a.get(section) or {}, b.get(section) or {}
        for key in sorted((left.keys() | right.keys()) - (UNTOLD - (left.keys() & right.keys()))):
            if left.get(key) != right.get(key):
                found.append(f"{section}.{key} is {left.get(key)} and {right.get(key)}")
    return found
