"""HF VideoFolder: `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, one row per video.

Columns: `file_name` (or `file`); `text` (or `caption`, `sentence`, `prompt`, or a list `captions`), `label`, or both;
optional `split`,
`weight` (how often training draws the video, relative to the others), and `NAME_file_name` for a file called NAME that
goes with the video (depth, sketch, mask).
"""

import csv
import json
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contentmotion.data.layouts.csv_index import csv_columns
from contentmotion.data.records import ColumnRecords, Layout, Listing, Place, sorted_classes

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_COLUMNS = ("file_name", "file")
CAPTION_COLUMNS = ("captions", "caption", "text", "sentence", "prompt")


def _metadata_file(place: Place) -> Path | None:
    if place.lists is None:
        return next((place.path / name for name in METADATA_NAMES if (place.path / name).is_file()), None)
    others = {"videoid", "video_id"}  # of lists in layouts of their own
    is_list = place.lists.suffix == ".csv" and not others & set(csv_columns(place.lists))
    return place.lists if is_list or place.lists.suffix in (".jsonl", ".parquet") else None


def _read(place: Place) -> Listing:
    root, metadata = place.folder, place.lists or _metadata_file(place)
    if metadata is None:
        raise VIDEOFOLDER.missing(place)
    return read_metadata(root, metadata, place.caption_column)


VIDEOFOLDER = Layout(
    "videofolder", lambda place: _metadata_file(place) is not None, _read, " or ".join(METADATA_NAMES), has_columns=True
)


def read_metadata(root: Path, metadata: Path, caption_column: str | None = None) -> Listing:
    """The rows of a metadata file. Labels are numbered over all rows, so every split has the same classes.

    Raises:
        ValueError: Not readable as what its suffix says, or without rows.
    """
    parse = {".csv": _parse_csv, ".parquet": _parse_parquet}.get(metadata.suffix, _parse_jsonl)
    problems: list[str] = []
    records, lines, codes = ColumnRecords(root), array("q"), {}
    try:
        for line, cells in parse(metadata):
            row = cells if isinstance(cells, str) else make_row(cells, caption_column)
            if isinstance(row, str):
                problems.append(f"line {line}: {row}")
                continue
            if row["label"] is not None:  # numbered as they come; put in order below, when all classes are known
                row["label"] = codes.setdefault(row["label"], len(codes))
            records.append(**row)
            lines.append(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{metadata}: not UTF-8 text (byte {error.start})") from None
    if not len(records) and not problems:
        raise ValueError(f"{metadata}: no rows")
    class_names = sorted_classes(codes)
    records.renumber_labels([class_names.index(name) for name in codes])
    return Listing(records, class_names or None, problems, lines=lines, source=metadata)


def _parse_csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields (line, cells by column or what is wrong with them)."""
    with open(path, newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle, strict=True)
        columns: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, f"not CSV: {error}"
                continue
            if columns is None:
                if not set(FILE_COLUMNS) & set(cells):
                    raise ValueError(f"{path}: the first line must name the columns, one of them file or file_name")
                columns = cells
            elif len(cells) > len(columns):
                yield line, "more cells than columns (a caption with a comma needs quotes)"
            elif cells:
                yield line, dict(zip(columns, cells, strict=False))


def _parse_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields (line, cells by column or what is wrong with them)."""
    with open(path, encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                cells = parse_json(line)
            except ValueError as error:
                yield number, str(error)
                continue
            yield number, cells if isinstance(cells, dict) else "not a JSON object"


def _parse_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields (row number from 1, cells by column or what is wrong with them)."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError(f"{path}: reading parquet needs pyarrow: pip install 'contentmotion[data]'") from None
    try:
        with pq.ParquetFile(path) as file:
            if not set(FILE_COLUMNS) & set(file.schema_arrow.names):
                raise ValueError(f"{path}: no column file_name or file")
            batches = file.iter_batches(batch_size=10_000)
            yield from enumerate((cells for batch in batches for cells in batch.to_pylist()), start=1)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not readable as parquet ({' '.join(str(error).split())})") from None


def make_row(cells: dict[str, Any], caption_column: str | None = None) -> dict[str, Any] | str:
    """A row of any format, as `ColumnRecords.append` takes it but for the label, or the reason why it is none."""
    file = cells.get("file") or cells.get("file_name")
    if not isinstance(file, str) or not file:
        return "no file or file_name"
    if not _is_encodable(file, "surrogateescape"):
        return f"{file}: no file is called that"
    if caption_column is not None and caption_column not in cells:
        return f"{file}: no {caption_column} (there are: {', '.join(map(str, cells))})"
    captions = find_captions(cells, caption_column)
    if captions is None:
        return f"{file}: captions must be texts"
    label = cells.get("label")
    label = None if label is None or label == "" else str(label)
    if not captions and label is None:
        return f"{file}: neither caption nor label (there are: {', '.join(map(str, cells))})"
    try:
        given = cells.get("weight")
        weight = 1.0 if given is None or given == "" else float(given)
    except (TypeError, ValueError, OverflowError):
        weight = -1.0
    if not 0 < weight < math.inf:
        return f"{file}: weight must be a positive number, got {str(cells['weight'])[:40]}"
    split = cells.get("split") or None
    if split is not None and not isinstance(split, str):
        return f"{file}: split must be a text"
    conditions = {
        name.removesuffix("_file_name"): str(value)
        for name, value in cells.items()
        if name.endswith("_file_name") and value
    }
    return {
        "file": file, "captions": captions, "label": label, "split": split, "weight": weight, "conditions": conditions,
    }  # fmt: skip


def find_captions(cells: dict[str, Any], column: str | None = None) -> tuple[str, ...] | None:
    """The captions among named values, under this name or one of `CAPTION_COLUMNS`; None where they are no texts."""
    names = CAPTION_COLUMNS if column is None else (column,)
    captions = next((cells[name] for name in names if cells.get(name)), ())
    if isinstance(captions, str):
        captions = (captions,)
    if not isinstance(captions, list | tuple) or not all(isinstance(c, str) and c.strip() for c in captions):
        return None
    return tuple(captions) if _is_encodable("".join(captions)) else None


def _is_encodable(text: str, errors: str = "strict") -> bool:
    """Whether it has no half of a pair that stands for one character, which no file can hold."""
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str | bytes) -> Any:
    """A value in JSON; a `ValueError` says in one line what is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deep") from None
