"""MSR-VTT: its JSON (videos with splits, sentences), the 1k-A CSV (one caption per test video), or both.

Where there are CSV files they choose the videos: `MSRVTT_JSFUSION_test.csv` (video_id, sentence) is the split "test";
`MSRVTT_train.9k.csv` (video_id) is "train", its captions come from the JSON.
"""

import csv
from pathlib import Path

from contentmotion.data.layouts.csv_index import csv_columns
from contentmotion.data.layouts.folders import files_like, walk
from contentmotion.data.layouts.metadata import make_row, parse_json
from contentmotion.data.records import ColumnRecords, Layout, Listing, Place
from contentmotion.video.sources import VIDEO_SUFFIXES

JSON_HEAD = 1 << 16  # bytes looked at to tell an MSR-VTT JSON


def _find(place: Place) -> list[Path]:
    """MSR-VTT's JSON and CSV files: the one that the settings name, or those in the folder (none without captions)."""
    if place.lists is not None:
        known = place.lists.suffix == ".json" or "video_id" in csv_columns(place.lists)
        return [place.lists] if known else []
    files = [path for path in files_like(place.path, "*.csv") if "video_id" in csv_columns(path)]
    files += [path for path in files_like(place.path, "*.json") if _is_msrvtt_json(path)]
    has_captions = any(path.suffix == ".json" or "sentence" in csv_columns(path) for path in files)
    return files if has_captions else []


def _is_msrvtt_json(path: Path) -> bool:
    """Whether a file begins like MSR-VTT's JSON."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(JSON_HEAD)
    except OSError:
        return False
    return b'"video_id"' in head and any(key in head for key in (b'"videos"', b'"sentences"'))


def _read(place: Place) -> Listing:
    """The videos that MSR-VTT's files name, with all their captions. The videos may lie at any depth."""
    root, files = place.folder, _find(place)
    if not files:
        raise MSRVTT.missing(place)
    captions: dict[str, list[str]] = {}
    splits: dict[str, str | None] = {}
    tables = [path for path in files if path.suffix != ".json"]
    for file in (path for path in files if path.suffix == ".json"):
        try:
            content = parse_json(file.read_text("utf-8-sig"))
            for sentence in content.get("sentences", []):
                name, caption = sentence["video_id"], sentence["caption"]
                captions.setdefault(name, []).extend([caption] if caption else [])
            splits |= {video["video_id"]: video.get("split") for video in content.get("videos", [])}
        except KeyError as error:
            raise ValueError(f"{file}: not MSR-VTT's JSON (an entry without {error})") from None
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{file}: not MSR-VTT's JSON ({error})") from None
    rows: list[tuple[str, list[str], str | None]] = []
    for file in tables:
        split = next((name for name in ("train", "test", "val") if name in file.stem.lower()), None)
        try:
            with open(file, newline="", encoding="utf-8-sig") as handle:
                for row in csv.DictReader(handle):
                    name = row.get("video_id") or ""
                    rows.append((name, [row["sentence"]] if row.get("sentence") else captions.get(name, []), split))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{file}: not CSV in UTF-8 ({error})") from None
    if not tables:
        rows = [(name, captions.get(name, []), split) for name, split in splits.items()]
    if not rows:
        raise ValueError(f"{files[0]}: no videos")
    found = {
        Path(name).stem: str((directory / name).relative_to(root))
        for directory, _, names in walk(root)
        for name in names
        if Path(name).suffix.lower() in VIDEO_SUFFIXES
    }
    records, problems = ColumnRecords(root), []
    for name, texts, split in rows:
        cells = {"file": found.get(name, f"{name}.mp4"), "captions": texts, "split": split}
        row = make_row(cells) if texts else f"{name}: no caption"
        if isinstance(row, str):
            problems.append(row)
        else:
            records.append(**row)
    return Listing(records, None, problems, source=files[0])


MSRVTT = Layout(
    "msrvtt",
    lambda place: bool(_find(place)),
    _read,
    "MSR-VTT's JSON, or a CSV file with the columns video_id and sentence",
)
