"""Layouts without a list of videos: sidecar texts, class folders, and folders named after splits."""

import os
from pathlib import Path

from contentmotion.data.records import ColumnRecords, Listing
from contentmotion.video.pictures import list_frames
from contentmotion.video.sources import VIDEO_SUFFIXES

SPLIT_FOLDERS = ("train", "validation", "valid", "val", "test", "eval", "dev", "heldout")


def is_video(path: Path) -> bool:
    """Whether a path looks like a video, by its suffix; a folder, by the numbered pictures in it."""
    return bool(list_frames(path)) if path.is_dir() else path.suffix.lower() in VIDEO_SUFFIXES


def has_sidecar(folder: Path) -> bool:
    """Whether a folder, at any depth, holds a video with a text of the same name beside it."""
    for directory, _, files in os.walk(folder):
        stems = {Path(name).stem for name in files if name.endswith(".txt")}
        if any(Path(name).stem in stems for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES):
            return True
        if stems and any(Path(directory, stem).is_dir() and is_video(Path(directory, stem)) for stem in stems):
            return True
    return False


def split_folders(root: Path) -> list[Path]:
    """The sub-folders `train`, `test`, ... of a folder that has a `train` one or nothing else."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = [path for path in folders if path.name in SPLIT_FOLDERS]
    return named if named and (len(named) == len(folders) or (root / "train").is_dir()) else []


def read_sidecar(root: Path) -> Listing:
    """Videos at any depth, each with its captions in a text of the same name beside it: `a.mp4`, `a.txt`.

    Each line that is not empty is a caption. A video without a text has none.
    """
    records, problems = ColumnRecords(root), []
    for directory, folders, files in os.walk(root):
        names = [name for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        frame_folders = [name for name in folders if is_video(Path(directory, name))]
        folders[:] = sorted(set(folders) - set(frame_folders))
        for name in sorted(names + frame_folders):
            path = Path(directory, name)
            text = path.with_suffix(".txt") if name in names else path.with_name(f"{name}.txt")
            captions: list[str] = []
            if text.name in files:
                try:
                    captions = [line.strip() for line in text.read_text("utf-8-sig").splitlines() if line.strip()]
                except UnicodeDecodeError as error:
                    problems.append(f"{text.relative_to(root)}: not UTF-8 text (byte {error.start})")
                    continue
            records.append(str(path.relative_to(root)), captions)
    return Listing(records, None, problems, check_files=False)


def read_classes(root: Path) -> Listing:
    """Class sub-folders; a class may hold video files and frame folders."""
    records, class_names = ColumnRecords(root), []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        videos = [path for path in sorted(folder.iterdir()) if is_video(path)]
        for path in videos:
            records.append(str(path.relative_to(root)), label=len(class_names))
        class_names += [folder.name] * bool(videos)
    return Listing(records, tuple(class_names) or None, check_files=False)
