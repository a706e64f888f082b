"""Encode once, train from latents: command ``encode`` and the data set that reads what it wrote.

A cache folder holds ``shard-00000.safetensors`` (content, motion, label), ``shard-00000.jsonl`` (path, captions and
weight of each clip) and ``manifest.json`` (what it was made with). A shard is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from contentmotion.config import EncodeConfig
from contentmotion.data.clips import ClipDataset, open_clips
from contentmotion.data.clips import collate as collate_clips
from contentmotion.image_vae import encode_frames, to_float
from contentmotion.loading import load_autoencoder, load_vae
from contentmotion.run_dir import prepare_output_dir, resolve_device, resolve_dtype
from contentmotion.saving import save_model

MANIFEST = "manifest.json"


def encode(config: EncodeConfig) -> None:
    """Fills a cache with content frames and motion latents, and writes the motion's statistics into the autoencoder.

    Raises:
        ValueError: No usable videos, or the folder holds a cache made by another autoencoder or settings.
    """
    device = resolve_device(config.device)
    autoencoder = load_autoencoder(config.autoencoder).to(device)
    vae = load_vae(config.vae).to(device) if config.vae else None
    cache_dir = prepare_output_dir(config.output_dir, "encode", config)
    clips = open_clips(config)
    manifest = {
        "autoencoder": hash_weights(autoencoder),
        "vae": hash_weights(vae) if vae is not None else None,
        "clips": [config.num_frames, config.height, config.width, config.frame_stride],
        "items": len(clips) * config.num_clips_per_video,
        "clips_per_shard": config.clips_per_shard,
        "seed": config.seed,
        "class_names": clips.folder.class_names,
    }
    _write_manifest(cache_dir, json.loads(json.dumps(manifest)))
    dtype = resolve_dtype(config.mixed_precision, device)
    starts = range(0, manifest["items"], config.clips_per_shard)
    skipped: set[str] = set()
    for number, start in enumerate(track(starts, description="encoding")):
        path = cache_dir / f"shard-{number:05d}.safetensors"
        if path.exists():
            continue
        chosen = range(start, min(start + config.clips_per_shard, manifest["items"]))
        tensors, lines = [], []
        for i in range(0, len(chosen), config.encode_batch_size):
            items = [_clip(clips, config, k) for k in chosen[i : i + config.encode_batch_size]]
            skipped.update(line for item in items for line in item["skipped"])
            items = [item for item in items if not item["skipped"]]  # never another clip in a bad one's place
            if not items:
                continue
            batch = collate_clips(items)
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
                x = encode_frames(vae, to_float(batch["frames"]).to(device))
                encoded = autoencoder.encode(x)
            tensors.append((encoded.content.float().cpu(), encoded.motion_latent.float().cpu(), batch["label"]))
            lines += [{name: item[name] for name in ("path", "captions", "weight")} for item in items]
        if tensors:
            _write_shard(path, tensors, lines)
    for line in sorted(skipped):
        print(f"skipped: {line}")
    cache = LatentCache(cache_dir)
    mean, std = motion_statistics(cache)
    autoencoder.register_to_config(motion_mean=mean, motion_std=std)
    save_model(autoencoder.float().cpu(), config.autoencoder)
    print(f"{len(cache)} clips in {cache_dir}, {len(skipped)} bad files skipped")


def _clip(clips: ClipDataset, config: EncodeConfig, k: int) -> dict[str, Any]:
    """Item k of the cache: the centred clip of a video, or one of several random ones."""
    index, repeat = k % len(clips), k // len(clips)
    if config.num_clips_per_video == 1:
        return clips[index]
    return clips[index, int(np.random.SeedSequence([config.seed, repeat, index]).generate_state(1)[0])]


def _write_shard(path: Path, tensors: list[tuple], lines: list[dict[str, Any]]) -> None:
    content, motion, label = (torch.cat(part).contiguous() for part in zip(*tensors, strict=True))
    texts, partial = path.with_suffix(".jsonl"), path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(partial, texts)
    save_file({"content": content, "motion": motion, "label": label}, partial)
    os.replace(partial, path)  # last: a shard counts from here on


def _write_manifest(cache_dir: Path, manifest: dict[str, Any]) -> None:
    path = cache_dir / MANIFEST
    if path.exists():
        old = json.loads(path.read_text())
        changed = [key for key in manifest if old.get(key) != manifest[key]]
        if changed:
            raise ValueError(
                f"{cache_dir} holds a cache made with other settings ({', '.join(changed)}): "
                "choose another --output_dir or remove it"
            )
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(partial, path)


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights (names and values), the same wherever they are stored."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def motion_statistics(cache: LatentCache) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each motion channel over a cache (method: standardised before diffusion)."""
    total = squares = torch.zeros((), dtype=torch.float64)
    count = 0
    for index in range(len(cache)):
        z = cache[index]["motion"].double()  # (D, t, s)
        total, squares = total + z.sum((1, 2)), squares + z.square().sum((1, 2))
        count += z[0].numel()
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    return mean.tolist(), std.tolist()


class LatentCache(Dataset):
    """The clips of a cache folder; shards stay on disk and are read in place.

    Args:
        cache_dir: A folder that ``encode`` filled.

    Raises:
        ValueError: It holds no shard.
    """

    def __init__(self, cache_dir: str | Path) -> None:
        self.cache_dir = Path(cache_dir)
        paths = sorted(self.cache_dir.glob("shard-*.safetensors"))
        if not paths:
            raise ValueError(f"no latent cache in {cache_dir}: run `contentmotion encode` first")
        self.manifest = json.loads((self.cache_dir / MANIFEST).read_text())
        self.places: list[tuple[int, int]] = []  # item -> (shard, row)
        self.texts: list[dict[str, Any]] = []
        self._shards = [safe_open(path, "pt") for path in paths]
        for number, (path, shard) in enumerate(zip(paths, self._shards, strict=True)):
            self.places += [(number, row) for row in range(shard.get_slice("label").get_shape()[0])]
            self.texts += [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]

    @property
    def weights(self) -> list[float]:
        """How often training draws each clip, relative to the others (see ``StepSampler``)."""
        return [text.get("weight", 1.0) for text in self.texts]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        """One clip: "content" (c, h, w), "motion" (D, t, s) not standardised, "label", "caption" (one drawn by the
        seed, the first without one), "captions", "index"."""
        index, seed = item if isinstance(item, tuple) else (item, None)
        shard, row = self.places[index]
        read = {name: self._shards[shard].get_slice(name)[row] for name in ("content", "motion")}
        label = int(self._shards[shard].get_slice("label")[row : row + 1])
        captions = self.texts[index]["captions"]
        choice = 0 if seed is None or not captions else int(np.random.default_rng(seed).integers(len(captions)))
        caption = captions[choice] if captions else ""
        return {**read, "label": label, "caption": caption, "captions": captions, "index": index}


def collate_latents(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items of a ``LatentCache`` as a batch: tensors stacked, captions as lists."""
    stacked = {name: torch.stack([item[name] for item in items]) for name in ("content", "motion")}
    numbers = {name: torch.tensor([item[name] for item in items]) for name in ("label", "index")}
    return {**stacked, **numbers, "caption": [item["caption"] for item in items]}
