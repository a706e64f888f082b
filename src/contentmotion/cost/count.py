"""What a network pass costs in multiply-adds and in memory, counted without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

GIB, TERA = 2**30, 1e12
_PLAIN = (int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a computation.

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
    """
    counter = _FlopCounter()
    with torch.no_grad(), counter:
        compute()
    attention = sum(flops for name, flops in counter.flops.items() if "attention" in name or "bmm" in name)
    return Cost(layers=(counter.flops.total() - attention) // 2, attention=attention // 2)


class _FlopCounter(TorchDispatchMode):
    """FLOPs by operation, as torch's own ``FlopCounterMode`` has them; but what comes again on the meta device, with
    arguments of the same form, is looked up: a network has many equal layers."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self._known: dict[Any, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        form = (func, _form(args), _form(tuple(kwargs.items())), torch.is_inference_mode_enabled())
        if form in self._known:
            output, flops = self._known[form]
            output = _copies(output)
        else:
            formula = flop_registry.get(func._overloadpacket)
            if formula is None:
                with self:  # what it is made of is counted, if anything is
                    output = func.decompose(*args, **kwargs)
                if output is not NotImplemented:
                    return output
            output = func(*args, **kwargs)
            flops = formula(*args, **kwargs, out_val=output) if formula else 0
            tensors = [x for x in tree_leaves((args, kwargs, output)) if isinstance(x, Tensor)]
            if tensors and all(x.is_meta for x in tensors) and not func._schema.is_mutable:
                self._known[form] = (_copies(output), flops)
        self.flops[func.name()] += flops
        return output


def _form(x: Any) -> Any:
    """What of an operation's argument decides, on the meta device, what it costs and gives; anything else is like no
    other."""
    if isinstance(x, Tensor) and x.is_meta and x.layout == torch.strided:
        return (x.shape, x.stride(), x.dtype)
    if isinstance(x, (list, tuple)):
        return tuple(_form(part) for part in x)
    return (type(x), x) if isinstance(x, _PLAIN) else object()  # 1 is not 1.0


def _copies(output: Any) -> Any:
    """An operation's results with shapes of their own: ``unsqueeze_`` of one of them leaves the others as they are."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, output)


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
