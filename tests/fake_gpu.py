"""A GPU that is not there: the device "meta", whose tensors have shapes and no numbers, with a list of what the
processor would wait for. A CUDA tensor of torch's FakeTensor needs a CUDA build, and tests run without one.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from contentmotion.models.layers import _per_channel
from contentmotion.stages.text import _TOKENS

GPU = torch.device("meta")
# What the processor must read from a GPU to go on: a number, or how large the result is.
WAITS = {"equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "_local_scalar_dense"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


@contextmanager
def fake_gpu() -> Iterator[list[str]]:
    """While it is entered, tensors on ``GPU`` behave as on a GPU: none can be mixed with those of the CPU.

    Returns:
        What the processor waits for and what is copied between the two: the kind, and the line that did it.
    """
    events: list[str] = []
    try:
        # Autocast and fused optimizers do not know this device.
        no_autocast = patch("torch.autocast", lambda *args, **kwargs: nullcontext())
        crossings, make = _Crossings(events), torch.tensor

        def tensor(data: Any, *, device: Any = None, **settings: Any) -> torch.Tensor:
            if device is not None and torch.device(device) == GPU:
                crossings.note("copy to the GPU")  # of numbers that the CPU has
            return make(data, device=device, **settings)

        with patch("torch.Generator", _Generator), patch("torch.tensor", tensor), no_autocast, crossings:
            yield events
    finally:  # what is kept on devices
        _per_channel.cache_clear()
        _TOKENS.clear()


class _Generator(torch.Generator):
    """Says that it is on the GPU: what has no numbers needs no other one."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.place


class _Crossings(TorchDispatchMode):
    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if x.device == GPU]
        here = [x for x in tensors if x.device != GPU]
        name, to = func._schema.name.removeprefix("aten::"), kwargs.get("device")
        if not there:
            if here and to is not None and torch.device(to) == GPU:
                self.note("copy to the GPU")
            return func(*args, **kwargs)
        if to is not None and torch.device(to) != GPU:
            self.note("copy to the CPU")
            return torch.ones(there[0].shape, dtype=kwargs.get("dtype") or there[0].dtype)
        if name == "copy_" and here:
            self.note(f"copy to the {'GPU' if args[0].device == GPU else 'CPU'}")
            return args[0]
        if name == "_local_scalar_dense":
            self.note("wait for a number")
            return torch.ones((), dtype=there[0].dtype).item()
        if name in WAITS or (name in INDEXING and any(x is not None and x.dtype == torch.bool for x in args[1])):
            self.note(f"wait for {name}")
        elif name in INDEXING and here:
            self.note("copy to the GPU")
            args = (args[0], tree_map_only(torch.Tensor, lambda x: x.to(GPU), list(args[1])), *args[2:])
        elif any(x.dim() for x in here):
            raise RuntimeError(f"{func}: tensors of two devices")
        return func(*args, **kwargs)

    def note(self, kind: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        place = ([frame for frame in frames if "/contentmotion/" in frame.filename] or frames)[-1]
        self.events.append(f"{kind}: {place.filename.rpartition('/contentmotion/')[2]}:{place.lineno} {place.line}")
