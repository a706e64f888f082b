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
from contentmotion.data.clips import ClipDataset, open_clips


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

    def num_batches(self, shards: Sequence[int]) -> int | None:
        """How many batches these shards come in; None: nobody knows."""
        ...

    def batches(self, shards: Sequence[int], num_workers: int) -> Iterator[ClipBatch]:
        """The clips of these shards, decoded by so many processes (0: by this one)."""
        ...

    def describe(self) -> dict[str, Any]:
        """What tells this data from other data, for the cache's manifest."""
        ...


def open_source(config: EncodeConfig) -> ClipSource:
    """The clips that an ``encode`` run reads.

    Raises:
        ValueError: Nothing usable.
        OSError: No such folder.
    """
    from contentmotion.data.streaming import StreamSource, is_stream

    if not is_stream(config.train_data_dir):
        return ListSource(config)
    if config.depth_dir:
        raise ValueError("--depth_dir needs a list of the videos: a stream has none (--depth_model works)")
    return StreamSource(config)


class ListSource:
    """Clips of listed videos; a shard is a run of consecutive items."""

    def __init__(self, config: EncodeConfig) -> None:
        self.config = config
        maps = [name for name in config.conditions if not (name == "depth" and config.depth_model)]
        self.clips = open_clips(config, maps=maps, depth_dir=config.depth_dir)
        self.num_items = len(self.clips) * config.num_clips_per_video
        self.num_shards = -(-self.num_items // config.clips_per_shard)

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

    def describe(self) -> dict[str, Any]:
        folder, digest = self.clips.folder, hashlib.sha256()
        for record in folder.records:
            path = str(record.path).removeprefix(f"{folder.root}/")
            row = [path, record.captions, record.label, record.weight]
            # Where a map is taken from decides what is cached of it.
            row += [[name, Path(file).name] for name, file in record.conditions if name in self.clips.maps]
            digest.update(json.dumps(row).encode())
        return {"items": self.num_items, "data": digest.hexdigest(), "class_names": folder.class_names}

    def _keys(self, shards: Sequence[int]) -> Iterator[list[tuple[int, int, bool]]]:
        """Per batch, (shard, item, whether the shard ends with this batch)."""
        size = self.config.encode_batch_size
        for shard in shards:
            start = shard * self.config.clips_per_shard
            stop = min(start + self.config.clips_per_shard, self.num_items)
            for first in range(start, stop, size):
                yield [(shard, item, first + size >= stop) for item in range(first, min(first + size, stop))]


class _Clips(Dataset):
    """Item k of a cache: the centred clip of a video, or one of several random ones."""

    def __init__(self, clips: ClipDataset, config: EncodeConfig) -> None:
        self.clips, self.config = clips, config

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[int, bool, dict[str, Any]]:
        shard, item, last = key
        repeat, index = divmod(item, len(self.clips))
        seed = None
        if self.config.num_clips_per_video > 1:
            seed = int(np.random.SeedSequence([self.config.seed, repeat, index]).generate_state(1)[0])
        return shard, last, self.clips[index, seed] | {"item": item}


def _as_batch(read: list[tuple[int, bool, dict[str, Any]]]) -> ClipBatch:
    shard, last, _ = read[0]
    clips = [clip for _, _, clip in read]
    # Where a file is bad the data set gives another one's clip in its place: training wants that, a cache does not.
    good = [clip for clip in clips if not clip["skipped"]]
    return ClipBatch(shard, good, [clip["skipped"][0] for clip in clips if clip["skipped"]], last)
