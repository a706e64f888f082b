"""Data sets of videos with captions or classes, in any common layout, read into one list of records.

No video is opened. `LAYOUTS` lists what is known, in the order in which it is looked for; another layout is another row
(`LAYOUTS["mine"] = Layout("mine", detect, read)`, also from outside this package), and `--layout mine` names it.
Folders called train, validation, test, ... that each hold one of these are splits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from contentmotion.config import CaptionConfig, FolderConfig
from contentmotion.data.layouts import folders, hf_datasets, metadata, msrvtt, shards, ucf101, webvid
from contentmotion.data.prompts import read_class_prompts
from contentmotion.data.records import (
    ClipRecord,
    ConcatenatedRecords,
    Layout,
    Listing,
    MappedRecords,
    Place,
    Records,
    sorted_classes,
)
from contentmotion.saving import require_regular
from contentmotion.video.sources import StoredVideo, source_name

LAYOUTS: dict[str, Layout] = {
    row.name: row
    for row in (
        hf_datasets.DATASETS,  # a folder made by `datasets.save_to_disk`, or a data set's id on the hub
        metadata.VIDEOFOLDER,  # `metadata.jsonl`, `metadata.csv` or `metadata.parquet`
        shards.WEBDATASET,  # tar files with `key.mp4` and `key.txt` or `key.json`
        ucf101.UCF101,  # class folders and UCF-101's official split lists
        webvid.WEBVID,  # CSV files with the columns videoid, page_dir and name
        msrvtt.MSRVTT,  # MSR-VTT's JSON, the 1k-A CSV, or both
        folders.SIDECAR,  # `clip.mp4` and `clip.txt` side by side, or videos without any text
        folders.CLASSES,  # one sub-folder of videos per class
    )
}

# Up to this many rows each file is looked for at once; of more, a missing file shows when it is read.
CHECK_FILES_BELOW = 100_000


@dataclass(frozen=True)
class ClipFolder:
    """What `read_clip_folder` found.

    Attributes:
        root: The folder (or a data set's id).
        records: The videos, in the order of their list or sorted by path.
        class_names: Names of the classes in label order, or None where there are no labels.
        problems: One line per row that was left out, e.g. "line 12: videos/x.mp4: no such file".
        notes: Lines about what else is not as one may expect.
        layout: The layout found, e.g. "webvid".
        others: The videos of other splits than the one asked for.
    """

    root: Path
    records: Sequence[ClipRecord]
    class_names: tuple[str, ...] | None
    problems: list[str]
    layout: str = "videofolder"
    notes: Sequence[str] = ()
    others: Sequence[ClipRecord] = ()


def open_folder(root: str | Path, config: FolderConfig) -> ClipFolder:
    """`read_clip_folder` as a command's settings say."""
    kind = CaptionConfig if isinstance(config, CaptionConfig) else FolderConfig
    return read_clip_folder(root, **{field.name: getattr(config, field.name) for field in fields(kind)})


def read_clip_folder(
    root: str | Path,
    *,
    split: str | None = None,
    layout: str = "auto",
    metadata_path: str | Path | None = None,
    split_number: int = 1,
    class_prompts: str | Path | None = None,
    caption_column: str | None = None,
) -> ClipFolder:
    """Read a data set's list of videos. Opens no video.

    Labels are numbered over all rows, so every split of a folder has the same classes.

    Args:
        root: Folder, tar file, pattern of tar files (`data/{000..011}.tar`), or id of a Hugging Face data set.
        split: Keep only the rows of this split, where the layout names splits; None keeps all.
        layout: A name in `LAYOUTS`; "auto" looks.
        metadata_path: The list of videos (UCF-101: the folder of lists), when it is not in the folder.
        split_number: Which of UCF-101's official splits: 1, 2 or 3.
        class_prompts: JSON file with captions for each class (see `read_class_prompts`).
        caption_column: Name of the captions' column; None: one of the usual ones.

    Raises:
        OSError: No such folder, or a file is not readable.
        ValueError: None of the layouts, no such split, or nothing usable is left; the first problem is named.
        ImportError: A library that this layout needs is not installed.
    """
    lists = None if metadata_path is None else Path(metadata_path)
    place = Place(str(root), lists, split_number, caption_column)
    if place.lists is not None and not place.lists.exists():
        raise FileNotFoundError(f"{place.lists}: no such file or folder")
    require_regular(place.lists or "")
    row = _find_layout(place) if layout == "auto" else LAYOUTS.get(layout)
    if row is None:
        raise ValueError(f"unknown layout {layout!r}: choose from auto, {', '.join(LAYOUTS)}")
    if caption_column is not None and not row.has_columns:
        known = ", ".join(name for name, other in LAYOUTS.items() if other.has_columns)
        raise ValueError(f"{root}: --caption_column is for the layouts {known}; this is {row.name}")
    listing = _read(place, row)
    records, lines, problems = listing.records, listing.lines, list(listing.problems)
    where = listing.source or place.path
    others: Sequence[ClipRecord] = ()
    if split is not None and records.split_names:
        if split not in records.split_names:
            raise ValueError(f"{where}: no split {split!r} (there are: {', '.join(sorted(records.split_names))})")
        is_chosen = records.split_codes == records.split_names.index(split)
        chosen, others = np.flatnonzero(is_chosen), records.select(np.flatnonzero(~is_chosen))
        records, lines = records.select(chosen), None if lines is None else np.asarray(lines)[chosen]
    if listing.check_files and len(records) <= CHECK_FILES_BELOW:
        records = _look_for_files(records, lines, place.path, problems, listing.notes)
    if not len(records):
        raise ValueError(f"{where}: no usable video" + (f"; {problems[0]} ({len(problems)} problems)" * bool(problems)))
    if class_prompts is not None:
        records = _with_prompts(records, listing.class_names, Path(class_prompts))
    # Names of files may hold anything: what is no character to print is spelt out.
    problems, notes = [source_name(line) for line in problems], [source_name(note) for note in listing.notes]
    return ClipFolder(place.path, records, listing.class_names, problems, row.name, notes, others)


def _find_layout(place: Place) -> Layout:
    """The layout of a folder (or of its splits' folders), tar file, pattern of tar files or data set's id."""
    parts = [Place(str(part)) for part in reversed(folders.split_folders(place))]
    for candidate in (place, *parts):
        for row in LAYOUTS.values():
            if row.detect(candidate):
                return row
    if place.lists is None and not place.path.is_dir():
        hint = hf_datasets.missing_library(place.root)
        raise NotADirectoryError(f"{place.root}: no such folder{hint}")
    raise ValueError(
        f"{place.lists or place.root}: no videos; expected metadata.csv, .jsonl or .parquet, clip.mp4 + clip.txt, one "
        "sub-folder of videos per class, the lists of UCF-101, WebVid or MSR-VTT, *.tar shards, or a saved data set"
    )


def _read(place: Place, row: Layout) -> Listing:
    """All videos of a data set; of folders of one layout side by side, each a split, those of all of them."""
    parts = folders.split_folders(place)
    if not parts or row.detect(place):
        return row.read(place)
    listings = [_read(replace(place, root=str(part)), row) for part in parts]
    class_names = sorted_classes({name for listing in listings for name in listing.class_names or ()})
    records, problems, notes = [], [], []
    for folder, listing in zip(parts, listings, strict=True):
        numbers = [class_names.index(name) for name in listing.class_names or ()]
        change = partial(_as_part, split=folder.name, numbers=numbers)
        records.append(MappedRecords(listing.records, change, split=folder.name))
        problems += [f"{folder.name}: {problem}" for problem in listing.problems]
        notes += [f"{folder.name}: {note}" for note in listing.notes]
    check_files = listings[0].check_files
    return Listing(ConcatenatedRecords(records), class_names or None, problems, notes, check_files=check_files)


def _as_part(record: ClipRecord, split: str, numbers: Sequence[int]) -> ClipRecord:
    return replace(record, split=split, label=None if record.label is None else numbers[record.label])


def _look_for_files(
    records: Records, lines: Sequence[int] | None, root: Path, problems: list[str], notes: list[str]
) -> Records:
    """The records whose files are there; the others become problems, and a note says which lie somewhere else."""
    good, outside = [], []
    inside = os.path.join(os.path.abspath(root), "")
    for index, record in enumerate(records):
        files = [] if isinstance(record.path, StoredVideo) else [record.path]
        files += [path for _, path in record.conditions]
        outside += [path for path in files if not os.path.abspath(path).startswith(inside)][:1]
        if isinstance(record.path, StoredVideo) or os.path.exists(record.path):  # which a name too long is not
            good.append(index)
            continue
        line = "" if lines is None else f"line {lines[index]}: "
        problems.append(f"{line}{os.path.relpath(record.path, root)}: no such file")
    if outside:
        notes.append(f"{len(outside)} rows of the list name files outside this folder, such as {outside[0]}")
    return records if len(good) == len(records) else records.select(np.array(good, dtype=np.int64))


def _with_prompts(records: Records, class_names: tuple[str, ...] | None, file: Path) -> Records:
    """Records whose captions are their class's prompts."""
    prompts = read_class_prompts(file)
    if class_names is None:
        raise ValueError(f"{file}: prompts for classes, but the videos have none")
    if missing := [name for name in class_names if name not in prompts]:
        raise ValueError(f"{file}: no prompt for the class {missing[0]!r} ({len(missing)} classes without)")
    return MappedRecords(records, partial(_with_captions, captions=[prompts[name] for name in class_names]))


def _with_captions(record: ClipRecord, captions: Sequence[tuple[str, ...]]) -> ClipRecord:
    return record if record.label is None else replace(record, captions=captions[record.label])
