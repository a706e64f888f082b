"""A cache of latents as a data set: what ``encode`` wrote, read in place.

All clips of a shard are of one size; with ``--buckets`` that is the one which its header and ``index.json`` name.

A cache folder holds ``shard-00000.safetensors``, ..., ``manifest.json`` (what it was made with, and the motion's mean
and standard deviation per channel) and ``index.json`` (clips, bytes and hash of each shard; written when all are
there). A shard is complete or absent; of n clips it holds

* "content" (n, c, h, w) and "motion" (n, D, t, s), or for training the autoencoder "latents" (n, t, c, h, w);
* where `--conditions` asked for them, "depth" and "sketch", uint8 (n, t, 1, H, W) at the pixels' size;
* "label", "item" (the clip's number in the data it was made from) and "weight", each (n,);
* "texts", JSON lines with the path and the captions of each clip as bytes, and where each line ends, "text_ends" (n,);
* where text encoders were given, features of all captions, "pooled" (m, p) and perhaps "tokens" (m, l, d) and which of
  them are no padding, "tokens_mask" (m, l); and where each clip's end, "caption_ends" (n,).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from contentmotion.config import MAP_NAMES
from contentmotion.run_dir import is_main_process
from contentmotion.saving import hash_weights, read_json

MANIFEST, INDEX = "manifest.json", "index.json"
FORMAT = 2
MAX_OPEN_SHARDS = 64
LATENTS = ("content", "motion", "latents")
TEXT = ("pooled", "tokens", "tokens_mask")
TOLD_BYTES = 16 << 30  # of a cache whose check takes so long that it is told of
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8,
}  # fmt: skip


class Shard:
    """An open safetensors file whose tensors are read row by row.

    Not mapped into memory, as the safetensors library does: a file that shrinks under a run is an error then, where
    the system would end the process without a word.

    Attributes:
        header: What ``encode`` noted: "clips", "sha256", "skipped", "motion" (sums), "weighted", perhaps "bucket".
        shapes: Shape of each tensor by name.

    Raises:
        OSError: No such file, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in its place is not waited for
        try:
            length = int.from_bytes(self._read(0, 8), "little")
            if length > os.fstat(self._file).st_size:
                raise ValueError("its header is longer than the file")
            entries = json.loads(self._read(8, length))
            self.header: dict[str, Any] = json.loads(entries.pop("__metadata__", {}).get("contentmotion", "{}"))
            self.shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
            self._dtypes = {name: DTYPES[entry["dtype"]] for name, entry in entries.items()}
            self._starts = {name: 8 + length + int(entry["data_offsets"][0]) for name, entry in entries.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise OSError(f"damaged: {error}") from None

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def rows(self, name: str, start: int = 0, end: int | None = None) -> Tensor:
        """Some rows of a tensor, by default all; ``OSError`` where the file ends before them."""
        shape, dtype = self.shapes[name], self._dtypes[name]
        stop = int(shape[0]) if end is None else end
        size = math.prod(shape[1:]) * dtype.itemsize
        if not size or stop <= start:
            return torch.empty((max(stop - start, 0), *shape[1:]), dtype=dtype)
        data = bytearray(self._read(self._starts[name] + start * size, (stop - start) * size))
        return torch.frombuffer(data, dtype=dtype).view(stop - start, *shape[1:])

    def check(self, sha256: str) -> None:
        """Raises ``OSError`` where the bytes are not those whose hash was noted when they were written."""
        if hash_tensors({name: self.rows(name) for name in self.shapes}) != sha256:
            raise OSError("damaged: its bytes are not those that were written (SHA-256)")

    def _read(self, place: int, size: int) -> bytes:
        # pread keeps no place in the file, so processes that were forked may share the descriptor.
        data = os.pread(self._file, size, place)
        while len(data) < size and (more := os.pread(self._file, size - len(data), place + len(data))):
            data += more  # the system reads 2 GiB at once at most
        if len(data) < size:
            raise OSError(f"damaged: it ends {size - len(data)} bytes too early")
        return data


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors' bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}\n".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class LatentCache(Dataset):
    """The clips of a cache folder. Shards stay on disk and are read in place; a few hundred bytes of memory each.

    A shard that is missing or damaged is left out and named in ``problems``; one that becomes so later is replaced by
    the next good one with clips of the same size and named in the items' "skipped".

    Attributes:
        names: Its good shards' files; `shard_sizes` are their clips, `num_bytes` the bytes of all.
        bucket_of: Of a cache with ``--buckets`` the bucket of each clip, int (n,), a number in the manifest's list of
            them; None: all clips are of one size.

    Args:
        cache_dir: A folder that ``encode`` filled.
        max_bad_fraction: Share of the clips that may be lost with their shards.
        check: Read all of it and compare hashes.

    Raises:
        ValueError: No finished cache, or too much of it is lost.
    """

    def __init__(self, cache_dir: str | Path, max_bad_fraction: float = 0.01, check: bool = False) -> None:
        self.cache_dir = Path(cache_dir)
        self.max_bad_fraction = max_bad_fraction
        if not (self.cache_dir / MANIFEST).exists():
            raise ValueError(f"no latent cache in {cache_dir}: run `contentmotion encode` first")
        self.manifest = read_json(self.cache_dir / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise ValueError(
                f"the latent cache {cache_dir} was made by another version: encode again, into a new folder"
            )
        if not (self.cache_dir / INDEX).exists():
            raise ValueError(f"the latent cache {cache_dir} is not finished: run the same `contentmotion encode` again")
        self._index = read_json(self.cache_dir / INDEX)
        listed = [shard for shard in self._index["shards"] if shard["clips"]]
        self.num_listed = sum(shard["clips"] for shard in listed)
        self._lost: dict[str, int] = {}  # shard -> its clips
        self.problems: list[str] = []
        for shard, reason in zip(listed, self._find_faults(listed, check), strict=True):
            if reason is not None:
                self.problems.append(self._lose(shard["name"], shard["clips"], reason))
        kept = [shard for shard in listed if shard["name"] not in self._lost]
        self.names = [shard["name"] for shard in kept]
        self.num_bytes: int = sum(shard["bytes"] for shard in kept)
        self.shard_sizes = np.array([shard["clips"] for shard in kept], dtype=np.int64)
        if not len(self.shard_sizes):
            raise ValueError(f"the latent cache {cache_dir} holds no clip")
        self._ends = self.shard_sizes.cumsum()
        buckets = self.manifest.get("buckets")
        self._buckets = np.array([buckets.index(shard["bucket"]) if buckets else 0 for shard in kept], dtype=np.int64)
        self.bucket_of = np.repeat(self._buckets, self.shard_sizes) if buckets else None
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._text_features = True

    def _find_faults(self, listed: Sequence[dict[str, Any]], check: bool) -> list[str | None]:
        """What is wrong with each shard of the index, if anything is."""

        def look(shard: dict[str, Any]) -> str | None:
            path = self.cache_dir / shard["name"]
            try:
                size = path.stat().st_size
                if size == shard["bytes"]:
                    return Shard(path).check(shard["sha256"]) if check else None
                return f"{size} bytes instead of {shard['bytes']}"
            except FileNotFoundError:
                return "missing"
            except OSError as error:
                return error.strerror or str(error)

        total = sum(shard["bytes"] for shard in listed)
        if check and total > TOLD_BYTES and is_main_process():
            print(f"{self.cache_dir}: checking {total / 2**30:.0f} GiB", file=sys.stderr)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(look, listed))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # open files do not travel to worker processes

    def require_made_with(self, **models: torch.nn.Module | None) -> None:
        """Raises ``ValueError`` unless networks with these hashes made the cache: autoencoder, vae, text_encoder (None:
        made without)."""
        version = self.manifest.get("hash", 1)
        for name, model in models.items():
            if self.manifest.get(name) != (None if model is None else hash_weights(model, version)):
                self._refuse(name, model is not None)

    def _refuse(self, name: str, wanted: bool) -> NoReturn:
        cache = f"the latent cache {self.cache_dir}"
        if not wanted:
            by = ("--vae, or " if name == "vae" else "") + "--pretrained_model_name_or_path, a folder that has it"
            raise ValueError(f"{cache} was made with a {name}, and this run has none: give {by}")
        raise ValueError(
            f'{cache} was not made with this {name}: give the one it was made with (info shows the "weights" of both), '
            "or run `contentmotion encode` with this one, into another folder"
        )

    @property
    def motion_statistics(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of each channel of the motion latents; None: there are no such latents."""
        noted = self.manifest if "motion_mean" in self.manifest else self._index  # version 0.1 wrote the latter
        return (noted["motion_mean"], noted["motion_std"]) if "motion_mean" in noted else None

    @property
    def frame_rate(self) -> float | None:
        """Frames per second of the clips, their median; None: an earlier version made the cache."""
        return self.manifest.get("frame_rate")

    def use_text_features(self, components: Mapping[str, Any] | None, family: str | None = None) -> None:
        """Items have text features, where they were cached, if a run's frozen text encoders made them.

        Args:
            components: The run's: "text_encoder", "tokenizer" and further ones, "text_encoder_2", ...; None: no item
                has text features. Caches made by version 0.1 do not know their tokenizer.
            family: ``text_family`` of the run's content stage.

        Raises:
            ValueError: Others made them.
        """
        given = {name: part for name, part in (components or {}).items() if part is not None}
        encoders = {name: part for name, part in given.items() if name.startswith("text_encoder")}
        self._text_features = bool(encoders) and self.manifest["text_encoder"] is not None
        if not self._text_features:
            return
        if self.manifest.get("text_family") != family:
            self._refuse("kind of text features", wanted=True)
        absent = [name for name in self.manifest if name.startswith("text_encoder") and name not in encoders]
        self.require_made_with(**encoders, **dict.fromkeys(absent))
        for name in given:
            if name.startswith("tokenizer") and self.manifest.get(name) not in (None, hash_tokenizer(given[name])):
                self._refuse(name, wanted=True)

    @property
    def weights(self) -> list[float] | None:
        """How often training draws each clip, relative to the others (see ``StepSampler``); None: all alike."""
        if not self._index["weighted"]:
            return None
        return [w for number in range(len(self.names)) for w in self._shard(number).rows("weight").tolist()]

    def alike(self) -> Sequence[int]:
        """The clips of the first one's size: those to be shown side by side."""
        if self.bucket_of is None:
            return range(len(self))
        return np.flatnonzero(self.bucket_of == self.bucket_of[0]).tolist()

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """The shapes in which a tensor of the clips comes, one for each size, the first clip's first."""
        firsts = [0] if self.bucket_of is None else sorted(np.unique(self.bucket_of, return_index=True)[1].tolist())
        return list(dict.fromkeys(tuple(self[first][name].shape) for first in firsts))

    def captions(self) -> Iterator[tuple[str, ...]]:
        """Every clip's captions, in order."""
        for number in range(len(self.names)):
            lines = bytes(self._shard(number).rows("texts").numpy()).splitlines()
            yield from (tuple(json.loads(line)["captions"]) for line in lines)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        """One clip.

        Args:
            item: Index, or (index, seed). The seed draws the caption; without one it is the first.

        Returns:
            "content" (c, h, w) and "motion" (D, t, s) not standardised, or "latents" (t, c, h, w), all float32;
            "label", "caption", "captions", "path", "index", "skipped"; where they were cached, the caption's features
            "pooled" (p,), "tokens" (l, d) and "tokens_mask" (l,), and the maps "depth" and "sketch" uint8 (t, 1, H, W).

        Raises:
            ValueError: Too much of the cache is lost.
        """
        index, seed = item if isinstance(item, tuple) else (item, None)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a cache of {len(self)} clips")
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[number] - self.shard_sizes[number])
        skipped: list[str] = []
        for k in range(len(self.names)):  # this clip's shard first, then those after it, round
            other = (number + k) % len(self.names)
            if self._buckets[other] != self._buckets[number]:
                continue  # a batch is of one size
            try:
                read = self._read(other, row % int(self.shard_sizes[other]), seed)
                return read | {"index": index, "skipped": skipped}
            except OSError as error:
                name, clips = self.names[other], int(self.shard_sizes[other])
                skipped.append(self._lose(name, clips, str(error)))  # raises when it is the last straw
        raise ValueError(
            f"no shard of its size is left in place of {skipped[0]}. Run `contentmotion encode` again: it makes what "
            "is missing"
        )

    def keep_on(self, device: torch.device) -> None:
        """From now on whole batches of (index, seed) are gathered on a device, as reading them gives them; all clips
        are of one size."""
        parts: dict[str, list[Tensor]] = {}
        for number in range(len(self.names)):
            shard = self._shard(number)
            for name in shard.shapes:
                if name in (*LATENTS, *MAP_NAMES, "label") or (self._text_features and name in (*TEXT, "caption_ends")):
                    parts.setdefault(name, []).append(shard.rows(name))
        firsts = np.zeros(len(self), dtype=np.int64)  # of each clip's captions, among all features
        if "caption_ends" in parts:
            counts = [np.diff(ends.numpy(), prepend=0) for ends in parts.pop("caption_ends")]
            firsts[1:] = np.concatenate(counts).cumsum()[:-1]
        tables, captions = {name: torch.cat(rows).to(device) for name, rows in parts.items()}, list(self.captions())

        def there(numbers: list[int]) -> Tensor:
            numbers_here = torch.tensor(numbers)
            return numbers_here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers_here

        def gather(items: list[tuple[int, int]]) -> dict[str, Any]:
            chosen = [(index, _draw_caption(captions[index], seed)) for index, seed in items]
            rows, words = there([index for index, _ in items]), there([int(firsts[index]) + k for index, k in chosen])
            batch = {name: table.index_select(0, words if name in TEXT else rows) for name, table in tables.items()}
            batch |= {name: batch[name].float() for name in (*LATENTS, *TEXT) if name in batch}
            spoken = [captions[index][k] if captions[index] else "" for index, k in chosen]
            return batch | {"index": rows, "caption": spoken, "skipped": []}

        self.__getitems__ = gather  # what torch's DataLoader asks for, where it is there

    def _read(self, number: int, row: int, seed: int | None) -> dict[str, Any]:
        shard = self._shard(number)

        def at(name: str, place: int = row) -> Tensor:
            return shard.rows(name, place, place + 1)[0]

        read: dict[str, Any] = {name: at(name).float() for name in LATENTS if name in shard.shapes}
        read |= {name: at(name) for name in MAP_NAMES if name in shard.shapes}  # uint8, as they are
        start = int(at("text_ends", row - 1)) if row else 0
        text = json.loads(bytes(shard.rows("texts", start, int(at("text_ends"))).numpy()))
        captions = text["captions"]
        choice = _draw_caption(captions, seed)
        if self._text_features and "caption_ends" in shard.shapes:
            first = int(at("caption_ends", row - 1)) if row else 0
            read |= {name: at(name, first + choice).float() for name in TEXT if name in shard.shapes}
        read["label"] = int(at("label"))
        return read | {"caption": captions[choice] if captions else "", "captions": captions, "path": text["path"]}

    def _shard(self, number: int) -> Shard:
        """An open shard; the least recently used one is closed for it."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self._open[number] = Shard(self.cache_dir / self.names[number])
        if len(self._open) > MAX_OPEN_SHARDS:
            self._open.popitem(last=False)
        return shard

    def _lose(self, name: str, clips: int, reason: str) -> str:
        """Takes note of a lost shard and returns a line about it; ``ValueError`` where too many are lost."""
        self._lost[name] = clips
        lost = sum(self._lost.values())
        line = f"{self.cache_dir / name}: {reason}; {clips} clips left out"
        if lost > self.max_bad_fraction * self.num_listed:
            raise ValueError(
                f"{lost} of {self.num_listed} cached clips are lost, more than max_bad_fraction="
                f"{self.max_bad_fraction}; {line}. Run `contentmotion encode` again: it makes what is missing"
            )
        return line


def open_cache(cache_dir: str | Path, max_bad_fraction: float, check: bool = True) -> LatentCache:
    """A ``LatentCache`` for training, compared with its hashes once in a run; what is wrong with it is printed."""
    cache = LatentCache(cache_dir, max_bad_fraction, check)
    for line in cache.problems if is_main_process() else ():
        print(f"skipped: {line}", file=sys.stderr)
    return cache


def _draw_caption(captions: Sequence[str], seed: int | None) -> int:
    return 0 if seed is None or not captions else int(np.random.default_rng(seed).integers(len(captions)))


def hash_tokenizer(tokenizer: Any) -> str:
    """SHA-256 of how a tokenizer splits texts: its vocabulary, and the tokens of a text with a bit of everything."""
    probe = tokenizer("A cat's 3 dogs run, naïvely; ÄÖ 東京 🎈!", truncation=True)["input_ids"]
    return hashlib.sha256(json.dumps([sorted(tokenizer.get_vocab().items()), list(probe)]).encode()).hexdigest()


def collate_latents(items: Sequence[dict[str, Any]] | dict[str, Any]) -> dict[str, Any]:
    """Items of a ``LatentCache`` as a batch: tensors stacked, captions as lists, "skipped" as one flat list; what is a
    batch already as it is."""
    if isinstance(items, dict):
        return items
    names = [name for name in (*LATENTS, *MAP_NAMES, *TEXT) if name in items[0]]
    stacked: dict[str, Tensor] = {name: torch.stack([item[name] for item in items]) for name in names}
    numbers = {name: torch.tensor([item[name] for item in items]) for name in ("label", "index")}
    skipped = [line for item in items for line in item["skipped"]]
    return {**stacked, **numbers, "caption": [item["caption"] for item in items], "skipped": skipped}
