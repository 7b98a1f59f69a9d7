"""What samples are compared with: real images, and other real ones beside, as the floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastgan.data import ImageDataset
from fastgan.data.cache import load_or_compute
from fastgan.distributed import Ranks
from fastgan.metrics.choice import METRICS
from fastgan.metrics.distances import (
    Gaussian,
    KernelDistance,
    PrecisionRecall,
    gaussian_distance,
    gaussian_of,
    kernel_distance,
    precision_recall,
    radii,
)
from fastgan.metrics.features import Extractor, features_of, key_of

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance; as Binkowski et al. 2018


class Chosen(NamedTuple):
    """Some images of a data set."""

    dataset: ImageDataset
    index: np.ndarray  # int64 [N], ascending
    name: str  # in words

    def features(
        self, extractor: Extractor, *, ranks: Ranks | None = None, progress: bool = True, cache_dir: Path | None = None
    ) -> np.ndarray | None:
        """[N, D], from the data cache where they are there; see `features_of`."""
        return features_of(self.dataset, self.index, extractor, ranks=ranks, progress=progress, cache_dir=cache_dir)


def choose(train: ImageDataset, heldout: ImageDataset | None, count: int, *, seed: int = 0) -> tuple[Chosen, Chosen]:
    """At most `count` random images of `heldout`, and as the floor as many of `train`: what samples of a perfect
    generator would be.

    Without `heldout` they are two halves of `train`, without an image in common. The seed decides which images.
    """
    rng = np.random.default_rng(seed)
    some = lambda indices: np.sort(rng.permutation(indices)[:count])
    if heldout is None:
        first, second = np.array_split(rng.permutation(len(train)), 2)
        return (
            Chosen(train, some(first), "training images, one half"),
            Chosen(train, some(second), "training images, other half"),
        )
    real = Chosen(heldout, some(len(heldout)), heldout.source)
    return real, Chosen(train, some(len(train)), "training images")


class Reference:
    """The real images, as a network sees them. What was found out about them is kept in the data cache.

    Args:
        chosen: which they are.
        extractor: the network.
        features: theirs, [N, D].
        seed: of the subsets of the kernel distance.
    """

    def __init__(
        self,
        chosen: Chosen,
        extractor: Extractor,
        features: np.ndarray,
        *,
        seed: int = 0,
        cache_dir: Path | None = None,
    ):
        self.features, self._extractor, self._seed, self._cache_dir = features, extractor, seed, cache_dir
        self._key = key_of(chosen.dataset, chosen.index, extractor)

    def measure(self, metrics: Sequence[str], features: np.ndarray) -> dict[str, float]:
        """The values of these metrics, all of this network, by their names, of images with features [M, D]."""
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
        """Subsets have SUBSET_SIZE images, or half of the smaller set if that is less."""
        size = max(2, min(SUBSET_SIZE, len(features) // 2, len(self.features) // 2))
        return kernel_distance(features, self.features, subsets=SUBSETS, subset_size=size, seed=self._seed)

    def frechet_distance(self, features: np.ndarray) -> tuple[float]:
        kept = self._kept("gaussian", lambda: np.vstack(gaussian_of(self.features)))
        return (gaussian_distance(gaussian_of(features), Gaussian(kept[0], kept[1:])),)

    def precision_recall(self, features: np.ndarray) -> PrecisionRecall:
        real_radii = self._kept("radii", lambda: radii(self.features))
        return precision_recall(features, self.features, real_radii=real_radii)

    def score(self, features: np.ndarray) -> tuple[float, float]:
        """Of these images alone."""
        return self._extractor.score(features)

    def _kept(self, kind: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        return load_or_compute(self._key | {"kind": kind}, compute, self._cache_dir)


def random_labels(dataset: ImageDataset, count: int, seed: int = 0) -> np.ndarray:
    """int64 [count], each as likely as it is frequent in a labelled data set."""
    rng = np.random.default_rng([seed, 1])
    return dataset.labels[rng.integers(len(dataset), size=count)]
