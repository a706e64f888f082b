"""Stored measures -> the numbers of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from contentmotion.evaluate.diversity import diversity
from contentmotion.evaluate.fvd import FrechetStatistics, extrapolated_distance, frechet_distance
from contentmotion.evaluate.i3d import NUM_CLASSES
from contentmotion.evaluate.lpips import LPIPS
from contentmotion.evaluate.parts import Part
from contentmotion.evaluate.retrieval import nearest, share_of_hits
from contentmotion.evaluate.store import PartStore

NUM_HALVINGS = 10  # random splits of the real clips into two halves, averaged
MAX_PSNR = 100.0  # of equal clips, whose PSNR is infinite
AVERAGES = ("ssim", "lpips", "clipsim", "frame_difference", "optical_flow")  # means over clips, where measured
CHUNK = 1000  # features at once
MIN_EXTRAPOLATED = 16  # clips
DIVERSITY_FRAMES = 4  # of each video, compared from seed to seed

Scores = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """A part, what was stored of it, and the clips that count.

    Attributes:
        part: What was rendered.
        store: Its measures.
        videos: The videos of some clips, to show.
        indices: The clips to score.
        heldout: Those of the split "heldout", which only some parts have.
        shown: Those of which the videos were kept.
    """

    part: Part
    store: PartStore
    videos: PartStore
    indices: list[int]
    heldout: list[int]
    shown: list[int]


def score(measured: list[Measured], lpips: LPIPS | None) -> dict[str, Scores]:
    """Every number of the table, by part. Of several seeds it is the mean, and NAME_std beside it their spread.

    Args:
        measured: The real clips first; a part with noise once per seed.
        lpips: For the diversity over seeds.
    """
    real = measured[0]
    statistics = {m.part.name: _statistics(m) for m in measured if m.part.seed is None}
    scores: dict[str, Scores] = {
        "real": _averages(real),
        "real_halves": halves(real.store.load("features", real.indices)),
    }
    per_seed: dict[str, list[Scores]] = {}
    neighbours = _Neighbours(real)
    for m in measured[1:]:
        own = statistics[m.part.name] if m.part.seed is None else _statistics(m)
        row = _averages(m) | _frechet(own, statistics[m.part.reference], m, real)
        if m.part.compares:
            mse = torch.from_numpy(m.store.load("mse", m.indices))
            row["psnr"] = (-10 * mse.log10()).clamp(max=MAX_PSNR).mean().item()
            row["psnr_of_mean_error"] = (-10 * mse.mean().log10()).clamp(max=MAX_PSNR).item()
        if m.part.from_caption:
            row |= neighbours.of(m, m.indices)
            if m.heldout:
                per_seed.setdefault("heldout", []).append(neighbours.of(m, m.heldout))
        per_seed.setdefault(m.part.name, []).append(row)
    scores |= {name: spread(rows) for name, rows in per_seed.items()}
    for name in {m.part.name for m in measured if m.part.from_caption}:
        seeds = [m for m in measured if m.part.name == name]
        if lpips is not None and len(seeds) > 1:
            scores[name]["diversity_lpips"] = _diversity(lpips, seeds)
    return scores


def _statistics(m: Measured) -> FrechetStatistics:
    statistics = FrechetStatistics()
    for start in range(0, len(m.indices), CHUNK):
        statistics.update(m.store.load("features", m.indices[start : start + CHUNK]))
    return statistics


def _averages(m: Measured) -> Scores:
    values: Scores = {"n": len(m.indices)}
    for name in AVERAGES:
        if m.store.has(name):
            values[name] = float(m.store.load(name, m.indices).mean())
    return values


def _frechet(own: FrechetStatistics, reference: FrechetStatistics, m: Measured, real: Measured) -> Scores:
    row = {"fvd": frechet_distance(own, reference)}
    n = min(len(m.indices), len(real.indices))
    if MIN_EXTRAPOLATED <= n < NUM_CLASSES and m.part.reference == "real":
        pair = (m.store.load("features", m.indices), real.store.load("features", real.indices))
        estimate = extrapolated_distance(*pair)
        row |= {"fvd_extrapolated": estimate.value, "fvd_extrapolated_error": estimate.standard_error}
    return row


def halves(real: np.ndarray) -> Scores:
    """FVD between two halves of the real clips: what equal distributions score with so few clips.

    Args:
        real: Features (n, d).
    """
    draw, half = np.random.default_rng(0), len(real) // 2
    distances = []
    for _ in range(NUM_HALVINGS):
        order = draw.permutation(len(real))
        a, b = real[order[:half]], real[order[half : 2 * half]]
        distances.append(frechet_distance(FrechetStatistics(a), FrechetStatistics(b)))
    return {"n": half, "fvd": float(np.mean(distances)), "fvd_std": float(np.std(distances))}


def spread(rows: list[Scores]) -> Scores:
    """Mean over seeds of every number, and their standard deviation (unbiased) where there are several."""
    if len(rows) == 1:
        return rows[0]
    merged: Scores = {"seeds": len(rows)}
    for key in rows[0]:
        values = [row[key] for row in rows]
        merged[key] = float(np.mean(values))
        if key not in ("n", "nearest_among"):
            merged[f"{key}_std"] = float(np.std(values, ddof=1))
    return merged


class _Neighbours:
    """Who among the real clips, held out or not, a generated video looks like."""

    def __init__(self, real: Measured) -> None:
        self.real, self.gallery = real, real.indices + real.heldout
        self.captions = [real.part.clips.caption(i) for i in self.gallery]
        self._own_distance: float | None = None

    def of(self, m: Measured, indices: list[int]) -> Scores:
        """Shares of videos nearest to their caption's clip, and how near they come."""
        captions = [m.part.clips.caption(i) for i in indices]
        by_features, _ = self._nearest(m, indices, "features")
        by_pixels, squares = self._nearest(m, indices, "thumbnails")
        pixels = m.store.load("thumbnails", indices[:1])[0].size
        scores: Scores = {
            "n": len(indices),
            "nearest_among": len(self.gallery),
            "nearest_rmse": (squares / pixels).sqrt().mean().item() / 255,
            "nearest_rmse_of_real": self._rmse_of_real(pixels),
        }
        if m.part.clips.captioned and self.real.part.clips.captioned:
            scores["nearest_i3d"] = share_of_hits(by_features, captions, self.captions)
            scores["nearest_pixels"] = share_of_hits(by_pixels, captions, self.captions)
        return scores

    def _nearest(self, m: Measured, indices: list[int], name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return nearest(m.store.load(name, indices), self.real.store.load(name, self.gallery))

    def _rmse_of_real(self, pixels: int) -> float:
        """The same distance from each real clip to its nearest other one: copies come closer than that."""
        if self._own_distance is None:
            own = self.real.store.load("thumbnails", self.gallery)
            squares = nearest(own, own, leave_one_out=True)[1]
            self._own_distance = (squares / pixels).sqrt().mean().item() / 255
        return self._own_distance


def closest_pairs(generated: Measured, real: Measured, count: int = 8) -> tuple[list[int], list[int], list[float]]:
    """The generated videos that are most like a real clip, by their thumbnails.

    Returns:
        Their indices, those of the real clips, and the root mean squared differences (0 to 1), smallest first.
    """
    gallery = real.indices + real.heldout
    queries = generated.store.load("thumbnails", generated.indices)
    where, squares = nearest(queries, real.store.load("thumbnails", gallery))
    order = squares.argsort()[:count].tolist()
    rmse = (squares / queries[0].size).sqrt() / 255
    return [generated.indices[k] for k in order], [gallery[where[k]] for k in order], rmse[order].tolist()


def _diversity(lpips: LPIPS, seeds: list[Measured]) -> float:
    values = []
    for index in seeds[0].shown:  # one prompt at a time: whole videos of several seeds are large
        videos = np.stack([m.videos.load("videos", [index]) for m in seeds])  # (s, 1, t, 3, h, w)
        channels_last = videos.transpose(0, 1, 2, 4, 5, 3)
        values.append(diversity(lpips, channels_last, num_frames=DIVERSITY_FRAMES).item())
    return float(np.mean(values))


def notes_on(scores: Mapping[str, Scores]) -> list[str]:
    """What a reader of the numbers should know."""
    notes = [f"the two halves hold {scores['real_halves']['n']} clips each: fewer clips, higher FVD"]
    n = min(int(row["n"]) for name, row in scores.items() if "fvd" in row or name == "real")
    if n < NUM_CLASSES:
        notes.append(f"{n} clips are fewer than I3D's {NUM_CLASSES} dimensions: compare FVDs at this n only")
    if any("fvd_extrapolated" in row for row in scores.values()):
        notes.append("extrapolated: FVD with part of the bias of few clips taken away")
    return notes
