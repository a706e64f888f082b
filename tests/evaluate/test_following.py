"""How well an output follows its condition: perfect, shifted, unrelated."""

import math

import pytest
import torch
from torch import Tensor

from contentmotion.data.maps import sketch_of
from contentmotion.evaluate.following import (
    depth_error,
    depth_rims,
    edge_scores,
    first_frame_psnr,
    known_region_psnr,
    outline_recall,
    sketch_following,
)


def square(left: int, size: int = 32) -> Tensor:
    """A bright square of 12 pixels on dark ground, uint8 (1, 2, 3, size, size)."""
    clip = torch.full((1, 2, 3, size, size), 20, dtype=torch.uint8)
    clip[..., 10:22, left : left + 12] = 220
    return clip


def test_lines_within_the_tolerance_are_met() -> None:
    lines = torch.zeros(1, 1, 1, 9, 9, dtype=torch.uint8)
    lines[..., 4] = 255
    for shift, tolerance, expected in ((0, 0, 1.0), (1, 0, 0.0), (1, 1, 1.0), (2, 1, 0.0), (2, 2, 1.0)):
        scores = edge_scores(lines, lines.roll(shift, dims=-1), tolerance)
        assert [value.item() for value in scores.values()] == [expected] * 3
    more = lines.clone()
    more[..., 0] = 255
    scores = edge_scores(lines, more)
    assert (scores["precision"].item(), scores["recall"].item()) == (0.5, 1.0)
    assert scores["f1"].item() == pytest.approx(2 / 3)
    empty = torch.zeros_like(lines)
    assert edge_scores(empty, empty)["f1"].item() == 1
    assert edge_scores(lines, empty)["f1"].item() == edge_scores(empty, lines)["f1"].item() == 0


def test_sketch_and_outline_of_the_right_video_score_best() -> None:
    sketch, depth = sketch_of(square(6)[0])[None], square(6)[:, :, :1]
    videos = torch.cat([square(6), square(14)])
    f1 = sketch_following(sketch.expand(2, -1, -1, -1, -1), videos)["f1"]
    assert f1[0] == 1 and f1[1] < 0.7
    recall = outline_recall(depth.expand(2, -1, -1, -1, -1), videos)
    assert recall[0] == 1 and recall[1] < 0.7
    assert outline_recall(torch.full_like(depth, 7), square(6)).item() == 1


def test_rims_are_where_depth_jumps() -> None:
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).expand(1, 1, 1, 16, 16).clone()
    assert not depth_rims(ramp).any()
    ramp[..., 8:] += 50
    assert depth_rims(ramp)[0, 0, 0].nonzero()[:, 1].unique().tolist() == [7]


def test_depth_error_does_not_see_scale() -> None:
    depth = torch.randint(256, (2, 3, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    depth[:, 0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    videos = depth.expand(-1, -1, 3, -1, -1)
    assert depth_error(depth, videos, lambda clip: clip[:, :1]).tolist() == [0, 0]
    assert depth_error(depth, videos, lambda clip: clip[:, :1] // 2).max() < 0.01
    assert depth_error(depth, videos, lambda clip: 255 - clip[:, :1]).min() > 0.4
    with pytest.raises(ValueError, match="two maps uint8"):
        depth_error(depth, videos, lambda clip: clip)


def test_what_was_to_be_kept() -> None:
    real = square(6)
    changed, mask = real.clone(), torch.zeros(1, 2, 1, 32, 32)
    changed[..., :4] = 255
    mask[..., :4] = 1
    assert known_region_psnr(changed, real, mask).item() == math.inf
    changed[..., 31] += 51  # one of 28 columns, a fifth of the range
    assert known_region_psnr(changed, real, mask).item() == pytest.approx(-10 * math.log10(0.04 / 28))
    assert math.isnan(known_region_psnr(changed, real, torch.ones_like(mask)).item())
    off = real.clone()
    off[:, 1:] = 0
    assert first_frame_psnr(off, real[:, :1]).item() == math.inf
    off[:, :1] += 1
    assert first_frame_psnr(off, real[:, :1]).item() == pytest.approx(20 * math.log10(255))
    with pytest.raises(ValueError, match="two videos"):
        known_region_psnr(real, real[:, :1], mask)
