"""What each video of a data set is, and whether a recipe can cut a clip from it; in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal

from contentmotion.data.records import ClipRecord
from contentmotion.video.reader import probe_video, read_clip
from contentmotion.video.sources import file_size, source_name

CHUNK = 16  # videos per task of a process
MIN_PER_PROCESS = 32  # fewer are done before another process has started
TOO_SHORT = "needed"  # how the reader ends "12 frames, 16 needed"


@dataclass(frozen=True)
class VideoFacts:
    """One video.

    Attributes:
        index: Its number in the list.
        name: Its path.
        status: "good"; "short": no clip of the recipe fits; "bad": not readable.
        reason: Why it is not good; "" otherwise.
        num_bytes: Size of the file, or None.
        num_frames: Frames, counted from duration and rate where the file does not say; or None.
        duration: Seconds, or None.
        fps: Average frames per second; 0 where the file cannot be read.
        height: Pixels as shown; 0 where the file cannot be read.
        width: Pixels, see height.
        codec: Name of the codec or picture format.
        rotation: Degrees by which it is turned for showing.
        has_audio: Whether there is sound.
        size: (frames, height, width) of its clip, where the recipe has buckets.
    """

    index: int
    name: str
    status: Literal["good", "short", "bad"]
    reason: str
    num_bytes: int | None = None
    num_frames: int | None = None
    duration: float | None = None
    fps: float = 0.0
    height: int = 0
    width: int = 0
    codec: str = ""
    rotation: int = 0
    has_audio: bool = False
    size: tuple[int, int, int] | None = None


def look_at(index: int, record: ClipRecord, clip: dict[str, Any], decode: bool) -> VideoFacts:
    """Looks at one video.

    Args:
        index: Its number in the list.
        record: The video.
        clip: How the recipe cuts clips: arguments of `read_clip`, and perhaps "buckets", sizes to choose from.
        decode: Decode the centred clip, which finds damage that the header does not show.
    """
    name = source_name(record.path)
    try:
        info = probe_video(record.path)
    except (ValueError, OSError) as error:
        return VideoFacts(index, name, "bad", _reason(error, name))
    count, duration = info.num_frames, info.duration
    if count is None and duration is not None:
        count = round(duration * info.fps)
    if duration is None and count is not None and info.fps:
        duration = count / info.fps
    facts = (file_size(record.path), count, duration, info.fps, info.height, info.width)
    size, more = None, (info.codec, info.rotation, info.has_audio)
    if "buckets" in clip:
        from contentmotion.data.buckets import choose_bucket  # it imports torch, which headers alone do not need

        bucket = choose_bucket(info, clip["buckets"], clip["frame_stride"], clip["fps"])
        if bucket < 0:
            return VideoFacts(index, name, "short", "too short for every bucket", *facts, *more)
        size = clip["buckets"][bucket]
    clip = sized(clip, size)
    if decode:
        try:
            read_clip(record.path, **clip)
        except (ValueError, OSError) as error:
            reason = _reason(error, name)
            return VideoFacts(index, name, "short" if reason.endswith(TOO_SHORT) else "bad", reason, *facts, *more)
    elif reason := _too_short(count, duration, clip):
        return VideoFacts(index, name, "short", reason, *facts, *more)
    return VideoFacts(index, name, "good", "", *facts, *more, size=size)


def sized(clip: dict[str, Any], size: tuple[int, int, int] | None) -> dict[str, Any]:
    """Arguments of `read_clip`: those of a recipe, with a bucket's (frames, height, width) where there is one."""
    given = {name: value for name, value in clip.items() if name != "buckets"}
    return given | ({} if size is None else dict(zip(("num_frames", "height", "width"), size, strict=True)))


def clips_that_fit(facts: VideoFacts, clip: dict[str, Any]) -> int:
    """How many clips fit into a video without overlap."""
    if facts.status != "good":
        return 0
    clip = sized(clip, facts.size)
    if clip["fps"] is not None:
        return max(1, int((facts.duration or 0) * clip["fps"] / clip["num_frames"]))
    return max(1, (facts.num_frames or 0) // (clip["num_frames"] * clip["frame_stride"]))


def _too_short(num_frames: int | None, duration: float | None, clip: dict[str, Any]) -> str:
    """By the header alone; empty where a clip fits or nobody knows."""
    if clip["fps"] is not None:
        length = clip["num_frames"] / clip["fps"]
        return f"{duration:.2f} s, {length:.2f} s needed" if duration is not None and duration < length else ""
    span = (clip["num_frames"] - 1) * clip["frame_stride"] + 1
    return f"{num_frames} frames, {span} needed" if num_frames is not None and num_frames < span else ""


def _reason(error: Exception, name: str) -> str:
    """The reader's message without the file's name."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror
    return " ".join(message.removeprefix(f"{name}: ").split())


def look_at_all(
    records: Sequence[ClipRecord], indices: Sequence[int], clip: dict[str, Any], decode: bool, num_workers: int
) -> Iterator[VideoFacts]:
    """Looks at videos, in any order.

    A file that takes its process down with it is looked for, and named.

    Args:
        records: The list.
        indices: Which of them.
        clip: See `look_at`.
        decode: See `look_at`.
        num_workers: Processes; with one, or few videos, it is done right here.
    """
    num_workers = min(num_workers, len(indices) // MIN_PER_PROCESS + 1)
    if num_workers < 2:
        yield from (look_at(index, records[index], clip, decode) for index in indices)
        return
    chunks = [list(indices[k : k + CHUNK]) for k in range(0, len(indices), CHUNK)]
    broken: list[list[int]] = []
    yield from _look_in_processes(records, chunks, clip, decode, num_workers, broken)
    for index in (index for chunk in broken for index in chunk):
        crashed: list[list[int]] = []
        yield from _look_in_processes(records, [[index]], clip, decode, 1, crashed)
        if crashed:
            yield VideoFacts(index, source_name(records[index].path), "bad", "the decoder crashed")


def _look_in_processes(
    records: Sequence[ClipRecord],
    chunks: list[list[int]],
    clip: dict[str, Any],
    decode: bool,
    num_workers: int,
    broken: list[list[int]],
) -> Iterator[VideoFacts]:
    """Hands chunks to processes; those that were not done when a process crashed are put into `broken`."""
    # Not forked: this process may have threads, whose locks a fork would copy as they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _set_worker, (records, clip, decode)) as pool:
        waiting: dict[Future[list[VideoFacts]], list[int]] = {}
        rest = iter(chunks)
        while True:
            while len(waiting) < 4 * num_workers and (chunk := next(rest, None)) is not None:
                try:
                    waiting[pool.submit(_look_at_chunk, chunk)] = chunk
                except BrokenProcessPool:
                    broken.append(chunk)
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                chunk = waiting.pop(future)
                try:
                    yield from future.result()
                except BrokenProcessPool:
                    broken.append(chunk)


_worker: tuple[Sequence[ClipRecord], dict[str, Any], bool] | None = None


def _set_worker(records: Sequence[ClipRecord], clip: dict[str, Any], decode: bool) -> None:
    global _worker
    _worker = (records, clip, decode)
    # One process per core: a decoder's or torch's own threads would only be in each other's way.
    if clip["height"] is not None:
        import torch

        torch.set_num_threads(1)


def _look_at_chunk(indices: list[int]) -> list[VideoFacts]:
    assert _worker is not None
    records, clip, decode = _worker
    return [look_at(index, records[index], clip, decode) for index in indices]
