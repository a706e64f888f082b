"""Random numbers of a training batch that do not depend on how many processes share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class BatchGenerator:
    """The source of randomness of one training batch.

    Every process draws for the whole batch and takes its own items' rows: item i is of process i mod n. So a batch gets
    the same numbers whether one process computes it or many. Each pays for drawing them all.

    Args:
        generator: The same in all processes, on the CPU.
        process_index: Which process this is.
        num_processes: Of how many.
    """

    def __init__(self, generator: torch.Generator, process_index: int = 0, num_processes: int = 1) -> None:
        self.generator, self.process_index, self.num_processes = generator, process_index, num_processes


Source = torch.Generator | BatchGenerator  # the former where a batch is not shared


def randn(shape: Sequence[int], source: Source) -> Tensor:
    """Normal numbers for a batch (b, ...)."""
    return _draw(lambda full, generator: torch.randn(full, generator=generator), shape, source, 0)


def rand(shape: Sequence[int], source: Source, batch_dim: int = 0) -> Tensor:
    """Uniform numbers in [0, 1); ``batch_dim`` is the axis that counts items."""
    return _draw(lambda full, generator: torch.rand(full, generator=generator), shape, source, batch_dim)


def randint(high: int, shape: Sequence[int], source: Source) -> Tensor:
    """Integers in [0, high) for a batch (b, ...)."""
    return _draw(lambda full, generator: torch.randint(high, full, generator=generator), shape, source, 0)


def std(x: Tensor, source: Source) -> Tensor:
    """Standard deviation of all values of a batch, those of the other processes included. No gradient passes."""
    if not isinstance(source, BatchGenerator) or source.num_processes == 1:
        return x.std()
    with torch.no_grad():
        sums = torch.stack([x.double().sum(), x.double().square().sum()])
        torch.distributed.all_reduce(sums)
        count = x.numel() * source.num_processes
        return ((sums[1] - sums[0].square() / count) / (count - 1)).sqrt().to(x.dtype)


def _draw(
    sample: Callable[[Sequence[int], torch.Generator], Tensor], shape: Sequence[int], source: Source, batch_dim: int
) -> Tensor:
    if not isinstance(source, BatchGenerator):
        return sample(shape, source)
    full = list(shape)
    full[batch_dim] *= source.num_processes
    mine = torch.arange(source.process_index, full[batch_dim], source.num_processes)
    drawn = sample(full, source.generator)
    return drawn if source.num_processes == 1 else drawn.index_select(batch_dim, mine)
