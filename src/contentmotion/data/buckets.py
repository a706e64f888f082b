"""Videos of many shapes in few sizes: each goes into the bucket that fits it best, each batch comes from one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from contentmotion.data.records import ClipRecord
from contentmotion.video.reader import probe_video
from contentmotion.video.sources import source_name
from contentmotion.video.timeline import VideoInfo

Bucket = tuple[int, int, int]  # frames, height, width


def choose_bucket(info: VideoInfo, buckets: Sequence[Bucket], frame_stride: int = 1, fps: float | None = None) -> int:
    """The bucket for a video: nearest in aspect ratio; of those, one with no enlarging, then the longest, the largest.

    Args:
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
