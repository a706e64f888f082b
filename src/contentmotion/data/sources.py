"""What ``encode`` reads clips from, shard by shard: a list of videos, or a stream of tar shards."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from contentmotion.config import EncodeConfig
from contentmotion.data.accounting import account_for_files, faults_in, require_few_bad
from contentmotion.data.clips import open_clips
from contentmotion.data.formats import CHECK_FILES_BELOW


@dataclass(frozen=True)
class ClipBatch:
    """Some of a shard's clips; those of one shard come in order.

    Attributes:
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


class ClipSource(ABC):
    """Numbered shards of clips; what a shard holds depends on its number (and the settings) alone."""

    num_shards: int
    left_out: Sequence[str] = ()  # bad files that are in no shard, one line each

    @abstractmethod
    def batches(self, shards: Sequence[int], num_workers: int) -> Iterator[ClipBatch]:
        """The clips of these shards, decoded by so many processes (0: by this one)."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What tells this data from other data, for the cache's manifest."""

    def num_batches(self, shards: Sequence[int]) -> int | None:
        """How many batches these shards come in; None: nobody knows."""
        return None

    def bucket(self, shard: int) -> str | None:
        """The size of a shard's clips, as ``--buckets`` names it; None: all shards are of one."""
        return None

    def has_more(self, shard: int, items: Sequence[int]) -> bool:
        """Whether a clip of a shard that is not among these items can be read now; a stream is not asked again."""
        return False

    def account(self, skipped: Sequence[str]) -> dict[str, Any] | None:
        """What became of every file, given a line for each that was skipped; None where there is no folder of them."""
        return None


class ListSource(ClipSource, Dataset):
    """Clips of listed videos; a shard is a run of consecutive items, of one bucket where there are buckets.

    Item k is the centred clip of a video, or one of several random ones.

    Raises:
        ValueError: Too many videos are in no bucket, or nothing is usable.
        OSError: No such folder.
    """

    def __init__(self, config: EncodeConfig) -> None:
        self.config = config
        maps = [name for name in config.conditions if not (name == "depth" and config.depth_model)]
        self.clips = open_clips(config, maps=maps, depth_dir=config.depth_dir)
        self.num_items = len(self.clips) * config.num_clips_per_video
        self.left_out = self.clips.left_out
        require_few_bad(len(self.left_out), len(self.clips), config.max_bad_fraction, len(self.clips))
        groups: dict[str | None, Sequence[int] | np.ndarray] = {None: range(self.num_items)}
        if self.clips.bucket_of is not None:
            bucket_of = np.tile(self.clips.bucket_of, config.num_clips_per_video)
            groups = {name: np.flatnonzero(bucket_of == number) for number, name in enumerate(config.buckets)}
        size = config.clips_per_shard
        self._shards = [
            (bucket, items[first : first + size])
            for bucket, items in groups.items()
            for first in range(0, len(items), size)
        ]
        self.num_shards = len(self._shards)

    def bucket(self, shard: int) -> str | None:
        return self._shards[shard][0]

    def num_batches(self, shards: Sequence[int]) -> int:
        return sum(1 for _ in self._keys(shards))

    def batches(self, shards: Sequence[int], num_workers: int) -> Iterator[ClipBatch]:
        keys: Any = self._keys(shards)
        return iter(DataLoader(self, batch_sampler=keys, collate_fn=_as_batch, num_workers=num_workers))

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[int, bool, dict[str, Any] | str]:
        shard, item, last = key
        clip = self._read(item)
        return shard, last, clip if isinstance(clip, str) else clip | {"item": item}

    def has_more(self, shard: int, items: Sequence[int]) -> bool:
        absent = set(map(int, self._shards[shard][1])) - set(items)
        return any(not isinstance(self._read(item), str) for item in sorted(absent))

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

    def _read(self, item: int) -> dict[str, Any] | str:
        """A clip, or the reason why it is none; no other takes its place, which training wants and a cache does not."""
        repeat, index = divmod(item, len(self.clips))
        seed = None
        if self.config.num_clips_per_video > 1:
            seed = int(np.random.SeedSequence([self.config.seed, repeat, index]).generate_state(1)[0])
        return self.clips.read(index, seed)

    def _keys(self, shards: Sequence[int]) -> Iterator[list[tuple[int, int, bool]]]:
        """Per batch, (shard, item, whether the shard ends with this batch)."""
        size = self.config.encode_batch_size
        for shard in shards:
            items = self._shards[shard][1]
            for first in range(0, len(items), size):
                yield [(shard, int(item), first + size >= len(items)) for item in items[first : first + size]]


def _as_batch(read: list[tuple[int, bool, dict[str, Any] | str]]) -> ClipBatch:
    shard, last, _ = read[0]
    good = [clip for _, _, clip in read if not isinstance(clip, str)]
    return ClipBatch(shard, good, [clip for _, _, clip in read if isinstance(clip, str)], last)
