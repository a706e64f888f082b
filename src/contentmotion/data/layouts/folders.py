"""Layouts without a list of videos: sidecar texts, class folders, and folders named after splits."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from contentmotion.data.records import ColumnRecords, Layout, Listing, Place
from contentmotion.video.pictures import list_frames
from contentmotion.video.sources import VIDEO_SUFFIXES

SPLIT_FOLDERS = ("train", "validation", "valid", "val", "test", "eval", "dev", "heldout")
MAX_SINGLES = 20  # classes, where each has one video


def walk(root: Path, problems: list[str] | None = None) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like `os.walk`, of what may be data: (folder, its sub-folders, its files), in order, without hidden names.

    Links to folders are followed, each folder once; only regular files count (a pipe would be waited for), and links
    to them. Sub-folders that are taken out of the list are not entered. `problems` gets a line for each folder that
    cannot be read, or was read already.
    """
    problems = [] if problems is None else problems
    seen, waiting = {os.path.realpath(root)}, [root]
    while waiting:
        directory = waiting.pop()
        try:
            with os.scandir(directory) as found:
                entries = sorted((entry for entry in found if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(f"{directory.relative_to(root)}: {error.strerror}")
            continue
        folders = [entry.name for entry in entries if entry.is_dir()]
        yield directory, folders, [entry.name for entry in entries if entry.is_file()]
        for name in reversed(folders):
            place = os.path.realpath(directory / name)
            if place in seen:
                problems.append(f"{(directory / name).relative_to(root)}: a link to a folder that is read elsewhere")
            else:
                seen.add(place)
                waiting.append(directory / name)


def files_like(folder: Path, pattern: str) -> list[Path]:
    """The regular files of a folder that match, in order; no hidden ones."""
    return [path for path in sorted(folder.glob(pattern)) if path.name[0] != "." and path.is_file()]


def is_video(path: Path) -> bool:
    """Whether a path looks like a video, by its suffix; a folder, by the numbered pictures in it."""
    if path.name.startswith("."):
        return False
    return bool(list_frames(path)) if path.is_dir() else path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def split_folders(place: Place) -> list[Path]:
    """The sub-folders `train`, `test`, ... of a folder that has a `train` one or nothing else."""
    if place.lists is not None or not place.path.is_dir():
        return []
    folders = _sub_folders(place.path)
    named = [path for path in folders if path.name in SPLIT_FOLDERS]
    return named if named and (len(named) == len(folders) or (place.path / "train").is_dir()) else []


def _sub_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_sidecar(place: Place) -> bool:
    """Whether a folder holds videos itself, or at any depth a video with a text of the same name beside it."""
    if place.lists is not None or not place.path.is_dir() or split_folders(place):
        return False
    if any(is_video(path) for path in place.path.iterdir()):
        return True
    for directory, _, files in walk(place.path):
        stems = {Path(name).stem for name in files if name.endswith(".txt")}
        if any(Path(name).stem in stems for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES):
            return True
        if any((directory / stem).is_dir() and is_video(directory / stem) for stem in stems):
            return True
    # Deeper than class folders have them.
    deep = (directory / name for directory, folders, files in walk(place.path) for name in folders + files)
    return not _is_classes(place) and any(map(is_video, deep))


def _read_sidecar(place: Place) -> Listing:
    """Videos at any depth, each with its captions in a text of the same name beside it: `a.mp4`, `a.txt`.

    Each line that is not empty is a caption. A video without a text has none.
    """
    root = place.folder
    problems: list[str] = []
    notes: list[str] = []
    records = ColumnRecords(root)
    for directory, folders, files in walk(root, notes):
        names = [name for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        frame_folders = [name for name in folders if is_video(directory / name)]
        folders[:] = [name for name in folders if name not in frame_folders]
        for name in sorted(names + frame_folders):
            path = directory / name
            text = path.with_suffix(".txt") if name in names else path.with_name(f"{name}.txt")
            captions: list[str] = []
            if text.name in files:
                try:
                    captions = [line.strip() for line in text.read_text("utf-8-sig").splitlines() if line.strip()]
                except UnicodeDecodeError as error:
                    problems.append(f"{text.relative_to(root)}: not UTF-8 text (byte {error.start})")
                    continue
                except OSError as error:
                    problems.append(f"{text.relative_to(root)}: {error.strerror}")
                    continue
            records.append(str(path.relative_to(root)), captions)
    return Listing(records, None, problems, notes, check_files=False)


def _is_classes(place: Place) -> bool:
    """Whether a folder has sub-folders of videos. Many with one video each are no classes: they are called after it."""
    if place.lists is not None or not place.path.is_dir() or split_folders(place):
        return False
    videos = (len(list(islice(filter(is_video, folder.iterdir()), 2))) for folder in _sub_folders(place.path))
    counts = [count for count in videos if count]
    return bool(counts) and (max(counts) > 1 or len(counts) <= MAX_SINGLES)


def _read_classes(place: Place) -> Listing:
    """Class sub-folders; a class may hold video files and frame folders."""
    root = place.folder
    records, class_names = ColumnRecords(root), []
    for folder in _sub_folders(root):
        videos = [path for path in sorted(folder.iterdir()) if is_video(path)]
        for path in videos:
            records.append(str(path.relative_to(root)), label=len(class_names))
        class_names += [folder.name] * bool(videos)
    return Listing(records, tuple(class_names) or None, check_files=False)


SIDECAR = Layout("sidecar", _is_sidecar, _read_sidecar)
CLASSES = Layout("classes", _is_classes, _read_classes)
