"""Distances between sets of features: the formulas of KID, FID, precision, recall and memorisation, for any network.

Features are arrays [N, D], fp32 or fp64. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 1 << 24  # pairwise distances computed at once


class KernelDistance(NamedTuple):
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


def kernel_distance(
    x: np.ndarray, y: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID (Binkowski et al. 2018): mean of the squared MMD of x [N, D] and y [M, D] over random subsets of each.

    The mean is an unbiased estimate for any N, M and `subset_size`; it may be negative for similar distributions. The
    standard deviation is that of one subset's value, not of the mean.
    subset_size: drawn without replacement; from 2 to the smaller of N and M. seed: of the subsets.
    Raises ValueError for a size out of range, or for features of different lengths.
    """
    _check(x, y)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(f"subset_size is {subset_size}, must be from 2 to {min(len(x), len(y))}, the smaller set")
    if subsets < 1:
        raise ValueError(f"subsets is {subsets}, must be at least 1")
    rng = np.random.default_rng(seed)
    choose = lambda features: features[rng.choice(len(features), subset_size, replace=False)]
    values = [squared_mmd(choose(x), choose(y)) for _ in range(subsets)]
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy between the distributions of x [N, D] and y [M, D].

    The kernel is (x.y / D + 1)^3 (Gretton et al. 2012, equation 3; Binkowski et al. 2018, section 4), computed in the
    dtype of the features; sums are fp64.
    """
    _check(x, y)
    within = [(k.sum(dtype=np.float64) - np.trace(k, dtype=np.float64)) for k in (_kernel(x, x), _kernel(y, y))]
    n, m = len(x), len(y)
    between = _kernel(x, y).mean(dtype=np.float64)
    return float(within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2 * between)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    k = x @ y.T
    k /= x.shape[1]
    k += 1
    return k * k * k


class Gaussian(NamedTuple):
    """Gaussian fitted to features [N, D]: the mean, fp64 [D], and R, fp64 [min(N, D), D], where R^T R is the unbiased
    covariance."""

    mean: np.ndarray
    root: np.ndarray


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to x [N, D] and y [M, D]; with features of Inception it is FID.

    |mean x - mean y|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2)) with the covariances S (Dowson and Landau 1982, equation 4;
    Heusel et al. 2017). The estimate is biased: fewer samples give larger values. Compare only values from the same
    numbers of samples.
    """
    _check(x, y)
    return gaussian_distance(fit_gaussian(x), fit_gaussian(y))


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Fit a Gaussian to features [N, D], N >= 2."""
    mean = features.mean(0, dtype=np.float64)
    root = np.asarray(np.linalg.qr(features - mean, mode="r"))
    return Gaussian(mean, root / math.sqrt(len(features) - 1))


def gaussian_distance(x: Gaussian, y: Gaussian) -> float:
    """The Fréchet distance of two Gaussians; see `frechet_distance`."""
    # With S = R^T R the eigenvalues of Sx Sy are the squared singular values of Rx Ry^T. Forming S or its root, which
    # are singular for fewer samples than features, would lose half of the digits.
    shared = np.linalg.svd(x.root @ y.root.T, compute_uv=False).sum()
    apart = np.square(x.mean - y.mean).sum()
    distance = apart + np.square(x.root).sum() + np.square(y.root).sum() - 2 * shared
    return max(0.0, float(distance))  # equal sets give 0 up to rounding


class PrecisionRecall(NamedTuple):
    """Fractions, from 0 to 1."""

    precision: float
    recall: float


NEIGHBOURS = 3


def precision_recall(
    fake: np.ndarray, real: np.ndarray, *, neighbours: int = NEIGHBOURS, real_radii: np.ndarray | None = None
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equation 2) of features fake [N, D] and real [M, D].

    The manifold of a set is the union of balls around its points; a ball's radius is the distance to the point's k-th
    nearest neighbour in the set, k = `neighbours`. Precision is the fraction of fake points in the manifold of the real
    ones, recall the fraction of real points in the manifold of the fake ones. Distances have the features' dtype.
    real_radii: `neighbour_radii(real)` if known already. Raises ValueError for sets of k points or fewer.
    """
    _check(fake, real)
    if real_radii is None:
        real_radii = neighbour_radii(real, neighbours)
    fake_radii = neighbour_radii(fake, neighbours)
    realistic, covered = 0, np.zeros(len(real), bool)
    for start, apart in _distances(fake, real):
        realistic += int((apart <= real_radii).any(1).sum())
        covered |= (apart <= fake_radii[start : start + len(apart), None]).any(0)
    return PrecisionRecall(realistic / len(fake), float(covered.mean()))


def neighbour_radii(features: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Distance of each of the features [N, D] to its k-th nearest neighbour: [N]. Raises ValueError for N <= k."""
    if not 1 <= neighbours < len(features):
        raise ValueError(f"neighbours is {neighbours}, must be from 1 to {len(features) - 1}, the number of others")
    found = np.empty(len(features), features.dtype)
    for start, apart in _distances(features, features):
        rows = np.arange(len(apart))
        apart[rows, start + rows] = 0  # the distance to itself, exactly
        found[start : start + len(apart)] = np.partition(apart, neighbours, axis=1)[:, neighbours]
    return found


class Memorisation(NamedTuple):
    """How near images are to the training images, beside images that were not trained on.

    nearer: fraction of the images that are nearer to a training image than all but `QUANTILE` of the others.
    median, median_of_others: distances to the nearest training image.
    """

    nearer: float
    median: float
    median_of_others: float


QUANTILE = 0.05


def memorisation(fake: np.ndarray, train: np.ndarray, others: np.ndarray | None = None) -> Memorisation:
    """Whether fake images, features [N, D], are nearer to the training images, [M, D], than new ones are, [K, D].

    Images of the same distribution would have `nearer` near `QUANTILE`; copies make it larger. The comparison is that
    of Meehan et al. 2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models" (section 3), with a
    quantile for its rank test.
    others: images that were not trained on. None: each training image, whose distance is that to the nearest other one.
        Raises ValueError for features of different lengths.
    """
    _check(fake, train)
    of_fake = nearest(fake, train)
    if others is None:
        of_others = neighbour_radii(train, 1)
    else:
        _check(others, train)
        of_others = nearest(others, train)
    nearer = float((of_fake < np.quantile(of_others, QUANTILE)).mean())
    return Memorisation(nearer, float(np.median(of_fake)), float(np.median(of_others)))


def nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of each of the features x [N, D] to the nearest of y [M, D]: [N]."""
    return np.concatenate([apart.min(1) for _, apart in _distances(x, y)])


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Distances [N, M] between x [N, D] and y [M, D] in blocks of rows, each with the number of its first row."""
    center = y.mean(0, dtype=np.float64).astype(y.dtype)  # |x|^2 + |y|^2 - 2 x.y cancels less near the origin
    x, y = x - center, y - center
    squares = np.square(y).sum(1)
    rows = max(1, BLOCK // len(y))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        block = part @ y.T
        block *= -2
        block += np.square(part).sum(1)[:, None]
        block += squares
        yield start, np.sqrt(np.maximum(block, 0, out=block), out=block)


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features are {list(x.shape)} and {list(y.shape)}, must be [N, D] and [M, D]")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"there are features of {len(x)} and {len(y)} images, must be at least 2")
