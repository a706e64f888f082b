"""The order in which training reads a cache too large for reading all over it: shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class ShardSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed) for a data set in shards; batch k of a process is a pure function of (seed, k).

    An epoch deals the shards, in a new random order, to the processes, so that together they read every clip once (a
    shard on the border between two is shared, clip by clip). A process mixes as many clips as ``window`` says, then the
    next ones. With unequal weights an epoch is as long, but drawn: see ``StepSampler``.

    Args:
        shard_sizes: Clips of each shard, in the order of the data set's items.
        batch_size: Pairs per batch of this process.
        seed: Seed of the orders and of the pairs' seeds.
        window: Clips that are mixed with one another.
        process_index: Which process this is.
        num_processes: Of how many.
        start_step: First batch to yield.
        num_steps: Batch to stop before (of the whole run, not counted from ``start_step``).
        weights: How often each item comes, relative to the others; None: equally often.

    Raises:
        ValueError: Fewer clips than processes, or a number that is not positive.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int,
        *,
        window: int,
        process_index: int = 0,
        num_processes: int = 1,
        start_step: int = 0,
        num_steps: int = 2**62,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.num_items = int(self.sizes.sum())
        if min(batch_size, window) < 1 or self.num_items < num_processes:
            raise ValueError(
                f"batch_size and window must be positive, got {batch_size} and {window}, and there must be a clip for "
                f"each process, got {self.num_items} for {num_processes}"
            )
        self.batch_size, self.seed, self.window = batch_size, seed, window
        self.process_index, self.num_processes = process_index, num_processes
        self.start_step, self.num_steps = start_step, num_steps
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)

    def __len__(self) -> int:
        """Batches left from ``start_step``."""
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields batch ``start_step``, ..., ``num_steps`` - 1."""
        epoch, first = self._find(self.start_step * self.batch_size)
        order = self.epoch_order(epoch)
        for step in range(self.start_step, self.num_steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position == first + len(order):
                    epoch, first = epoch + 1, position
                    order = self.epoch_order(epoch)
                # Seeded by the place in the whole run: an item draws its caption anew each epoch.
                state = np.random.SeedSequence([self.seed, self.process_index, position]).generate_state(1)
                batch.append((int(order[position - first]), int(state[0])))
            yield batch

    def epoch_order(self, epoch: int) -> np.ndarray:
        """This process's items of an epoch, in order; those of all processes together are the whole epoch."""
        rng = np.random.default_rng([self.seed, epoch])  # the same in every process
        shards = rng.permutation(len(self.sizes))
        starts = self.sizes.cumsum() - self.sizes
        items = np.concatenate([np.arange(starts[k], starts[k] + self.sizes[k]) for k in shards])
        if self.weights is not None:
            # Systematic sampling: evenly spaced marks, at a random offset, on the line of summed shares.
            ends = self.weights[items].cumsum() / self.weights.sum()
            marks = (np.arange(self.num_items) + rng.random()) / self.num_items
            items = items[np.minimum(np.searchsorted(ends, marks, side="right"), self.num_items - 1)]
        start, stop = self._range(epoch)
        mine = items[start:stop]
        own = np.random.default_rng([self.seed, epoch, self.process_index])
        pieces = [own.permutation(mine[k : k + self.window]) for k in range(0, len(mine), self.window)]
        return np.concatenate(pieces)

    def _range(self, epoch: int) -> tuple[int, int]:
        """Where this process's part of an epoch lies. The parts take turns, so that all come to be as long."""
        part = (self.process_index + epoch) % self.num_processes
        return part * self.num_items // self.num_processes, (part + 1) * self.num_items // self.num_processes

    def _find(self, position: int) -> tuple[int, int]:
        """The epoch that a position of this process is in, and the position at which that epoch begins."""
        # In as many epochs as there are processes each process has every part once.
        cycles = position // self.num_items
        epoch, first = cycles * self.num_processes, cycles * self.num_items
        while True:
            start, stop = self._range(epoch)
            if position < first + stop - start:
                return epoch, first
            epoch, first = epoch + 1, first + stop - start
