"""Output folders, and where and how precisely networks run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import torch


def prepare_output_dir(path: str | Path, command: str, config: Any) -> Path:
    """Makes a run's folder and writes its resolved settings there; ``contentmotion COMMAND --config`` repeats the run.

    Raises:
        OSError: The folder cannot be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        partial = path / ".config.yaml.partial"
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
        partial.write_text(f"# contentmotion {command} --config {path / 'config.yaml'}\n" + yaml.safe_dump(values, sort_keys=False))
        os.replace(partial, path / "config.yaml")
    except OSError as error:
        raise OSError(f"output folder {path} is not writable: {error.strerror}") from error
    return path


def resolve_device(name: str) -> torch.device:
    """The device that "auto" means here (CUDA, else Apple's MPS, else CPU), or the one named."""
    import torch

    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(mixed_precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type that a ``mixed_precision`` setting means on a device; None is full precision."""
    import torch

    if mixed_precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else None
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
