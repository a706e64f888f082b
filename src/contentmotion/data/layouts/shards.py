"""WebDataset shards on disk: tar files with `key.mp4` and `key.txt` or `key.json` (and `key.cls`).

The shards' headers are read once; after that any video can be read on its own.
"""

import re
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contentmotion.data.layouts.folders import files_like
from contentmotion.data.layouts.metadata import find_captions, parse_json
from contentmotion.data.records import ColumnRecords, Layout, Listing, Place, sorted_classes
from contentmotion.saving import require_regular
from contentmotion.video.sources import VIDEO_SUFFIXES, TarMember

TEXT_KINDS = ("txt", "json", "cls")
MAX_SHARDS = 1_000_000
MAX_TEXT = 1 << 20  # bytes of a text that is read


class ShardRecords(ColumnRecords):
    """Videos inside tar files."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._tars: list[Path] = []
        self._places = array("q")  # tar, offset, size of each video

    def append_member(self, member: TarMember, captions: tuple[str, ...], label: int | None) -> None:
        """Adds a video. Those of one tar file come one after another."""
        if not self._tars or self._tars[-1] != member.tar:
            self._tars.append(member.tar)
        self._places.extend((len(self._tars) - 1, member.offset, member.size))
        self.append(member.name, captions, label)

    def _source(self, index: int) -> TarMember:
        tar, offset, size = self._places[3 * index : 3 * index + 3]
        return TarMember(self._tars[tar], offset, size, self._files[index])


def expand_shards(pattern: str) -> list[Path]:
    """The files that a pattern such as `data/{000..011}.tar` names; a pattern without braces names itself."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [Path(pattern)]
    first, last = int(match[1]), int(match[2])
    if last - first >= MAX_SHARDS:
        raise ValueError(f"{pattern}: names more than {MAX_SHARDS} files")
    numbers = (f"{number:0{len(match[1])}d}" for number in range(first, last + 1))
    return [
        path for number in numbers for path in expand_shards(pattern[: match.start()] + number + pattern[match.end() :])
    ]


def split_name(name: str) -> tuple[str, str]:
    """Key and kind of a file in a shard: the kind is a known one that the name ends with ("a.0.5.mp4" is a video),
    else all that follows the first dot."""
    key, dot, kind = name.rpartition(".")
    if dot and (kind.lower() in TEXT_KINDS or f".{kind.lower()}" in VIDEO_SUFFIXES):
        return key, kind.lower()
    folder, slash, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()


def _read(place: Place) -> Listing:
    """The videos of tar files. Shards that are missing, cut short or packed are problems."""
    if not place.path.is_dir() and place.root.endswith(".tar"):
        root, tars = place.path.parent, expand_shards(place.root)
    else:
        root, tars = place.path, files_like(place.folder, "*.tar")
    if not tars:
        raise WEBDATASET.missing(Place(place.root))  # it looks at no other list
    records, codes = ShardRecords(root), {}
    problems: list[str] = []
    notes: list[str] = []
    for tar in tars:
        try:
            require_regular(tar)
            for key, sample in _samples(tar, problems):
                try:
                    video, captions, label = _read_sample(key, sample, notes, place.caption_column)
                except ValueError as error:
                    problems.append(f"{tar}/{key}: {error}")
                    continue
                number = None if label is None else codes.setdefault(label, len(codes))
                records.append_member(video, captions, number)
        except OSError as error:
            problems.append(f"{tar}: {error.strerror or error}")
    class_names = sorted_classes(codes)
    records.renumber_labels([class_names.index(name) for name in codes])
    return Listing(records, class_names or None, problems, notes, check_files=False)


def _samples(tar: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Members with the same key, one after another in the tar: (key, {kind: TarMember, or content of a text})."""
    key, sample = "", {}
    try:
        with tarfile.open(tar, "r:") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if not info.isfile():
                    continue
                name, kind = split_name(info.name.lstrip("/"))
                if key != name:
                    if sample:
                        yield key, sample
                    key, sample = name, {}
                if kind not in TEXT_KINDS:
                    sample[kind] = TarMember(tar, info.offset_data, info.size, info.name)
                elif info.size <= MAX_TEXT and (content := archive.extractfile(info)) is not None:
                    sample[kind] = content.read()
            if not _ends_with_zeros(tar):  # tarfile does not insist on it
                problems.append(f"{tar}: cut short between two members; only what comes before is used")
    except tarfile.ReadError as error:
        problems.append(f"{tar}: {error}; only what comes before is used")
        sample = {}  # it may be cut short
    if sample:
        yield key, sample


def _ends_with_zeros(tar: Path) -> bool:
    """Whether a tar file has its end: two empty blocks of 512 bytes."""
    with open(tar, "rb") as file:
        file.seek(max(0, tar.stat().st_size - 1024))
        return not any(file.read())


def _read_sample(
    key: str, sample: dict[str, Any], notes: list[str], caption_column: str | None
) -> tuple[TarMember, tuple[str, ...], str | None]:
    """Video, captions and class of a sample; a `ValueError` says what is wrong with it."""
    videos = [place for kind, place in sample.items() if f".{kind.rpartition('.')[2]}" in VIDEO_SUFFIXES]
    if len(videos) != 1:
        raise ValueError(f"{'two videos' if videos else 'no video'} with this key")
    captions, label = read_texts(sample, caption_column)
    if "json" in sample and not captions and label is None and not notes:  # of the first such one
        notes.append(f"{key}: no caption in its json (there are: {', '.join(parse_json(sample['json']))})")
    return videos[0], captions, None if label is None else str(label)


def read_texts(sample: dict[str, Any], caption_column: str | None) -> tuple[tuple[str, ...], Any]:
    """Captions and label (None: it has none) out of a sample's texts, bytes by kind; a `ValueError` says what is wrong
    with them."""
    captions: tuple[str, ...] = ()
    label = None
    try:
        if "json" in sample:
            cells = parse_json(sample["json"])
            found = find_captions(cells, caption_column) if isinstance(cells, dict) else None
            if caption_column is not None and isinstance(cells, dict) and caption_column not in cells:
                raise ValueError(f"no {caption_column} in its json (there are: {', '.join(cells)})")
            if found is None:
                raise ValueError("its json holds no captions that are texts")
            captions, label = found, cells.get("label")
        if "txt" in sample:
            captions = tuple(line.strip() for line in sample["txt"].decode().splitlines() if line.strip()) or captions
        if "cls" in sample:
            label = sample["cls"].decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"its text is not UTF-8 (byte {error.start})") from None
    return captions, label


def _detect(place: Place) -> bool:
    return place.lists is None and (place.root.endswith(".tar") or bool(files_like(place.path, "*.tar")))


WEBDATASET = Layout("webdataset", _detect, _read, "*.tar", has_columns=True)
