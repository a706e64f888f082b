"""Command ``inspect``: what is in a data set, before one trains on it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from contentmotion.config import InspectConfig, parse_bucket
from contentmotion.data.accounting import account_for_files, describe_fates
from contentmotion.data.buckets import choose_bucket
from contentmotion.data.formats import CHECK_FILES_BELOW, ClipFolder, open_folder
from contentmotion.data.records import ClipRecord
from contentmotion.progress import progress_bar
from contentmotion.run_dir import prepare_output_dir
from contentmotion.saving import read_json, write_json
from contentmotion.tables import print_table
from contentmotion.video.reader import probe_video, read_clip
from contentmotion.video.sources import file_size, source_name
from contentmotion.video.timeline import VideoInfo
from contentmotion.video.write import contact_sheet, write_picture

CHUNK = 16  # videos per task of a process
MIN_PER_PROCESS = 32  # fewer are done before another process has started
TOO_SHORT = "needed"  # how the reader ends "12 frames, 16 needed"
SHOWN = 10  # bad files, reasons, sizes and so on printed; all are in the JSON
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
STABLE_DIFFUSION_LATENTS = (4, 8)  # channels, pixels per side

SHEET_CLIPS, THUMBNAIL = 8, (256, 128)
PANEL, PANEL_COLUMNS, NUM_BINS = (360, 190), 3, 24
BAR, GREY = (60, 110, 180), (120, 120, 120)


@dataclass(frozen=True)
class VideoFacts:
    """One video.

    Attributes:
        index: Its number in the list.
        name: Its path.
        status: "good"; "short": no clip of the recipe fits; "bad": not readable.
        reason: Why it is not good; "" otherwise.
        num_bytes: Size of the file, or None.
        info: Its header, with frames and duration counted from each other where it says one; None where it is bad.
        clip: How its clips are cut, as arguments of `read_clip`, where it is good.
    """

    index: int
    name: str
    status: Literal["good", "short", "bad"] = "good"
    reason: str = ""
    num_bytes: int | None = None
    info: VideoInfo | None = None
    clip: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of its clips."""
        return self.clip["num_frames"], self.clip["height"], self.clip["width"]


def inspect(config: InspectConfig) -> None:
    """Looks at a data set; writes `inspect.json` and `inspect.png` and prints a table.

    Raises:
        ValueError: No videos in any known layout.
        OSError: No such folder, or the output folder is not writable.
    """
    folder = open_folder(config.train_data_dir, config)
    latent_shape(config.vae)  # raises, while nothing has been done
    output = prepare_output_dir(config.output_dir, "inspect", config)
    tokenizer = _tokenizer_of(config.pretrained_model_name_or_path)
    num_all = len(folder.records)
    num = min(num_all, config.num_videos or num_all)
    indices = np.unique(np.linspace(0, num_all - 1, num).round().astype(np.int64)).tolist()
    workers = config.num_workers or _num_cores()
    with progress_bar() as progress:
        found = look_at_all(folder.records, indices, clip_arguments(config), config.decode, workers)
        found = progress.track(found, total=len(indices), description="looking at videos")
        facts = sorted(found, key=lambda one: one.index)
    report = _make_report(config, folder, facts, tokenizer)
    write_json(output / "inspect.json", report)
    write_picture(output / "inspect.png", _draw(report, folder, facts))
    if config.json:
        print((output / "inspect.json").read_text(encoding="utf-8"), end="")
        return
    _print(report, output)


def _num_cores() -> int:
    """Cores that this process may use (where the system tells, which macOS does not)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def clip_arguments(config: InspectConfig) -> dict[str, Any]:
    """How a recipe cuts clips, as arguments of `read_clip`; where it has them, its "buckets", too."""
    names = ("num_frames", "frame_stride", "fps", "height", "width", "resize_mode")
    buckets = {"buckets": [parse_bucket(text) for text in config.buckets]} if config.buckets else {}
    return {name: getattr(config, name) for name in names} | buckets


# ---- looking at videos


def _look_at(index: int, record: ClipRecord, clip: dict[str, Any], decode: bool) -> VideoFacts:
    """Looks at one video; ``decode`` finds damage, in the centred clip, that the header does not show."""
    name = source_name(record.path)
    try:
        info, num_bytes = probe_video(record.path), file_size(record.path)
    except (ValueError, OSError) as error:
        return VideoFacts(index, name, "bad", _reason(error, name))
    if info.num_frames is None and info.duration is not None:
        info = replace(info, num_frames=round(info.duration * info.fps))
    if info.duration is None and info.num_frames is not None and info.fps:
        info = replace(info, duration=info.num_frames / info.fps)
    facts = VideoFacts(index, name, num_bytes=num_bytes, info=info)
    buckets, clip = clip.get("buckets"), {key: value for key, value in clip.items() if key != "buckets"}
    if buckets:
        bucket = choose_bucket(info, buckets, clip["frame_stride"], clip["fps"])
        if bucket < 0:
            return replace(facts, status="short", reason="too short for every bucket")
        clip |= dict(zip(("num_frames", "height", "width"), buckets[bucket], strict=True))
    reason = "" if decode else _too_short(info, clip)
    if decode:
        try:
            read_clip(record.path, **clip)
        except (ValueError, OSError) as error:
            reason = _reason(error, name)
    if reason:
        return replace(facts, status="short" if reason.endswith(TOO_SHORT) else "bad", reason=reason)
    return replace(facts, clip=clip)


def _too_short(info: VideoInfo, clip: dict[str, Any]) -> str:
    """By the header alone; empty where a clip fits or nobody knows."""
    if clip["fps"] is not None:
        length, duration = clip["num_frames"] / clip["fps"], info.duration
        return f"{duration:.2f} s, {length:.2f} s needed" if duration is not None and duration < length else ""
    span, count = (clip["num_frames"] - 1) * clip["frame_stride"] + 1, info.num_frames
    return f"{count} frames, {span} needed" if count is not None and count < span else ""


def _reason(error: Exception, name: str) -> str:
    """The reader's message without the file's name."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.removeprefix(f"{name}: ").split())


def look_at_all(
    records: Sequence[ClipRecord], indices: Sequence[int], clip: dict[str, Any], decode: bool, num_workers: int
) -> Iterator[VideoFacts]:
    """Looks at the videos of these indices, in any order; with one process, or few videos, right here.

    A file that takes its process down with it is looked for, and named.
    """
    num_workers = min(num_workers, len(indices) // MIN_PER_PROCESS + 1)
    if num_workers < 2:
        yield from (_look_at(index, records[index], clip, decode) for index in indices)
        return
    work = (records, clip, decode)
    chunks = (list(indices[k : k + CHUNK]) for k in range(0, len(indices), CHUNK))
    for chunk in chunks:  # after a crash, of those that were not begun yet
        broken: list[list[int]] = []
        yield from _look_in_processes(work, chain([chunk], chunks), num_workers, broken)
        left = sorted(chain.from_iterable(broken))
        while left:  # one at a time and in their order, by a process for as long as it lives
            crashed: list[list[int]] = []
            yield from _look_in_processes(work, iter([[index] for index in left]), 1, crashed)
            if not crashed:
                break
            [index] = min(crashed)
            yield VideoFacts(index, source_name(records[index].path), "bad", "the decoder crashed")
            left = left[left.index(index) + 1 :]


def _look_in_processes(
    work: tuple[Any, ...], chunks: Iterator[list[int]], num_workers: int, broken: list[list[int]]
) -> Iterator[VideoFacts]:
    """Hands chunks to processes until one crashes; those that it was handed and has not done are put into `broken`."""
    # Not forked: this process may have threads, whose locks a fork would copy as they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _set_worker, work) as pool:
        waiting: dict[Future[list[VideoFacts]], list[int]] = {}
        while True:
            while not broken and len(waiting) < 4 * num_workers and (chunk := next(chunks, None)):
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
    return [_look_at(index, records[index], clip, decode) for index in indices]


# ---- the report


def _make_report(
    config: InspectConfig, folder: ClipFolder, facts: Sequence[VideoFacts], tokenizer: Any
) -> dict[str, Any]:
    """Everything that `inspect.json` holds, of the videos looked at."""
    infos = [one.info for one in facts if one.info is not None and one.status != "bad"]
    labels = () if folder.class_names is None else (folder.records[one.index].label for one in facts)
    return {
        "data": {
            "root": str(folder.root),
            "layout": folder.layout,
            "split": config.split,
            "listed": len(folder.records) + len(folder.problems),
            "left_out": folder.problems,
            "notes": list(folder.notes),
            "looked_at": len(facts),
            "decoded": config.decode,
            "files": _account(folder, facts),
        },
        "videos": {
            "readable": len(infos),
            "bytes": sum(one.num_bytes or 0 for one in facts),
            "seconds": _statistics([info.duration for info in infos if info.duration is not None]),
            "frames": _statistics([info.num_frames for info in infos if info.num_frames is not None]),
            "fps": _statistics([info.fps for info in infos]),
            "sizes": _counts(f"{info.width}x{info.height}" for info in infos),
            "codecs": _counts(info.codec for info in infos),
            "rotated": sum(info.rotation != 0 for info in infos),
            "with_audio": sum(info.has_audio for info in infos),
        },
        "captions": _captions([folder.records[one.index].captions for one in facts], tokenizer),
        "classes": _counts("(none)" if label is None else (folder.class_names or ())[label] for label in labels),
        "bad": [{"path": one.name, "reason": one.reason} for one in facts if one.status == "bad"],
        "too_short": [{"path": one.name, "reason": one.reason} for one in facts if one.status == "short"],
        "recipe": _yield(config, folder, facts) | {"clip": clip_arguments(config)},
        "cache": _cache(config, folder, facts),
    }


def _account(folder: ClipFolder, facts: Sequence[VideoFacts]) -> dict[str, Any] | None:
    """What became of every file of the folder."""
    seen = {one.index for one in facts}
    faults = {one.name: "too short" if one.status == "short" else "bad" for one in facts if one.status != "good"}
    if len(seen) < len(folder.records) <= CHECK_FILES_BELOW:
        faults |= {source_name(r.path): "not looked at" for i, r in enumerate(folder.records) if i not in seen}
    return account_for_files(folder, faults)


def _statistics(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, median, high = (float(x) for x in np.quantile(values, (0, 0.5, 1)))
    return {"min": low, "median": median, "mean": float(np.mean(values)), "max": high, "sum": float(np.sum(values))}


def _counts(values: Iterable[str]) -> dict[str, int]:
    """How often each comes, most often first."""
    return dict(Counter(values).most_common())


def _captions(captions: Sequence[tuple[str, ...]], tokenizer: Any) -> dict[str, Any]:
    """What they are; "cut": how many a recipe's text encoder takes only a part of, None where there is no tokenizer."""
    texts, cut = Counter(text for several in captions for text in several), None
    if tokenizer is not None:
        from contentmotion.stages.text import cut_words  # it imports torch

        cut = sum(bool(cut_words(tokenizer, text)) for text in texts.elements())
    repeated = [(text, count) for text, count in texts.most_common() if count > 1]
    return {
        "captions": texts.total(),
        "videos_without": sum(not several for several in captions),
        "distinct": len(texts),
        "duplicates": sum(count - 1 for _, count in repeated),
        "most_repeated": dict(repeated[:SHOWN]),
        "words": _statistics([len(text.split()) for text in texts.elements()]),
        "characters": _statistics([len(text) for text in texts.elements()]),
        "cut": cut,
    }


def _tokenizer_of(name: str | None) -> Any:
    """What cuts a recipe's captions; None, which is said, where it is not on this machine or has none."""
    if name is None:
        return None
    from contentmotion.loading import load_tokenizer, resolve_name  # they import torch

    reason = "it is no folder on this machine"
    if Path(resolve_name(name)).is_dir():
        try:
            return load_tokenizer(name)
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
    print(f"captions that {name} cuts are not counted: {reason}", file=sys.stderr)
    return None


def _yield(config: InspectConfig, folder: ClipFolder, facts: Sequence[VideoFacts]) -> dict[str, Any]:
    """What the recipe gets out of the data."""
    good = [one for one in facts if one.status == "good"]
    dropped = Counter("too short" if one.status == "short" else one.reason for one in facts if one.status != "good")
    if folder.problems:
        dropped["not usable in the list"] = len(folder.problems)
    scale, sizes = len(folder.records) / len(facts), Counter(one.size for one in good)
    buckets = {text: sizes[parse_bucket(text)] for text in config.buckets}
    return {
        "videos_used": len(good),
        "dropped": dict(dropped.most_common()),
        **({"buckets": buckets} if buckets else {}),
        "clips_per_video": config.num_clips_per_video,
        "clips": round(len(good) * scale) * config.num_clips_per_video,
        "clips_without_overlap": round(sum(_clips_that_fit(one) for one in good) * scale),
        "estimated": len(facts) < len(folder.records),
    }


def _clips_that_fit(facts: VideoFacts) -> int:
    """How many clips fit into a good video without overlap."""
    assert facts.info is not None
    clip = facts.clip
    if clip["fps"] is not None:
        return max(1, int((facts.info.duration or 0) * clip["fps"] / clip["num_frames"]))
    return max(1, (facts.info.num_frames or 0) // (clip["num_frames"] * clip["frame_stride"]))


def _cache(config: InspectConfig, folder: ClipFolder, facts: Sequence[VideoFacts]) -> dict[str, Any]:
    """How large `contentmotion encode`'s cache of these clips gets, without text features."""
    channels, factor = latent_shape(config.vae)
    settings = _model_config(config.autoencoder)
    patch = settings.get("patch_size", config.model.patch_size)
    motion_channels = settings.get("motion_channels", config.model.motion_channels)
    usual = parse_bucket(config.buckets[0]) if config.buckets else (config.num_frames, config.height, config.width)
    good = [one.size for one in facts if one.status == "good"]
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
    """Channels of an image VAE's latents, and pixels per latent along a side; a name of the hub is taken for Stable
    Diffusion's."""
    if vae is None:
        return 3, 1
    settings = _model_config(vae) or _model_config(f"{vae}/vae")
    if not settings:
        return STABLE_DIFFUSION_LATENTS
    from contentmotion.stages.image_vae import latent_channels, pixels_per_latent  # it imports torch

    try:
        return latent_channels(settings), pixels_per_latent(settings)
    except (LookupError, TypeError):
        raise ValueError(f"{vae} is no image VAE: its config.json has not the sizes of one") from None


def _model_config(folder: str | None) -> dict[str, Any]:
    """A saved model's `config.json`; empty where there is none."""
    file = Path(folder or "", "config.json")
    return read_json(file) if folder and file.is_file() else {}


# ---- the picture


def _draw(report: dict[str, Any], folder: ClipFolder, facts: Sequence[VideoFacts]) -> Image.Image:
    """Histograms above a contact sheet."""
    infos = [one.info for one in facts if one.info is not None and one.status != "bad"]
    values: dict[str, list[float]] = {
        "duration (s)": [info.duration for info in infos if info.duration is not None],
        "frames": [info.num_frames for info in infos if info.num_frames is not None],
        "frames per second": [info.fps for info in infos],
        "width (pixels)": [info.width for info in infos],
        "height (pixels)": [info.height for info in infos],
        "words per caption": [len(text.split()) for one in facts for text in folder.records[one.index].captions],
    }
    panels = [_histogram(name, numbers) for name, numbers in values.items() if numbers]
    sheet = _sheet(folder, facts)
    top, rows = 40, -(-len(panels) // PANEL_COLUMNS)
    size = (max(PANEL_COLUMNS * PANEL[0], sheet.width), top + rows * PANEL[1] + sheet.height)
    picture = Image.new("RGB", size, "white")
    title = f"{folder.root}: {len(infos)} of {len(facts)} videos readable, {report['recipe']['clips']} clips"
    ImageDraw.Draw(picture).text((12, 10), title, fill="black", font=ImageFont.load_default(size=18))
    for number, panel in enumerate(panels):
        picture.paste(panel, (number % PANEL_COLUMNS * PANEL[0], top + number // PANEL_COLUMNS * PANEL[1]))
    picture.paste(sheet, (0, top + rows * PANEL[1]))
    return picture


def _sheet(folder: ClipFolder, facts: Sequence[VideoFacts]) -> Image.Image:
    """Some of the good clips, with their captions."""
    good = [one for one in facts if one.status == "good"]
    picks = np.unique(np.linspace(0, len(good) - 1, min(SHEET_CLIPS, len(good))).round().astype(int))
    videos, titles = [], []
    for one in (good[k] for k in picks):
        record, names = folder.records[one.index], folder.class_names or ()
        try:
            frames = read_clip(record.path, **one.clip).frames
        except (ValueError, OSError):  # only where nothing was decoded before: the report says so
            continue
        factor = min(1.0, THUMBNAIL[0] / frames.shape[2], THUMBNAIL[1] / frames.shape[1])
        size = (max(1, round(frames.shape[2] * factor)), max(1, round(frames.shape[1] * factor)))
        videos.append(np.stack([Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames]))
        text = record.captions[0] if record.captions else "" if record.label is None else names[record.label]
        titles.append(f"{Path(one.name).name}: {text}")
    return contact_sheet(videos, titles) if videos else Image.new("RGB", (1, 1), "white")


def _histogram(name: str, values: Sequence[float]) -> Image.Image:
    """One panel: bars from the lowest to the highest value, both written below, and the median."""
    width, height = PANEL
    panel = Image.new("RGB", PANEL, "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(size=14)
    left, right, base, ceiling = 14, width - 14, height - 28, 34
    low, high = float(np.min(values)), float(np.max(values))
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(values, bins=NUM_BINS, range=(low, high))
    step = (right - left) / NUM_BINS
    for k, count in enumerate(counts):
        if count:
            bar = max(2, (base - ceiling) * count / counts.max())
            draw.rectangle((left + k * step, base - bar, left + (k + 1) * step - 2, base), fill=BAR)
    draw.line((left, base + 1, right, base + 1), fill=GREY)
    draw.text((left, 10), name, fill="black", font=font)
    labels = (f"{np.min(values):.4g}", f"median {np.median(values):.4g}", f"{np.max(values):.4g}")
    for label, x, anchor in zip(labels, (left, (left + right) / 2, right), ("la", "ma", "ra"), strict=True):
        draw.text((x, base + 6), label, fill=GREY, font=font, anchor=anchor)
    return panel


# ---- the table


def _print(report: dict[str, Any], output: Path) -> None:
    data, videos, captions, recipe, cache = (report[key] for key in ("data", "videos", "captions", "recipe", "cache"))
    seconds, classes, clip = videos["seconds"], report["classes"], recipe["clip"]
    about = "about " if recipe["estimated"] else ""
    words = f"; words {_range(captions['words'])}" if captions["words"] else ""
    words += f"; {captions['cut']} longer than the text encoder takes" if captions["cut"] else ""
    without = captions["videos_without"]
    rate = f"{clip['fps']:g} frames per second" if clip["fps"] else f"frame_stride {clip['frame_stride']}"
    sizes = f"{clip['num_frames']} frames of {clip['height']}x{clip['width']} (high x wide)"
    if "buckets" in recipe:
        sizes = f"frames x high x wide {', '.join(f'{name} ({count})' for name, count in recipe['buckets'].items())}"
    latents = f"{cache['bytes_of_all_latents'] / cache['bytes']:.0f} times that" if cache["bytes"] else "nothing"
    rows = {
        "layout": data["layout"] + (f", split {data['split']}" if data["split"] else ""),
        "videos listed": f"{data['listed']}" + (f" (looked at {data['looked_at']})" if recipe["estimated"] else ""),
        "readable": f"{videos['readable']}, {_size_text(videos['bytes'])}",
        "bad": str(len(report["bad"])),
        "duration": f"{_range(seconds)} s; {seconds['sum'] / 3600:.2f} h in all" if seconds else "",
        "frames": _range(videos["frames"]),
        "frames per second": _range(videos["fps"]),
        "sizes": _most(videos["sizes"]),
        "codecs": _most(videos["codecs"]),
        "rotated / with sound": f"{videos['rotated']} / {videos['with_audio']}",
        "classes": f"{len(classes)}: {_most(classes)}" if classes else "",
        "captions": f"{captions['captions']}, {captions['duplicates']} of them repeated{words}; "
        f"{without} videos without{' (cut and train take what their names say)' if without else ''}",
        "the recipe": f"{sizes}, {rate}",
        "clips it yields": f"{about}{recipe['clips']}; {recipe['clips_without_overlap']} would fit without overlap",
        "dropped": _most(recipe["dropped"]) or "none",
        "files of the folder": describe_fates(data["files"]) if data["files"] else "",
        "cache it would fill": f"{about}{_size_text(cache['bytes'])}, {_size_text(cache['bytes_per_clip'])} a clip; "
        f"latents of all frames: {latents}",
    }
    console = Console()
    print_table((), [row for row in rows.items() if row[1]], text=(0, 1), console=console)
    lines = [f"{entry['path']}: {entry['reason']}" for key in ("bad", "too_short") for entry in report[key]]
    for line in (problems := data["notes"] + data["left_out"] + lines)[:SHOWN]:
        console.print(line, style="yellow", markup=False, highlight=False)
    if len(problems) > SHOWN:
        console.print(
            f"... and {len(problems) - SHOWN} more in {output / 'inspect.json'}", style="yellow", markup=False
        )
    console.print(f"{output / 'inspect.json'}  {output / 'inspect.png'}", markup=False)


def _range(values: dict[str, float] | None) -> str:
    return f"{values['min']:.4g} to {values['max']:.4g}, median {values['median']:.4g}" if values else ""


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
