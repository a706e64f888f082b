"""Clips out of tar shards that are read as they come: from a URL, a pipe, anything that ``webdataset`` opens.

A sample is a video and, of the same name, perhaps a .txt (caption), a .json (caption, text or captions; label) or a
.cls (label). Shards are dealt to processes and to their worker processes; nothing is ever written to disk.
"""

from __future__ import annotations

import math
import os
import random
import re
import selectors
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from subprocess import SubprocessError
from tarfile import TarError
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from contentmotion.config import ClipConfig, EncodeConfig
from contentmotion.data.clips import ClipShape, clip_shape, make_clip
from contentmotion.data.layouts.shards import MAX_SHARDS, read_texts, split_name
from contentmotion.data.records import ClipRecord
from contentmotion.data.sources import ClipBatch, ClipSource, ListSource
from contentmotion.video.sources import VIDEO_SUFFIXES, source_name

DEFAULT_WINDOW = 256
MAX_BAD_IN_A_ROW = 1000
MAX_SILENCE = 300.0  # seconds that a pipe's command may take for the next bytes


def is_stream(data: str) -> bool:
    """Whether ``--train_data_dir`` names shards to stream: URLs, or ``pipe:COMMAND`` (tar files on disk are listed)."""
    return re.match(r"pipe:|[a-z][a-z0-9+.-]*://", data) is not None


def expand_urls(data: str) -> list[str]:
    """The shards that a name with braces (``shard-{000..127}.tar``) and ``::`` between several names stands for; a
    ``ValueError`` where they are more than anybody has."""
    for name in data.split("::"):
        counts = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)[.}]", name)]
        if math.prod(counts) > MAX_SHARDS:
            raise ValueError(f"{name}: names more than {MAX_SHARDS} files")
    return _webdataset().shardlists.expand_urls(data)


def open_stream(config: ClipConfig, window: int | None) -> StreamingClips:
    """The clips of the stream that ``config.train_data_dir`` names, for training."""
    return StreamingClips(expand_urls(str(config.train_data_dir)), clip_shape(config), window or DEFAULT_WINDOW)


@dataclass(eq=False)
class StreamingClips(IterableDataset):
    """An endless stream of clips, each shard read once per epoch by one worker of one process.

    What comes is a function of the seed, the process, and the numbers of processes and workers. To go on in the middle,
    what came before is read again, but not decoded.

    A bad sample is replaced by the next good one and named in its "skipped"; so is a shard that breaks off.

    Attributes:
        window: Samples (videos as files) that are mixed with one another; held in memory by every worker.
        num_epochs: Stop after so many; None: never.
        seed: Draws the order, and what chance decides about a clip.
        process_index: The process that reads this, of `num_processes`.
        first_batch: Begin with this batch, counted in batches of `batch_size`.
    """

    urls: Sequence[str]
    shape: ClipShape
    window: int
    num_epochs: int | None = None
    seed: int = 0
    process_index: int = 0
    num_processes: int = 1
    batch_size: int = 1
    first_batch: int = 0

    def peek(self, num_items: int) -> list[dict[str, Any]]:
        """The first good clips of the first shards, centred and not mixed.

        Raises:
            ValueError: There is none.
        """
        items: list[dict[str, Any]] = []
        problems: list[str] = []  # named when training comes to them
        for sample in _read_shards(self.urls, problems):
            try:
                items.append(_cut(sample, self.shape, None, len(items)))
            except ValueError as error:
                problems.append(str(error))
            if len(items) == num_items:
                break
        if not items:
            raise ValueError(f"no clip could be read from {len(self.urls)} shards; {(problems or self.urls)[0]}")
        return items

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields items as ``make_clip`` makes them; "index" counts those of this worker.

        Raises:
            ValueError: Fewer shards than workers, or nothing but bad samples.
        """
        info = get_worker_info()
        workers = info.num_workers if info else 1
        # The loader takes a batch from each worker in turn, beginning with the first: let that one be whose turn it is.
        worker = ((info.id if info else 0) + self.first_batch) % workers
        share, shares = self.process_index * workers + worker, self.num_processes * workers
        if len(self.urls) < shares:
            raise ValueError(f"{len(self.urls)} shards are too few for {shares} processes that read ({self.urls[0]})")
        index = len(range(worker, self.first_batch, workers)) * self.batch_size
        skipped: list[str] = []
        bad = 0  # samples since the last good one
        for sample in islice(self._samples(share, shares, skipped), index, None):
            for _ in range(bad + 1):
                seed = int(np.random.SeedSequence([self.seed, share, index]).generate_state(1)[0])
                try:
                    clip = _cut(sample, self.shape, seed, index)
                except ValueError as error:
                    skipped.append(str(error))
                    bad += 1
                    if bad == MAX_BAD_IN_A_ROW:
                        raise ValueError(f"{bad} bad samples in a row; {error}") from error
                    break
                yield clip | {"skipped": list(skipped)}
                skipped.clear()
                index += 1
            else:
                bad = 0

    def _samples(self, share: int, shares: int, broken: list[str]) -> Iterator[dict[str, Any]]:
        """This worker's samples, mixed; names shards that cannot be read to their end in ``broken``."""
        shuffle = _webdataset().filters.shuffle
        for epoch in count() if self.num_epochs is None else range(self.num_epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.urls))
            mine = [self.urls[k] for k in order[share::shares]]
            draw = random.Random(f"{self.seed} {epoch} {share}")
            empty = True
            for sample in shuffle(self.window, initial=self.window, rng=draw)(_read_shards(mine, broken)):
                empty = False
                yield sample
            if empty:
                raise ValueError(f"none of {len(mine)} shards could be read; {broken[-1] if broken else mine[0]}")


class StreamSource(ClipSource):
    """A stream for ``encode``: each tar becomes one shard of the cache."""

    def __init__(self, config: EncodeConfig) -> None:
        self.config, self.shape = config, clip_shape(config)
        self.urls = expand_urls(str(config.train_data_dir))
        self.num_shards = len(self.urls)

    def batches(self, shards: Sequence[int], num_workers: int) -> Iterator[ClipBatch]:
        return iter(DataLoader(_Shards(self, shards), batch_size=None, num_workers=num_workers))

    def describe(self) -> dict[str, Any]:
        return {"items": None, "data": [Path(url).name for url in self.urls], "class_names": None}

    def read(self, shard: int) -> Iterator[ClipBatch]:
        """One tar's clips; nothing of a broken one is to be kept, so that another run can have all of it."""
        broken: list[str] = []
        items, skipped = [], []
        repeats = self.config.num_clips_per_video
        for k, sample in enumerate(_read_shards([self.urls[shard]], broken)):
            for item in range(k * repeats, (k + 1) * repeats):
                seed = None
                if repeats > 1:
                    seed = int(np.random.SeedSequence([self.config.seed, shard, item]).generate_state(1)[0])
                try:
                    clip = _cut(sample, self.shape, seed, item, self.config.caption_column)
                except ValueError as error:
                    skipped.append(str(error))
                    break  # the other clips of a bad file are bad, too
                items.append(clip | {"item": item})
                if len(items) == self.config.encode_batch_size:
                    yield ClipBatch(shard, items, skipped, last=False)
                    items, skipped = [], []
        yield ClipBatch(shard, [] if broken else items, broken or skipped, last=True, broken=bool(broken))


def open_source(config: EncodeConfig) -> ClipSource:
    """The clips that an ``encode`` run reads.

    Raises:
        ValueError: Nothing usable.
        OSError: No such folder.
    """
    if not is_stream(config.train_data_dir):
        return ListSource(config)
    if config.buckets:
        raise ValueError("--buckets needs a list of the videos: a stream has none")
    if config.depth_dir:
        raise ValueError("--depth_dir needs a list of the videos: a stream has none (--depth_model works)")
    return StreamSource(config)


class _Shards(IterableDataset):
    """Shards one after another, dealt to the worker processes."""

    def __init__(self, source: StreamSource, shards: Sequence[int]) -> None:
        self.source, self.shards = source, shards

    def __iter__(self) -> Iterator[ClipBatch]:
        info = get_worker_info()
        for shard in self.shards[info.id :: info.num_workers] if info else self.shards:
            yield from self.source.read(shard)


def _read_shards(urls: Sequence[str], broken: list[str]) -> Iterator[dict[str, Any]]:
    """Samples of shards; of one that breaks off, those before the break, and a line in ``broken``."""
    library = _webdataset()
    for url in urls:
        stream = None
        try:
            stream = _WithTail(library.gopen(url, "rb"))
            files = library.tariterators.tar_file_expander(iter([{"url": url, "stream": stream}]))
            yield from library.tariterators.group_by_keys(files, keys=split_name)
            while stream.read(1 << 16):  # the padding: closed before its end, a pipe's command would fail
                pass
            stream.close()  # raises when the command failed
            if not stream.is_whole:
                raise ValueError("breaks off between two files")
        except (OSError, ValueError, EOFError, TarError, SubprocessError) as error:
            # webdataset adds whole streams to an error's arguments; the first one is the message.
            reason = getattr(error, "strerror", None) or next(iter(error.args), type(error).__name__)
            broken.append(f"{url}: {reason}")
        finally:
            if stream is not None:
                with suppress(Exception):  # a command that is cut off fails, and that is all right
                    stream.close()


class _WithTail:
    """A stream that remembers its last bytes: a tar file ends with zeros, and ``tarfile`` does not insist on it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.head, self.tail = b"", b""

    def read(self, size: int) -> bytes:
        process = getattr(self.stream, "proc", None)
        data = self.stream.read(size) if process is None else self._read_pipe(process, size)
        self.head = self.head or data[:6]
        self.tail = (self.tail + data)[-1024:]
        return data

    @staticmethod
    def _read_pipe(process: Any, size: int) -> bytes:
        """What a command says next, past the pipe's own buffer, which would wait for ever."""
        parts: list[bytes] = []
        with selectors.DefaultSelector() as silence:  # select() knows no descriptors above 1023
            silence.register(process.stdout, selectors.EVENT_READ)
            while size:
                if not silence.select(MAX_SILENCE):
                    process.kill()
                    raise OSError(f"nothing came for {MAX_SILENCE:g} s")
                parts.append(os.read(process.stdout.fileno(), size))
                size -= len(parts[-1])
                if not parts[-1]:
                    break
        return b"".join(parts)

    def close(self) -> None:
        self.stream.close()

    @property
    def is_whole(self) -> bool:
        """Whether the end was read; where the tar is packed (gzip, bzip2, xz, zstd), its unpacker has looked."""
        packed = self.head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
        return packed or self.tail == bytes(1024)


def _cut(
    sample: dict[str, Any], shape: ClipShape, seed: int | None, index: int, caption_column: str | None = None
) -> dict[str, Any]:
    """A clip of a sample; see `Place` for ``caption_column``.

    Raises:
        ValueError: No video, or a bad one, or a caption that cannot be read or has another name.
    """
    name = f"{sample['__url__']}/{sample['__key__']}"
    kinds = [key for key in sample if not key.startswith("__")]
    suffixes = [kind for kind in kinds if f".{kind.rpartition('.')[2]}" in VIDEO_SUFFIXES]
    if len(suffixes) != 1:
        raise ValueError(f"{name}: {'two videos' if suffixes else 'no video'} among {', '.join(kinds)}")
    suffix = suffixes[0]
    try:
        captions, label = read_texts(sample, caption_column)
        label = None if label is None else int(label)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error
    record = ClipRecord(Path(f"{name}.{suffix}"), captions, label, None)
    try:
        clip = make_clip(record, shape, seed=seed, index=index, source=sample[suffix])
    except (ValueError, OSError) as error:
        reason = str(error).removeprefix(f"{source_name(sample[suffix])}: ")
        raise ValueError(f"{name}.{suffix}: {reason}") from error
    return clip | {"path": f"{name}.{suffix}"}  # a Path makes one slash of a URL's two


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError("streams need the library webdataset: pip install 'contentmotion[data]'") from error
    return webdataset
