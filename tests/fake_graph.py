"""A CUDA graph that is none: operations are noted with the very tensors that they read and wrote, and done again on
these. What Python decided meanwhile is not, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """What is done while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more lines")
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output

    @torch.no_grad()
    def replay(self) -> None:
        """Does it again."""
        for func, args, kwargs, output in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(output), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and _place(old) != _place(new):  # no view, nor done in place
                    old.copy_(new)


def _place(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Recorder:
    """What ``cuda_recorder`` gives; ``tapes`` are those of all that was recorded, ``replays`` counts."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.replays = 0

    def __call__(self, device: torch.device, generator: torch.Generator | None = None) -> Callable[..., Any]:
        return self.record

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        for _ in range(2):  # as a GPU is warmed up
            call()
        tape = Tape()
        self.tapes.append(tape)
        with tape:
            output = call()
        for value in tree_leaves(output):  # a graph computes nothing while it is recorded
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                value.fill_(torch.nan)

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, output
