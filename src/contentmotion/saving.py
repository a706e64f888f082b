"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers.models.modeling_utils import ModelMixin

HASH_VERSION = 2
# Settings that change a network's numbers and no weight's name or shape; and what is meant where a config is silent.
_NUMBERS: dict[str, Any] = {
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "num_heads": None,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "content_mode": "softmax",
    "content_index": 0,
    "residual_decoding": True,
    "attention_window": 0,
}


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Gives a path beside ``path``, of the same suffix, to write to; puts the file in its place if all went well.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None and error.strerror:  # a full disk, met in the middle of a file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Gives a new folder beside ``path`` to write into; puts it in ``path``'s place if nothing went wrong.

    A folder cannot be replaced in one step: the old one steps aside first. Killed between the two, the next call puts
    it back.
    """
    path = Path(path)
    partial, old = path.with_name(f".{path.name}.{os.getpid()}.partial"), _old(path)
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


def find_leftovers(path: Path) -> list[Path]:
    """What ``replacing_file`` and ``replacing_folder`` left in a folder, two levels deep, or beside it, when killed.

    No other run writes to the folder; one inside it may belong to a run, whose files are left alone.
    """
    own = re.compile(rf"\.{re.escape(path.name)}\.\d+\.partial")
    found = [one for one in path.parent.glob(".*.partial") if own.fullmatch(one.name)]
    for depth in ("", "*/", "*/*/"):
        found += path.glob(f"{depth}.*.partial*")
    matches = [(one, re.fullmatch(r"\..*\.(\d+)\.partial(\.\w+)?", one.name)) for one in found]
    return [one for one, match in matches if match and not (is_alive(match[1]) and int(match[1]) != os.getpid())]


def is_alive(process: str) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:  # another user's
        pass
    return True


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def save_model(model: ModelMixin, path: str | Path) -> None:
    """``model.save_pretrained(path)``, atomically."""
    with replacing_folder(path) as folder:
        model.save_pretrained(str(folder))


def hash_weights(model: torch.nn.Module, version: int = HASH_VERSION) -> str:
    """SHA-256 of what decides a model's numbers: weights, and those settings of its config that no weight shows.

    Version 1 is that of caches made by version 0.1, of the weights alone.
    """
    config = getattr(model, "config", None)
    settings = config if isinstance(config, Mapping) else {} if config is None else vars(config)
    return hash_state(sorted(model.state_dict().items()), settings, version)


def hash_state(
    tensors: Iterable[tuple[str, torch.Tensor]], settings: Mapping[str, Any], version: int = HASH_VERSION
) -> str:
    """``hash_weights`` of a state dict's tensors, which come in the order of their names, and a model's config.

    Values are rounded to what every number format that models are stored in holds, so that a model and what ``export``
    makes of it count as one.
    """
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(name.encode())
        value = value.detach().cpu().half().contiguous()
        if version > 1:
            value = value.bfloat16().float()
        digest.update(value.numpy().tobytes())
    if version > 1:
        told = {name: settings.get(name, usual) for name, usual in _NUMBERS.items()}
        digest.update(json.dumps({name: value for name, value in told.items() if value != _NUMBERS[name]}).encode())
    return digest.hexdigest()


def require_regular(path: str | Path) -> None:
    """Raises ``OSError`` where a path is neither a file nor a folder: a pipe or a device would be waited for."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise OSError(errno.EINVAL, "no regular file", str(path))


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """What a text file holds.

    Raises:
        OSError: There is none, or it cannot be read.
        UnicodeDecodeError: It is no text.
    """
    require_regular(path)
    return Path(path).read_text(encoding=encoding)


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds, by name.

    Raises:
        OSError: There is none.
        ValueError: It is no JSON, or holds something else.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds {json.dumps(value)[:40]}, where settings by name belong")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as JSON, atomically."""
    with replacing_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
