"""Frechet distance between feature sets, in float64 and in memory independent of the number of videos.

Source: Unterthiner et al. 2018 (arXiv 1812.01717); the distance is Dowson & Landau 1982's between Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NUM_SIZES = 15  # subset sizes of the extrapolation, evenly spaced, as in its paper


class FrechetStatistics:
    """Running mean and covariance of features.

    Source: Chan, Golub & LeVeque 1983, Eq. 2.1 (merging the moments of two samples).
    """

    def __init__(self, features: np.ndarray | Tensor | None = None) -> None:
        self.n = 0
        self.mean = torch.zeros(0, dtype=torch.float64)  # (d,)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # sum of (x - mean)(x - mean)^T
        if features is not None:
            self.update(features)

    def update(self, features: np.ndarray | Tensor) -> None:
        """Add features (n, d), n >= 0; the same d in every call.

        Raises:
            ValueError: Another shape, or a value that is not finite.
        """
        x = torch.as_tensor(features).to("cpu", torch.float64)
        if x.ndim != 2 or (self.n and x.shape[1] != len(self.mean)):
            expected = f"(n, {len(self.mean)})" if self.n else "(n, d)"
            raise ValueError(f"features must be {expected}, got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            bad = int((~x.isfinite()).any(dim=1).sum())
            raise ValueError(f"{bad} of {len(x)} features are not finite")
        if not len(x):
            return
        mean = x.mean(dim=0)
        centred = x - mean
        scatter = centred.T @ centred
        if self.n:
            delta, total = mean - self.mean, self.n + len(x)
            scatter += self._scatter + torch.outer(delta, delta) * (self.n * len(x) / total)
            mean = self.mean + delta * (len(x) / total)
        self.n, self.mean, self._scatter = self.n + len(x), mean, scatter

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance, float64 (d, d).

        Raises:
            ValueError: Fewer than two features.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs two features or more, got {self.n}")
        return self._scatter / (self.n - 1)


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """Squared Frechet (2-Wasserstein) distance between the Gaussians of two feature sets.

    ``|mean_a - mean_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^1/2)``. With ``C = F F^T``, the last trace
    is the sum of the singular values of ``F_a^T F_b``: no root of a noisy product, so fewer features than
    dimensions do no harm (the usual matrix square root is off by 6e-6 for 128 clips).

    Raises:
        ValueError: Fewer than two features in a set, or different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of different dimensions: {len(a.mean)} and {len(b.mean)}")
    cov_a, cov_b = a.cov, b.cov
    cross = torch.linalg.svdvals(_factor(cov_a).T @ _factor(cov_b)).sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))  # rounding can put equal sets at -1e-13


def distance_of_features(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> float:
    """`frechet_distance` of features (n, d) and (m, d), faster where they are fewer than their dimensions.

    Centred features are a factor of their covariance, ``C = X^T X / (n - 1)``, so the cross term needs the singular
    values of an (n, m) matrix alone.

    Raises:
        ValueError: Features that are no matrix or not finite, or what `frechet_distance` refuses.
    """
    a, b = (torch.as_tensor(x).to("cpu", torch.float64) for x in (a, b))
    statistics = FrechetStatistics(a), FrechetStatistics(b)
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1] or max(len(a), len(b)) >= a.shape[1]:
        return frechet_distance(*statistics)  # few or unlike ones are refused there
    factor_a, factor_b = ((x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    traces = factor_a.square().sum() + factor_b.square().sum()
    cross = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    return max(0.0, float((a.mean(dim=0) - b.mean(dim=0)).square().sum() + traces - 2 * cross))


@dataclass(frozen=True)
class Extrapolation:
    """A distance extrapolated to infinitely many videos.

    Attributes:
        value: The intercept of the fit; may be slightly negative for equal distributions.
        standard_error: Of the intercept, from the fit's residuals. The subsets overlap and the bias is not quite
            linear, so it is a lower bound of the uncertainty.
        sizes: Features per subset of the first set.
        distances: Frechet distance of the subsets of each size.
    """

    value: float
    standard_error: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def extrapolated_distance(a: np.ndarray | Tensor, b: np.ndarray | Tensor, *, seed: int = 0) -> Extrapolation:
    """Frechet distance between features (n, d) and (m, d) without most of the bias of small sets: FVD-infinity.

    The plain distance of n videos is too large by about c / n. This draws random subsets of both sets at once, from
    half of each to all, fits a line in 1 / n and returns where it meets 1 / n = 0. Above the features' dimension the
    bias nearly goes; below it, it gets smaller, but the value is still too large.

    Source: Chong & Forsyth 2020 (arXiv 1911.07023), section 3.2; they shrink the generated set only, because their
    real set is large.

    Raises:
        ValueError: Fewer than 8 features in a set, or what `frechet_distance` refuses.
    """
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if min(len(a), len(b)) < 8:
        raise ValueError(f"an extrapolation needs 8 features or more, got {min(len(a), len(b))}")
    random = np.random.default_rng(seed)
    fractions = np.linspace(0.5, 1, NUM_SIZES)
    sizes, distances = [], []
    for fraction in fractions:
        subsets = [x[random.permutation(len(x))[: round(fraction * len(x))]] for x in (a, b)]
        sizes.append(len(subsets[0]))
        distances.append(distance_of_features(*subsets))
    design = np.stack([np.ones(NUM_SIZES), 1 / fractions], axis=1)
    coefficients = np.linalg.lstsq(design, np.array(distances))[0]
    variance = np.square(design @ coefficients - distances).sum() / (NUM_SIZES - 2)
    error = np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0])
    return Extrapolation(float(coefficients[0]), float(error), tuple(sizes), tuple(distances))


def _factor(cov: Tensor) -> Tensor:
    """F with F F^T = cov, (d, rank)."""
    values, vectors = torch.linalg.eigh(cov)
    # Eigenvalues of rounding error's size are zeros of a rank-deficient matrix; their roots are not small.
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
