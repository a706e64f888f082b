"""What ``encode`` reads clips from, shard by shard: a list of videos, or a stream of tar shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from contentmotion.config import EncodeConfig
from contentmotion.data.accounting import account_for_files, faults_in
from contentmotion.data.clips import ClipDataset, open_clips
from contentmotion.data.formats import CHECK_FILES_BELOW
from contentmotion.data.limits import require_few_bad


@dataclass(frozen=True)
class ClipBatch:
    """Some of a shard's clips; those of one shard come in order.

    Attributes:
        shard: Number of the shard.
        items: Clips ("frames", "captions", "label", "path", "weight", and "item", the clip's number).
        skipped: One line per bad file among them.
        last: No more of this shard follows.
        broken: The shard itself cannot be read to its end: what came of it does not count.
    """

    shard: int
    items: list[dict[str, Any]]
    skipped: list[str]
    last: bool
    broken: bool = False


class ClipSource(Protocol):
    """Numbered shards of clips; what a shard holds depends on its number (and the settings) alone."""

    num_shards: int
    left_out: Sequence[str]  # bad files that are in no shard, one line each

    def bucket(self, shard: int) -> str | None:
        """The size of a shard's clips, as ``--buckets`` names it; None: all shards are of one."""
        ...

    def num_batches(self, shards: Sequence[int]) -> int | None:
        """How many batches these shards come in; None: nobody knows."""
        ...

    def batches(self, shards: Sequence[int], num_workers: int) -> Iterator[ClipBatch]:
        """The clips of these shards, decoded by so many processes (0: by this one)."""
        ...

    def has_more(self, shard: int, items: Sequence[int]) -> bool:
        """Whether a clip of a shard that is not among these items can be read now; a stream is not asked again."""
        ...

    def describe(self) -> dict[str, Any]:
        """What tells this data from other data, for the cache's manifest."""
        ...

    def account(self, skipped: Sequence[str]) -> dict[str, Any] | None:
        """What became of every file, given a line for each that was skipped; None where there is no folder of them."""
        ...


class ListSource:
    """Clips of listed videos; a shard is a run of consecutive items, of one bucket where there are buckets.

    Raises:
        ValueError: Too many videos are in no bucket, or nothing is usable.
        OSError: No such folder.
    """

    def __init__(self, config: EncodeConfig) -> None:
        self.config = config
        maps = [name for name in config.conditions if not (name == "depth" and config.depth_model)]
        self.clips = open_clips(config, maps=maps, depth_dir=config.depth_dir)
        self.num_items = len(self.clips) * config.num_clips_per_video
        self.left_out: Sequence[str] = self.clips.left_out
        require_few_bad(len(self.left_out), len(self.clips), config.max_bad_fraction, len(self.clips))
        self._groups: list[Sequence[int] | np.ndarray] = [range(self.num_items)]  # one after another in the shards
        if self.clips.bucket_of is not None:
            bucket_of = np.tile(self.clips.bucket_of, config.num_clips_per_video)
            self._groups = [np.flatnonzero(bucket_of == bucket) for bucket in range(len(config.buckets))]
        self.num_shards = sum(-(-len(items) // config.clips_per_shard) for items in self._groups)

    def bucket(self, shard: int) -> str | None:
        return self.config.buckets[self._find(shard)[0]] if self.config.buckets else None

    def num_batches(self, shards: Sequence[int]) -> int:
        return sum(1 for _ in self._keys(shards))

    def batches(self, shards: Sequence[int], num_workers: int) -> Iterator[ClipBatch]:
        loader = DataLoader(
            _Clips(self.clips, self.config),
            batch_sampler=self._keys(shards),  # type: ignore[arg-type]
            collate_fn=_as_batch,
            num_workers=num_workers,
        )
        return iter(loader)

    def has_more(self, shard: int, items: Sequence[int]) -> bool:
        clips, absent = _Clips(self.clips, self.config), set(map(int, self._find(shard)[1])) - set(items)
        return any(not isinstance(clips[shard, item, False][2], str) for item in sorted(absent))

    def describe(self) -> dict[str, Any]:
        folder, digest = self.clips.folder, hashlib.sha256()
        for index, record in enumerate(folder.records):
            path = str(record.path).removeprefix(f"{folder.root}/")
            row = [path, record.captions, record.label, record.weight]
            # Where a map is taken from decides what is cached of it.
            row += [[name, Path(file).name] for name, file in record.conditions if name in self.clips.maps]
            # A file that cannot be read today, and can tomorrow, would change what every shard holds.
            row += [] if self.clips.bucket_of is None else [int(self.clips.bucket_of[index])]
            digest.update(json.dumps(row).encode())
        return {"items": self.num_items, "data": digest.hexdigest(), "class_names": folder.class_names}

    def account(self, skipped: Sequence[str]) -> dict[str, Any] | None:
        folder = self.clips.folder
        return account_for_files(folder, faults_in(skipped, folder) if len(folder.records) <= CHECK_FILES_BELOW else {})

    def _keys(self, shards: Sequence[int]) -> Iterator[list[tuple[int, int, bool]]]:
        """Per batch, (shard, item, whether the shard ends with this batch)."""
        size = self.config.encode_batch_size
        for shard in shards:
            items = self._find(shard)[1]
            for first in range(0, len(items), size):
                yield [(shard, int(item), first + size >= len(items)) for item in items[first : first + size]]

    def _find(self, shard: int) -> tuple[int, Sequence[int] | np.ndarray]:
        """The bucket (0 where there are none) and the items of a shard."""
        size = self.config.clips_per_shard
        for bucket, items in enumerate(self._groups):
            start = shard * size
            if start < len(items):
                return bucket, items[start : start + size]
            shard -= -(-len(items) // size)
        raise IndexError(f"no shard {shard} of {self.num_shards}")


class _Clips(Dataset):
    """Item k of a cache: the centred clip of a video, or one of several random ones."""

    def __init__(self, clips: ClipDataset, config: EncodeConfig) -> None:
        self.clips, self.config = clips, config

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[int, bool, dict[str, Any] | str]:
        shard, item, last = key
        repeat, index = divmod(item, len(self.clips))
        seed = None
        if self.config.num_clips_per_video > 1:
            seed = int(np.random.SeedSequence([self.config.seed, repeat, index]).generate_state(1)[0])
        clip = self.clips.read(index, seed)  # and no other in its place: training wants that, a cache does not
        return shard, last, clip if isinstance(clip, str) else clip | {"item": item}


def _as_batch(read: list[tuple[int, bool, dict[str, Any] | str]]) -> ClipBatch:
    shard, last, _ = read[0]
    good = [clip for _, _, clip in read if not isinstance(clip, str)]
    return ClipBatch(shard, good, [clip for _, _, clip in read if isinstance(clip, str)], last)
