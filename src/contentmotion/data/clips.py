"""A folder of videos as training clips of one size, and the order in which training sees them."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from contentmotion.config import ClipConfig
from contentmotion.data.formats import ClipFolder, read_clip_folder
from contentmotion.video_io import read_video


class ClipDataset(Dataset):
    """Clips of a fixed size, cut from the videos of a folder.

    An item is a pure function of (index, seed). A file that cannot be read, or is too short, is replaced by
    the next good one of the folder and named in "skipped"; it is never padded or repeated.

    Args:
        folder: The videos (`read_clip_folder`).
        num_frames: Frames t of a clip.
        height: Height h of a clip in pixels.
        width: Width w of a clip in pixels.
        frame_stride: Take every n-th frame of the video.
        cache_in_memory: Keep whole videos, cropped and resized, in memory (for small folders).

    Raises:
        ValueError: A size or the stride is not positive, or the folder has no record.
    """

    def __init__(
        self,
        folder: ClipFolder,
        *,
        num_frames: int,
        height: int,
        width: int,
        frame_stride: int = 1,
        cache_in_memory: bool = False,
    ) -> None:
        if min(num_frames, height, width, frame_stride) < 1:
            raise ValueError(
                f"num_frames, height, width and frame_stride must be positive, "
                f"got {num_frames}, {height}, {width}, {frame_stride}"
            )
        if not folder.records:
            raise ValueError(f"{folder.root}: no videos")
        self.folder = folder
        self.num_frames = num_frames
        self.height = height
        self.width = width
        self.frame_stride = frame_stride
        self.cache_in_memory = cache_in_memory
        self._cache: dict[int, torch.Tensor] = {}
        self._bad: dict[int, str] = {}  # index -> "path: reason", so that a bad file is tried once

    @property
    def _span(self) -> int:
        """Frames of the video that a clip stretches over."""
        return (self.num_frames - 1) * self.frame_stride + 1

    @property
    def weights(self) -> list[float]:
        """How often training draws each video, relative to the others (see `StepSampler`)."""
        return [record.weight for record in self.folder.records]

    def __len__(self) -> int:
        """Number of videos listed, bad ones included."""
        return len(self.folder.records)

    def __getitem__(self, item: int | tuple[int, int | None]) -> dict[str, Any]:
        """One clip.

        Args:
            item: Index, or (index, seed). The seed draws the clip's first frame and the caption; without one
                the clip is centred in time and has the first caption.

        Returns:
            "frames" uint8 (t, 3, h, w); "caption" ("" where there is none); "captions"; "label" (-1 where
            there is none); "index" and "path" of the video used; "skipped", one "path: reason" per bad file
            passed over.

        Raises:
            ValueError: No video of the folder can be used.
        """
        index, seed = item if isinstance(item, tuple) else (item, None)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} videos")
        skipped = []
        for offset in range(len(self)):
            used = (index + offset) % len(self)
            video = self._load(used)
            if video is not None:
                return self._cut(used, video, seed, skipped)
            skipped.append(self._bad[used])
        raise ValueError(f"{self.folder.root}: none of {len(self)} videos can be used; {skipped[0]}")

    def _cut(self, index: int, video: torch.Tensor, seed: int | None, skipped: list[str]) -> dict[str, Any]:
        record = self.folder.records[index]
        slack = len(video) - self._span
        if seed is None:
            start, choice = slack // 2, 0
        else:
            draw = np.random.default_rng([seed, index])
            start = int(draw.integers(slack + 1))
            choice = int(draw.integers(len(record.captions))) if record.captions else 0
        frames = video[start : start + self._span : self.frame_stride]
        return {
            # A copy: the cache must not change when the caller changes the clip.
            "frames": resize_and_crop(frames, self.height, self.width).clone(),
            "caption": record.captions[choice] if record.captions else "",
            "captions": record.captions,
            "label": -1 if record.label is None else record.label,
            "index": index,
            "path": str(record.path),
            "weight": record.weight,
            "skipped": skipped,
        }

    def _load(self, index: int) -> torch.Tensor | None:
        """A whole video, uint8 (frames, 3, height, width); None if it is bad, with the reason in `_bad`."""
        if index in self._bad:
            return None
        if index in self._cache:
            return self._cache[index]
        path = self.folder.records[index].path
        try:
            frames = read_video(path).frames
            if len(frames) < self._span:
                raise ValueError(f"{path}: {len(frames)} frames, {self._span} needed")
        except (ValueError, OSError) as error:
            self._bad[index] = str(error) if str(path) in str(error) else f"{path}: {error}"
            return None
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)
        if self.cache_in_memory:
            video = self._cache[index] = resize_and_crop(video, self.height, self.width)
        return video


def open_clips(config: ClipConfig, *, num_frames: int | None = None, cache_in_memory: bool = False) -> ClipDataset:
    """The clips that a command's settings name; what is wrong with the folder's list is printed, line by line.

    Args:
        config: Folder, split and sizes.
        num_frames: Frames per clip, when not the config's.
        cache_in_memory: See `ClipDataset`.

    Raises:
        ValueError: Nothing in the folder is usable.
        OSError: No such folder.
    """
    folder = read_clip_folder(config.train_data_dir, split=config.split)
    for problem in folder.problems:
        print(f"{config.train_data_dir}: {problem}", file=sys.stderr)
    return ClipDataset(
        folder,
        num_frames=num_frames or config.num_frames,
        height=config.height,
        width=config.width,
        frame_stride=config.frame_stride,
        cache_in_memory=cache_in_memory,
    )


def resize_and_crop(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The largest centred part of a video with the aspect ratio height:width, resized (bicubic, antialiased).

    Args:
        frames: uint8 (t, 3, h, w).
        height: Height to return.
        width: Width to return.

    Returns:
        uint8 (t, 3, height, width).
    """
    h, w = frames.shape[-2:]
    scale = min(h / height, w / width)
    crop_h, crop_w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    cropped = frames[..., top : top + crop_h, left : left + crop_w]
    if (crop_h, crop_w) == (height, width):
        return cropped.contiguous()
    resized = F.interpolate(cropped.float(), (height, width), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


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
        weights: Sequence[float] | None = None,
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
        if weights is not None and len(set(weights)) > 1:
            self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)

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


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items of `ClipDataset` as a batch.

    Returns:
        "frames" uint8 (b, t, 3, h, w); "label" and "index" int64 (b,); "caption", "captions", "path", "weight"
        lists; "skipped" one flat list.
    """
    return {
        "frames": torch.stack([item["frames"] for item in items]),
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "caption": [item["caption"] for item in items],
        "captions": [item["captions"] for item in items],
        "path": [item["path"] for item in items],
        "weight": [item["weight"] for item in items],
        "skipped": [line for item in items for line in item["skipped"]],
    }
