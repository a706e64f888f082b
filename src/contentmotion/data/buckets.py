"""Videos of many shapes in few sizes: each goes into the bucket that fits it best, each batch comes from one."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch.utils.data import Sampler

from contentmotion.data.records import ClipRecord
from contentmotion.data.step_sampler import StepSampler
from contentmotion.video.reader import probe_video
from contentmotion.video.sources import source_name
from contentmotion.video.timeline import VideoInfo

Bucket = tuple[int, int, int]  # frames, height, width


def choose_bucket(info: VideoInfo, buckets: Sequence[Bucket], frame_stride: int = 1, fps: float | None = None) -> int:
    """The bucket for a video: nearest in aspect ratio; of those, one with no enlarging, then the longest, the largest.

    Args:
        info: The video.
        buckets: (frames, height, width) each.
        frame_stride: A clip takes every n-th frame (ignored when `fps` is given).
        fps: A clip's frames per second.

    Returns:
        Index into `buckets`; -1 where the video is too short for all of them.
    """
    duration = info.duration if info.duration is not None else (info.num_frames or 0) / info.fps
    step = frame_stride / info.fps if fps is None else 1 / fps  # seconds between two frames of a clip

    def badness(k: int) -> tuple[float, bool, int, int]:
        frames, height, width = buckets[k]
        aspect = abs(math.log(info.width * height / info.height / width))
        return round(aspect, 2), info.height < height or info.width < width, -frames, -height * width

    # 1/2: durations are rounded.
    long_enough = [k for k, bucket in enumerate(buckets) if (bucket[0] - 1) * step <= duration - 0.5 / info.fps]
    return min(long_enough, key=badness, default=-1)


def assign_buckets(
    records: Sequence[ClipRecord], buckets: Sequence[Bucket], frame_stride: int = 1, fps: float | None = None
) -> tuple[np.ndarray, list[str]]:
    """`choose_bucket` for every video of a list, by their headers and first frames, in several threads.

    Returns:
        Bucket of each video, int64 (n,), -1 for none; one "path: reason" line for each of those.

    Raises:
        ValueError: No video fits a bucket.
    """

    def assign(index: int) -> tuple[int, str | None]:
        record = records[index]
        try:
            found = choose_bucket(probe_video(record.path), buckets, frame_stride, fps)
        except (ValueError, OSError) as error:
            return -1, str(error)
        return found, f"{source_name(record.path)}: too short for every bucket" if found < 0 else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(assign, range(len(records))))
    problems = [line for _, line in results if line is not None]
    if len(problems) == len(results):
        raise ValueError(f"no video fits a bucket; {problems[0]}")
    return np.array([bucket for bucket, _ in results], dtype=np.int64), problems


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
