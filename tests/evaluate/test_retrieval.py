import numpy as np
import pytest
import torch

from contentmotion.evaluate.retrieval import nearest, share_of_hits


def test_nearest_of_videos_by_distance() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (300, 2, 3, 3, 3), np.uint8), rng.integers(0, 256, (520, 2, 3, 3, 3), np.uint8)
    expected = ((a[:, None].astype(float) - b[None]) ** 2).sum(axis=(2, 3, 4, 5))
    where, squares = nearest(a, b)  # several chunks on both sides
    assert where.tolist() == expected.argmin(axis=1).tolist()
    torch.testing.assert_close(squares, torch.from_numpy(expected.min(axis=1)).float(), rtol=1e-5, atol=1e-2)


def test_leaving_oneself_out() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 4))
    expected = np.square(a[:, None] - a[None]).sum(axis=2) + np.diag(np.full(300, np.inf))
    where, squares = nearest(a, a, leave_one_out=True)
    assert where.tolist() == expected.argmin(axis=1).tolist()
    assert squares.min() > 0
    assert nearest(a, a)[0].tolist() == list(range(300))


def test_share_of_own_clips() -> None:
    gallery = np.array([[0.0, 0], [10, 0], [0, 10]])
    where, _ = nearest(np.array([[1.0, 1], [9, 0], [2, 1]]), gallery)  # the last is nearest to the first clip
    assert share_of_hits(where, ["a", "b", "c"], ["a", "b", "c"]) == pytest.approx(2 / 3)
    # Two clips may share a caption: either one counts.
    assert share_of_hits(where, ["a", "b", "a"], ["a", "b", "a"]) == 1


def test_near_clips_are_told_apart_in_pixels() -> None:
    # Bright clips that differ by a grey level in a corner: rounding of the sums of squares must not drown it.
    gallery = np.full((2, 16, 64, 64, 3), 250, np.uint8)
    gallery[1, :, :1, :1] = 249
    assert nearest(gallery, gallery)[0].tolist() == [0, 1]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different shapes: \(3,\) and \(4,\)"):
        nearest(np.zeros((2, 3)), np.zeros((2, 4)))
