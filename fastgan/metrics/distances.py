"""Two distances between sets of feature vectors: KID's and FID's formulas, on features of any network.

Features are arrays [N, D], fp32 or fp64. Imports no torch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


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


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|mean x - mean y|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2)) of x [N, D] and y [M, D], S being their covariances.

    It is the Fréchet distance of two Gaussians (Dowson and Landau 1982, equation 4), which FID takes of Inception's
    features (Heusel et al. 2017). Its estimate is biased: the fewer samples, the larger. Compare only what comes from
    the same numbers of them.
    """
    _check(x, y)
    # With S = R^T R the eigenvalues of Sx Sy are the squared singular values of Rx Ry^T. Neither S nor its root, which
    # for fewer samples than features are singular, is formed: nothing loses half its digits.
    root_x, root_y = _covariance_root(x), _covariance_root(y)
    shared = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    apart = np.square(x.mean(0, dtype=np.float64) - y.mean(0, dtype=np.float64)).sum()
    distance = apart + np.square(root_x).sum() + np.square(root_y).sum() - 2 * shared
    return max(0.0, float(distance))  # of equal sets it is 0 up to rounding


def _covariance_root(features: np.ndarray) -> np.ndarray:
    """R, fp64 [min(N, D), D], with R^T R the unbiased covariance."""
    centered = features - features.mean(0, dtype=np.float64)
    return np.linalg.qr(centered, mode="r") / math.sqrt(len(features) - 1)


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features are {list(x.shape)} and {list(y.shape)}, must be [N, D] and [M, D]")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"there are features of {len(x)} and {len(y)} images, must be of 2 at least")
