"""What a latent cache costs and saves: bytes per clip, read speed of two shard formats, an epoch with and without it.

    python benchmarks/cache.py --data_dir ../shared/data/fluent-emoji-anim --output cache.json

The sizes are those of Stable Diffusion 2.1 at 16 frames of 512x1024 (latents 4 x 64 x 128; D = 8; patch 2). The values
are noise: what is timed is reading. The epochs are the shipped model's, on real videos.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import webdataset
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from contentmotion.commands.encode import Encoder, encode
from contentmotion.config import EncodeConfig
from contentmotion.data.cache import LatentCache, Shard, collate_latents
from contentmotion.data.clips import open_clips
from contentmotion.loading import ASSETS
from contentmotion.video.sources import VIDEO_SUFFIXES
from contentmotion.video.write import write_video

FRAMES, CHANNELS, HEIGHT, WIDTH, MOTION, PATCH = 16, 4, 64, 128, 8, 2  # Stable Diffusion 2.1 at 512x1024
PER_SHARD = 256


def bytes_per_clip(folder: Path, data: Path) -> dict[str, float]:
    """Of a clip in half precision, as raw latents, and as an mp4 of a real video scaled to 512x1024."""
    content = 2 * CHANNELS * HEIGHT * WIDTH
    motion = 2 * MOTION * FRAMES * (HEIGHT + WIDTH) // PATCH
    sizes = []
    config = EncodeConfig(
        train_data_dir=str(data), split=None, latents_only=True, output_dir="", height=512, width=1024
    )
    clips = open_clips(config)
    for index in np.linspace(0, len(clips) - 1, 8).astype(int):
        path = folder / "clip.mp4"
        write_video(path, clips[int(index)]["frames"].permute(0, 2, 3, 1).numpy(), fps=8)
        sizes.append(path.stat().st_size)
    return {
        "content": content,
        "motion": motion,
        "content + motion": content + motion,
        "raw latents": 2 * FRAMES * CHANNELS * HEIGHT * WIDTH,
        "mp4 (mean of 8)": float(np.mean(sizes)),
    }


def write_both(folder: Path, num_clips: int) -> tuple[list[Path], list[Path]]:
    """The same clips as safetensors shards and as WebDataset shards (one safetensors member per clip)."""
    from safetensors.torch import save

    generator = torch.Generator().manual_seed(0)
    shards: list[Path] = []
    tars: list[Path] = []
    for number in range(num_clips // PER_SHARD):
        content = torch.randn(PER_SHARD, CHANNELS, HEIGHT, WIDTH, generator=generator).half()
        motion = torch.randn(PER_SHARD, MOTION, FRAMES, (HEIGHT + WIDTH) // PATCH, generator=generator).half()
        shards.append(folder / f"shard-{number:05d}.safetensors")
        save_file({"content": content, "motion": motion}, shards[-1])
        tars.append(folder / f"shard-{number:05d}.tar")
        with webdataset.TarWriter(str(tars[-1])) as tar:
            for k in range(PER_SHARD):
                tar.write(
                    {
                        "__key__": f"{number * PER_SHARD + k:08d}",
                        "safetensors": save({"content": content[k].clone(), "motion": motion[k].clone()}),
                    }
                )
    return shards, tars


def read_safetensors(shards: list[Path], shuffled: bool) -> Iterable[torch.Tensor]:
    """Clips in place: in order, or one here and one there."""
    opened = [Shard(path) for path in shards]
    places = np.arange(len(shards) * PER_SHARD)
    if shuffled:
        places = np.random.default_rng(0).permutation(places)
    for place in places:
        shard, row = opened[place // PER_SHARD], int(place % PER_SHARD)
        yield from (shard.rows(name, row, row + 1)[0].float() for name in ("content", "motion"))


def read_tars(tars: list[Path], shuffled: bool) -> Iterable[torch.Tensor]:
    """Clips as they come; shuffled through a buffer of 1,000."""
    from safetensors.torch import load

    samples = webdataset.WebDataset([str(path) for path in tars], shardshuffle=False)
    for sample in samples.shuffle(1000) if shuffled else samples:
        tensors = load(sample["safetensors"])
        yield from (tensors[name].float() for name in ("content", "motion"))


def clips_per_second(read: Callable[[], Iterable[torch.Tensor]], num_clips: int, drop: list[Path] | None) -> float:
    """Best of three; with ``drop``, after the system forgot what it had read of these files."""
    best = 0.0
    for _ in range(3):
        for path in drop or ():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        total = sum(float(tensor.view(-1)[0]) + tensor.numel() for tensor in read())
        assert total > 0
        best = max(best, num_clips / (time.perf_counter() - started))
    return best


def epochs(folder: Path, data: Path, num_clips: int) -> dict[str, float]:
    """Seconds per clip of the shipped model's data: decoded and encoded each time, and from its cache."""
    autoencoder = str(shutil.copytree(ASSETS / "emoji/autoencoder", folder / "autoencoder"))
    some = folder / "videos"
    some.mkdir()
    for path in sorted(path for path in data.rglob("*") if path.suffix in VIDEO_SUFFIXES)[:num_clips]:
        shutil.copy(path, some)
    config = EncodeConfig(
        train_data_dir=str(some),
        split=None,
        autoencoder=autoencoder,
        vae=str(ASSETS / "emoji"),
        output_dir=str(folder / "cache"),
    )
    clips, encoder = open_clips(config), Encoder(config, torch.device("cpu"))
    num_clips = len(clips)
    started = time.perf_counter()
    decoded = [clips[k] for k in range(num_clips)]
    decoding = (time.perf_counter() - started) / num_clips
    started = time.perf_counter()
    for k in range(0, num_clips, 8):
        encoder(decoded[k : k + 8])
    encoding = (time.perf_counter() - started) / num_clips
    encode(config)
    cache = LatentCache(config.output_dir)
    started = time.perf_counter()
    for k in range(0, len(cache), 8):
        collate_latents([cache[i] for i in range(k, min(k + 8, len(cache)))])
    reading = (time.perf_counter() - started) / len(cache)
    size = sum(path.stat().st_size for path in Path(config.output_dir).glob("shard-*"))
    return {
        "decode a video [s]": decoding,
        "encode a clip [s]": encoding,
        "read a cached clip [s]": reading,
        "epoch from videos [s]": (decoding + encoding) * len(cache),
        "epoch from the cache [s]": reading * len(cache),
        "cache, bytes per clip": size / len(cache),
        "clips": len(cache),
    }


def main() -> None:
    """Measures, prints tables, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="videos of the shipped model's kind")
    parser.add_argument(
        "--num_clips", type=int, default=2048, help="clips of the read test, 90 KB each, in two formats"
    )
    parser.add_argument("--num_encoded", type=int, default=64, help="clips decoded and encoded for their time")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float] | str] = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results["bytes per clip"] = bytes_per_clip(folder, arguments.data_dir)
        shards, tars = write_both(folder, arguments.num_clips)
        speeds = results["clips/s"] = {}
        for shuffled in (False, True):
            for cold in (True, False):
                kind = f"{'shuffled' if shuffled else 'in order'}, {'from disk' if cold else 'from memory'}"
                for title, read, files in (("safetensors", read_safetensors, shards), ("tar", read_tars, tars)):
                    speeds[f"{title}, {kind}"] = clips_per_second(
                        lambda read=read, files=files, shuffled=shuffled: read(files, shuffled),
                        arguments.num_clips,
                        files if cold else None,
                    )
        results["epoch"] = epochs(folder, arguments.data_dir, arguments.num_encoded)
    console = Console()
    for title, rows in results.items():
        if isinstance(rows, dict):
            table = Table(title, "")
            for key, value in rows.items():
                table.add_row(key, f"{value:,.4g}" if value < 100 else f"{value:,.0f}")
            console.print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
