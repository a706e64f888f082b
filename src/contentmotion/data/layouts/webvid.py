"""WebVid: CSV files with the columns videoid, page_dir and name, beside folders `page_dir/videoid.mp4`.

The rows are not held in memory: ten million take 200 MB.
"""

from pathlib import Path

import numpy as np

from contentmotion.data.layouts.csv_index import CsvIndex, csv_columns
from contentmotion.data.layouts.folders import files_like
from contentmotion.data.records import ClipRecord, ConcatenatedRecords, Layout, Listing, Place, Records

COLUMNS = {"videoid", "name"}
VIDEO_FOLDERS = ("videos", "data/videos", "")
MAX_NAMED = 1000  # bad rows


def find_webvid(root: Path) -> list[Path]:
    """WebVid's CSV files in a folder."""
    return [path for path in files_like(root, "*.csv") if set(csv_columns(path)) >= COLUMNS]


class WebVidRecords(Records):
    """The rows of one CSV file.

    Args:
        root: Folder of the data set.
        rows: The CSV file.
        split: The split that all of them belong to, or None.
    """

    def __init__(self, root: Path, rows: CsvIndex, split: str | None) -> None:
        self._rows = rows
        self._split = split
        self.split_names = [] if split is None else [split]
        self.split_codes = np.full(len(rows), 0 if split else -1, dtype=np.int32)
        self._folder = next((root / name for name in VIDEO_FOLDERS if (root / name).is_dir()), root)

    def __len__(self) -> int:
        return len(self._rows)

    def _record(self, index: int) -> ClipRecord:
        row = self._rows[index]
        path = self._folder / row.get("page_dir", "") / f"{row['videoid']}.mp4"
        caption = row["name"].strip()
        return ClipRecord(path, (caption,) if caption else (), None, self._split)


def read_webvid(root: Path, files: list[Path]) -> Listing:
    """The rows of WebVid's CSV files; a file called `..._train.csv` or `..._val.csv` is that split.

    Raises:
        ValueError: A file has other columns, or no rows.
    """
    parts, problems = [], []
    for file in files:
        rows = CsvIndex(file)
        if not set(rows.columns) >= COLUMNS:
            raise ValueError(f"{file}: WebVid's CSV has the columns videoid, page_dir and name")
        name = file.stem.rpartition("_")[2]
        parts.append(WebVidRecords(root, rows, name if name in ("train", "val", "test") else None))
        problems += [
            f"{file.name}: row {number}: {count} cells, {len(rows.columns)} expected"
            for number, count in rows.bad_rows[:MAX_NAMED]
        ]
        if len(rows.bad_rows) > MAX_NAMED:
            problems.append(f"{file.name}: {len(rows.bad_rows) - MAX_NAMED} more rows like that")
    records = parts[0] if len(parts) == 1 else ConcatenatedRecords(parts)
    if not len(records) and not problems:
        raise ValueError(f"{files[0]}: no rows")
    return Listing(records, None, problems, source=files[0])


def _detect(place: Place) -> bool:
    if place.lists is None:
        return bool(find_webvid(place.path))
    return place.lists.suffix == ".csv" and set(csv_columns(place.lists)) >= COLUMNS


def _read(place: Place) -> Listing:
    files = [place.lists] if place.lists else find_webvid(place.folder)
    if not files:
        raise WEBVID.missing(place)
    return read_webvid(place.folder, files)


WEBVID = Layout("webvid", _detect, _read, "a CSV file with the columns videoid, page_dir and name")
