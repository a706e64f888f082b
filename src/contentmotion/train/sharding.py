"""FSDP2: weights, gradients, optimizer and average, each process holding a part of them.

PyTorch's ``fully_shard`` is called directly: accelerate (1.15) shards on GPUs only, and the tests run on CPUs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def blocks(module: nn.Module) -> Iterator[tuple[nn.ModuleList, int]]:
    """Where a network's blocks are: the elements of its outermost lists of modules (a UNet's are its levels)."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from ((child, k) for k, block in enumerate(child) if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)


def whole(tensor: Tensor) -> Tensor:
    """A tensor's values in all processes, which all call it; one that is not sharded as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """What this process holds of a tensor, and the first of its rows in the whole; all where it is not sharded."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    mesh, rows = tensor.device_mesh, len(tensor)
    return tensor.to_local(), min(mesh.get_local_rank() * -(-rows // mesh.size()), rows)


class Shards:
    """Shards the networks that ``root`` holds in place, block by block: while one computes, the others' weights are in
    parts.
    """

    def __init__(self, root: nn.Module, device: torch.device, num_processes: int) -> None:
        # Some blocks of video UNets end in a view; nothing here changes one in place, and gradients are tested.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(device.type, (num_processes,))
        self.root, self.device = root.to(device), device
        self._blocks = []
        for blocks_in, k in list(blocks(root)):
            block = blocks_in[k]
            self._blocks.append((blocks_in, k, block, _without_weights(block)))
            fully_shard(block, mesh=mesh)
        fully_shard(root, mesh=mesh)

    def gather(self, weights: Mapping[str, Tensor]) -> Callable[[], None]:
        """Makes the networks what they were before: usable in one process alone, each block of its own class.

        Every process calls it, and holds all weights from then on.

        Args:
            weights: Other values for some parameters, by their names in the root, sharded or not.

        Returns:
            Call it to have the sharded networks again.
        """
        parameters = dict(self.root.named_parameters(remove_duplicate=False))
        values = {name: whole(weights.get(name, p)).detach() for name, p in parameters.items()}
        for blocks_in, k, _, plain in self._blocks:
            blocks_in[k] = plain
        places = [
            (part, name, f"{prefix}.{name}", parameter)
            for prefix, part in self.root.named_modules()
            for name, parameter in part._parameters.items()
            if parameter is not None
        ]
        for part, name, path, parameter in places:
            part._parameters[name] = nn.Parameter(values[path].to(self.device), parameter.requires_grad)

        def undo() -> None:
            for part, name, _, parameter in places:
                part._parameters[name] = parameter
            for blocks_in, k, sharded, _ in self._blocks:
                blocks_in[k] = sharded

        return undo


def _without_weights(block: nn.Module) -> nn.Module:
    """A copy that shares buffers and has no memory for parameters."""
    memo: dict[int, object] = {id(buffer): buffer for buffer in block.buffers()}
    for p in block.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(block, memo)
