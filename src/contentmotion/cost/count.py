"""What a network pass costs, counted without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
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
