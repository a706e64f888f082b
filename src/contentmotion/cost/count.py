"""What a network pass costs in multiply-adds and in memory, counted without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a computation; FLOPs are twice as many.

    Attributes:
        layers: In convolutions and linear layers: the convention of CMD's tables.
        attention: In attention's two matrix products, which those tables leave out.
    """

    layers: int
    attention: int

    @property
    def multiply_adds(self) -> int:
        """All of them."""
        return self.layers + self.attention

    @property
    def flops(self) -> int:
        """2 x multiply-adds, attention included."""
        return 2 * self.multiply_adds


def count_cost(compute: Callable[[], object]) -> Cost:
    """Counts a computation; on the meta device it allocates and computes nothing.

    Weights should require gradients, as those of a new network do: linear layers with frozen ones turn into batched
    products at times, which are taken for attention.

    Args:
        compute: Does the computation once.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        compute()
    layers = attention = 0
    for op, flops in counter.get_flop_counts()["Global"].items():
        name = str(op)
        if "attention" in name or "bmm" in name:
            attention += flops // 2
        else:
            layers += flops // 2
    return Cost(layers=layers, attention=attention)


def count_activations(network: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of a forward pass besides the weights; attention keeps no matrix of weights."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = x
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), _FusedAttention():
        output = forward()
    size = sum(x.untyped_storage().nbytes() for x in kept.values())
    del output
    return size


class _KeepInputs(torch.autograd.Function):
    """What fused attention keeps for its backward pass: its inputs and its output, not their products."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        output = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, output)
        return output


class _FusedAttention(TorchFunctionMode):
    """On the meta device PyTorch would take attention apart, and keep matrices that no GPU keeps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _KeepInputs.apply(given["query"], given["key"], given["value"])
        return func(*args, **(kwargs or {}))
