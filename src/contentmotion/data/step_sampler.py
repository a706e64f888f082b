"""The order in which training sees the items of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


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
