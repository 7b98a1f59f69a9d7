"""How far two sets of feature vectors are apart: KID's, FID's, precision's and recall's formulas, for any network.

Features are arrays [N, D], fp32 or fp64. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 1 << 24  # distances that are computed at once


class KernelDistance(NamedTuple):
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


def kernel_distance(
    x: np.ndarray, y: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID (Binkowski et al. 2018): the squared MMD of x [N, D] and y [M, D], over random subsets of each.

    The mean is an unbiased estimate, whatever N, M and `subset_size` are: it can be negative where the distributions
    are about the same. The standard deviation is that of a single subset's value, not of the mean.
    subset_size: without repetition within a subset; from 2 to the smaller of N and M. seed: of the choice.
    Raises ValueError for a size out of range or features that do not fit each other.
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
    """The unbiased estimate of the squared maximum mean discrepancy of the distributions that x [N, D] and y [M, D] are
    drawn from, with the kernel (x.y / D + 1)^3 (Gretton et al. 2012, equation 3; Binkowski et al. 2018, section 4).

    The kernel is computed in the dtype of the features, sums are fp64.
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
    """Of features [N, D]: their mean, fp64 [D], and R, fp64 [min(N, D), D], with R^T R their unbiased covariance."""

    mean: np.ndarray
    root: np.ndarray


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|mean x - mean y|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2)) of x [N, D] and y [M, D], S being their covariances.

    It is the Fréchet distance of two Gaussians (Dowson and Landau 1982, equation 4), which FID takes of Inception's
    features (Heusel et al. 2017). Its estimate is biased: the fewer samples, the larger. Compare only what comes from
    the same numbers of them.
    """
    _check(x, y)
    return gaussian_distance(gaussian_of(x), gaussian_of(y))


def gaussian_of(features: np.ndarray) -> Gaussian:
    """What `gaussian_distance` needs to know of features [N, D], N >= 2."""
    mean = features.mean(0, dtype=np.float64)
    return Gaussian(mean, np.linalg.qr(features - mean, mode="r") / math.sqrt(len(features) - 1))


def gaussian_distance(x: Gaussian, y: Gaussian) -> float:
    """The Fréchet distance of two Gaussians; see `frechet_distance`."""
    # With S = R^T R the eigenvalues of Sx Sy are the squared singular values of Rx Ry^T. Neither S nor its root, which
    # for fewer samples than features are singular, is formed: nothing loses half its digits.
    shared = np.linalg.svd(x.root @ y.root.T, compute_uv=False).sum()
    apart = np.square(x.mean - y.mean).sum()
    distance = apart + np.square(x.root).sum() + np.square(y.root).sum() - 2 * shared
    return max(0.0, float(distance))  # of equal sets it is 0 up to rounding


class PrecisionRecall(NamedTuple):
    """Shares, from 0 to 1."""

    precision: float
    recall: float


NEIGHBOURS = 3


def precision_recall(
    fake: np.ndarray, real: np.ndarray, *, neighbours: int = NEIGHBOURS, real_radii: np.ndarray | None = None
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equation 2) of features fake [N, D] and real [M, D].

    The manifold of a set is made of balls around its points, each as large as the distance to the point's k-th nearest
    neighbour in the set, k = `neighbours`. Precision is the share of fake points within the manifold of the real ones,
    recall the share of real points within that of the fake ones. Distances are computed in the dtype of the features.
    real_radii: `radii` of `real`, if they are known. Raises ValueError for sets of k points or fewer.
    """
    _check(fake, real)
    if real_radii is None:
        real_radii = radii(real, neighbours)
    fake_radii = radii(fake, neighbours)
    realistic, covered = 0, np.zeros(len(real), bool)
    for start, apart in _distances(fake, real):
        realistic += int((apart <= real_radii).any(1).sum())
        covered |= (apart <= fake_radii[start : start + len(apart), None]).any(0)
    return PrecisionRecall(realistic / len(fake), float(covered.mean()))


def radii(features: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """How far the k-th nearest of all others is from each of features [N, D]: [N]. Raises ValueError for N <= k."""
    if not 1 <= neighbours < len(features):
        raise ValueError(f"neighbours is {neighbours}, must be from 1 to {len(features) - 1}, the number of others")
    found = np.empty(len(features), features.dtype)
    for start, apart in _distances(features, features):
        rows = np.arange(len(apart))
        apart[rows, start + rows] = 0  # each from itself: nearest of all, also where rounding says otherwise
        found[start : start + len(apart)] = np.partition(apart, neighbours, axis=1)[:, neighbours]
    return found


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """[N, M] of x [N, D] and y [M, D] in blocks of rows, each with the number of its first."""
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
        raise ValueError(f"there are features of {len(x)} and {len(y)} images, must be of 2 at least")
