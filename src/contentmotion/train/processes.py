"""What several processes of one training run do together: agree on failures, average numbers, know their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env, reduce
from torch import Tensor

from contentmotion.run_dir import join_processes


def this_process() -> PartialState:
    """Where this process stands in the training run, and its device.

    Raises:
        ValueError: It was launched to be sharded by accelerate, which cannot train in this loop (docs/scaling.md).
    """
    for engine in ("fsdp", "deepspeed"):
        if parse_flag_from_env(f"ACCELERATE_USE_{engine.upper()}"):
            raise ValueError(
                f"launch without accelerate's --use_{engine}: --scale.fsdp true shares weights, gradients and Adam's "
                "moments out among the processes"
            )
    return join_processes()


def agree(error: Exception | None) -> None:
    """Every process calls it; where one brings an error, all stop, and one of them says so.

    Raises:
        Exception: The error itself in the first process, or ``ValueError`` with another process's message.
        SystemExit: In the other processes.
    """
    state = this_process()
    if state.num_processes == 1:
        if error is not None:
            raise error
        return
    told = gather_object([None if error is None else _one_line(error)])
    failed = [(number, message) for number, message in enumerate(told) if message is not None]
    if not failed:
        return
    if not state.is_main_process:
        raise SystemExit(1)
    number, message = failed[0]
    if error is not None:
        raise error
    raise ValueError(f"process {number}: {message}")


def together(do: Callable[[], object]) -> None:
    """Calls it in every process; where it fails in one, all stop (see ``agree``)."""
    error = None
    try:
        do()
    except Exception as caught:
        error = caught
    agree(error)


def on_main(do: Callable[[], object]) -> None:
    """Calls it in the first process; the others wait, and stop where it fails."""
    together(lambda: do() if this_process().is_main_process else None)


def from_main(value: Any) -> Any:
    """The first process's value, in all of them."""
    if this_process().num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def mean_of(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Averages of numbers over the processes, which all bring the same names."""
    return dict(zip(values, means_of(list(values.values())), strict=True))


def means_of(values: Sequence[Tensor | float]) -> list[float]:
    """The same of numbers without names; the processor waits for a GPU once, if any of them is there."""
    state = this_process()
    place = {"dtype": torch.float32, "device": state.device}
    if state.num_processes > 1 and values:
        return reduce(torch.stack([torch.as_tensor(value, **place).detach() for value in values]), "mean").tolist()
    there = [value.detach().float().to(state.device) for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(there).cpu().tolist() if there else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def union_of(lines: list[str]) -> list[str]:
    """All processes' lines, each once, in the order of the processes."""
    if this_process().num_processes == 1:
        return lines
    return list(dict.fromkeys(gather_object(lines)))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
