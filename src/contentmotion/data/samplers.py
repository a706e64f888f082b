"""The orders in which training sees a data set: one permutation an epoch, by buckets, or shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


def make_sampler(
    num_items: int, bucket_of: np.ndarray | None, weights: Sequence[float] | np.ndarray | None, batch_size: int,
    seed: int, start_step: int = 0, num_steps: int = 2**62,
) -> StepSampler | BucketSampler:  # fmt: skip
    """The order for items of one size, or (by ``bucket_of``) of several, where each batch is of one.

    Args:
        num_items: Size of the data set.
        bucket_of: See ``BucketSampler``; None: all items are of one size.
        weights: See ``StepSampler``.
        batch_size: Pairs per batch.
        seed: See ``StepSampler``.
        start_step: First batch.
        num_steps: Batch to stop before.
    """
    if bucket_of is None:
        return StepSampler(num_items, batch_size, seed, start_step, num_steps, weights)
    return BucketSampler(bucket_of, batch_size, seed, start_step, num_steps, weights)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed) for `ClipDataset`; batch k is a pure function of (seed, k).

    Resuming therefore needs the step number only. Items run through one permutation per epoch; batches run
    across the borders of epochs, so nothing is dropped. With unequal weights an epoch is as long, but drawn: each
    item comes as often as its share of the weights says, rounded up or down at random.

    Args:
        num_items: Size of the dataset.
        batch_size: Pairs per batch.
        seed: Seed of the permutations and of the pairs' seeds.
        start_step: First batch to yield.
        num_steps: Step to stop before (of the whole run, not counted from `start_step`).
        weights: How often each item comes, relative to the others; None: equally often.

    Raises:
        ValueError: Empty dataset, batch size not positive, negative seed or steps.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        num_steps: int = 2**62,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(f"num_items and batch_size must be positive, got {num_items} and {batch_size}")
        if seed < 0 or start_step < 0 or num_steps < 0:
            raise ValueError(f"seed and steps must not be negative, got {seed}, {start_step}, {num_steps}")
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.num_steps = num_steps
        self.shares: np.ndarray | None = None
        if weights is not None:
            numbers = np.asarray(weights, dtype=np.float64)
            if (numbers != numbers[0]).any():
                self.shares = numbers / numbers.sum()

    def __len__(self) -> int:
        """Batches left from `start_step`."""
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields batch `start_step`, ..., `num_steps` - 1."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.num_steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.num_items != epoch:
                    epoch = position // self.num_items
                    order = self._order(epoch)
                # Seeded by the position in the whole run: an item draws frames and caption anew each epoch.
                item_seed = np.random.SeedSequence([self.seed, position]).generate_state(1)[0]
                batch.append((int(order[position % self.num_items]), int(item_seed)))
            yield batch

    def _order(self, epoch: int) -> np.ndarray:
        """The items of one epoch, shuffled."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.shares is None:
            return rng.permutation(self.num_items)
        # Systematic sampling: evenly spaced marks, at a random offset, on the line of summed shares.
        marks = (np.arange(self.num_items) + rng.random()) / self.num_items
        drawn = np.searchsorted(np.cumsum(self.shares), marks, side="right")
        return rng.permutation(np.minimum(drawn, self.num_items - 1))


class BucketSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed), all items of a batch from one bucket; batch k is a pure function of (seed, k).

    Each bucket is a `StepSampler` of its own: nothing is dropped, a batch may hold the end of one epoch and the start
    of the next. In every epoch each bucket has as many batches as its videos fill, in random order.

    Args:
        bucket_of: Bucket of each item, int (n,); items with -1 are left out.
        batch_size: Pairs per batch.
        seed: Seed of the permutations and of the pairs' seeds.
        start_step: First batch to yield.
        num_steps: Step to stop before (of the whole run, not counted from `start_step`).
        weights: How often each item comes, relative to the others of its bucket; None: equally often.

    Raises:
        ValueError: No item, batch size not positive, negative seed or steps.
    """

    def __init__(
        self,
        bucket_of: np.ndarray,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        num_steps: int = 2**62,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        members = [np.flatnonzero(bucket_of == bucket) for bucket in range(int(bucket_of.max(initial=-1)) + 1)]
        self._members = [indices for indices in members if len(indices)]
        if not self._members:
            raise ValueError("no item is in a bucket")
        self._weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self.batch_size, self.seed, self.start_step, self.num_steps = batch_size, seed, start_step, num_steps
        for bucket in range(len(self._members)):
            self._stream(bucket, 0)  # checks the arguments

    def __len__(self) -> int:
        """Batches left from `start_step`."""
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields batch `start_step`, ..., `num_steps` - 1."""
        epoch = self._epoch_of(self.start_step)
        step = int(self._batches_before(epoch).sum())
        streams: list[Iterator[list[tuple[int, int]]] | None] = [None] * len(self._members)
        given = self._batches_before(epoch)  # of each bucket
        while step < self.num_steps:
            counts = self._batches_before(epoch + 1) - self._batches_before(epoch)
            order = np.random.default_rng([self.seed, epoch]).permutation(np.repeat(np.arange(len(counts)), counts))
            for bucket in order:
                if step >= self.num_steps:
                    return
                if step >= self.start_step:
                    stream = streams[bucket] = streams[bucket] or self._stream(bucket, int(given[bucket]))
                    yield [(int(self._members[bucket][item]), seed) for item, seed in next(stream)]
                given[bucket] += 1
                step += 1
            epoch += 1

    def _stream(self, bucket: int, start: int) -> Iterator[list[tuple[int, int]]]:
        members = self._members[bucket]
        weights = None if self._weights is None else self._weights[members]
        return iter(StepSampler(len(members), self.batch_size, self.seed, start, weights=weights))

    def _batches_before(self, epoch: int) -> np.ndarray:
        """How many batches of each bucket are full before an epoch begins."""
        return np.array([epoch * len(members) // self.batch_size for members in self._members])

    def _epoch_of(self, step: int) -> int:
        """The epoch that a batch is in."""
        low, high = 0, 1
        while self._batches_before(high).sum() <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._batches_before(middle).sum() <= step else (low, middle)
        return low


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
