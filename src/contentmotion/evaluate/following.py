"""How well videos follow what they were conditioned on; perfect scores are those of the clip a condition came from.

Maps are uint8 (b, t, 1, H, W) and videos uint8 (b, t, 3, H, W); what has another shape or type raises `ValueError`. The
numbers are one a clip, float64 (b,).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from contentmotion.data.maps import sketch_of

JUMP = 24  # grey levels of a depth map, between neighbours: more is the rim of a thing in front of another


def edge_scores(wanted: Tensor, found: Tensor, tolerance: int = 1) -> dict[str, Tensor]:
    """How well the lines (> 0) of two sketches agree, the given one and the output's, of each clip over all its frames.

    A line's pixel counts as met where the other sketch has one at most `tolerance` pixels away along both axes.

    Returns:
        "precision" (share of the found lines that are wanted), "recall" (share of the wanted lines that are found),
        "f1" (their harmonic mean). Where both sketches are empty all are 1; where one is, f1 is 0.
    """
    _require_maps(wanted, found)
    given, made = wanted > 0, found > 0
    precision = _share_met(made, _widened(given, tolerance))
    recall = _share_met(given, _widened(made, tolerance))
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    return {"precision": precision, "recall": recall, "f1": f1}


def sketch_following(sketch: Tensor, videos: Tensor) -> dict[str, Tensor]:
    """`edge_scores` between a given sketch and the sketch of an output."""
    return edge_scores(sketch.cpu(), torch.stack([sketch_of(video) for video in videos]))


def outline_recall(depth: Tensor, videos: Tensor) -> Tensor:
    """Which share of the rims in a given depth map the output has edges on, without any depth model; 1 without rims.

    Rims are those of `depth_rims`, and met as lines are in `edge_scores`, within a pixel. It says whether things are
    where they should be, and of the right outline; nothing of how near they look. Edges that are no rims (texture,
    shadows) are not counted against an output, so noise scores high: read it beside that of an unconditional sample.
    """
    found = torch.stack([sketch_of(video) for video in videos])
    _require_maps(depth, found)
    return _share_met(depth_rims(depth), _widened(found > 0, 1))


def depth_rims(depth: Tensor) -> Tensor:
    """The pixels whose right or lower neighbour's depth differs by more than `JUMP`, bool."""
    levels, rims = depth.int(), torch.zeros(depth.shape, dtype=torch.bool)
    rims[..., :-1] |= levels.diff(dim=-1).abs() > JUMP
    rims[..., :-1, :] |= levels.diff(dim=-2).abs() > JUMP
    return rims


def depth_error(depth: Tensor, videos: Tensor, estimate: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean absolute difference, in [0, 1], between a given depth map and the depth that is estimated of the output.

    Both are brought to [0, 1] per clip (its farthest place to its nearest), so a scale or offset does not count.
    `estimate` makes of a clip uint8 (t, 3, H, W) its depth uint8 (t, 1, H, W), 255 = near (`depth_of` with a model).
    """
    found = torch.stack([estimate(video) for video in videos])
    _require_maps(depth, found)
    return (_to_unit(depth) - _to_unit(found)).abs().flatten(1).mean(dim=1)


def known_region_psnr(videos: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """PSNR in dB over the part that a mask told to keep, of each clip.

    Args:
        videos: The outputs.
        real: The driving videos.
        mask: (b or 1, t, 1, H, W), nonzero where the output was to be made anew.

    Returns:
        inf where nothing differs, nan where nothing was to be kept.
    """
    if videos.dtype != torch.uint8 or videos.shape != real.shape or videos.ndim != 5:
        raise ValueError(f"two videos uint8 (b, t, 3, H, W), got {tuple(videos.shape)} and {tuple(real.shape)}")
    kept = (mask == 0).expand(len(videos), -1, -1, -1, -1).expand_as(videos)
    squares = (videos.double() - real.double()).square() / 255**2
    mse = (squares * kept).flatten(1).sum(dim=1) / kept.flatten(1).sum(dim=1)
    return -10 * mse.log10()


def first_frame_psnr(videos: Tensor, first_frames: Tensor) -> Tensor:
    """PSNR in dB between each output's frame 0 and the frame (b, 1, 3, H, W) it was to begin with; inf if equal."""
    return known_region_psnr(videos[:, :1], first_frames, torch.zeros(1, 1, 1, *videos.shape[-2:]))


def _widened(lines: Tensor, tolerance: int) -> Tensor:
    """Lines bool (b, t, 1, H, W), wider by so many pixels on every side."""
    brush = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    frames = lines.flatten(0, 2).to(torch.uint8).numpy()
    wide = np.stack([cv2.dilate(frame, brush) for frame in frames])
    return torch.from_numpy(wide).bool().view(lines.shape)


def _share_met(lines: Tensor, others: Tensor) -> Tensor:
    """Share of each clip's lines that lie on others'; without lines 1."""
    met, number = (lines & others).flatten(1).sum(dim=1).double(), lines.flatten(1).sum(dim=1)
    return torch.where(number > 0, met / number.clamp_min(1), 1.0)


def _to_unit(depth: Tensor) -> Tensor:
    values = depth.double()
    low, high = values.amin(dim=(1, 2, 3, 4), keepdim=True), values.amax(dim=(1, 2, 3, 4), keepdim=True)
    return (values - low) / (high - low).clamp_min(1)


def _require_maps(first: Tensor, second: Tensor) -> None:
    alike = first.shape == second.shape and first.dtype == second.dtype == torch.uint8
    if not alike or first.ndim != 5 or first.shape[2] != 1:
        got = " and ".join(f"{tuple(x.shape)} {x.dtype}" for x in (first, second))
        raise ValueError(f"two maps uint8 (b, t, 1, H, W), got {got}")
