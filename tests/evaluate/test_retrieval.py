import numpy as np
import pytest
import torch

from contentmotion.evaluate.retrieval import nearest_share, squared_distances


def test_distances_of_features_and_of_videos() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (300, 2, 3, 3, 3), np.uint8), rng.integers(0, 256, (5, 2, 3, 3, 3), np.uint8)
    expected = ((a[:, None].astype(float) - b[None]) ** 2).sum(axis=(2, 3, 4, 5))
    torch.testing.assert_close(squared_distances(a, b), torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(squared_distances(b, a), squared_distances(a, b).T)


def test_share_of_own_clips() -> None:
    gallery = np.array([[0.0, 0], [10, 0], [0, 10]])
    queries = np.array([[1.0, 1], [9, 0], [2, 1]])  # the last is nearest to the first clip
    assert nearest_share(queries, gallery, ["a", "b", "c"], ["a", "b", "c"]) == pytest.approx(2 / 3)
    # Two clips may share a caption: either one counts.
    assert nearest_share(queries, gallery, ["a", "b", "a"], ["a", "b", "a"]) == 1


def test_near_clips_are_told_apart_in_pixels() -> None:
    # Bright clips that differ by a grey level in a corner: rounding of the sums of squares must not drown it.
    gallery = np.full((2, 16, 64, 64, 3), 250, np.uint8)
    gallery[1, :, :1, :1] = 249
    assert nearest_share(gallery, gallery, ["a", "b"], ["a", "b"]) == 1


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different shapes: \(3,\) and \(4,\)"):
        squared_distances(np.zeros((2, 3)), np.zeros((2, 4)))
