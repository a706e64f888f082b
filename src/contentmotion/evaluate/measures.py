"""The metrics, one row each in `MEASURES`: what is computed of every clip, and which numbers come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from contentmotion.config import EvaluateConfig
from contentmotion.config.use import Resize
from contentmotion.data.maps import depth_of, load_depth_model
from contentmotion.evaluate.clipsim import clip_similarity, load_clip
from contentmotion.evaluate.following import (
    depth_error,
    first_frame_psnr,
    known_region_psnr,
    outline_recall,
    sketch_following,
)
from contentmotion.evaluate.fvd import (
    FrechetStatistics,
    distance_of_features,
    extrapolated_distance,
    frechet_distance,
)
from contentmotion.evaluate.i3d import NUM_CLASSES, i3d_features, load_i3d
from contentmotion.evaluate.lpips import diversity, load_lpips, lpips_distance
from contentmotion.evaluate.pixel_metrics import (
    MAX_PSNR,
    THUMBNAIL_FRAMES,
    THUMBNAIL_SIZE,
    frame_difference,
    mean_squared_error,
    optical_flow,
    ssim,
)
from contentmotion.evaluate.renditions import Rendition
from contentmotion.evaluate.retrieval import nearest, share_of_hits
from contentmotion.evaluate.store import RenditionStore
from contentmotion.evaluate.weights import find_weights

NUM_HALVINGS = 10  # random splits of the real clips into two halves, averaged
CHUNK = 1000  # features at once
MIN_EXTRAPOLATED = 16  # clips
DIVERSITY_FRAMES = 4  # of each video, compared from seed to seed

Scores = dict[str, float]


class Networks:
    """The networks that measure.

    Raises:
        FileNotFoundError: Weights that were named are not there, or no I3D weights were given.
        ValueError: Weights of another network.
    """

    def __init__(self, config: EvaluateConfig, device: torch.device) -> None:
        self.i3d_file = find_weights(config.i3d, "i3d")
        self.lpips_file = find_weights(config.lpips, "lpips", required=False)
        self.i3d = load_i3d(self.i3d_file).to(device)
        self.lpips = load_lpips(self.lpips_file).to(device) if self.lpips_file else None
        self.clip = load_clip(config.clip, device) if config.clip else None
        self.depth_model = load_depth_model(config.depth_model, device) if config.depth_model else None
        self.resolution = config.fvd_resolution
        self.resize: Resize = config.fvd_resize or "bilinear"


@dataclass(frozen=True)
class Batch:
    """Videos of a rendition, and what they are measured against and with."""

    videos: UInt8[Tensor, "b t h w 3"]
    networks: Any  # a `Networks` that has those that a measure needs
    real: UInt8[Tensor, "b t h w 3"]  # the clips that they were made of
    captions: Sequence[str]  # what they should show, one each
    conditions: Mapping[str, Tensor]  # what they should follow, by name (see `Conditions.of`)

    @property
    def frames(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The videos, channels first."""
        return self.videos.permute(0, 1, 4, 2, 3)


@dataclass
class Measured:
    """A rendition, what was stored of it, and the clips that count."""

    rendition: Rendition
    networks: Networks
    store: RenditionStore  # the measures of its clips
    videos: RenditionStore  # those of some clips, to show
    indices: list[int]  # the clips to score
    heldout: list[int]  # those of the split "heldout", which only some renditions have
    shown: list[int]  # those of which the videos were kept
    real: Measured | None = None  # the real clips; None: these are the real ones
    reference: Measured | None = None  # what its distribution is compared with; None of the real clips
    seeds: list[Measured] = field(default_factory=list)  # the same rendition of each seed, itself among them

    def values(self, name: str, indices: list[int] | None = None) -> np.ndarray:
        """The rows of a measure, of the clips to score when no others are named."""
        return self.store.load(name, self.indices if indices is None else indices)

    def offers(self) -> set[str]:
        """What a measure that is made of others may need of it."""
        offers = offered(self.rendition, self.networks)
        offers |= per_clip(offers).keys()
        offers |= {"reference"} if self.reference is not None else set()
        offers |= {"from_caption"} if self.rendition.from_caption else set()
        return offers | ({"seeds"} if len(self.seeds) > 1 else set())

    @cached_property
    def statistics(self) -> FrechetStatistics:
        """Mean and covariance of the features."""
        statistics = FrechetStatistics()
        for start in range(0, len(self.indices), CHUNK):
            statistics.update(self.values("features", self.indices[start : start + CHUNK]))
        return statistics

    @property
    def gallery(self) -> list[int]:
        """Real clips that a video is looked for among: held-out ones, too."""
        return self.indices + self.heldout

    @cached_property
    def nearest_rmse(self) -> float:
        """Of real clips: root mean squared difference to the nearest other one; copies come closer than that."""
        own = self.values("thumbnails", self.gallery)
        return rmse(nearest(own, own, leave_one_out=True)[1], own[0].size).mean().item()


class Column(NamedTuple):
    """A column of the table."""

    heading: str  # perhaps with a line break
    format: str  # of its numbers (see ``format``)


def mean(m: Measured, name: str) -> Scores:
    """The mean over clips of a measure's rows."""
    return {name: float(m.values(name).mean())}


@dataclass(frozen=True)
class Measure:
    """A metric.

    Attributes:
        name: Key of its number in scores.json, and of its rows on disk.
        needs: What there must be for it. For `of`: "real" (clips that the videos should equal), "captions", a condition
            ("depth", "sketch", "mask", "first_frame"), networks ("i3d", "lpips", "clip", "depth_model"). For `average`
            alone: besides these the names of other measures' rows, "reference" (another rendition's), "from_caption",
            "seeds" (several).
        of: A batch of videos -> one row a clip (b, ...), kept on disk; None: it is made of other measures' rows.
        average: What was stored, and `name` -> the numbers of scores.json; None: the rows are for others. Of several
            seeds each number becomes a mean, with its deviation as NAME_std; what needs "seeds" is called once for all.
        column: Where the table shows it; None: nowhere.
    """

    name: str
    needs: tuple[str, ...] = ()
    of: Callable[[Batch], Tensor] | None = None
    average: Callable[[Measured, str], Scores] | None = mean
    column: Column | None = None


def offered(rendition: Rendition, networks: Networks) -> set[str]:
    """What a measure of this rendition's clips may need."""
    offers = {name for name in ("i3d", "lpips", "clip", "depth_model") if getattr(networks, name) is not None}
    offers |= set(rendition.follows)
    offers |= {"real"} if rendition.compares else set()
    return offers | ({"captions"} if rendition.clips.captioned else set())


def per_clip(offers: set[str]) -> dict[str, Callable[[Batch], Tensor]]:
    """What is computed of every clip, by name, where there is no more than this to need."""
    return {measure.name: measure.of for measure in MEASURES if measure.of and offers.issuperset(measure.needs)}


def columns() -> dict[str, Column]:
    """The table's columns by key in scores.json, in order."""
    shown = {measure.name: measure.column for measure in MEASURES if measure.column is not None}
    return {"n": Column("clips", ".0f")} | shown


def score(measured: list[Measured]) -> dict[str, Scores]:
    """Every number of the table, by rendition: of the real clips, which come first, and the others once per seed.

    Of several seeds it is the mean, and NAME_std beside it their spread.
    """
    real = measured[0]
    scores: dict[str, Scores] = {"real": _row(real), "real_halves": halves(real.values("features"))}
    per_seed: dict[str, list[Scores]] = {}
    for m in measured[1:]:
        if m.heldout:
            among = replace(m, indices=m.heldout, heldout=[])
            per_seed.setdefault("heldout", []).append(_row(among, only="from_caption"))
        per_seed.setdefault(m.rendition.name, []).append(_row(m))
    scores |= {name: spread(rows) for name, rows in per_seed.items()}
    for m in measured[1:]:
        if len(m.seeds) > 1 and m is m.seeds[0]:
            scores[m.rendition.name] |= _row(m, only="seeds")
    return scores


def _row(m: Measured, only: str | None = None) -> Scores:
    """Numbers of the measures that need no more than there is; `only`: of those that need this."""
    offers = m.offers() if only == "seeds" else m.offers() - {"seeds"}
    row: Scores = {} if only == "seeds" else {"n": len(m.indices)}
    for measure in MEASURES:
        possible = offers.issuperset(measure.needs) and only in (None, *measure.needs)
        if measure.average is not None and possible:
            row |= measure.average(m, measure.name)
    return row


def halves(real: Float[np.ndarray, "n d"]) -> Scores:
    """FVD between two halves of the real clips, by their features: what equal distributions score with so few clips."""
    draw, half = np.random.default_rng(0), len(real) // 2
    distances = []
    for _ in range(NUM_HALVINGS):
        order = draw.permutation(len(real))
        distances.append(distance_of_features(real[order[:half]], real[order[half : 2 * half]]))
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


def notes_on(scores: Mapping[str, Scores]) -> list[str]:
    """What a reader of the numbers should know."""
    notes = [f"the two halves hold {scores['real_halves']['n']} clips each: fewer clips, higher FVD"]
    n = min(int(row["n"]) for name, row in scores.items() if "fvd" in row or name == "real")
    if n < NUM_CLASSES:
        notes.append(f"{n} clips are fewer than I3D's {NUM_CLASSES} dimensions: compare FVDs at this n only")
    if any("fvd_extrapolated" in row for row in scores.values()):
        notes.append("extrapolated: FVD with part of the bias of few clips taken away")
    return notes


def thumbnails(videos: UInt8[Tensor, "b t h w 3"]) -> UInt8[Tensor, "b s y x 3"]:
    """Small versions of clips, by which their pixels are compared: at most 8 frames of 32x32, averaged over areas."""
    b, t, h, w, _ = videos.shape
    picks = torch.linspace(0, t - 1, min(t, THUMBNAIL_FRAMES)).round().long()
    frames = videos[:, picks].flatten(0, 1).permute(0, 3, 1, 2).float()
    small = F.interpolate(frames, (min(h, THUMBNAIL_SIZE), min(w, THUMBNAIL_SIZE)), mode="area")
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).unflatten(0, (b, len(picks)))


def rmse(squares: Tensor, pixels: int) -> Tensor:
    """Sums of squared differences of so many bytes -> root mean squares in units of the full range."""
    return (squares / pixels).sqrt() / 255


def _features(batch: Batch) -> Tensor:
    networks = batch.networks
    return i3d_features(networks.i3d, batch.videos, resolution=networks.resolution, resize=networks.resize)


def _fvd(m: Measured, name: str) -> Scores:
    assert m.reference is not None
    return {name: frechet_distance(m.statistics, m.reference.statistics)}


def _extrapolated_fvd(m: Measured, name: str) -> Scores:
    assert m.real is not None
    if m.reference is not m.real or not MIN_EXTRAPOLATED <= min(len(m.indices), len(m.real.indices)) < NUM_CLASSES:
        return {}
    estimate = extrapolated_distance(m.values("features"), m.real.values("features"))
    return {name: estimate.value, f"{name}_error": estimate.standard_error}


def _psnr(m: Measured, name: str) -> Scores:
    mse = torch.from_numpy(m.values("mse"))
    return {
        name: (-10 * mse.log10()).clamp(max=MAX_PSNR).mean().item(),
        f"{name}_of_mean_error": (-10 * mse.mean().log10()).clamp(max=MAX_PSNR).item(),
    }


def _share_nearest(m: Measured, name: str, rows: str) -> Scores:
    """Share of videos whose nearest real clip, by these rows, has the caption that they were made from."""
    assert m.real is not None
    real, clips, real_clips = m.real, m.rendition.clips, m.real.rendition.clips
    if not real_clips.captioned:
        return {}
    where, _ = nearest(m.values(rows), real.values(rows, real.gallery))
    captions = [clips.caption(i) for i in m.indices]
    return {name: share_of_hits(where, captions, [real_clips.caption(i) for i in real.gallery])}


def _nearest_distance(m: Measured, name: str) -> Scores:
    assert m.real is not None
    queries = m.values("thumbnails")
    _, squares = nearest(queries, m.real.values("thumbnails", m.real.gallery))
    return {
        f"{name}_among": len(m.real.gallery),
        f"{name}_rmse": rmse(squares, queries[0].size).mean().item(),
        f"{name}_rmse_of_real": m.real.nearest_rmse,
    }


def _diversity(m: Measured, name: str) -> Scores:
    assert m.networks.lpips is not None
    values = []
    for index in m.shown:  # one prompt at a time: whole videos of several seeds are large
        videos = np.stack([seed.videos.load("videos", [index]) for seed in m.seeds])  # (s, 1, t, 3, h, w)
        channels_last = videos.transpose(0, 1, 2, 4, 5, 3)
        values.append(diversity(m.networks.lpips, channels_last, num_frames=DIVERSITY_FRAMES).item())
    return {name: float(np.mean(values))}


def _depth_error(batch: Batch) -> Tensor:
    return depth_error(batch.conditions["depth"], batch.frames, lambda x: depth_of(x, batch.networks.depth_model))


def _kept_psnr(batch: Batch) -> Tensor:
    psnr = known_region_psnr(batch.frames, batch.real.permute(0, 1, 4, 2, 3), batch.conditions["mask"])
    return psnr.clamp(max=MAX_PSNR)


# Adding a row from anywhere puts its number into scores.json.
MEASURES: list[Measure] = [
    Measure("features", ("i3d",), _features, None),
    Measure("thumbnails", (), lambda batch: thumbnails(batch.videos), None),
    Measure("fvd", ("features", "reference"), None, _fvd, Column("FVD", ".1f")),
    Measure(
        "fvd_extrapolated", ("features", "reference"), None, _extrapolated_fvd, Column("extra-\npolated", ".0f")
    ),
    Measure("mse", ("real",), lambda batch: mean_squared_error(batch.videos, batch.real), None),
    Measure("psnr", ("mse",), None, _psnr, Column("PSNR", ".2f")),
    Measure("ssim", ("real",), lambda batch: ssim(batch.videos, batch.real), column=Column("SSIM", ".3f")),
    Measure(
        "lpips", ("real", "lpips"), lambda batch: lpips_distance(batch.networks.lpips, batch.videos, batch.real),
        column=Column("LPIPS", ".3f"),
    ),
    Measure(
        "clipsim", ("captions", "clip"),
        lambda batch: clip_similarity(batch.networks.clip, batch.videos, batch.captions),
        column=Column("CLIPSIM", ".4f"),
    ),
    Measure("depth_error", ("depth", "depth_model"), _depth_error, column=Column("depth\nerror", ".3f")),
    Measure(
        "depth_outline", ("depth",), lambda batch: outline_recall(batch.conditions["depth"], batch.frames),
        column=Column("depth\noutline", ".3f"),
    ),
    Measure(
        "sketch_f1", ("sketch",), lambda batch: sketch_following(batch.conditions["sketch"], batch.frames)["f1"],
        column=Column("sketch\nF1", ".3f"),
    ),
    Measure("kept_psnr", ("mask",), _kept_psnr, column=Column("kept\nPSNR", ".2f")),
    Measure(
        "first_frame_psnr", ("first_frame",),
        lambda batch: first_frame_psnr(batch.frames, batch.conditions["first_frame"]).clamp(max=MAX_PSNR),
        column=Column("frame 0\nPSNR", ".2f"),
    ),
    Measure("frame_difference", (), lambda batch: frame_difference(batch.videos)),
    Measure("optical_flow", (), lambda batch: optical_flow(batch.videos), column=Column("flow\n(px)", ".2f")),
    Measure(
        "diversity_lpips", ("lpips", "from_caption", "seeds"), None, _diversity, Column("diversity\n(LPIPS)", ".3f")
    ),
    Measure("nearest", ("thumbnails", "from_caption"), None, _nearest_distance),
    Measure(
        "nearest_i3d", ("features", "captions", "from_caption"), None,
        partial(_share_nearest, rows="features"), Column("nearest\n(I3D)", ".1%"),
    ),
    Measure(
        "nearest_pixels", ("thumbnails", "captions", "from_caption"), None,
        partial(_share_nearest, rows="thumbnails"), Column("nearest\n(pixels)", ".1%"),
    ),
]  # fmt: skip
