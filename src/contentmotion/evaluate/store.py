"""What was computed so far, on disk: a stopped evaluation goes on, and features are used again."""

import hashlib
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from contentmotion.saving import replacing_file


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 (hex) of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class PartStore:
    """Per-clip arrays of one part of an evaluation, in files of one batch each.

    The folder's name holds a hash of the protocol: results made in another way never mix. Clips are known
    by their index, so the batch size may change between runs.

    Args:
        root: Folder of all parts.
        name: Name of the part.
        protocol: All that the results depend on (JSON-like); written beside them.
    """

    def __init__(self, root: Path, name: str, protocol: dict[str, Any]) -> None:
        self.folder = root / f"{name}-{digest(protocol)[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "protocol.json").write_text(json.dumps(protocol, indent=2, sort_keys=True) + "\n")
        self._file_of: dict[int, Path] = {}
        self._names: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Look for results that other processes added."""
        for file in sorted(set(self.folder.glob("clip*.npz")) - set(self._file_of.values())):
            try:
                # Opened here: numpy leaves a damaged file open.
                with open(file, "rb") as handle, np.load(handle) as arrays:
                    if arrays.zip.testzip() is not None:
                        raise BadZipFile
                    self._file_of.update(dict.fromkeys(arrays["index"].tolist(), file))
                    self._names |= set(arrays.files)
            except FileNotFoundError:
                continue  # another process found the same, and removed it
            except (BadZipFile, ValueError, KeyError, EOFError):
                file.unlink(missing_ok=True)  # cut short by a full disk or a crash: compute it again

    def __contains__(self, index: int) -> bool:
        """Whether the clip's results are there."""
        return index in self._file_of

    def has(self, name: str) -> bool:
        """Whether this array was stored."""
        return name in self._names

    def add(self, indices: list[int], **arrays: np.ndarray) -> None:
        """Store a batch: every array has one row per index. The file appears whole or not at all."""
        # Batches of other sizes may begin with the same clip: one must not replace the other.
        file = self.folder / f"clip{indices[0]:07d}-{digest(indices)[:8]}.npz"
        with replacing_file(file) as partial:
            np.savez_compressed(partial, index=np.array(indices), **arrays)
        self._file_of.update(dict.fromkeys(indices, file))
        self._names |= set(arrays)

    def load(self, name: str, indices: list[int]) -> np.ndarray:
        """One array's rows of these clips, in this order.

        Raises:
            KeyError: A clip is not there.
        """
        rows: dict[int, np.ndarray] = {}
        for file in dict.fromkeys(self._file_of[index] for index in indices):
            with np.load(file) as arrays:
                rows.update(zip(arrays["index"].tolist(), arrays[name], strict=True))
        return np.stack([rows[index] for index in indices])
