"""Ready-made maps (depth, sketches) that lie beside a data set's videos, cut exactly as the videos' clips are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from contentmotion.data.records import ClipRecord, MappedRecords, Records
from contentmotion.video.reader import probe_video, read_clip
from contentmotion.video.resize import ResizeMode
from contentmotion.video.sources import VIDEO_SUFFIXES
from contentmotion.video.timeline import VideoError

MAX_COLOUR = 8  # mean difference of the channels, in grey levels: more is a picture in colours, no map
MAX_SKEW = 0.02  # relative difference of two aspect ratios that rounding explains
DARK = 64  # grey levels: a sketch's lines that shrank with the picture stand out by at least so much


def to_grey(frames: np.ndarray, name: str) -> np.ndarray:
    """A map's one channel.

    Args:
        frames: uint8 RGB (t, h, w, 3).
        name: What to call it in messages.

    Returns:
        uint8 (t, h, w).

    Raises:
        VideoError: It is in colours.
    """
    low, high = frames.min(axis=-1), frames.max(axis=-1)
    if (high - low).mean() > MAX_COLOUR:
        raise VideoError(f"{name}: in colours; a map is grey (depth: white is near; sketch: white lines on black)")
    return frames[..., 1]


def read_map(
    path: Path,
    name: str,
    video: Path,
    indices: np.ndarray,
    height: int,
    width: int,
    resize_mode: ResizeMode,
    crop: tuple[float, float],
) -> np.ndarray:
    """The map that goes with a clip: the same frames, the same part of the picture.

    Args:
        path: The map's video file or frame folder, frame by frame that of the video; it may have another size.
        name: "depth" or "sketch".
        video: The video itself.
        indices: Numbers of the clip's frames in it.
        height: As the clip was read (`read_clip`).
        width: Likewise.
        resize_mode: Likewise.
        crop: Likewise.

    Returns:
        uint8 (t, height, width).

    Raises:
        OSError: No such file.
        VideoError: Damaged, fewer frames than the clip needs, in colours, or of another aspect ratio than the video.
    """
    info, own = probe_video(path), probe_video(video)
    if abs(info.width * own.height / (info.height * own.width) - 1) > MAX_SKEW:
        raise VideoError(
            f"{path}: {info.width}x{info.height} pixels, another aspect ratio than its video's {own.width}x{own.height}"
        )
    read = read_clip(
        path, num_frames=None, indices=indices, height=height, width=width, resize_mode=resize_mode, crop=crop
    )
    grey = to_grey(read.frames, str(path))
    resized = (info.height, info.width) != (height, width)
    return sharpen_lines(grey) if name == "sketch" and resized else grey


def sharpen_lines(grey: np.ndarray) -> np.ndarray:
    """A resized sketch as black and white again: thin lines grey when a picture shrinks.

    Args:
        grey: uint8 (t, h, w).

    Returns:
        uint8, 0 or 255: 255 from 0.4 of the lightest place on, which must not be darker than 64.
    """
    return np.where(grey >= 0.4 * max(int(grey.max()), DARK), 255, 0).astype(np.uint8)


def with_maps(base: Sequence[ClipRecord], root: Path, name: str, folder: Path) -> Records:
    """Records with a map each out of a folder of maps, in place of the ones that their list names.

    A video's map has its name below the folder of videos, or that name without its first folder (`videos/a/1.mp4`:
    `a/1.*`), with any suffix that the readers know, or is a folder of frames.

    Args:
        base: The records.
        root: Folder of the videos.
        name: What the maps show: "depth".
        folder: Folder of the maps.

    Raises:
        OSError: No such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder")
    return MappedRecords(base, partial(_with_map, root=root, name=name, folder=folder))


def _with_map(record: ClipRecord, *, root: Path, name: str, folder: Path) -> ClipRecord:
    others = tuple(pair for pair in record.conditions if pair[0] != name)
    return replace(record, conditions=(*others, (name, _find_map(record, root, folder))))


def _find_map(record: ClipRecord, root: Path, folder: Path) -> Path:
    """The map's file; the name that it should have, without a suffix, where there is none."""
    inside = isinstance(record.path, Path) and record.path.is_relative_to(root)
    name = record.path.relative_to(root) if inside else Path(Path(str(record.path)).name)  # type: ignore[union-attr]
    candidates = [name, Path(*name.parts[1:])] if len(name.parts) > 1 else [name]
    for candidate in candidates:
        stem = folder / candidate.with_suffix("")
        if stem.is_dir():
            return stem
        for suffix in VIDEO_SUFFIXES:
            if stem.with_suffix(suffix).is_file():
                return stem.with_suffix(suffix)
    return folder / candidates[-1].with_suffix("")
