"""A folder of videos as training clips of one size, and the order in which training sees them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from contentmotion.config import ClipConfig, parse_bucket
from contentmotion.data.accounting import require_few_bad
from contentmotion.data.buckets import Bucket, assign_buckets
from contentmotion.data.formats import ClipFolder, open_folder
from contentmotion.data.maps import read_map, with_depth
from contentmotion.data.records import ClipRecord, Records
from contentmotion.run_dir import is_main_process
from contentmotion.video.reader import Clip, probe_video, read_clip
from contentmotion.video.resize import ResizeMode, crop_frames
from contentmotion.video.sources import VideoSource, source_name
from contentmotion.video.timeline import SlowVideoError, Timeline, choose_frames

MAX_PROBLEMS = 20  # lines that are printed
KEPT_BYTES = 1 << 30  # of videos that a data set keeps in memory


@dataclass(frozen=True)
class ClipShape:
    """How a clip is cut from a video.

    Attributes:
        frame_stride: Take every n-th frame of the file (ignored when `fps` is given).
        fps: Take the frames that are shown at this rate.
        resize_mode: "center" or "random": fill the frame and cut the rest off; "pad": show all, with black bars.
        random_flip: Mirror every second clip, drawn by the seed (left becomes right: wrong for many captions).

    Raises:
        ValueError: A number is not positive.
    """

    num_frames: int
    height: int
    width: int
    frame_stride: int = 1
    fps: float | None = None
    resize_mode: ResizeMode = "center"
    random_flip: bool = False

    def __post_init__(self) -> None:
        smallest = min(self.num_frames, self.height, self.width, self.frame_stride)
        if smallest < 1 or (self.fps is not None and not 0 < self.fps < math.inf):
            raise ValueError(f"num_frames, height, width, frame_stride and fps must be positive, got {self}")


def clip_shape(config: ClipConfig) -> ClipShape:
    """How a command's settings say that clips are cut."""
    return ClipShape(**{field.name: getattr(config, field.name) for field in fields(ClipShape)})


def make_clip(
    record: ClipRecord,
    shape: ClipShape,
    *,
    seed: int | None,
    index: int = 0,
    source: VideoSource | None = None,
    whole: Clip | None = None,
    maps: Sequence[str] = (),
) -> dict[str, Any]:
    """One training item: a clip cut from one video, with a caption of it.

    A pure function of the file and the arguments.

    Args:
        seed: Draws the first frame, the caption, the crop and the flip. None: the centred clip, first caption, centred
            crop, no flip.
        index: The item's number; drawn from together with the seed, and passed on.
        source: What to read in place of `record.path`, such as the file's bytes.
        whole: All frames of the video, where they are in memory: resized, and not cropped.
        maps: Names of the record's `conditions` ("depth", "sketch") to read, too, where it has them.

    Returns:
        "frames" uint8 (t, 3, h, w); "caption" ("" where there is none); "captions"; "label" (-1 where there is
        none); "index"; "path"; "weight"; "fps" of the clip; "skipped", an empty list; each map read, uint8
        (t, 1, h, w), by its name.

    Raises:
        OSError: No such file, or not readable.
        VideoError: Damaged, too short, or beyond the reader's limits; one line that names the file.
    """
    position, crop, caption, flip = None, (0.5, 0.5), 0, False
    if seed is not None:
        random = np.random.default_rng([seed, index])
        numbers = random.random(4)
        position, crop, flip = numbers[0], (numbers[1], numbers[2]), shape.random_flip and bool(numbers[3] < 0.5)
        caption = int(random.integers(len(record.captions))) if record.captions else 0
    span = {"num_frames": shape.num_frames, "frame_stride": shape.frame_stride, "fps": shape.fps, "position": position}
    cut = {"height": shape.height, "width": shape.width, "resize_mode": shape.resize_mode, "crop": crop}
    if whole is None:
        clip = read_clip(record.path if source is None else source, **span, **cut)
        frames, fps, indices = clip.frames, clip.fps, clip.indices
    else:
        indices, fps = choose_frames(Timeline(len(whole.frames), whole.fps, whole.times), **span)
        frames = crop_frames(whole.frames[indices], shape.height, shape.width, crop)

    def to_tensor(frames: np.ndarray) -> torch.Tensor:
        # In memory of its own: a cache must not change when the caller changes the clip.
        flipped = frames[:, :, ::-1] if flip else frames
        return torch.from_numpy(np.ascontiguousarray(flipped.transpose(0, 3, 1, 2)))

    item = {
        "frames": to_tensor(frames),
        "caption": record.captions[caption] if record.captions else "",
        "captions": record.captions,
        "label": -1 if record.label is None else record.label,
        "index": index,
        "path": source_name(record.path),
        "weight": record.weight,
        "skipped": [],
        "fps": fps,
    }
    for name, path in record.conditions:
        if name in maps:
            item[name] = to_tensor(read_map(path, name, Path(str(record.path)), indices, **cut)[..., None])
    return item


class ClipDataset(Dataset):
    """Clips of a fixed size, or of a few sizes, cut from the videos of a folder.

    An item is a pure function of (index, seed). A file that cannot be read, or is too short, is replaced by
    the next good one of the folder and named in "skipped"; it is never padded or repeated.

    Args:
        folder: The videos (`read_clip_folder`).
        buckets: (frames, height, width) of groups of videos, in place of the one size of `shape`.
        bucket_of: Which bucket each video is in, int (number of videos,), -1 for none (`assign_buckets`).
        left_out: Of the videos in no bucket, one "path: reason" line each.
        cache_in_memory: Keep short videos, resized, in memory, as far as `KEPT_BYTES` reach (for small folders).
        maps: Of the records' `conditions`, those that items have (see `make_clip`); not from memory.
        **shape: How clips are cut: the fields of `ClipShape`.

    Raises:
        ValueError: A size or the stride is not positive, or the folder has no record.
    """

    def __init__(
        self,
        folder: ClipFolder,
        *,
        buckets: Sequence[Bucket] = (),
        bucket_of: np.ndarray | None = None,
        left_out: Sequence[str] = (),
        cache_in_memory: bool = False,
        maps: Sequence[str] = (),
        **shape: Any,
    ) -> None:
        if not folder.records:
            raise ValueError(f"{folder.root}: no videos")
        if bool(buckets) != (bucket_of is not None):
            raise ValueError("give buckets and bucket_of, or neither")
        sizes = [dict(zip(("num_frames", "height", "width"), bucket, strict=True)) for bucket in buckets] or [{}]
        self.shapes = [ClipShape(**shape | size) for size in sizes]
        self.bucket_of, self.left_out = bucket_of, tuple(left_out)
        self.folder, self.maps = folder, tuple(maps)
        self.cache_in_memory = cache_in_memory and not maps
        self._kept: dict[int, Clip | None] = {}  # None: not kept
        self._room = KEPT_BYTES
        self._bad: dict[int, str] = {}  # index -> "path: reason", so that a bad file is tried once

    @property
    def weights(self) -> Sequence[float] | np.ndarray | None:
        """How often training draws each video, relative to the others; None: equally often (see `StepSampler`)."""
        records = self.folder.records
        return records.weights if isinstance(records, Records) else [record.weight for record in records]

    def __len__(self) -> int:
        """Number of videos listed, bad ones included."""
        return len(self.folder.records)

    def __getitem__(self, item: int | tuple[int, int | None]) -> dict[str, Any]:
        """One clip.

        Args:
            item: Index, or (index, seed). The seed draws the clip's first frame, the caption, the crop and the flip;
                without one the clip is centred in time and has the first caption.

        Returns:
            As of `make_clip`; "index" and "path" are those of the video used, "skipped" holds one "path: reason" per
            bad file passed over.

        Raises:
            ValueError: No video of the folder (or of the item's bucket) can be used.
        """
        index, seed = item if isinstance(item, tuple) else (item, None)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} videos")
        skipped = []
        for offset in range(len(self)):
            used = (index + offset) % len(self)
            if self.bucket_of is not None and self.bucket_of[used] != self.bucket_of[index]:
                continue  # a batch is of one size
            clip = self.read(used, seed)
            if not isinstance(clip, str):
                return clip | {"skipped": skipped}
            skipped.append(clip)
        raise ValueError(f"{self.folder.root}: none of {len(skipped)} videos can be used; {skipped[0]}")

    def read(self, index: int, seed: int | None = None) -> dict[str, Any] | str:
        """The clip of this very video; where that is bad, "path: reason"."""
        if index in self._bad:
            return self._bad[index]
        for attempt in range(2):
            try:
                return self._make(index, seed)
            except (ValueError, OSError) as error:
                name = source_name(self.folder.records[index].path)
                line = str(error) if name in str(error) else f"{name}: {error}"
                passing = isinstance(error, SlowVideoError | OSError) and not isinstance(error, FileNotFoundError)
                if passing and attempt == 0:
                    continue  # a disk that stalls once must not decide what the data are
                if not passing:
                    self._bad[index] = line
                return line
        raise AssertionError("unreachable")

    def _make(self, index: int, seed: int | None) -> dict[str, Any]:
        record = self.folder.records[index]
        bucket = 0 if self.bucket_of is None else int(self.bucket_of[index])
        if bucket < 0:
            raise ValueError("fits no bucket")
        shape = self.shapes[bucket]
        whole = self._whole(index, shape) if self.cache_in_memory else None
        return make_clip(record, shape, seed=seed, index=index, whole=whole, maps=self.maps)

    def _whole(self, index: int, shape: ClipShape) -> Clip | None:
        """All frames of a video that is short enough to be decoded and kept."""
        if index not in self._kept:
            path, whole = self.folder.records[index].path, None
            info = probe_video(path)
            num_frames = info.num_frames or info.fps * (info.duration or math.inf)
            size = 3 * num_frames * max(info.height * info.width, shape.height * shape.width)
            if size <= min(self._room, KEPT_BYTES / 4):
                cut = {"height": shape.height, "width": shape.width, "resize_mode": shape.resize_mode}
                whole = read_clip(path, num_frames=None, crop=None, **cut)
                self._room -= whole.frames.nbytes
            self._kept[index] = whole
        return self._kept[index]


def open_clips(
    config: ClipConfig, *, cache_in_memory: bool = False, maps: Sequence[str] = (), depth_dir: str | None = None
) -> ClipDataset:
    """The clips that a command's settings name; what is wrong with the folder's list is printed, line by line.

    Args:
        config: Folder, split and sizes; its `buckets`, where it has some, make every video's header be read first.
        cache_in_memory: See `ClipDataset`.
        maps: See `ClipDataset`.
        depth_dir: Folder of the videos' depth (see `with_depth`).

    Raises:
        ValueError: Nothing in the folder is usable, or more rows than the config's `max_bad_fraction` are not.
        OSError: No such folder.
    """
    folder = open_folder(config.train_data_dir, config)
    if depth_dir is not None:
        folder = replace(folder, records=with_depth(folder.records, folder.root, Path(depth_dir)))
    lines = [f"{config.train_data_dir}: {line}" for line in (*folder.notes, *folder.problems[:MAX_PROBLEMS])]
    if len(folder.problems) > MAX_PROBLEMS:
        more = len(folder.problems) - MAX_PROBLEMS
        lines.append(f"{config.train_data_dir}: {more} more such lines; `contentmotion inspect` counts them")
    limit, total = getattr(config, "max_bad_fraction", None), len(folder.records) + len(folder.problems)
    buckets = [parse_bucket(text) for text in getattr(config, "buckets", ())]
    bucket_of, problems = None, []
    if buckets:
        bucket_of, problems = assign_buckets(folder.records, buckets, config.frame_stride, config.fps)
        lines += problems
    for line in lines if is_main_process() else ():
        print(line, file=sys.stderr)
    if limit is not None:
        require_few_bad(len(folder.problems), total, limit, total)
    return ClipDataset(
        folder, buckets=buckets, bucket_of=bucket_of, left_out=problems, cache_in_memory=cache_in_memory, maps=maps,
        **vars(clip_shape(config)),
    )  # fmt: skip


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
