"""Command ``evaluate``: a checkpoint and a folder of videos -> FVD, PSNR, nearest clips, and a protocol."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from contentmotion.config import EvaluateConfig
from contentmotion.data.formats import open_folder
from contentmotion.evaluate.fvd import FrechetStatistics, frechet_distance
from contentmotion.evaluate.i3d import NUM_CLASSES, InceptionI3d, i3d_features, load_i3d
from contentmotion.evaluate.parts import Clips, Part, Renderer
from contentmotion.evaluate.protocol import describe_protocol, part_protocol
from contentmotion.evaluate.reconstruction import mean_squared_error
from contentmotion.evaluate.retrieval import nearest_share
from contentmotion.evaluate.store import PartStore
from contentmotion.evaluate.weights import find_weights
from contentmotion.image_vae import vae_scale_factor
from contentmotion.loading import load_pipeline
from contentmotion.run_dir import prepare_output_dir, resolve_device, resolve_dtype
from contentmotion.saving import write_json
from contentmotion.video_io import write_contact_sheet

NUM_HALVINGS = 10  # random splits of the real clips into two halves, averaged
SHEET_CLIPS = 8
MAX_PSNR = 100.0  # of equal clips, whose PSNR is infinite


def evaluate(config: EvaluateConfig) -> None:
    """Scores a checkpoint; run again after an interruption, it goes on where it stopped.

    Writes scores.json, sheet.png, and the features of every clip under parts/.

    Raises:
        ValueError: The data cannot be used, or the weights are of another network.
        OSError: Files are missing, or the output folder is not writable.
    """
    if config.enable_model_cpu_offload:
        raise ValueError("evaluate keeps every network on the device: it takes no enable_model_cpu_offload")
    output = prepare_output_dir(config.output_dir, "evaluate", config)
    i3d_file = find_weights(config.i3d, "i3d")
    # All splits: `Clips` chooses, and scores the one held out as well.
    folder = open_folder(config.data_dir, replace(config, split=None))
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.mixed_precision, device)
    pipeline = load_pipeline(config.pretrained_model_name_or_path, config.autoencoder, config.motion_transformer).to(
        device
    )
    pipeline.set_progress_bar_config(disable=True)
    size, factor = pipeline.autoencoder.config, vae_scale_factor(pipeline.vae)
    clips = Clips(folder, config, size.num_frames, size.sample_height * factor, size.sample_width * factor)
    autocast = (lambda: torch.autocast(device.type, dtype)) if dtype else nullcontext
    parts = Renderer(pipeline, clips, config, autocast).parts()
    precision = str(dtype or torch.float32)
    protocol = describe_protocol(config, clips, pipeline, i3d_file, precision, NUM_HALVINGS)

    i3d = load_i3d(i3d_file).to(device)
    stores: dict[str, PartStore] = {}
    with _progress() as progress:
        for part in parts:
            stores[part.name] = PartStore(output / "parts", part.name, part_protocol(part, protocol))
            wanted = clips.selected + (clips.heldout if part.name in ("real", "full") else [])
            wanted = [i for i in wanted if part.name == "real" or i in stores["real"]]
            _compute(part, wanted, clips, i3d, stores[part.name], config.batch_size, progress)
            if part.name == "real":
                _require_enough(clips, stores["real"])

    scores = {"parts": _score(parts, clips, stores), "protocol": protocol, "problems": clips.problems}
    scores["notes"] = _notes(scores["parts"])
    write_json(output / "scores.json", scores)
    _write_sheet(output / "sheet.png", parts, clips, stores)
    _print(scores, parts, output)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    return Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


def _compute(
    part: Part,
    indices: list[int],
    clips: Clips,
    i3d: InceptionI3d,
    store: PartStore,
    batch_size: int,
    progress: Progress,
) -> None:
    """Renders the clips that are not in the store yet and stores their features, errors and videos."""
    missing = [i for i in indices if i not in store]
    task = progress.add_task(part.title, total=len(indices), completed=len(indices) - len(missing))
    for batch, frames in clips.batches(missing, batch_size):
        videos = part.render(batch, frames)
        arrays = {"features": i3d_features(i3d, videos.permute(0, 1, 3, 4, 2)).numpy()}
        if part.compares:
            arrays["mse"] = mean_squared_error(videos, frames).numpy()
        if part.keep_videos:
            arrays["videos"] = videos.numpy()
        store.add(batch, **arrays)
        progress.advance(task, len(batch))


def _require_enough(clips: Clips, real: PartStore) -> None:
    good = sum(i in real for i in clips.selected)
    if good < 4:  # two in each half
        problem = f"; {clips.problems[0]}" if clips.problems else ""
        raise ValueError(f"{clips.folder.root}: FVD needs 4 clips or more, got {good}{problem}")


def _score(parts: list[Part], clips: Clips, stores: dict[str, PartStore]) -> dict[str, dict[str, float]]:
    """Every number of the table, by part."""
    good = [i for i in clips.selected if i in stores["real"]]
    heldout = [i for i in clips.heldout if i in stores["real"]]
    real = stores["real"].load("features", good)
    scores: dict[str, dict[str, float]] = {"real_halves": _halves(real)}
    for part in parts[1:]:
        features = stores[part.name].load("features", good)
        distance = frechet_distance(FrechetStatistics(features), FrechetStatistics(real))
        scores[part.name] = {"n": len(good), "fvd": distance}
        if part.compares:
            mse = torch.from_numpy(stores[part.name].load("mse", good))
            scores[part.name] |= {
                "psnr": (-10 * mse.log10()).clamp(max=MAX_PSNR).mean().item(),
                "psnr_of_mean_error": (-10 * mse.mean().log10()).clamp(max=MAX_PSNR).item(),
            }
    gallery, pixels = clips.read(good + heldout)
    for name, indices in (("full", good), ("heldout", heldout)):
        if indices:
            shares = _nearest(indices, gallery, clips, stores, pixels)
            scores.setdefault(name, {"n": len(indices)}).update(shares)
    return scores


def _halves(real: np.ndarray) -> dict[str, float]:
    """FVD between two halves of the real clips: what equal distributions score with so few clips."""
    draw, half = np.random.default_rng(0), len(real) // 2
    distances = []
    for _ in range(NUM_HALVINGS):
        order = draw.permutation(len(real))
        a, b = real[order[:half]], real[order[half : 2 * half]]
        distances.append(frechet_distance(FrechetStatistics(a), FrechetStatistics(b)))
    return {"n": half, "fvd": float(np.mean(distances)), "fvd_std": float(np.std(distances))}


def _nearest(
    indices: list[int], gallery: list[int], clips: Clips, stores: dict[str, PartStore], pixels: torch.Tensor
) -> dict[str, float]:
    """Shares of generated videos nearest to their caption's clip among the gallery's."""
    captions = [clips.caption(i) for i in indices], [clips.caption(i) for i in gallery]
    features = stores["full"].load("features", indices), stores["real"].load("features", gallery)
    return {
        "nearest_i3d": nearest_share(*features, *captions),
        "nearest_pixels": nearest_share(stores["full"].load("videos", indices), pixels, *captions),
        "nearest_among": len(gallery),
    }


def _notes(scores: dict[str, dict[str, float]]) -> list[str]:
    notes = [f"the two halves hold {scores['real_halves']['n']} clips each: fewer clips, higher FVD"]
    n = scores["reconstruction"]["n"]
    if n < NUM_CLASSES:
        notes.append(f"{n} clips are fewer than I3D's {NUM_CLASSES} dimensions: compare FVDs at this n only")
    return notes


def _write_sheet(path: Path, parts: list[Part], clips: Clips, stores: dict[str, PartStore]) -> None:
    """Real | reconstruction | generated, for clips spread evenly over the set."""
    good = [i for i in clips.selected if i in stores["real"]]
    picks = [good[k] for k in np.unique(np.linspace(0, len(good) - 1, SHEET_CLIPS).round().astype(int))]
    indices, frames = clips.read(picks)
    reconstruct = next(part.render for part in parts if part.name == "reconstruction")
    generated = torch.from_numpy(stores["full"].load("videos", indices))
    gap = torch.full((*frames.shape[:4], 2), 255, dtype=torch.uint8)
    rows = torch.cat([frames, gap, reconstruct(indices, frames), gap, generated], dim=4).permute(0, 1, 3, 4, 2)
    captions = [f"real | reconstruction | generated: {clips.caption(i)}" for i in indices]
    write_contact_sheet(path, list(rows.numpy()), captions, num_columns=4)


def _print(scores: dict[str, Any], parts: list[Part], output: Path) -> None:
    table = Table("", "clips", "FVD", "PSNR", "nearest\n(I3D)", "nearest\n(pixels)")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    cells = {"n": "d", "fvd": ".1f", "psnr": ".2f", "nearest_i3d": ".1%", "nearest_pixels": ".1%"}
    titles = {part.name: part.title for part in parts}
    titles |= {"heldout": "held-out captions, full", "real_halves": "two halves of the real clips"}
    for name, title in titles.items():
        if name in scores["parts"]:
            row = scores["parts"][name]
            table.add_row(title, *(format(row[key], form) if key in row else "" for key, form in cells.items()))
    console = Console()
    console.print(table)
    for line in scores["notes"] + scores["problems"]:
        console.print(line, style="yellow", markup=False)
    console.print(f"{output / 'scores.json'}  {output / 'sheet.png'}", markup=False)
