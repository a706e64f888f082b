import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contentmotion.evaluate.fvd import FrechetStatistics, distance_of_features, extrapolated_distance, frechet_distance


def normal(seed: int, n: int, d: int = 6, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, (n, d))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(FrechetStatistics(a), FrechetStatistics(b))


@pytest.mark.parametrize("n", [3, 6, 50])
def test_identical_sets_are_at_zero(n: int) -> None:
    assert distance(normal(0, n), normal(0, n)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [4, 50])  # fewer features than dimensions, and more
def test_symmetric(n: int) -> None:
    a, b = normal(0, n), normal(1, n, mean=1, std=2)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)


def test_grows_with_noise() -> None:
    a = normal(0, 200)
    noise = normal(1, 200)
    distances = [distance(a, a + scale * noise) for scale in (0, 0.1, 0.3, 1, 3)]
    assert distances == sorted(distances)
    assert distances[1] > 1e-4


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_streaming_equals_batch(sizes: list[int], seed: int) -> None:
    features = normal(seed, sum(sizes) + 2, mean=100, std=0.1)
    stream = FrechetStatistics()
    for part in np.split(features, np.cumsum(sizes)):
        stream.update(torch.from_numpy(part))
    assert stream.n == len(features)
    np.testing.assert_allclose(stream.mean.numpy(), features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stream.cov.numpy(), np.cov(features, rowvar=False), rtol=1e-9, atol=1e-12)


def gaussian(mean: np.ndarray, cov: np.ndarray) -> FrechetStatistics:
    """Statistics of a sample whose mean and covariance are exactly these."""
    d = len(mean)
    steps = np.sqrt((2 * d - 1) / 2) * np.linalg.cholesky(cov).T
    return FrechetStatistics(mean + np.concatenate([steps, -steps]))


def test_closed_form_of_commuting_gaussians() -> None:
    # Diagonal covariances: the distance is that of the means plus that of the standard deviations.
    mean_a, mean_b = np.array([1.0, 2, 3]), np.array([0.0, 2, 5])
    std_a, std_b = np.array([1.0, 2, 3]), np.array([4.0, 2, 1])
    a, b = gaussian(mean_a, np.diag(std_a**2)), gaussian(mean_b, np.diag(std_b**2))
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_closed_form_in_two_dimensions() -> None:
    # For 2x2 matrices tr(sqrt(M)) = sqrt(tr M + 2 sqrt(det M)); these two do not commute.
    cov_a, cov_b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    product = cov_a @ cov_b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(cov_a) + np.trace(cov_b) - 2 * root
    a, b = gaussian(np.zeros(2), cov_a), gaussian(np.zeros(2), cov_b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_rank_deficient_sets_lose_nothing() -> None:
    # A rotation into more dimensions changes no distance, but leaves both covariances singular.
    a, b = normal(0, 20, d=4), normal(1, 20, d=4, mean=1)
    rotation = np.linalg.qr(normal(2, 300, d=300))[0][:4]
    assert distance(a @ rotation, b @ rotation) == pytest.approx(distance(a, b), rel=1e-10)


def test_equal_clips_have_no_spread() -> None:
    a, b = np.ones((3, 5)), np.zeros((2, 5))
    assert distance(a, b) == pytest.approx(5)


def test_bad_features_are_refused() -> None:
    statistics = FrechetStatistics(normal(0, 3))
    with pytest.raises(ValueError, match=r"must be \(n, 6\), got \(2, 5\)"):
        statistics.update(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="1 of 3 features are not finite"):
        statistics.update(np.where(np.arange(18).reshape(3, 6) == 4, np.nan, 0.0))
    assert statistics.n == 3
    with pytest.raises(ValueError, match="two features or more, got 1"):
        frechet_distance(statistics, FrechetStatistics(np.zeros((1, 6))))
    with pytest.raises(ValueError, match="different dimensions: 6 and 5"):
        frechet_distance(statistics, FrechetStatistics(normal(0, 3, d=5)))


def test_distance_of_few_features() -> None:
    """Fewer than their dimensions: the same number, and the same is refused."""
    a, b = normal(0, 20, d=40), normal(1, 9, d=40, mean=1)
    assert distance_of_features(a, b) == pytest.approx(distance(a, b), rel=1e-12)
    with pytest.raises(ValueError, match="1 of 20 features are not finite"):
        distance_of_features(np.where(np.arange(800).reshape(20, 40) == 4, np.nan, a), b)
    with pytest.raises(ValueError, match="two features or more, got 1"):
        distance_of_features(a, b[:1])
    with pytest.raises(ValueError, match="different dimensions: 40 and 39"):
        distance_of_features(a, b[:, :39])


@pytest.mark.parametrize(("n", "m"), [(24, 24), (60, 60), (60, 200), (150, 150)])
def test_extrapolation_is_closer_to_the_truth(n: int, m: int) -> None:
    # Gaussians of diagonal covariance, in 40 dimensions: n below and above that.
    std = np.arange(1, 41) ** -0.5
    truth = np.square(0.3 * std).sum() + np.square(0.2 * std).sum()
    errors = []
    for seed in range(4):
        a, b = normal(seed, n, d=40) * std, normal(100 + seed, m, d=40, mean=0.3, std=1.2) * std
        plain, extrapolated = distance(a, b), extrapolated_distance(a, b)
        assert extrapolated.distances[-1] == pytest.approx(plain)
        assert extrapolated.sizes[0] == n // 2 and extrapolated.sizes[-1] == n
        assert 0 < extrapolated.standard_error < plain
        errors.append((plain - truth, abs(extrapolated.value - truth)))
    plain_error, extrapolated_error = np.mean(errors, axis=0)
    assert extrapolated_error < 0.6 * plain_error


def test_extrapolation_depends_on_its_seed_only() -> None:
    a, b = normal(0, 30), normal(1, 20, mean=1)
    assert extrapolated_distance(a, b) == extrapolated_distance(torch.from_numpy(a), b)
    assert extrapolated_distance(a, b) != extrapolated_distance(a, b, seed=1)
    with pytest.raises(ValueError, match="8 features or more, got 7"):
        extrapolated_distance(a, b[:7])
