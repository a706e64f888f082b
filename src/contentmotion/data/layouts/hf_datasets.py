"""Hugging Face data sets, of the hub or saved by `save_to_disk`, read by the library `datasets` (optional).

One column holds the videos; captions are in one of `CAPTION_COLUMNS`, classes in `label` (a `ClassLabel`, or plain
values; no value, or a number below 0, is no class). The library leaves decoding to this package: it hands over bytes
or paths.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from contentmotion.data.layouts.metadata import CAPTION_COLUMNS, find_captions
from contentmotion.data.records import ClipRecord, ConcatenatedRecords, Layout, Listing, Place, Records, sorted_classes
from contentmotion.saving import require_regular
from contentmotion.video.sources import StoredVideo

VIDEO_COLUMNS = ("video", "videos", "mp4", "clip", "file")


def missing_library(name: str) -> str:
    """What a name needs, in brackets, where it may be a data set's on the hub and the library is not installed."""
    if not _is_hub_id(name) or find_spec("datasets") is not None:
        return ""
    needs = "as the id of a Hugging Face data set it needs the library datasets"
    return f" ({needs}: pip install 'contentmotion[data]')"


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.endswith(".tar")


def _detect(place: Place) -> bool:
    root = place.path
    if place.lists is not None:
        return False
    if root.exists():
        return (root / "dataset_dict.json").is_file() or all(
            (root / name).is_file() for name in ("dataset_info.json", "state.json")
        )
    return _is_hub_id(place.root) and find_spec("datasets") is not None


@dataclass(frozen=True)
class TableVideo(StoredVideo):
    """A video in a row of a data set, of which the name is for messages."""

    table: Any  # `datasets.Dataset`, its video column alone
    row: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}, row {self.row}"

    def read_bytes(self) -> bytes:
        (value,) = self.table[self.row].values()
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            raise OSError(f"{self}: holds neither bytes nor a path")
        require_regular(value)
        return Path(value).read_bytes()


class TableRecords(Records):
    """The rows of a `datasets.Dataset`, whose labels are numbered by the classes of all splits.

    Raises:
        ValueError: No column holds videos, or none is called `caption_column`.
    """

    def __init__(
        self, table: Any, name: str, split: str | None, caption_column: str | None, class_names: Sequence[str]
    ) -> None:
        import datasets

        features = table.features
        found = [column for column, feature in features.items() if isinstance(feature, datasets.Video)]
        column = next((c for c in (*found, *VIDEO_COLUMNS) if c in features), None)
        if column is None:
            raise ValueError(f"{name}: no column with videos (there are: {', '.join(features)})")
        if found:
            table = table.cast_column(column, datasets.Video(decode=False))
        self._name, self._split = name, split
        self._videos = table.select_columns([column])
        if caption_column is not None and caption_column not in features:
            raise ValueError(f"{name}: no column {caption_column} (there are: {', '.join(features)})")
        self._caption_column = caption_column
        known = CAPTION_COLUMNS if caption_column is None else (caption_column,)
        self._texts = table.select_columns([c for c in dict.fromkeys((*known, "label")) if c in features])
        self.notes: list[str] = []
        if not self._texts.column_names:
            self.notes.append(f"no column with captions or labels (there are: {', '.join(features)})")
        self._numbers = {text: number for number, text in enumerate(class_names)}
        self._label = features.get("label")
        self.split_names = [] if split is None else [split]
        self.split_codes = np.full(len(table), 0 if split else -1, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.split_codes)

    def _record(self, index: int) -> ClipRecord:
        cells = self._texts[index] if self._texts.column_names else {}
        captions = find_captions(cells, self._caption_column) or ()
        label = self._numbers.get(_class_of(self._label, cells.get("label")) or "")
        return ClipRecord(TableVideo(self._videos, index, self._name), captions, label, self._split)


def _class_of(feature: Any, value: Any) -> str | None:
    """The name of a label's class; None where it has none."""
    if value is None or value == "" or (isinstance(value, int) and value < 0):
        return None
    return feature.int2str(value) if hasattr(feature, "int2str") else str(value)


def _find_classes(tables: Sequence[Any]) -> tuple[tuple[str, ...], list[str]]:
    """The classes of all tables in label order, and a note where their labels cannot be read as such."""
    import datasets

    labels = [(table, table.features["label"]) for table in tables if "label" in table.features]
    orders = {tuple(feature.names) for _, feature in labels if isinstance(feature, datasets.ClassLabel)}
    if len(orders) == 1 and all(isinstance(feature, datasets.ClassLabel) for _, feature in labels):
        return orders.pop(), []
    if not all(isinstance(feature, datasets.ClassLabel | datasets.Value) for _, feature in labels):
        return (), [f"the column label is no class: it holds {labels[0][1]}"]
    found = {_class_of(feature, value) for table, feature in labels for value in table.unique("label")} - {None}
    return sorted_classes(found), []  # type: ignore[arg-type]


def read_dataset(name: str, caption_column: str | None = None) -> Listing:
    """All splits of a saved data set, or of one of the hub; see `Place` for `caption_column`.

    Raises:
        ImportError: The library `datasets` is not installed.
        ValueError: It cannot be loaded, or holds no videos.
    """
    if name.startswith((".", "/", "~")) and not Path(name).exists():  # no data set of the hub is called that
        raise ValueError(f"{name}: no such file or folder")
    try:
        import datasets
    except ImportError:
        raise ImportError(f"{name}: reading it needs the library datasets: pip install 'contentmotion[data]'") from None
    try:
        loaded = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except Exception as error:  # the library raises errors of its many dependencies
        raise ValueError(f"{name}: not loadable as a Hugging Face data set ({' '.join(str(error).split())})") from None
    if isinstance(loaded, datasets.Dataset):
        tables = {str(loaded.split) if loaded.split else None: loaded}
    else:
        tables = dict(loaded)
    # Captions that are called label are no classes.
    classes, notes = ((), []) if caption_column == "label" else _find_classes([*tables.values()])
    parts = [TableRecords(table, name, split, caption_column, classes) for split, table in tables.items()]
    records = parts[0] if len(parts) == 1 else ConcatenatedRecords(parts)
    return Listing(records, classes or None, notes=parts[0].notes + notes, check_files=False)


DATASETS = Layout("datasets", _detect, lambda place: read_dataset(place.root, place.caption_column), has_columns=True)
