"""MSR-VTT: its JSON (videos with splits, sentences), the 1k-A CSV (one caption per test video), or both.

Where there are CSV files they choose the videos: `MSRVTT_JSFUSION_test.csv` (video_id, sentence) is the split "test";
`MSRVTT_train.9k.csv` (video_id) is "train", its captions come from the JSON.
"""

import csv
from pathlib import Path
from typing import Any

from contentmotion.data.layouts.csv_index import csv_columns
from contentmotion.data.layouts.folders import files_like, walk
from contentmotion.data.layouts.metadata import parse_json
from contentmotion.data.records import ColumnRecords, Layout, Listing, Place
from contentmotion.video.sources import VIDEO_SUFFIXES

JSON_HEAD = 1 << 16  # bytes looked at to tell an MSR-VTT JSON


def find_msrvtt(root: Path) -> list[Path]:
    """MSR-VTT's JSON and CSV files in a folder; empty where the captions are missing."""
    files = [path for path in files_like(root, "*.csv") if "video_id" in csv_columns(path)]
    files += [path for path in files_like(root, "*.json") if is_msrvtt_json(path)]
    has_captions = any(path.suffix == ".json" or "sentence" in csv_columns(path) for path in files)
    return files if has_captions else []


def is_msrvtt_json(path: Path) -> bool:
    """Whether a file begins like MSR-VTT's JSON."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(JSON_HEAD)
    except OSError:
        return False
    return b'"video_id"' in head and any(key in head for key in (b'"videos"', b'"sentences"'))


def read_msrvtt(root: Path, files: list[Path]) -> Listing:
    """The videos that MSR-VTT's files name, with all their captions. The videos may lie at any depth.

    Raises:
        ValueError: A file is not as MSR-VTT's.
    """
    found = _videos_by_name(root)
    captions: dict[str, list[str]] = {}
    splits: dict[str, str | None] = {}
    for file in (path for path in files if path.suffix == ".json"):
        content = _load_json(file)
        for sentence in content.get("sentences", []):
            captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
        splits |= {video["video_id"]: video.get("split") for video in content.get("videos", [])}
    rows: list[tuple[str, list[str], str | None]] = []
    tables = [path for path in files if path.suffix == ".csv"]
    for file in tables:
        split = next((name for name in ("train", "test", "val") if name in file.stem.lower()), None)
        with open(file, newline="", encoding="utf-8-sig") as handle:
            for row in csv.DictReader(handle):
                name = row.get("video_id") or ""
                rows.append((name, [row["sentence"]] if row.get("sentence") else captions.get(name, []), split))
    if not tables:
        rows = [(name, captions.get(name, []), split) for name, split in splits.items()]
    records, problems = ColumnRecords(root), []
    for name, texts, split in rows:
        if texts:
            records.append(found.get(name, f"{name}.mp4"), texts, split=split)
        else:
            problems.append(f"{name}: no caption")
    if not rows:
        raise ValueError(f"{files[0]}: no videos")
    return Listing(records, None, problems, source=files[0])


def _load_json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text("utf-8-sig"))
        complete = all("video_id" in entry for key in ("videos", "sentences") for entry in content.get(key, []))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{file}: not MSR-VTT's JSON ({error})") from None
    if not complete or not all("caption" in sentence for sentence in content.get("sentences", [])):
        raise ValueError(f"{file}: not MSR-VTT's JSON (entries without video_id or caption)")
    return content


def _videos_by_name(root: Path) -> dict[str, str]:
    """Video files at any depth, by their name without suffix, relative to the root."""
    return {
        Path(name).stem: str((directory / name).relative_to(root))
        for directory, _, names in walk(root)
        for name in names
        if Path(name).suffix.lower() in VIDEO_SUFFIXES
    }


def _detect(place: Place) -> bool:
    if place.lists is None:
        return bool(find_msrvtt(place.path))
    return place.lists.suffix == ".json" or (place.lists.suffix == ".csv" and "video_id" in csv_columns(place.lists))


def _read(place: Place) -> Listing:
    files = [place.lists] if place.lists else find_msrvtt(place.folder)
    if not files:
        raise MSRVTT.missing(place)
    return read_msrvtt(place.folder, files)


MSRVTT = Layout("msrvtt", _detect, _read, "MSR-VTT's JSON, or a CSV file with the columns video_id and sentence")
