"""The list of a data set's videos, kept compactly: ten million rows fit beside a training run.

A `ClipRecord` is made when it is asked for; what is stored are columns (arrays, and texts one after another).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np

from contentmotion.video.sources import StoredVideo


@dataclass(frozen=True)
class ClipRecord:
    """One video of a data set.

    Attributes:
        path: The video file, frame folder, or place inside a tar file or table.
        captions: Its captions; empty where there are only classes.
        label: Class index into `ClipFolder.class_names`, or None.
        split: Name of the split it belongs to, or None.
        weight: How often training draws it, relative to the others.
        conditions: Further files that go with it, by name, e.g. (("depth", Path("depth/1.mp4")),).
    """

    path: Path | StoredVideo
    captions: tuple[str, ...]
    label: int | None
    split: str | None
    weight: float = 1.0
    conditions: tuple[tuple[str, Path], ...] = ()


class Records(Sequence[ClipRecord]):
    """A list of clip records that makes each one when it is asked for.

    Attributes:
        split_names: Names of the splits.
        split_codes: int32 (n,), index into `split_names` of each record, -1 where it names none.
    """

    split_names: Sequence[str]
    split_codes: np.ndarray

    @abstractmethod
    def _record(self, index: int) -> ClipRecord:
        """The record at an index that is in range."""

    @property
    def weights(self) -> np.ndarray | None:
        """How often training draws each, float64 (n,); None: equally often."""
        return None

    @overload
    def __getitem__(self, index: int) -> ClipRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> ClipRecord | Records:
        if isinstance(index, slice):
            return self.select(np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} records")
        return self._record(int(index) % len(self))

    def __iter__(self) -> Iterator[ClipRecord]:
        return (self._record(index) for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def select(self, indices: np.ndarray) -> Records:
        """The records at these indices (int64, in any order), as a list of its own."""
        return _Selection(self, np.asarray(indices, dtype=np.int64))


class _Selection(Records):
    def __init__(self, base: Records, indices: np.ndarray) -> None:
        self._base, self._indices = base, indices
        self.split_names, self.split_codes = base.split_names, base.split_codes[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def _record(self, index: int) -> ClipRecord:
        return self._base[int(self._indices[index])]

    @property
    def weights(self) -> np.ndarray | None:
        return None if self._base.weights is None else self._base.weights[self._indices]


class MappedRecords(Records):
    """Records that are changed when they are asked for.

    Args:
        base: The records.
        change: What becomes of one; must survive pickling, for worker processes.
        split: The split that all of them come to belong to; None: each to its own.
    """

    def __init__(
        self, base: Sequence[ClipRecord], change: Callable[[ClipRecord], ClipRecord], split: str | None = None
    ) -> None:
        self._base, self._change = base, change
        if split is not None:
            self.split_names, self.split_codes = [split], np.zeros(len(base), dtype=np.int32)
        elif isinstance(base, Records):
            self.split_names, self.split_codes = base.split_names, base.split_codes

    def __len__(self) -> int:
        return len(self._base)

    def _record(self, index: int) -> ClipRecord:
        return self._change(self._base[index])

    @property
    def weights(self) -> np.ndarray | None:
        if isinstance(self._base, Records):
            return self._base.weights
        return np.array([record.weight for record in self._base])


class ConcatenatedRecords(Records):
    """Several lists one after another."""

    def __init__(self, parts: Sequence[Records]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self.split_names = list(dict.fromkeys(name for part in parts for name in part.split_names))
        # The last place of `codes` is -1's: records without a split keep none.
        codes = [np.array([*map(self.split_names.index, part.split_names), -1], dtype=np.int32) for part in parts]
        self.split_codes = np.concatenate([code[part.split_codes] for code, part in zip(codes, parts, strict=True)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _record(self, index: int) -> ClipRecord:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number][index - int(self._ends[number])]

    @property
    def weights(self) -> np.ndarray | None:
        if all(part.weights is None for part in self._parts):
            return None
        return np.concatenate([np.ones(len(p)) if p.weights is None else p.weights for p in self._parts])


class Texts(Sequence[str]):
    """Many texts one after another: each costs its bytes and eight more."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q")

    def append(self, text: str) -> None:
        """Adds a text; what is not UTF-8 in a file's name stays as it is."""
        self._bytes += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].decode("utf-8", "surrogateescape")


class ColumnRecords(Records):
    """A list of records in columns, filled row by row; file names are relative to a root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.split_names: list[str] = []
        self._split_code: dict[str, int] = {}
        self._files, self._captions, self._conditions = Texts(), Texts(), Texts()
        self._caption_ends = array("q")
        self._labels, self._splits, self._weights = array("i"), array("i"), array("d")

    def append(
        self,
        file: str,
        captions: Iterable[str] = (),
        label: int | None = None,
        split: str | None = None,
        weight: float = 1.0,
        conditions: dict[str, str] | None = None,
    ) -> None:
        """Adds a row; see `ClipRecord`."""
        self._files.append(file)
        for caption in captions:
            self._captions.append(caption)
        self._caption_ends.append(len(self._captions))
        self._labels.append(-1 if label is None else label)
        if split is not None and split not in self._split_code:
            self._split_code[split] = len(self.split_names)
            self.split_names.append(split)
        self._splits.append(-1 if split is None else self._split_code[split])
        self._weights.append(weight)
        self._conditions.append(json.dumps(conditions) if conditions else "")

    def renumber_labels(self, numbers: Sequence[int]) -> None:
        """Gives label k the number `numbers[k]`."""
        # The last place is -1's: records without a label keep none.
        table = np.array([*numbers, -1], dtype=np.int32)
        self._labels = array("i", table[np.array(self._labels, dtype=np.int32)].tobytes())

    def __len__(self) -> int:
        return len(self._files)

    @property
    def split_codes(self) -> np.ndarray:
        return np.array(self._splits, dtype=np.int32)

    @property
    def weights(self) -> np.ndarray | None:
        weights = np.array(self._weights)
        return None if (weights == 1).all() else weights

    def _source(self, index: int) -> Path | StoredVideo:
        return self.root / self._files[index]

    def _record(self, index: int) -> ClipRecord:
        first = self._caption_ends[index - 1] if index else 0
        label, split = self._labels[index], self._splits[index]
        conditions = json.loads(self._conditions[index] or "{}")
        return ClipRecord(
            self._source(index),
            tuple(self._captions[k] for k in range(first, self._caption_ends[index])),
            None if label < 0 else label,
            None if split < 0 else self.split_names[split],
            self._weights[index],
            tuple((name, self.root / file) for name, file in conditions.items()),
        )


@dataclass(frozen=True)
class Listing:
    """What a layout's reader found (see `ClipFolder`), before a split is chosen and files are looked for.

    Attributes:
        lines: Line of each record in its list of videos, for messages; None where there is no such list.
        check_files: Whether the records' files may be missing (not those found by looking into folders).
        source: The list of videos, for messages; None: the data set's folder.
    """

    records: Records
    class_names: tuple[str, ...] | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: Sequence[int] | None = None
    check_files: bool = True
    source: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where a data set is, as the settings say.

    Attributes:
        root: Folder, tar file, pattern of tar files, or id of a data set on the hub.
        lists: The list of videos (UCF-101: the folder of lists), when it is not in the folder.
        split_number: Which of UCF-101's official splits.
        caption_column: Name of the column with the captions; None: one of the usual ones.
    """

    root: str
    lists: Path | None = None
    split_number: int = 1
    caption_column: str | None = None

    @property
    def path(self) -> Path:
        """The root as a path, be it there or not."""
        return Path(self.root)

    @property
    def folder(self) -> Path:
        """The root as a folder; a `NotADirectoryError` where it is none."""
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.root}: no such folder")
        return self.path


@dataclass(frozen=True)
class Layout:
    """A way in which data sets lie on disk: a row of `contentmotion.data.formats.LAYOUTS`.

    Attributes:
        name: What `--layout` calls it.
        detect: Whether a data set is laid out like this; opens no video, and is asked about folders of other layouts
            and about names that are no folders, too.
        read: All its videos.
        expects: What is looked for, for messages.
        has_columns: Whether captions have a name that `Place.caption_column` may say.
    """

    name: str
    detect: Callable[[Place], bool]
    read: Callable[[Place], Listing]
    expects: str = ""
    has_columns: bool = False

    def missing(self, place: Place) -> ValueError:
        """The error for a folder that is not laid out like this."""
        return ValueError(f"{place.lists or place.root}: no {self.name} data; expected {self.expects}")


def sorted_classes(labels: Collection[str]) -> tuple[str, ...]:
    """Class names in order; by value where all are whole numbers, so that label 10 comes after 9."""
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=int if numbers else str))
