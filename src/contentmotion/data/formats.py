"""Folders of videos with captions or classes, read into one list of records.

Two layouts:

* `metadata.csv` or `metadata.jsonl` in the folder; each row names a file (`file` or `file_name`, relative to
  the folder) and has a `caption` (or `text`, or in jsonl a list `captions`), a `label`, or both; `split` and
  `weight` (how often training draws it, relative to the others; 1 where it is not given) are optional;
* one sub-folder per class, with its videos inside.
"""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contentmotion.video_io import VIDEO_SUFFIXES, list_frames

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class ClipRecord:
    """One video of a folder.

    Attributes:
        path: The video file or frame folder.
        captions: Its captions; empty where there are only classes.
        label: Class index into `ClipFolder.class_names`, or None.
        split: Name of the split it belongs to, or None.
        weight: How often training draws it, relative to the others.
    """

    path: Path
    captions: tuple[str, ...]
    label: int | None
    split: str | None
    weight: float = 1.0


@dataclass(frozen=True)
class ClipFolder:
    """What `read_clip_folder` found.

    Attributes:
        root: The folder.
        records: The videos, in the order of the metadata file or sorted by path.
        class_names: Names of the classes in label order, or None where there are no labels.
        problems: One line per row that was left out, e.g. "line 12: videos/x.mp4: no such file".
    """

    root: Path
    records: list[ClipRecord]
    class_names: tuple[str, ...] | None
    problems: list[str]


@dataclass(frozen=True)
class _Row:
    file: str
    captions: tuple[str, ...]
    label: str | None
    split: str | None
    weight: float


def read_clip_folder(root: str | Path, *, split: str | None = None) -> ClipFolder:
    """Read a folder's list of videos. Opens no video.

    Labels are numbered over all rows, so every split of a folder has the same classes.

    Args:
        root: The folder (layouts: see the module's docstring).
        split: Keep only the rows of this split, where the metadata names splits; None keeps all.

    Raises:
        NotADirectoryError: `root` is no folder.
        ValueError: The folder has neither layout, or nothing usable is left; the first problem is named.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: no such folder")
    metadata = next((root / name for name in METADATA_NAMES if (root / name).is_file()), None)
    if metadata is None:
        return _read_class_folders(root)
    return _read_metadata(root, metadata, split)


def _read_metadata(root: Path, metadata: Path, split: str | None) -> ClipFolder:
    parse = _parse_csv if metadata.suffix == ".csv" else _parse_jsonl
    rows: list[tuple[str, _Row]] = []
    problems: list[str] = []
    try:
        for where, row in parse(metadata):
            if isinstance(row, str):
                problems.append(f"{where}: {row}")
            else:
                rows.append((where, row))
    except UnicodeDecodeError as error:
        raise ValueError(f"{metadata}: not UTF-8 text (byte {error.start})") from None
    if not rows and not problems:
        raise ValueError(f"{metadata}: no rows")

    labels = {row.label for _, row in rows if row.label is not None}
    class_names = _sorted_classes(labels) if labels else None
    index = {name: i for i, name in enumerate(class_names or ())}
    splits = sorted({row.split for _, row in rows if row.split is not None})
    if splits and split is not None and split not in splits:
        raise ValueError(f"{metadata}: no split {split!r} (there are: {', '.join(splits)})")

    records = []
    for where, row in rows:
        if splits and split is not None and row.split != split:
            continue
        path = root / row.file
        if not path.exists():
            problems.append(f"{where}: {row.file}: no such file")
            continue
        label = None if row.label is None else index[row.label]
        records.append(ClipRecord(path, row.captions, label, row.split, row.weight))
    if not records:
        raise ValueError(f"{metadata}: no usable video; {problems[0]} ({len(problems)} problems)")
    return ClipFolder(root, records, class_names, problems)


def _sorted_classes(labels: set[str]) -> tuple[str, ...]:
    """Class names in order; by value where all are whole numbers, so that label 10 comes after 9."""
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def _parse_csv(path: Path) -> Iterator[tuple[str, _Row | str]]:
    """Yields ("line 12", row or what is wrong with it)."""
    with open(path, newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle, strict=True)
        columns: list[str] | None = None
        while True:
            where = f"line {reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield where, f"not CSV: {error}"
                continue
            if columns is None:
                if not {"file", "file_name"} & set(cells):
                    raise ValueError(f"{path}: the first line must name the columns, one of them file or file_name")
                columns = cells
            elif len(cells) > len(columns):
                yield where, "more cells than columns (a caption with a comma needs quotes)"
            elif cells:
                yield where, _make_row(dict(zip(columns, cells, strict=False)))


def _parse_jsonl(path: Path) -> Iterator[tuple[str, _Row | str]]:
    """Yields ("line 12", row or what is wrong with it)."""
    with open(path, encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except json.JSONDecodeError as error:
                yield f"line {number}", f"not JSON: {error.msg} at column {error.colno}"
                continue
            yield f"line {number}", _make_row(cells) if isinstance(cells, dict) else "not a JSON object"


def _make_row(cells: dict[str, Any]) -> _Row | str:
    """A row of either format, or the reason why it is none."""
    file = cells.get("file") or cells.get("file_name")
    if not isinstance(file, str) or not file:
        return "no file or file_name"
    captions = cells.get("captions") or cells.get("caption") or cells.get("text") or ()
    if isinstance(captions, str):
        captions = (captions,)
    if not isinstance(captions, list | tuple) or not all(isinstance(c, str) and c.strip() for c in captions):
        return f"{file}: captions must be texts"
    label = cells.get("label")
    label = None if label is None or label == "" else str(label)
    if not captions and label is None:
        return f"{file}: neither caption nor label"
    try:
        weight = float(cells.get("weight") or 1.0)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 < weight < math.inf:
        return f"{file}: weight must be a positive number, got {cells['weight']!r}"
    return _Row(file, tuple(captions), label, cells.get("split") or None, weight)


def _read_class_folders(root: Path) -> ClipFolder:
    """Class sub-folders; a class may hold video files and frame folders."""
    classes = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if videos := [path for path in sorted(folder.iterdir()) if _is_video(path)]:
            classes[folder.name] = videos
    if not classes:
        raise ValueError(
            f"{root}: no videos; expected metadata.csv, metadata.jsonl or one sub-folder of videos per class"
        )
    records = [ClipRecord(path, (), label, None) for label, videos in enumerate(classes.values()) for path in videos]
    return ClipFolder(root, records, tuple(classes), [])


def _is_video(path: Path) -> bool:
    return bool(list_frames(path)) if path.is_dir() else path.suffix.lower() in VIDEO_SUFFIXES
