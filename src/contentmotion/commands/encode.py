"""Command ``encode``: videos -> latents, once; ``data/cache.py`` says what is written and reads it.

Shards, not clips, are dealt to the processes, and what a shard holds depends on its number alone. A run that was killed
therefore makes the shards that are missing, whatever the number of processes, and the files are those of a run that was
not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import save
from torch import Tensor

from contentmotion.config import ClipConfig, EncodeConfig
from contentmotion.data.accounting import describe_fates, require_few_bad
from contentmotion.data.cache import FORMAT, INDEX, MANIFEST, Shard, hash_tensors, hash_tokenizer
from contentmotion.data.maps import depth_of, load_depth_model, sketch_of
from contentmotion.data.sources import ClipSource
from contentmotion.data.streaming import open_source
from contentmotion.loading import load_autoencoder, load_vae
from contentmotion.progress import progress_bar
from contentmotion.run_dir import join_run, prepare_output_dir, resolve_dtype
from contentmotion.saving import HASH_VERSION, hash_weights, read_json, replacing_file, write_json
from contentmotion.stages.content import load_text
from contentmotion.stages.image_vae import encode_frames
from contentmotion.stages.text import NULL_PROMPT
from contentmotion.video.pixels import to_float

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def encode(config: EncodeConfig) -> None:
    """Fills a cache with content frames and motion latents, and notes the motion's statistics in its manifest.

    Under torchrun or ``accelerate launch`` the processes share the work. Run again, it makes what is missing, and again
    the shards without a clip that can be read by now.

    Raises:
        ValueError: Too few usable videos, or the folder holds a cache made with other networks or settings.
    """
    # Processes finish hours apart: waiting for the last one is no failure.
    processes, device = join_run(config, timeout=timedelta(weeks=4))
    encoder = Encoder(config, device)
    source = open_source(config)
    cache_dir = Path(config.output_dir)
    begun = _begun(cache_dir)
    manifest = _manifest(config, encoder, source, HASH_VERSION if begun is None else begun.get("hash", 1))
    _require_same(cache_dir, begun, manifest)
    prepare_output_dir(cache_dir, "encode", config)
    processes.wait_for_everyone()  # all have compared before one writes
    if processes.is_main_process:
        for leftover in cache_dir.glob(".shard-*"):
            leftover.unlink()
        write_json(cache_dir / MANIFEST, (begun or {}) | manifest)
    # One process looks: what can be read may change between two looks, and all must deal the same list.
    [missing] = broadcast_object_list([_find_missing(cache_dir, source) if processes.is_main_process else []])
    mine = missing[processes.process_index :: processes.num_processes]
    _encode_shards(config, encoder, source, mine, cache_dir, show=processes.is_main_process)
    processes.wait_for_everyone()
    if not processes.is_main_process:
        return
    index, statistics = _make_index(cache_dir, source, config.max_bad_fraction)
    write_json(cache_dir / MANIFEST, manifest | statistics)
    write_json(cache_dir / INDEX, index)  # last: a cache with an index is whole
    print(f"{index['num_clips']} clips in {cache_dir}, {len(index['skipped'])} bad files skipped")
    if index["files"]:
        print(describe_fates(index["files"]))


class Encoder:
    """The networks of an ``encode`` run: clips -> what is cached of them."""

    def __init__(self, config: EncodeConfig, device: torch.device) -> None:
        self.device, self.config = device, config
        self.autocast = resolve_dtype(config.mixed_precision, device)
        self.autoencoder = load_autoencoder(config.autoencoder).to(device) if config.autoencoder else None
        self.vae = load_vae(config.vae).to(device) if config.vae else None
        name = config.pretrained_model_name_or_path
        self.text = load_text(name).requires_grad_(False).to(device) if name else None
        self.depth_model = load_depth_model(config.depth_model, device) if config.depth_model else None

    @torch.no_grad()
    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The tensors that a shard holds of a batch, on the CPU, in the cache's number format.

        Args:
            items: Clips with "frames" uint8 (t, 3, h, w), "captions", "path", and maps that were read from files.

        Raises:
            ValueError: A value that this format does not hold, or a clip without the depth that is to be cached.
        """
        frames = torch.stack([item["frames"] for item in items]).to(self.device)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            latents = encode_frames(self.vae, to_float(frames))
            if self.autoencoder is None:
                tensors = {"latents": latents}
            else:
                encoded = self.autoencoder.encode(latents)
                tensors = {"content": encoded.content, "motion": encoded.motion_latent}
            if self.text is not None:
                captions = [caption for item in items for caption in item["captions"] or (NULL_PROMPT,)]
                features = self.text.text_features(captions)
                tensors |= features if self.config.text_features == "tokens" else {"pooled": features["pooled"]}
        tensors = {name: value.cpu().to(DTYPES[self.config.cache_dtype]) for name, value in tensors.items()}
        for name, value in tensors.items():
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"{name} of a clip among {items[0]['path']} ... {items[-1]['path']} is not finite in "
                    f"{self.config.cache_dtype}: --cache_dtype bf16, or --mixed_precision no"
                )
        for name in self.config.conditions:
            tensors[name] = torch.stack([self._map(name, item) for item in items])
        return tensors

    def _map(self, name: str, item: dict[str, Any]) -> Tensor:
        """A map of a clip, uint8 (t, 1, h, w): the one read from a file, else one taken from its frames."""
        if name == "depth" and self.depth_model is not None:
            return depth_of(item["frames"], self.depth_model)
        if name in item:
            return item[name]
        if name == "sketch":
            return sketch_of(item["frames"])
        raise ValueError(f"{item['path']}: no depth file is named for it: give --depth_dir or --depth_model")


def _encode_shards(
    config: EncodeConfig, encoder: Encoder, source: ClipSource, mine: list[int], cache_dir: Path, show: bool
) -> None:
    """Reads, encodes and writes shards; a bad file is left out, never replaced by another."""
    begun: dict[int, tuple[list, list, list]] = defaultdict(lambda: ([], [], []))  # what _write_shard takes
    heavy = ("frames", *config.conditions)
    good, bad = 0, set()
    with progress_bar(shown=show) as bar:
        batches = source.batches(mine, config.dataloader_num_workers)
        for batch in bar.track(batches, total=source.num_batches(mine), description="encoding"):
            number = batch.shard
            if batch.broken:
                print(f"{batch.skipped[0]}; run again to try it once more", file=sys.stderr)
                begun.pop(number, None)
                continue
            tensors, items, skipped = begun[number]
            if batch.items:
                tensors.append(encoder(batch.items))
            items += [{k: v for k, v in item.items() if k not in heavy} for item in batch.items]
            skipped += batch.skipped
            for line in batch.skipped:
                if line not in bad:
                    bad.add(line)
                    print(f"skipped: {line}", file=sys.stderr)
            good += len(batch.items)
            require_few_bad(len(bad), good + len(bad), config.max_bad_fraction, None)
            if batch.last:
                _write_shard(cache_dir / _name(number), *begun.pop(number), source.bucket(number))


def _write_shard(
    path: Path, batches: list[dict[str, Tensor]], items: list[dict[str, Any]], skipped: list[str], bucket: str | None
) -> None:
    names = batches[0] if batches else ()
    tensors = {name: torch.cat([batch[name] for batch in batches]).contiguous() for name in names}
    lines = [json.dumps({"path": item["path"], "captions": item["captions"]}).encode() + b"\n" for item in items]
    tensors["texts"] = torch.frombuffer(bytearray(b"".join(lines) or b"\n"), dtype=torch.uint8)
    tensors["text_ends"] = torch.tensor([len(line) for line in lines], dtype=torch.int64).cumsum(0)
    tensors["weight"] = torch.tensor([item["weight"] for item in items], dtype=torch.float64)
    for name in ("label", "item"):
        tensors[name] = torch.tensor([item[name] for item in items], dtype=torch.int64)
    if "pooled" in tensors:
        tensors["caption_ends"] = torch.tensor([len(item["captions"]) or 1 for item in items]).cumsum(0)
    header = {
        "clips": len(items),
        "sha256": hash_tensors(tensors),
        "skipped": list(dict.fromkeys(skipped)),
        "weighted": bool((tensors["weight"] != 1).any()),
        "motion": _motion_sums(tensors["motion"]) if "motion" in tensors else None,
        "frame_rate": float(np.median([item["fps"] for item in items])) if items else None,
        **({} if bucket is None else {"bucket": bucket}),
    }
    # One entry: safetensors writes several in any order, and the file would not be the same each time.
    data = save(tensors, metadata={"contentmotion": json.dumps(header)})
    with replacing_file(path) as partial, open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else the name may survive a power cut, and the bytes not


def _motion_sums(motion: Tensor) -> list[Any]:
    """Per channel, the sum and the sum of squares of what is stored; and how many values each is over."""
    z = motion.double()  # (n, D, t, s)
    return [z.sum((0, 2, 3)).tolist(), z.square().sum((0, 2, 3)).tolist(), z[:, 0].numel()]


def _make_index(cache_dir: Path, source: ClipSource, limit: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The list of a whole cache's shards (a stream's broken ones are missing in it), and the clips' statistics: of
    their motion, and the median of their frame rates.

    Raises:
        ValueError: Too much is bad or missing.
    """
    paths = [path for path in (cache_dir / _name(k) for k in range(source.num_shards)) if path.exists()]
    headers = [Shard(path).header for path in paths]
    shards = [
        {"name": path.name, "clips": header["clips"], "bytes": path.stat().st_size, "sha256": header["sha256"]}
        | ({"bucket": header["bucket"]} if "bucket" in header else {})
        for path, header in zip(paths, headers, strict=True)
    ]
    skipped = list(dict.fromkeys([*source.left_out, *(line for header in headers for line in header["skipped"])]))
    clips, lost = sum(shard["clips"] for shard in shards), source.num_shards - len(paths)
    if not clips:
        raise ValueError(f"no usable video; {next(iter(skipped), 'no shard could be read')}")
    if lost > limit * source.num_shards:
        raise ValueError(
            f"{lost} of {source.num_shards} shards of the stream could not be read, more than max_bad_fraction="
            f"{limit}: run again to try them once more"
        )
    require_few_bad(len(skipped), clips + len(skipped), limit, clips + len(skipped))
    weighted = any(header["weighted"] for header in headers)
    index = {"shards": shards, "num_clips": clips, "weighted": weighted, "skipped": skipped}
    index["files"] = source.account(skipped)
    rates = [header.get("frame_rate") for header in headers for _ in range(header["clips"])]
    statistics = {}
    if None not in rates:  # an earlier version did not note them
        statistics["frame_rate"] = round(float(np.median(rates)), 3)
    sums = [header["motion"] for header in headers if header["motion"]]
    if sums:
        totals, squares, counts = (np.sum(part, axis=0, dtype=np.float64) for part in zip(*sums, strict=True))
        mean = totals / counts
        statistics["motion_mean"] = mean.tolist()
        statistics["motion_std"] = np.sqrt(np.maximum(squares / counts - mean**2, 1e-12)).tolist()
    return index, statistics


def _manifest(config: EncodeConfig, encoder: Encoder, source: ClipSource, version: int) -> dict[str, Any]:
    """All that the cache's content depends on; ``version`` is that of the networks' hashes."""
    names = [field.name for field in dataclasses.fields(ClipConfig)]
    names.remove("train_data_dir")  # data may be moved; `data` tells whether it is the same
    names += ["class_prompts", "caption_column", "buckets", "latents_only", "clips_per_shard", "num_clips_per_video"]
    names += ["seed", "cache_dtype"]
    models = {"autoencoder": encoder.autoencoder, "vae": encoder.vae, "text_encoder": None}
    models |= encoder.text.text_encoders if encoder.text else {}
    models["depth_model"] = encoder.depth_model.model if encoder.depth_model else None
    hashes = {name: None if model is None else hash_weights(model, version) for name, model in models.items()}
    manifest = {
        "format": FORMAT,
        **hashes,
        "text_features": config.text_features if encoder.text else None,
        "text_family": encoder.text.text_family if encoder.text else None,
        "precision": str(encoder.autocast or torch.float32),
        **{name: getattr(config, name) for name in names},
        **source.describe(),
        "conditions": sorted(config.conditions),
    }
    if version > 1:
        heard = encoder.text.components if encoder.text else {}
        manifest |= {"hash": version, "tokenizer": None}
        manifest |= {name: hash_tokenizer(part) for name, part in heard.items() if name.startswith("tokenizer")}
    return json.loads(json.dumps(manifest))


def _begun(cache_dir: Path) -> dict[str, Any] | None:
    """The manifest of a cache that has shards already."""
    path = cache_dir / MANIFEST
    return read_json(path) if path.exists() and any(cache_dir.glob("shard-*")) else None


def _require_same(cache_dir: Path, begun: dict[str, Any] | None, manifest: dict[str, Any]) -> None:
    old = manifest if begun is None else {"conditions": [], "depth_model": None, "buckets": []} | begun
    changed = [key for key in manifest if old.get(key) != manifest[key]]
    if changed:
        raise ValueError(
            f"{cache_dir} holds a cache made with other settings ({', '.join(changed)}): "
            "choose another --output_dir or remove it"
        )


def _find_missing(cache_dir: Path, source: ClipSource) -> list[int]:
    """The shards to be made; of the others, the files that they are without are named."""
    missing: list[int] = []
    skipped: dict[str, None] = {}
    for number in range(source.num_shards):
        path = cache_dir / _name(number)
        shard = _open_whole(path)
        if shard is None:
            missing.append(number)
        elif shard.header["skipped"] and source.has_more(number, shard.rows("item").tolist()):
            print(f"{path}: is made again, with files that could not be read before", file=sys.stderr)
            missing.append(number)
        else:
            skipped |= dict.fromkeys(shard.header["skipped"])
    for line in skipped:
        print(f"skipped: {line}", file=sys.stderr)
    return missing


def _open_whole(path: Path) -> Shard | None:
    """A shard that is there, and whose bytes are those that were written."""
    try:
        shard = Shard(path)
        shard.check(shard.header["sha256"])
    except FileNotFoundError:
        return None
    except (OSError, LookupError) as error:
        print(f"{path}: damaged, is made again ({error})", file=sys.stderr)
        return None
    return shard


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
