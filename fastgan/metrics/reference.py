"""What samples are compared with: real images they were not learnt from, and other real ones beside, as the floor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastgan.data import ImageDataset
from fastgan.metrics.distances import KernelDistance, frechet_distance, kernel_distance
from fastgan.metrics.features import Extractor, features_of

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance; as Binkowski et al. 2018


class Distances(NamedTuple):
    """From so many images to the real ones."""

    images: int
    kernel: KernelDistance
    frechet: float


class Reference:
    """Distances to real images.

    Args:
        real: their features [N, D].
        floor: features [M, D] of real images that were trained with: what samples of a perfect generator would have.
        names: in words, what `real` and `floor` are.
        seed: of the subsets of the kernel distance.
    """

    def __init__(self, real: np.ndarray, floor: np.ndarray, names: tuple[str, str] = ("", ""), seed: int = 0):
        self.real, self.names, self._seed = real, names, seed
        self.floor = self.distances_of(floor)

    def distances_of(self, features: np.ndarray) -> Distances:
        """Of images with these features [M, D] to the real ones.

        Subsets have SUBSET_SIZE images, or half of the smaller set if that is less.
        """
        size = max(2, min(SUBSET_SIZE, len(features) // 2, len(self.real) // 2))
        kernel = kernel_distance(features, self.real, subsets=SUBSETS, subset_size=size, seed=self._seed)
        return Distances(len(features), kernel, frechet_distance(features, self.real))


def reference(
    train: ImageDataset,
    heldout: ImageDataset | None,
    count: int,
    extractor: Extractor,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Reference:
    """At most `count` random images of `heldout`, and as the floor as many of `train`.

    Without `heldout` they are two halves of `train`, without an image in common. The seed decides which images, and
    their features come from the data cache where they are there. `train` has 4 images at least, `heldout` 2.
    """
    rng = np.random.default_rng(seed)
    choose = lambda indices: np.sort(rng.permutation(indices)[:count])
    if heldout is None:
        first, second = np.array_split(rng.permutation(len(train)), 2)
        real, floor = (train, choose(first)), (train, choose(second))
        names = "training images, one half", "training images, other half"
    else:
        real, floor = (heldout, choose(len(heldout))), (train, choose(len(train)))
        names = heldout.source, "training images"
    features = (features_of(*chosen, extractor, progress=progress) for chosen in (real, floor))
    return Reference(*features, names, seed)


def random_labels(dataset: ImageDataset, count: int, seed: int = 0) -> np.ndarray:
    """int64 [count], each as likely as it is frequent in a labelled data set."""
    rng = np.random.default_rng([seed, 1])
    return dataset.labels[rng.integers(len(dataset), size=count)]
