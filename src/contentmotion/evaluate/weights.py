"""Weights of the networks that measure (I3D, LPIPS): found and read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, overload

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


@overload
def find_weights(path: str | Path | None, name: str) -> Path: ...
@overload
def find_weights(path: str | Path | None, name: str, *, required: bool) -> Path | None: ...
def find_weights(path: str | Path | None, name: str, *, required: bool = True) -> Path | None:
    """The file of a network's weights: ``path``, else what the environment variable names.

    Args:
        path: A file, or owner/repository/file of the hub.
        name: "i3d" or "lpips".
        required: Else None says that neither is given.

    Raises:
        FileNotFoundError: Neither is given, or there is no such file.
    """
    label, variable = name.upper(), f"CONTENTMOTION_{name.upper()}"
    given = str(path or os.environ.get(variable, ""))
    if not given and not required:
        return None
    if not given:
        raise FileNotFoundError(
            f"no {label} weights: pass --{name} FILE or set {variable} "
            "(runs/convert_weights.py in the repository makes the file, and says how)"
        )
    if Path(given).is_file():
        return Path(given)
    if Path(given).exists() or given.count("/") < 2 or given.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{given}: no such file ({label} weights)")
    owner, repository, file = given.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # the hub's own kinds, and those of the network
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"{given}: no such file, here or on the hub ({label} weights: {reason})") from None


def load_weights(build: Callable[[], Network], path: Path, description: str) -> Network:
    """The network that ``build`` makes with the weights of a safetensors file, for inference, in float32.

    Raises:
        ValueError: The file is not safetensors, or holds another network.
    """
    with torch.device("meta"):
        network = build()
    try:
        network.load_state_dict(load_file(path), assign=True)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path}: not {description} ({reason})") from None
    return network.eval().requires_grad_(False)
