"""Command ``inspect``: what is in a data set, before one trains on it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from contentmotion.commands.inspect_picture import write_picture
from contentmotion.commands.inspect_videos import VideoFacts, clips_that_fit, look_at_all, sized
from contentmotion.config import InspectConfig, parse_bucket
from contentmotion.data.formats import ClipFolder, open_folder
from contentmotion.progress import progress_bar
from contentmotion.run_dir import prepare_output_dir
from contentmotion.saving import write_json
from contentmotion.video.reader import read_clip

SHEET_CLIPS = 8
SHOWN = 10  # bad files, reasons, sizes and so on printed; all are in the JSON
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
STABLE_DIFFUSION_LATENTS = (4, 8)  # channels, pixels per side


def inspect(config: InspectConfig) -> None:
    """Looks at a data set; writes `inspect.json` and `inspect.png` and prints a table.

    Raises:
        ValueError: No videos in any known layout.
        OSError: No such folder, or the output folder is not writable.
    """
    folder = open_folder(config.train_data_dir, config)
    output = prepare_output_dir(config.output_dir, "inspect", config)
    num_all = len(folder.records)
    num = min(num_all, config.num_videos or num_all)
    indices = np.unique(np.linspace(0, num_all - 1, num).round().astype(np.int64)).tolist()
    workers = config.num_workers or len(os.sched_getaffinity(0))
    clip = clip_arguments(config)
    facts: list[VideoFacts] = []
    with progress_bar() as progress:
        for found in progress.track(
            look_at_all(folder.records, indices, clip, config.decode, workers),
            total=len(indices),
            description="looking at videos",
        ):
            facts.append(found)
    facts.sort(key=lambda found: found.index)
    captions = [folder.records[index].captions for index in indices]
    report = make_report(config, folder, facts, captions)
    write_json(output / "inspect.json", report)
    _draw(output / "inspect.png", report, folder, facts, captions, clip)
    if config.json:
        print((output / "inspect.json").read_text(encoding="utf-8"), end="")
        return
    _print(report, output)


def clip_arguments(config: InspectConfig) -> dict[str, Any]:
    """How a recipe cuts clips, as arguments of `read_clip`; where it has them, its "buckets", too."""
    names = ("num_frames", "frame_stride", "fps", "height", "width", "resize_mode")
    buckets = {"buckets": [parse_bucket(text) for text in config.buckets]} if config.buckets else {}
    return {name: getattr(config, name) for name in names} | buckets


def make_report(
    config: InspectConfig, folder: ClipFolder, facts: Sequence[VideoFacts], captions: Sequence[tuple[str, ...]]
) -> dict[str, Any]:
    """Everything that `inspect.json` holds.

    Args:
        config: The recipe.
        folder: The data set.
        facts: The videos looked at.
        captions: Their captions.
    """
    readable = [found for found in facts if found.status != "bad"]
    clip = clip_arguments(config)
    return {
        "data": {
            "root": str(folder.root),
            "layout": folder.layout,
            "split": config.split,
            "listed": len(folder.records) + len(folder.problems),
            "left_out": folder.problems,
            "looked_at": len(facts),
            "decoded": config.decode,
        },
        "videos": {
            "readable": len(readable),
            "bytes": sum(found.num_bytes or 0 for found in facts),
            "seconds": _statistics([found.duration for found in readable if found.duration is not None]),
            "frames": _statistics([found.num_frames for found in readable if found.num_frames is not None]),
            "fps": _statistics([found.fps for found in readable]),
            "sizes": _counts(f"{found.width}x{found.height}" for found in readable),
            "codecs": _counts(found.codec for found in readable),
            "rotated": sum(found.rotation != 0 for found in readable),
            "with_audio": sum(found.has_audio for found in readable),
        },
        "captions": _captions(captions),
        "classes": _classes(folder, facts),
        "bad": [{"path": found.name, "reason": found.reason} for found in facts if found.status == "bad"],
        "too_short": [{"path": found.name, "reason": found.reason} for found in facts if found.status == "short"],
        "recipe": _yield(config, folder, facts, clip) | {"clip": clip},
        "cache": _cache(config, folder, facts),
    }


def _statistics(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, median, high = (float(x) for x in np.quantile(values, (0, 0.5, 1)))
    return {"min": low, "median": median, "mean": float(np.mean(values)), "max": high, "sum": float(np.sum(values))}


def _counts(values: Any) -> dict[str, int]:
    """How often each comes, most often first."""
    return dict(Counter(values).most_common())


def _captions(captions: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    texts = Counter(text for several in captions for text in several)
    repeated = [(text, count) for text, count in texts.most_common() if count > 1]
    return {
        "captions": sum(texts.values()),
        "videos_without": sum(not several for several in captions),
        "distinct": len(texts),
        "duplicates": sum(count - 1 for _, count in repeated),
        "most_repeated": dict(repeated[:SHOWN]),
        "words": _statistics([len(text.split()) for text in texts.elements()]),
        "characters": _statistics([len(text) for text in texts.elements()]),
    }


def _classes(folder: ClipFolder, facts: Sequence[VideoFacts]) -> dict[str, int]:
    if folder.class_names is None:
        return {}
    labels = (folder.records[found.index].label for found in facts)
    return _counts("(none)" if label is None else folder.class_names[label] for label in labels)


def _yield(
    config: InspectConfig, folder: ClipFolder, facts: Sequence[VideoFacts], clip: dict[str, Any]
) -> dict[str, Any]:
    """What the recipe gets out of the data."""
    good = sum(found.status == "good" for found in facts)
    dropped = Counter(
        "too short" if found.status == "short" else found.reason for found in facts if found.status != "good"
    )
    if folder.problems:
        dropped["not usable in the list"] = len(folder.problems)
    scale = len(folder.records) / len(facts)
    return {
        "videos_used": good,
        "dropped": dict(dropped.most_common()),
        **({"buckets": _buckets(config, facts)} if config.buckets else {}),
        "clips_per_video": config.num_clips_per_video,
        "clips": round(good * scale) * config.num_clips_per_video,
        "clips_without_overlap": round(sum(clips_that_fit(found, clip) for found in facts) * scale),
        "estimated": len(facts) < len(folder.records),
    }


def _buckets(config: InspectConfig, facts: Sequence[VideoFacts]) -> dict[str, int]:
    """How many of the videos looked at go into each bucket."""
    counts = Counter(found.size for found in facts)
    return {text: counts[parse_bucket(text)] for text in config.buckets}


def _cache(config: InspectConfig, folder: ClipFolder, facts: Sequence[VideoFacts]) -> dict[str, Any]:
    """How large `contentmotion encode`'s cache of these clips gets, without text features."""
    channels, factor = latent_shape(config.vae)
    settings = _model_config(config.autoencoder)
    patch = settings.get("patch_size", config.model.patch_size)
    motion_channels = settings.get("motion_channels", config.model.motion_channels)
    usual = parse_bucket(config.buckets[0]) if config.buckets else (config.num_frames, config.height, config.width)
    good = [found.size or usual for found in facts if found.status == "good"]
    clips = round(len(good) * len(folder.records) / len(facts)) * config.num_clips_per_video
    videos = Counter(good) or Counter([usual])
    pair, latents = 0, 0  # numbers of all videos: content frame and motion latent, and latents of all frames
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for (frames, high, wide), count in videos.items():
        height, width = -(-high // factor), -(-wide // factor)
        content = (channels, height, width)
        motion = (motion_channels, frames, height // patch + width // patch)
        pair += count * int(np.prod(content) + np.prod(motion))
        latents += count * frames * int(np.prod(content))
        shapes[f"{frames}x{high}x{wide}"] = {"content_shape": content, "motion_shape": motion}
    size = BYTES[config.cache_dtype]
    return {
        **({"buckets": shapes} if config.buckets else next(iter(shapes.values()))),
        "dtype": config.cache_dtype,
        "bytes_per_clip": size * pair // videos.total(),
        "bytes": size * pair * clips // videos.total(),
        "bytes_of_all_latents": size * latents * clips // videos.total(),
    }


def latent_shape(vae: str | None) -> tuple[int, int]:
    """Channels of an image VAE's latents, and pixels per place and side; a name of the hub is taken for Stable
    Diffusion's."""
    if vae is None:
        return 3, 1
    settings = _model_config(vae) or _model_config(f"{vae}/vae")
    if "num_downsamples" in settings:
        return settings["latent_channels"], 2 ** settings["num_downsamples"]
    if "block_out_channels" in settings:
        return settings["latent_channels"], 2 ** (len(settings["block_out_channels"]) - 1)
    return STABLE_DIFFUSION_LATENTS


def _model_config(folder: str | None) -> dict[str, Any]:
    """A saved model's `config.json`; empty where there is none."""
    file = Path(folder or "", "config.json")
    return json.loads(file.read_text()) if folder and file.is_file() else {}


def _draw(
    path: Path,
    report: dict[str, Any],
    folder: ClipFolder,
    facts: Sequence[VideoFacts],
    captions: Sequence[tuple[str, ...]],
    clip: dict[str, Any],
) -> None:
    readable = [found for found in facts if found.status != "bad"]
    good = [found for found in facts if found.status == "good"]
    picks = np.unique(np.linspace(0, len(good) - 1, min(SHEET_CLIPS, len(good))).round().astype(int))
    videos, titles = [], []
    for found in (good[k] for k in picks):
        try:
            videos.append(read_clip(folder.records[found.index].path, **sized(clip, found.size)).frames)
        except (ValueError, OSError):  # only where nothing was decoded before: the report says so
            continue
        record = folder.records[found.index]
        names = folder.class_names or ()
        text = record.captions[0] if record.captions else "" if record.label is None else names[record.label]
        titles.append(f"{Path(found.name).name}: {text}")
    histograms = {
        "duration (s)": [found.duration for found in readable if found.duration is not None],
        "frames": [found.num_frames for found in readable if found.num_frames is not None],
        "frames per second": [found.fps for found in readable],
        "width (pixels)": [found.width for found in readable],
        "height (pixels)": [found.height for found in readable],
        "words per caption": [len(text.split()) for several in captions for text in several],
    }
    recipe = report["recipe"]
    title = f"{report['data']['root']}: {len(readable)} of {len(facts)} videos readable, {recipe['clips']} clips"
    write_picture(path, title, histograms, videos, titles)


def _print(report: dict[str, Any], output: Path) -> None:
    data, videos, captions, recipe, cache = (report[key] for key in ("data", "videos", "captions", "recipe", "cache"))
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()

    def add(name: str, text: str) -> None:
        table.add_row(name, text.replace("[", r"\["))

    of = f" (looked at {data['looked_at']})" if recipe["estimated"] else ""
    add("layout", data["layout"] + (f", split {data['split']}" if data["split"] else ""))
    add("videos listed", f"{data['listed']}{of}")
    add("readable", f"{videos['readable']}, {_size_text(videos['bytes'])}")
    add("bad", str(len(report["bad"])))
    if videos["seconds"]:
        add("duration", f"{_range(videos['seconds'])} s; {videos['seconds']['sum'] / 3600:.2f} h in all")
    for name, key in (("frames", "frames"), ("frames per second", "fps")):
        if videos[key]:
            add(name, _range(videos[key]))
    for name in ("sizes", "codecs"):
        add(name, _most(videos[name]))
    add("rotated / with sound", f"{videos['rotated']} / {videos['with_audio']}")
    if report["classes"]:
        add("classes", f"{len(report['classes'])}: {_most(report['classes'])}")
    words = f"; words {_range(captions['words'])}" if captions["words"] else ""
    add(
        "captions",
        f"{captions['captions']}, {captions['duplicates']} of them repeated{words}; "
        f"{captions['videos_without']} videos without",
    )
    about = "about " if recipe["estimated"] else ""
    clip = recipe["clip"]
    rate = f"{clip['fps']:g} frames per second" if clip["fps"] else f"frame_stride {clip['frame_stride']}"
    sizes = f"{clip['num_frames']} frames of {clip['height']}x{clip['width']} (high x wide)"
    if "buckets" in recipe:
        counts = ", ".join(f"{bucket} ({count})" for bucket, count in recipe["buckets"].items())
        sizes = f"frames x high x wide {counts}"
    add("the recipe", f"{sizes}, {rate}")
    add("clips it yields", f"{about}{recipe['clips']}; {recipe['clips_without_overlap']} would fit without overlap")
    add("dropped", _most(recipe["dropped"]) or "none")
    latents = f"{cache['bytes_of_all_latents'] / cache['bytes']:.0f} times that" if cache["bytes"] else "nothing"
    add(
        "cache it would fill",
        f"{about}{_size_text(cache['bytes'])}, {_size_text(cache['bytes_per_clip'])} a clip; latents of all frames: "
        f"{latents}",
    )
    console = Console()
    console.print(table)
    lines = [f"{entry['path']}: {entry['reason']}" for key in ("bad", "too_short") for entry in report[key]]
    for line in (problems := data["left_out"] + lines)[:SHOWN]:
        console.print(line, style="yellow", markup=False, highlight=False)
    if len(problems) > SHOWN:
        console.print(
            f"... and {len(problems) - SHOWN} more in {output / 'inspect.json'}", style="yellow", markup=False
        )
    console.print(f"{output / 'inspect.json'}  {output / 'inspect.png'}", markup=False)


def _range(values: dict[str, float]) -> str:
    return f"{values['min']:.4g} to {values['max']:.4g}, median {values['median']:.4g}"


def _most(counts: dict[str, int]) -> str:
    """The most frequent of many, with their counts."""
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:5])
    return shown + (f" and {len(counts) - 5} more" if len(counts) > 5 else "")


def _size_text(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} TiB"
