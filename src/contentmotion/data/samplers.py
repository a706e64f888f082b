"""The orders in which training sees a data set: one permutation an epoch, by buckets, or shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

Pairs = list[tuple[int, int]]  # a batch of (index, seed)
Weights = Sequence[float] | np.ndarray


def make_sampler(dataset: Dataset, batch_size: int, seed: int, **steps: int) -> StepSampler | BucketSampler:
    """The order for a data set, by its ``weights`` and (for batches of one size each) its ``bucket_of``, if it has any.

    The other arguments are those of ``StepSampler``.
    """
    weights, bucket_of = getattr(dataset, "weights", None), getattr(dataset, "bucket_of", None)
    if bucket_of is None:
        return StepSampler(len(dataset), batch_size, seed, weights=weights, **steps)  # type: ignore[arg-type]
    return BucketSampler(bucket_of, batch_size, seed, weights=weights, **steps)


class _Batches(Sampler[Pairs]):
    """What the samplers share: where they begin and stop."""

    def __init__(self, batch_size: int, seed: int, start_step: int = 0, num_steps: int = 2**62) -> None:
        if batch_size < 1 or min(seed, start_step, num_steps) < 0:
            raise ValueError(
                "batch_size must be positive, seed and steps not negative, "
                f"got {batch_size}, {seed}, {start_step}, {num_steps}"
            )
        self.batch_size, self.seed, self.start_step, self.num_steps = batch_size, seed, start_step, num_steps

    def __len__(self) -> int:
        """Batches left from `start_step`."""
        return max(0, self.num_steps - self.start_step)


class StepSampler(_Batches):
    """Batches of (index, seed) for `ClipDataset`; batch k is a pure function of (seed, k).

    Resuming therefore needs the step number only. Items run through one permutation per epoch; batches run
    across the borders of epochs, so nothing is dropped. With unequal weights an epoch is as long, but drawn: each
    item comes as often as its share of the weights says, rounded up or down at random.

    Args:
        num_items: Size of the dataset.
        batch_size: Pairs per batch.
        seed: Seed of the permutations and of the pairs' seeds.
        start_step: First batch to yield.
        num_steps: Batch to stop before (of the whole run, not counted from `start_step`).
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
        weights: Weights | None = None,
    ) -> None:
        super().__init__(batch_size, seed, start_step, num_steps)
        if num_items < 1:
            raise ValueError("no items")
        self.num_items = num_items
        self._seeds = [seed]  # of all pairs
        self._ends: np.ndarray | None = None
        if weights is not None:
            numbers = np.asarray(weights, dtype=np.float64)
            if (numbers != numbers[0]).any():
                self._ends = np.cumsum(numbers / numbers.sum())

    def __iter__(self) -> Iterator[Pairs]:
        """Yields batch `start_step`, ..., `num_steps` - 1."""
        epoch, first = self._find(self.start_step * self.batch_size)
        order = self.epoch_order(epoch)
        for step in range(self.start_step, self.num_steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position == first + len(order):
                    epoch, first = epoch + 1, position
                    order = self.epoch_order(epoch)
                # Seeded by the place in the whole run: an item draws frames and caption anew each epoch.
                state = np.random.SeedSequence([*self._seeds, position]).generate_state(1)
                batch.append((int(order[position - first]), int(state[0])))
            yield batch

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The items of an epoch, in order."""
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permutation(self.num_items if self._ends is None else _draw_evenly(self._ends, rng))

    def _find(self, position: int) -> tuple[int, int]:
        """The epoch that a position is in, and the position at which that epoch begins."""
        return position // self.num_items, position // self.num_items * self.num_items


def _draw_evenly(ends: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Systematic sampling: evenly spaced marks, at a random offset, on a line of shares of which these are the ends."""
    marks = (np.arange(len(ends)) + rng.random()) / len(ends)
    return np.minimum(np.searchsorted(ends, marks, side="right"), len(ends) - 1)


class BucketSampler(_Batches):
    """Batches of (index, seed), all items of a batch from one bucket; batch k is a pure function of (seed, k).

    Each bucket is a `StepSampler` of its own: nothing is dropped, a batch may hold the end of one epoch and the start
    of the next. In every epoch each bucket has as many batches as its videos fill, in random order.

    Args:
        bucket_of: Bucket of each item, int (n,); items with -1 are left out.
        weights: How often each item comes, relative to the others of its bucket; None: equally often.
        **steps: These and the other arguments are those of `StepSampler`.

    Raises:
        ValueError: No item, batch size not positive, negative seed or steps.
    """

    def __init__(
        self, bucket_of: np.ndarray, batch_size: int, seed: int, *, weights: Weights | None = None, **steps: int
    ) -> None:
        super().__init__(batch_size, seed, **steps)
        members = [np.flatnonzero(bucket_of == bucket) for bucket in range(int(bucket_of.max(initial=-1)) + 1)]
        self._members = [indices for indices in members if len(indices)]
        if not self._members:
            raise ValueError("no item is in a bucket")
        self._weights = None if weights is None else np.asarray(weights, dtype=np.float64)

    def __iter__(self) -> Iterator[Pairs]:
        """Yields batch `start_step`, ..., `num_steps` - 1."""
        epoch = self._epoch_of(self.start_step)
        given = self._batches_before(epoch)  # of each bucket
        step = int(given.sum())
        streams: list[Iterator[Pairs] | None] = [None] * len(self._members)
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

    def _stream(self, bucket: int, start: int) -> Iterator[Pairs]:
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


class ShardSampler(StepSampler):
    """Batches of (index, seed) for a data set in shards; batch k of a process is a pure function of (seed, k).

    An epoch deals the shards, in a new random order, to the processes, so that together they read every clip once (a
    shard on the border between two is shared, clip by clip). A process mixes as many clips as ``window`` says, then the
    next ones. With unequal weights an epoch is as long, but drawn: see ``StepSampler``.

    Args:
        shard_sizes: Clips of each shard, in the order of the data set's items.
        batch_size: Pairs per batch of this process.
        window: Clips that are mixed with one another.
        process_index: Which process this is, of `num_processes`.
        **steps: These and the other arguments are those of ``StepSampler``.

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
        weights: Weights | None = None,
        **steps: int,
    ) -> None:
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        super().__init__(int(self.sizes.sum()), batch_size, seed, **steps)
        if window < 1 or self.num_items < num_processes:
            raise ValueError(
                f"window must be positive, got {window}, and there must be a clip for each process, "
                f"got {self.num_items} for {num_processes}"
            )
        self.window, self.process_index, self.num_processes = window, process_index, num_processes
        self._seeds = [seed, process_index]
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """This process's items of an epoch, in order; those of all processes together are the whole epoch."""
        rng = np.random.default_rng([self.seed, epoch])  # the same in every process
        shards = rng.permutation(len(self.sizes))
        starts = self.sizes.cumsum() - self.sizes
        items = np.concatenate([np.arange(starts[k], starts[k] + self.sizes[k]) for k in shards])
        if self.weights is not None:
            items = items[_draw_evenly(self.weights[items].cumsum() / self.weights.sum(), rng)]
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
        # In as many epochs as there are processes each process has every part once.
        cycles = position // self.num_items
        epoch, first = cycles * self.num_processes, cycles * self.num_items
        while True:
            start, stop = self._range(epoch)
            if position < first + stop - start:
                return epoch, first
            epoch, first = epoch + 1, first + stop - start
