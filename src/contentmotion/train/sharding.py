"""FSDP2: weights, gradients, optimizer and average, each process holding a part of them.

PyTorch's ``fully_shard`` is called directly: accelerate (1.15) shards on GPUs only, and the tests run on CPUs.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

# Versions without this argument also write weights that change meanwhile.
CAN_SAVE_IN_BACKGROUND = "no_dist" in signature(dcp.async_save).parameters
TIMEOUT = timedelta(hours=1)  # a process may wait long for another one's disk
_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
)  # fmt: skip


def shard(module: nn.Module, device: torch.device, num_processes: int) -> None:
    """Shards a module in place, block by block: while one computes, the others' weights are in parts.

    Args:
        module: Its blocks are the elements of its outermost lists of modules.
        device: Where it computes.
        num_processes: Processes to share it.
    """
    # Some blocks of video UNets end in a view; nothing here changes one in place, and gradients are tested.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (num_processes,))
    module.to(device)
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of a network's outermost lists of modules: those of a transformer, the levels of a UNet."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)


def whole(tensor: Tensor) -> Tensor:
    """A tensor's values in all processes, which all call it; one that is not sharded as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(module: nn.Module, weights: Mapping[str, Tensor]) -> Callable[[], None]:
    """Makes a module what it was before it was sharded: usable in one process alone, saved under its class's name.

    Every process calls it, and holds all weights from then on.

    Args:
        module: What ``shard`` was given.
        weights: Other values for some parameters, by name, sharded or not.

    Returns:
        Call it to have the sharded module again.
    """
    places = [
        (part, name, parameter, whole(weights.get(f"{prefix}.{name}", parameter)).detach())
        for prefix, part in module.named_modules()
        for name, parameter in part.named_parameters(recurse=False)
    ]
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    before = [(type(part), {name: getattr(part, name) for name in _HOOKS}) for part in sharded]
    for part in sharded:
        part.__class__ = next(cls for cls in type(part).__mro__[1:] if not issubclass(cls, FSDPModule))
        for name in _HOOKS:
            setattr(part, name, OrderedDict())
    for part, name, parameter, value in places:
        part._parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)

    def undo() -> None:
        for part, name, parameter, _ in places:
            part._parameters[name] = parameter
        for part, (cls, hooks) in zip(sharded, before, strict=True):
            part.__class__ = cls
            for name, value in hooks.items():
                setattr(part, name, value)

    return undo


def save_sharded(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel | None, names: Sequence[str]
) -> None:
    """Every process writes its part, with ``torch.distributed.checkpoint``; any number of processes can read it."""
    dcp.save(_state(module, optimizer, ema, names), checkpoint_id=folder, no_dist=_is_alone())


def begin_to_save_sharded(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel | None,
    names: Sequence[str],
    group: distributed.ProcessGroup | None,
) -> Future:
    """The same in the background, from a copy in the CPU's memory.

    Args:
        folder: Where to.
        module: What ``shard`` was given, or a network that is not sharded.
        optimizer: Of its parameters.
        ema: Their average.
        names: Names of what is trained.
        group: Of the processes' CPUs, for this alone; None where there is one process.

    Returns:
        Done when all processes have written their parts; or it failed, in all of them.
    """
    state = _state(module, optimizer, ema, names)
    writing = dcp.async_save(state, checkpoint_id=folder, process_group=group, no_dist=_is_alone())
    assert isinstance(writing, Future)  # only other ways of copying give more
    return writing


def cpu_group() -> distributed.ProcessGroup | None:
    """The processes' CPUs as a group of its own, for what runs beside training; all call it. None of one process."""
    if _is_alone():
        return None
    group = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    assert isinstance(group, distributed.ProcessGroup)  # others get a number, but all are in it
    return group


def load_sharded(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel | None, names: Sequence[str]
) -> None:
    """Reads what ``save_sharded`` wrote, into networks that are sharded or not."""
    state = _state(module, optimizer, ema, names)
    dcp.load(state, checkpoint_id=folder, no_dist=_is_alone())
    set_model_state_dict(module, state["weights"])
    set_optimizer_state_dict(module, optimizer, state["optimizer"])
    if ema is not None:  # its tensors were filled in place
        ema.optimization_step = state["average_steps"]


def load_whole(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel | None, names: Sequence[str]
) -> None:
    """Reads what accelerate wrote of a model that was not sharded, into one that is.

    Args:
        folder: A checkpoint.
        module: What ``shard`` was given: the model is its ``model``.
        optimizer: Of the model's parameters ``names``.
        ema: Their average.
        names: Names in the model of what is trained.
    """
    everything = StateDictOptions(full_state_dict=True)
    weights = {f"model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    set_model_state_dict(module, weights, options=everything)
    state = torch.load(folder / "optimizer.bin", weights_only=True, map_location="cpu")
    own = [f"model.{name}" for name in names]
    named = {
        "state": {own[number]: values for number, values in state["state"].items()},
        "param_groups": [group | {"params": [own[k] for k in group["params"]]} for group in state["param_groups"]],
    }
    set_optimizer_state_dict(module, optimizer, named, options=everything)
    if ema is None:
        return
    average = torch.load(folder / "custom_checkpoint_1.pkl", weights_only=True, map_location="cpu")
    ema.optimization_step = average["optimization_step"]
    for shadow, value in zip(ema.shadow_params, average["shadow_params"], strict=True):
        assert isinstance(shadow, DTensor)
        shadow.copy_(distribute_tensor(value.to(shadow.device), shadow.device_mesh, shadow.placements))


def _is_alone() -> bool:
    """Whether this is the only process, which PyTorch would warn of although it is told."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # for a thread's sake, for good
    return not distributed.is_initialized()


def _state(
    module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel | None, names: Sequence[str]
) -> dict[str, Any]:
    state: dict[str, Any] = {
        "weights": get_model_state_dict(module),
        "optimizer": get_optimizer_state_dict(module, optimizer),
    }
    if ema is not None:
        state["average"] = dict(zip(names, ema.shadow_params, strict=True))
        state["average_steps"] = ema.optimization_step
    return state
