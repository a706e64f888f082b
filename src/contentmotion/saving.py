"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class SavePretrained(Protocol):
    """Anything with diffusers' and transformers' ``save_pretrained``."""

    def save_pretrained(self, save_directory: str, /) -> object: ...


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Gives a path beside ``path``, of the same suffix, to write to; puts the file in its place if all went well.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Gives a new folder beside ``path`` to write into; puts it in ``path``'s place if nothing went wrong.

    A folder cannot be replaced in one step: the old one steps aside first. Killed between the two, the next call puts
    it back.
    """
    path = Path(path)
    partial, old = path.with_name(f".{path.name}.partial"), _old(path)
    restore_folder(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def restore_folder(path: str | Path) -> None:
    """Puts back what stepped aside for a ``replacing_folder`` that was killed."""
    path = Path(path)
    if _old(path).exists() and not path.exists():
        os.replace(_old(path), path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def save_model(model: SavePretrained, path: str | Path) -> None:
    """``model.save_pretrained(path)``, atomically."""
    with replacing_folder(path) as folder:
        model.save_pretrained(str(folder))


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights (names and values), the same wherever they are stored.

    Values are rounded to float16, so that a model and what ``export`` makes of it count as one.
    """
    return hash_state(sorted(model.state_dict().items()))


def hash_state(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """``hash_weights`` of a state dict's tensors, which come in the order of their names."""
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(name.encode())
        digest.update(value.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as JSON, atomically."""
    with replacing_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
