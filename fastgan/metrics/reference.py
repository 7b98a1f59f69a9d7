"""Real images that samples are compared with, and other real images that give the best value a metric can reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgan.data import ImageDataset
from fastgan.data.cache import load_or_compute
from fastgan.distributed import Ranks
from fastgan.metrics.distances import (
    Gaussian,
    KernelDistance,
    PrecisionRecall,
    fit_gaussian,
    gaussian_distance,
    kernel_distance,
    neighbour_radii,
    precision_recall,
)
from fastgan.metrics.features import FeatureExtractor, cache_key, extract_features
from fastgan.metrics.registry import METRICS

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance; as Binkowski et al. 2018


@dataclass(frozen=True)
class ImageSubset:
    """Images of a data set."""

    dataset: ImageDataset
    index: np.ndarray  # int64 [N], ascending
    name: str  # description for results

    def features(
        self,
        extractor: FeatureExtractor,
        *,
        ranks: Ranks | None = None,
        progress: bool = True,
        cache_dir: Path | None = None,
    ) -> np.ndarray | None:
        """Features [N, D]; see `extract_features`."""
        return extract_features(
            self.dataset, self.index, extractor, ranks=ranks, progress=progress, cache_dir=cache_dir
        )


def choose_subsets(
    train: ImageDataset, heldout: ImageDataset | None, count: int, *, seed: int = 0
) -> tuple[ImageSubset, ImageSubset]:
    """Choose the real images that samples are compared with, and the floor: other real images, as a perfect generator
    would draw them.

    At most `count` random images of `heldout`, and as many of `train`; without `heldout`, of two disjoint halves of
    `train`. seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    some = lambda indices: np.sort(rng.permutation(indices)[:count])
    if heldout is None:
        first, second = np.array_split(rng.permutation(len(train)), 2)
        return (
            ImageSubset(train, some(first), "training images, one half"),
            ImageSubset(train, some(second), "training images, other half"),
        )
    real = ImageSubset(heldout, some(len(heldout)), heldout.source)
    return real, ImageSubset(train, some(len(train)), "training images")


class Reference:
    """Reference statistics: features of real images and what the metrics derive from them, kept in the cache.

    Args:
        subset: the real images.
        extractor: the network.
        features: of the real images, [N, D].
        seed: of the subsets of the kernel distance.
    """

    def __init__(
        self,
        subset: ImageSubset,
        extractor: FeatureExtractor,
        features: np.ndarray,
        *,
        seed: int = 0,
        cache_dir: Path | None = None,
    ):
        self.features, self._extractor, self._seed, self._cache_dir = features, extractor, seed, cache_dir
        self._key = cache_key(subset.dataset, subset.index, extractor)

    def measure(self, metrics: Sequence[str], features: np.ndarray) -> dict[str, float]:
        """Values by name of metrics that use this network, for images with features [M, D]."""
        compute = {
            "kernel distance": self.kernel_distance,
            "Fréchet distance": self.frechet_distance,
            "precision and recall": self.precision_recall,
            "score": self.score,
        }
        found: dict[str, float] = {}
        for name in metrics:
            metric = METRICS[name]
            found |= zip(metric.values, compute[metric.kind](features), strict=True)
        return found

    def kernel_distance(self, features: np.ndarray) -> KernelDistance:
        """KID over subsets of SUBSET_SIZE images, or half of the smaller set if that is less."""
        size = max(2, min(SUBSET_SIZE, len(features) // 2, len(self.features) // 2))
        return kernel_distance(features, self.features, subsets=SUBSETS, subset_size=size, seed=self._seed)

    def frechet_distance(self, features: np.ndarray) -> tuple[float]:
        found = self._cached("gaussian", lambda: np.vstack(fit_gaussian(self.features)))
        return (gaussian_distance(fit_gaussian(features), Gaussian(found[0], found[1:])),)

    def precision_recall(self, features: np.ndarray) -> PrecisionRecall:
        real_radii = self._cached("radii", lambda: neighbour_radii(self.features))
        return precision_recall(features, self.features, real_radii=real_radii)

    def score(self, features: np.ndarray) -> tuple[float, float]:
        """Inception score, which depends on these images alone."""
        return self._extractor.score(features)

    def _cached(self, kind: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        return load_or_compute(self._key | {"kind": kind}, compute, self._cache_dir)


def random_labels(dataset: ImageDataset, count: int, seed: int = 0) -> np.ndarray:
    """Random labels with the frequencies of a labelled data set, int64 [count]."""
    rng = np.random.default_rng([seed, 1])
    assert dataset.labels is not None, "an unlabelled data set"
    return dataset.labels[rng.integers(len(dataset), size=count)]
