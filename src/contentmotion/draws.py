"""Random numbers of a training step that do not depend on how many processes and forward passes share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BatchGenerator:
    """The source of randomness of one forward pass of a training step.

    Every process draws for the items of the whole step and takes its own rows: item i of a forward pass is of process
    i mod n, and the next forward pass has the items after those. So an item gets the same numbers whether one process
    computes the step at once or many do in parts. Each pays for drawing them all.

    Attributes:
        generator: The same in all processes and forward passes; what it draws is on its device.
        process_index: Which process this is.
        num_processes: Of how many.
        part: Which forward pass of the step; in a tensor on the generator's device where it may change there.
        num_parts: Of how many (``gradient_accumulation_steps``).
    """

    generator: torch.Generator
    process_index: int = 0
    num_processes: int = 1
    part: int | Tensor = 0
    num_parts: int = 1


Source = torch.Generator | BatchGenerator  # the former where a batch is not shared


def randn(shape: Sequence[int], source: Source) -> Tensor:
    """Normal numbers for a batch (b, ...)."""
    return _draw(torch.randn, shape, source, 0)


def rand(shape: Sequence[int], source: Source, batch_dim: int = 0) -> Tensor:
    """Uniform numbers in [0, 1); ``batch_dim`` is the axis that counts items."""
    return _draw(torch.rand, shape, source, batch_dim)


def randint(high: int, shape: Sequence[int], source: Source) -> Tensor:
    """Integers in [0, high) for a batch (b, ...)."""
    return _draw(partial(torch.randint, high), shape, source, 0)


@torch.no_grad()
def channel_std(x: Tensor, source: Source) -> Tensor:
    """Standard deviation of each channel of a batch (b, c, ...) as (1, c, 1, ...), those of the other processes
    included. No gradient passes."""
    values = x.detach().transpose(0, 1).flatten(1).double()  # (c, n)
    sums, count = torch.stack([values.sum(dim=1), values.square().sum(dim=1)]), values.shape[1]
    if isinstance(source, BatchGenerator) and source.num_processes > 1:
        torch.distributed.all_reduce(sums)
        count *= source.num_processes
    variance = (sums[1] - sums[0].square() / count) / max(count - 1, 1)
    return variance.clamp(min=0).sqrt().to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))


def _draw(sample: Callable[..., Tensor], shape: Sequence[int], source: Source, batch_dim: int) -> Tensor:
    if not isinstance(source, BatchGenerator):
        return sample(shape, generator=source, device=source.device)
    items, full = shape[batch_dim], list(shape)
    full[batch_dim] = items * source.num_processes * source.num_parts
    drawn = sample(full, generator=source.generator, device=source.generator.device)
    if full[batch_dim] == items:
        return drawn
    first = source.part * items * source.num_processes + source.process_index
    own = first + source.num_processes * torch.arange(items, device=drawn.device)
    return drawn.index_select(batch_dim, own)
