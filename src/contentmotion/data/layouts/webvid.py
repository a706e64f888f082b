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


class WebVidRecords(Records):
    """The rows of one CSV file, all of one split."""

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


def _find(place: Place) -> list[Path]:
    """WebVid's CSV files: the one that the settings name, or those in the folder."""
    files = [place.lists] if place.lists else files_like(place.path, "*.csv")
    return [path for path in files if set(csv_columns(path)) >= COLUMNS]


def _read(place: Place) -> Listing:
    """The rows of WebVid's CSV files; a file called `..._train.csv` or `..._val.csv` is that split."""
    root, files = place.folder, _find(place)
    if not files:
        raise WEBVID.missing(place)
    parts, problems = [], []
    for file in files:
        rows = CsvIndex(file)
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


WEBVID = Layout(
    "webvid", lambda place: bool(_find(place)), _read, "a CSV file with the columns videoid, page_dir and name"
)
