"""The videos that an evaluation looks at, one clip of each, read when needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import UInt8
from torch import Tensor

from contentmotion.config import MAP_NAMES, EvaluateConfig
from contentmotion.data.clips import ClipDataset
from contentmotion.data.formats import ClipFolder
from contentmotion.data.records import ClipRecord
from contentmotion.evaluate.store import content_digest, digest
from contentmotion.video.reader import probe_video


@dataclass(frozen=True)
class RealBatch:
    """Clips as they were read."""

    indices: list[int]  # see `Clips`
    frames: UInt8[Tensor, "b t 3 h w"]
    maps: Mapping[str, UInt8[Tensor, "b t 1 h w"]]  # "depth", "sketch": those that lie beside the videos


class Clips:
    """The clips of one data set.

    Args:
        folder: All its videos, of every split.
        config: Says which split, how many, which caption, and the seed of the clips' first frames.
        num_frames: Of a clip, as height and width (pixels).

    Attributes:
        selected: Indices (into `folder.records`) of the clips to score.
        drawn: What to generate from: `selected`, unless another number is asked for. An index beyond the number of
            records is a clip once more, for other noise.
        captioned: Whether anybody said what the clips show.
        heldout: Indices of the clips of the split "heldout", unless that is the one to score.
        maps: "depth", "sketch": the maps that lie beside every one of these videos.
        fps: Frames per second of the clips read last; None: none was read.

    Raises:
        ValueError: The data set has splits, but not the one asked for, or fewer videos than asked for.
    """

    def __init__(self, folder: ClipFolder, config: EvaluateConfig, num_frames: int, height: int, width: int) -> None:
        self.folder, self.caption_index, self.seed = folder, config.caption_index, config.seed
        self.problems = list(folder.problems)
        splits = [record.split for record in folder.records]
        wanted = config.split if any(split is not None for split in splits) else None
        if wanted is not None and wanted not in splits:
            names = ", ".join(sorted({split for split in splits if split is not None}))
            raise ValueError(f"{folder.root}: no split {wanted!r} (there are: {names})")
        self.selected = [i for i, split in enumerate(splits) if wanted in (None, split)]
        if config.num_videos is not None:  # not the first ones: folders are often sorted by class
            if len(self.selected) < config.num_videos:
                raise ValueError(f"{folder.root}: {config.num_videos} videos asked for, {len(self.selected)} are there")
            order = np.random.default_rng(config.seed).permutation(self.selected)
            self.selected = sorted(order[: config.num_videos].tolist())
        self.captioned = bool(folder.class_names) or any(folder.records[i].captions for i in self.selected)
        self.drawn = self._draw(config)
        self.heldout = [i for i, split in enumerate(splits) if split == "heldout" and wanted not in (None, split)]
        named = [{name for name, _ in folder.records[i].conditions} for i in self.selected + self.heldout]
        self.maps = tuple(name for name in MAP_NAMES if named and all(name in names for names in named))
        self.dataset = ClipDataset(
            folder, num_frames=num_frames, height=height, width=width, maps=self.maps,
            frame_stride=config.frame_stride, fps=config.fps, resize_mode=config.resize_mode,
        )  # fmt: skip
        self.fps: float | None = None
        self._contents: dict[int, str] = {}

    def _draw(self, config: EvaluateConfig) -> list[int]:
        if config.videos_per_class:
            by_class: dict[int, list[int]] = {}
            for index in self.selected:
                by_class.setdefault(self.label(index), []).append(index)
            return [i for _, group in sorted(by_class.items()) for i in self._repeat(group, config.videos_per_class)]
        if config.num_generated:
            if config.num_generated < len(self.selected):
                order = np.random.default_rng([config.seed, 1]).permutation(self.selected)
                return sorted(order[: config.num_generated].tolist())
            return self._repeat(self.selected, config.num_generated)
        return self.selected

    def _repeat(self, indices: list[int], count: int) -> list[int]:
        total = len(self.folder.records)
        return [indices[k % len(indices)] + k // len(indices) * total for k in range(count)]

    def original(self, index: int) -> int:
        """The clip behind an index of `drawn`."""
        return index % len(self.folder.records)

    def caption(self, index: int) -> str:
        """The caption to generate from: the last where a clip has fewer, the class name where it has none."""
        record = self.folder.records[self.original(index)]
        if record.captions:
            return record.captions[min(self.caption_index, len(record.captions) - 1)]
        return (self.folder.class_names or ("",))[record.label or 0]

    def label(self, index: int) -> int:
        """The class to generate from.

        Raises:
            ValueError: The clip has none.
        """
        record = self.folder.records[self.original(index)]
        if record.label is None:
            raise ValueError(f"{record.path}: no class label, and videos of classes are asked for")
        return record.label

    def read(self, indices: list[int]) -> RealBatch | None:
        """The clips with these indices that can be read; None where there are none.

        A file that cannot be read is left out, not replaced, and named in `problems`.
        """
        items = [self.dataset[self.original(index), self.seed] for index in indices]
        self.problems += [line for item in items for line in item["skipped"][:1] if line not in self.problems]
        good = [(index, item) for index, item in zip(indices, items, strict=True) if not item["skipped"]]
        if not good:
            return None
        self.fps = good[0][1]["fps"]
        maps = {name: torch.stack([item[name] for _, item in good]) for name in self.maps}
        return RealBatch([index for index, _ in good], torch.stack([item["frames"] for _, item in good]), maps)

    def batches(self, indices: list[int], batch_size: int) -> Iterator[RealBatch]:
        """`read` for groups of `batch_size` indices, those without a good clip left out."""
        for start in range(0, len(indices), batch_size):
            batch = self.read(indices[start : start + batch_size])
            if batch is not None:
                yield batch

    def hash_contents(self, processes: PartialState) -> None:
        """Reads every file of `selected` and `heldout` once, shared between the processes: `content` needs it."""
        clips = self.selected + self.heldout
        mine = clips[processes.process_index :: processes.num_processes]
        self._contents = dict(gather_object([(index, self._hash(index)) for index in mine]))

    def _hash(self, index: int) -> str:
        record = self.folder.records[index]
        try:
            digests = [content_digest(record.path)]
            digests += [content_digest(path) for name, path in record.conditions if name in self.maps]
        except OSError:
            return "missing"  # reading the clip names the problem
        return digests[0] if len(digests) == 1 else digest(digests)

    def content(self, index: int) -> str:
        """A hash of the bytes of the files behind a clip: its video, and its maps."""
        return self._contents[self.original(index)]


# Of a video that lies there in several formats, as `generate` writes them, the first of these counts.
FORMATS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")


def one_per_stem(records: Sequence[ClipRecord]) -> list[ClipRecord]:
    """The records without a video's copies in other formats: files of one folder and name, but for the suffix."""
    paths = {i: record.path for i, record in enumerate(records) if isinstance(record.path, Path)}
    ranks = {i: FORMATS.index(path.suffix.lower()) for i, path in paths.items() if path.suffix.lower() in FORMATS}
    best: dict[Path, int] = {}  # of each name without its suffix
    for i in sorted(ranks, key=lambda i: (ranks[i], i)):
        best.setdefault(paths[i].with_suffix(""), i)
    copies = ranks.keys() - best.values()
    return [record for i, record in enumerate(records) if i not in copies]


def common_size(folder: ClipFolder) -> tuple[int, int]:
    """Height and width in pixels of every video of a folder.

    Raises:
        ValueError: They differ, or no video can be read.
    """
    sizes: dict[tuple[int, int], str] = {}
    for record in folder.records:
        try:
            info = probe_video(record.path)
        except (ValueError, OSError):
            continue  # reading its clip names the problem
        sizes.setdefault((info.height, info.width), str(record.path))
    if not sizes:
        raise ValueError(f"{folder.root}: no video can be read")
    if len(sizes) > 1:
        (a, file_a), (b, file_b) = list(sizes.items())[:2]
        raise ValueError(
            f"videos of different sizes: {file_a} is {a[0]}x{a[1]}, {file_b} is {b[0]}x{b[1]}; "
            "give --height and --width to resize and crop them all to"
        )
    return next(iter(sizes))
