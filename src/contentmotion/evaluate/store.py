"""What was computed so far, on disk: a stopped evaluation goes on, and features are used again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from contentmotion.saving import replacing_file, require_regular
from contentmotion.video.sources import VideoSource


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 (hex) of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def content_digest(source: VideoSource) -> str:
    """sha256 (hex) of a video's bytes, of all files of a frame folder.

    Raises:
        OSError: It cannot be read.
    """
    if not isinstance(source, Path):
        return hashlib.sha256(source.read_bytes()).hexdigest()
    if not source.is_dir():
        require_regular(source)
        return file_digest(source)
    return digest([f"{file.name} {file_digest(file)}" for file in sorted(source.iterdir()) if file.is_file()])


class RenditionStore:
    """Per-clip arrays of one rendition, in files of one batch each.

    The folder's name holds a hash of the protocol: results made in another way never mix. Clips are known by their
    index and their content, so the batch size may change between runs, and a video that was replaced is computed again.

    Args:
        root: Folder of all renditions.
        protocol: All that the results depend on but the videos (JSON-like); written beside them.
        content_of: Index of a clip -> a hash of what was read for it.
    """

    def __init__(self, root: Path, name: str, protocol: dict[str, Any], content_of: Callable[[int], str]) -> None:
        self.folder = root / f"{name}-{digest(protocol)[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "protocol.json").write_text(json.dumps(protocol, indent=2, sort_keys=True) + "\n")
        self._content_of = content_of
        self._file_of: dict[tuple[int, str], Path] = {}
        self._names_in: dict[Path, frozenset[str]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look for results that other processes added."""
        for file in sorted(set(self.folder.glob("clip*.npz")) - self._names_in.keys()):
            try:
                # Opened here: numpy leaves a damaged file open.
                with open(file, "rb") as handle, np.load(handle) as arrays:
                    if arrays.zip.testzip() is not None:
                        raise BadZipFile
                    clips = list(zip(arrays["index"].tolist(), arrays["content"].tolist(), strict=True))
                    self._remember(file, clips, arrays.files)
            except FileNotFoundError:
                continue  # another process found the same, and removed it
            except (BadZipFile, ValueError, KeyError, EOFError):
                file.unlink(missing_ok=True)  # cut short by a full disk or a crash: compute it again

    def _remember(self, file: Path, clips: list[tuple[int, str]], names: Collection[str]) -> None:
        self._names_in[file] = frozenset(names)
        for clip in clips:
            known = self._file_of.get(clip)
            if known is None or not self._names_in[known] > self._names_in[file]:  # the one that holds more
                self._file_of[clip] = file

    def has(self, index: int, names: Collection[str] = ()) -> bool:
        """Whether these arrays were stored of the clip as it is now."""
        file = self._file_of.get((index, self._content_of(index)))
        return file is not None and self._names_in[file].issuperset(names)

    def add(self, indices: list[int], **arrays: np.ndarray) -> None:
        """Store a batch: every array has one row per index. The file appears whole or not at all."""
        clips = [(index, self._content_of(index)) for index in indices]
        # Batches of other sizes may begin with the same clip: one must not replace the other.
        file = self.folder / f"clip{indices[0]:07d}-{digest(clips)[:8]}.npz"
        with replacing_file(file) as partial:
            np.savez_compressed(partial, index=np.array(indices), content=np.array([c for _, c in clips]), **arrays)
        self._names_in.pop(file, None)
        self._remember(file, clips, arrays)

    def load(self, name: str, indices: list[int]) -> np.ndarray:
        """One array's rows of these clips, in this order.

        Raises:
            KeyError: A clip is not there.
        """
        rows: dict[int, np.ndarray] = {}
        for file in dict.fromkeys(self._file_of[index, self._content_of(index)] for index in indices):
            with np.load(file) as arrays:
                rows.update(zip(arrays["index"].tolist(), arrays[name], strict=True))
        return np.stack([rows[index] for index in indices])
