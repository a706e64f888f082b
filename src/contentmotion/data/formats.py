"""Data sets of videos with captions or classes, in any common layout, read into one list of records.

No video is opened. The layouts, in the order in which they are looked for:

| layout | what is there |
| --- | --- |
| webdataset | tar files with `key.mp4` and `key.txt` or `key.json` |
| datasets | a folder made by `datasets.save_to_disk`, or a data set's id on the hub |
| videofolder | `metadata.jsonl`, `metadata.csv` or `metadata.parquet` |
| ucf101 | class folders and UCF-101's official split lists |
| webvid | CSV files with the columns videoid, page_dir and name |
| msrvtt | MSR-VTT's JSON, the 1k-A CSV, or both |
| sidecar | `clip.mp4` and `clip.txt` side by side, or videos without any text |
| classes | one sub-folder of videos per class |

Folders called train, validation, test, ... that each hold one of these are splits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np

from contentmotion.config import FolderConfig, Layout
from contentmotion.data.layouts.csv_index import csv_columns
from contentmotion.data.layouts.folders import has_sidecar, is_video, read_classes, read_sidecar, split_folders
from contentmotion.data.layouts.hf_datasets import is_hub_id, is_saved_dataset, read_dataset
from contentmotion.data.layouts.metadata import METADATA_NAMES, read_metadata
from contentmotion.data.layouts.msrvtt import find_msrvtt, read_msrvtt
from contentmotion.data.layouts.shards import expand_shards, read_shards
from contentmotion.data.layouts.ucf101 import find_lists, read_ucf101
from contentmotion.data.layouts.webvid import COLUMNS as WEBVID_COLUMNS
from contentmotion.data.layouts.webvid import find_webvid, read_webvid
from contentmotion.data.prompts import read_class_prompts
from contentmotion.data.records import (
    ClipRecord,
    ColumnRecords,
    ConcatenatedRecords,
    Listing,
    Records,
    sorted_classes,
)
from contentmotion.video.sources import StoredVideo

# Up to this many rows each file is looked for at once; of more, a missing file shows when it is read.
CHECK_FILES_BELOW = 100_000
_T = TypeVar("_T")
LIST_NAMES = {
    "webdataset": "*.tar",
    "videofolder": "metadata.jsonl, metadata.csv or metadata.parquet",
    "ucf101": "classInd.txt, trainlist01.txt, ... (also in ucfTrainTestlist)",
    "webvid": "a CSV file with the columns videoid, page_dir and name",
    "msrvtt": "MSR-VTT's JSON, or a CSV file with the columns video_id and sentence",
}


@dataclass(frozen=True)
class ClipFolder:
    """What `read_clip_folder` found.

    Attributes:
        root: The folder (or a data set's id).
        records: The videos, in the order of their list or sorted by path.
        class_names: Names of the classes in label order, or None where there are no labels.
        problems: One line per row that was left out, e.g. "line 12: videos/x.mp4: no such file".
        layout: The layout found, e.g. "webvid".
    """

    root: Path
    records: Sequence[ClipRecord]
    class_names: tuple[str, ...] | None
    problems: list[str]
    layout: str = "videofolder"


def open_folder(root: str | Path, config: FolderConfig) -> ClipFolder:
    """`read_clip_folder` as a command's settings say."""
    return read_clip_folder(
        root,
        split=config.split,
        layout=config.layout,
        metadata_path=config.metadata_path,
        split_number=config.split_number,
        class_prompts=config.class_prompts,
    )


def read_clip_folder(
    root: str | Path,
    *,
    split: str | None = None,
    layout: Layout = "auto",
    metadata_path: str | Path | None = None,
    split_number: int = 1,
    class_prompts: str | Path | None = None,
) -> ClipFolder:
    """Read a data set's list of videos. Opens no video.

    Labels are numbered over all rows, so every split of a folder has the same classes.

    Args:
        root: Folder, tar file, pattern of tar files (`data/{000..011}.tar`), or id of a Hugging Face data set
            (layouts: see the module's docstring).
        split: Keep only the rows of this split, where the layout names splits; None keeps all.
        layout: The layout; "auto" looks.
        metadata_path: The list of videos (UCF-101: the folder of lists), when it is not in the folder.
        split_number: Which of UCF-101's official splits: 1, 2 or 3.
        class_prompts: JSON file with captions for each class (see `read_class_prompts`).

    Raises:
        OSError: No such folder, or a file is not readable.
        ValueError: None of the layouts, no such split, or nothing usable is left; the first problem is named.
        ImportError: A library that this layout needs is not installed.
    """
    lists = None if metadata_path is None else Path(metadata_path)
    if lists is not None and not lists.exists():
        raise FileNotFoundError(f"{lists}: no such file or folder")
    found = detect_layout(str(root), lists) if layout == "auto" else layout
    listing, where = _read_layout(str(root), found, lists, split_number)
    records, lines, problems = listing.records, listing.lines, list(listing.problems)
    if split is not None and records.split_names:
        if split not in records.split_names:
            raise ValueError(f"{where}: no split {split!r} (there are: {', '.join(sorted(records.split_names))})")
        chosen = np.flatnonzero(records.split_codes == records.split_names.index(split))
        records, lines = records.select(chosen), None if lines is None else np.asarray(lines)[chosen]
    if listing.check_files and len(records) <= CHECK_FILES_BELOW:
        records = _drop_missing(records, lines, Path(root), problems)
    if not len(records):
        raise ValueError(f"{where}: no usable video" + (f"; {problems[0]} ({len(problems)} problems)" * bool(problems)))
    if class_prompts is not None:
        records = _ClassCaptions(records, listing.class_names, Path(class_prompts))
    return ClipFolder(Path(root), records, listing.class_names, problems, found)


def detect_layout(root: str, lists: Path | None = None) -> Layout:
    """The layout of a folder, pattern of tar files or data set's id.

    Args:
        root: Where the videos are.
        lists: The list of videos, when it is not in the folder.

    Raises:
        OSError: No such folder.
        ValueError: None of the layouts.
    """
    if lists is not None:
        found = _layout_of_list(lists)
    elif root.endswith(".tar"):
        return "webdataset"
    elif not Path(root).is_dir():
        if Path(root).exists() or not is_hub_id(root):
            raise NotADirectoryError(f"{root}: no such folder")
        if find_spec("datasets") is None:
            needs = "as the id of a Hugging Face data set it needs the library datasets"
            raise NotADirectoryError(f"{root}: no such folder ({needs}: pip install 'contentmotion[data]')")
        return "datasets"
    else:
        found = _layout_of_folder(Path(root))
        for folder in split_folders(Path(root)) if found in (None, "sidecar", "classes") else ():
            found = _layout_of_folder(folder) or found
    if found is None:
        raise ValueError(
            f"{lists or root}: no videos; expected metadata.csv, .jsonl or .parquet, clip.mp4 + clip.txt, one "
            "sub-folder of videos per class, the lists of UCF-101, WebVid or MSR-VTT, *.tar shards, or a saved data set"
        )
    return found


def _layout_of_list(lists: Path) -> Layout | None:
    """The layout that a list of videos belongs to."""
    if lists.is_dir():
        return "ucf101" if find_lists(lists) else None
    columns = set(csv_columns(lists)) if lists.suffix == ".csv" else set()
    if columns >= WEBVID_COLUMNS:
        return "webvid"
    if "video_id" in columns or lists.suffix == ".json":
        return "msrvtt"
    return "videofolder" if lists.suffix in (".csv", ".jsonl", ".parquet") else None


def _layout_of_folder(root: Path) -> Layout | None:
    if is_saved_dataset(root):
        return "datasets"
    if _metadata_file(root):
        return "videofolder"
    if any(root.glob("*.tar")):
        return "webdataset"
    if find_lists(root):
        return "ucf101"
    if find_webvid(root):
        return "webvid"
    if find_msrvtt(root):
        return "msrvtt"
    if has_sidecar(root) or any(is_video(path) for path in root.iterdir() if path.is_file()):
        return "sidecar"
    return "classes" if any(is_video(path) for path in root.glob("*/*")) else None


def _metadata_file(root: Path) -> Path | None:
    return next((root / name for name in METADATA_NAMES if (root / name).is_file()), None)


def _read_layout(root: str, layout: str, lists: Path | None, split_number: int) -> tuple[Listing, Path]:
    """All rows of a layout, and the file or folder that an error about them names."""
    folder = Path(root)
    if layout == "datasets":
        return read_dataset(root), folder
    if layout == "webdataset" and not folder.is_dir():
        return read_shards(folder.parent, expand_shards(root)), folder
    if not folder.is_dir():
        raise NotADirectoryError(f"{root}: no such folder")
    if layout == "ucf101":
        lists = find_lists(lists or folder)
        return read_ucf101(folder, _required(lists, folder, layout), split_number), folder
    if layout in ("webvid", "msrvtt"):
        find, read = (find_webvid, read_webvid) if layout == "webvid" else (find_msrvtt, read_msrvtt)
        files = [lists] if lists else find(folder)
        return read(folder, _required(files, folder, layout)), files[0]
    if layout == "videofolder" and (metadata := lists or _metadata_file(folder)):
        return read_metadata(folder, metadata), metadata
    if layout == "webdataset" and (tars := sorted(folder.glob("*.tar"))):
        return read_shards(folder, tars), folder
    if parts := split_folders(folder):
        return _read_splits(parts, layout, split_number), folder
    if layout in LIST_NAMES:
        _required(None, folder, layout)
    return (read_sidecar if layout == "sidecar" else read_classes)(folder), folder


def _required(found: _T | None, folder: Path, layout: str) -> _T:
    if not found:
        raise ValueError(f"{folder}: no {layout} data; expected {LIST_NAMES[layout]}")
    return found


def _read_splits(folders: list[Path], layout: str, split_number: int) -> Listing:
    """Folders of the same layout, each a split of its own; classes are those of all of them."""
    listings = [_read_layout(str(folder), layout, None, split_number)[0] for folder in folders]
    class_names = sorted_classes({name for listing in listings for name in listing.class_names or ()})
    problems = []
    for folder, listing in zip(folders, listings, strict=True):
        assert isinstance(listing.records, ColumnRecords)
        listing.records.assign_split(folder.name)
        listing.records.renumber_labels([class_names.index(name) for name in listing.class_names or ()])
        problems += [f"{folder.name}: {problem}" for problem in listing.problems]
    records = ConcatenatedRecords([listing.records for listing in listings])
    return Listing(records, class_names or None, problems, check_files=listings[0].check_files)


def _drop_missing(records: Records, lines: Sequence[int] | None, root: Path, problems: list[str]) -> Records:
    """The records whose files are there; the others become problems."""
    good = []
    for index, record in enumerate(records):
        if isinstance(record.path, StoredVideo) or record.path.exists():
            good.append(index)
            continue
        line = "" if lines is None else f"line {lines[index]}: "
        problems.append(f"{line}{os.path.relpath(record.path, root)}: no such file")
    return records if len(good) == len(records) else records.select(np.array(good, dtype=np.int64))


class _ClassCaptions(Records):
    """Records whose captions are their class's prompts."""

    def __init__(self, base: Records, class_names: tuple[str, ...] | None, file: Path) -> None:
        prompts = read_class_prompts(file)
        if class_names is None:
            raise ValueError(f"{file}: prompts for classes, but the videos have none")
        if missing := [name for name in class_names if name not in prompts]:
            raise ValueError(f"{file}: no prompt for the class {missing[0]!r} ({len(missing)} classes without)")
        self._base, self._captions = base, [prompts[name] for name in class_names]
        self.split_names, self.split_codes = base.split_names, base.split_codes

    def __len__(self) -> int:
        return len(self._base)

    def _record(self, index: int) -> ClipRecord:
        record = self._base[index]
        return record if record.label is None else replace(record, captions=self._captions[record.label])

    @property
    def weights(self) -> np.ndarray | None:
        return self._base.weights
