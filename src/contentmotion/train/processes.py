"""What several processes of one training run do together: agree on failures, average numbers, know their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env, reduce
from torch import Tensor

from contentmotion.run_dir import join_processes, reason_of


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
    told = gather_object([None if error is None else reason_of(error)])
    failed = [(number, message) for number, message in enumerate(told) if message is not None]
    if not failed:
        return
    if not state.is_main_process:
        raise SystemExit(1)
    if error is not None:
        raise error
    number, message = failed[0]
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


def means_of(values: Sequence[Tensor]) -> list[float]:
    """Averages of numbers over the processes; the processor waits for a GPU once."""
    device = this_process().device
    here = [value.detach().float().to(device) for value in values]
    return reduce(torch.stack(here), "mean").cpu().tolist() if here else []


def in_any(*signs: bool) -> list[bool]:
    """Of each sign whether any process has it: one message."""
    state = this_process()
    if state.num_processes == 1:
        return list(signs)
    counts: Any = reduce(torch.tensor(signs, dtype=torch.int32, device=state.device), "sum")
    return [count > 0 for count in counts.tolist()]
