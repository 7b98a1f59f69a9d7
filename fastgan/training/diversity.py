"""Distance between generated images, and between real ones. The first drops in a mode collapse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.data import ImageDataset
from fastgan.models import ModelConfig
from fastgan.models.progressive import fade_reals
from fastgan.runs.drawing import draw_batches, latents
from fastgan.runs.precision import Autocast
from fastgan.training.growth import Stage
from fastgan.transparency import premultiplied

SAMPLES, CLASSES = 64, 8  # images drawn for a measurement, and the most classes they are of
SIDE = 16  # images are averaged down to about this many pixels a side
AT_ONCE = 16  # real images read at once
# Images between two measurements, for each process. Training on an image costs as much as drawing 6 or more, so
# measuring costs about half a percent.
INTERVAL = 2_000


def interval(log_interval: int, processes: int = 1) -> int:
    """Images between two measurements: a multiple of `log_interval`; 0, for none, if only the last line is logged."""
    return -(-INTERVAL * processes // log_interval) * log_interval if log_interval else 0


class Diversity:
    """Mean pairwise distance of samples, always of the same latents, and of the same real images.

    The distance of two images is the RMS of their difference after averaging both down to 16x16, which removes noise of
    single pixels; images have the range [-1, 1], and transparent ones are premultiplied. The mean is over all pairs of
    64 images; for a network with classes, over the pairs within a class, with 8 images in each of the 8 most frequent
    classes. No random numbers are drawn, so measuring does not change the training.

    Args:
        dataset: training images.
        model: of the generator.
    """

    def __init__(self, dataset: ImageDataset, model: ModelConfig):
        self._size = model.feature_size(min(SIDE, model.resolution))
        groups = _groups(dataset, model.num_classes)
        self._reals = [torch.cat([self._small(part) for part in _images(dataset, index)]) for _, index in groups]
        count = SAMPLES // max(1, len(groups))
        self._z = latents(range(SAMPLES), model.z_dim)[: count * len(groups)]
        classes = torch.tensor([label for label, _ in groups], dtype=torch.int64)
        self._labels = classes.repeat_interleave(count) if model.num_classes else None
        self._groups = len(groups)

    @torch.no_grad()
    def measure(self, generator: nn.Module, autocast: Autocast, batch: int, stage: Stage | None) -> dict[str, float]:
        """{"distance_fake": float, "distance_real": float}; empty if no class has two images.

        Args:
            generator: in eval mode.
            autocast: makes the context that it runs in.
            batch: images to draw at once.
            stage: of growing networks; real images are reduced to its resolution.
        """
        if not self._groups:
            return {}
        with autocast():
            parts = [self._small(part) for part in draw_batches(generator, self._z, self._labels, batch=batch)]
        fakes = torch.cat(parts).cpu().chunk(self._groups)
        reals = self._reals
        if stage is not None and stage.resolution <= SIDE:
            reals = [fade_reals(real, stage.resolution, stage.alpha) for real in reals]
        return {"distance_fake": _distance(fakes), "distance_real": _distance(reals)}

    def _small(self, images: Tensor) -> Tensor:
        height, width = self._size
        factor = max(1, self._size[0] // images.shape[2])
        return F.adaptive_avg_pool2d(premultiplied(images.clamp(-1, 1)), (height // factor, width // factor))


def _groups(dataset: ImageDataset, num_classes: int) -> list[tuple[int, np.ndarray]]:
    """Pairs of a label and indices of real images with that label."""
    count = dataset.at_hand
    if not num_classes:
        return [(0, np.linspace(0, count - 1, min(SAMPLES, count), dtype=np.int64))] if count > 1 else []
    labels = dataset.labels[:count]
    frequent = np.argsort(-np.bincount(labels, minlength=num_classes), kind="stable")[:CLASSES]
    found = [(int(label), np.flatnonzero(labels == label)[: SAMPLES // CLASSES]) for label in frequent]
    return [(label, index) for label, index in found if len(index) > 1]


def _images(dataset: ImageDataset, index: np.ndarray) -> Iterator[Tensor]:
    """fp32 [up to AT_ONCE, C, H, W] of range [-1, 1]."""
    for start in range(0, len(index), AT_ONCE):
        pixels = np.stack([np.asarray(dataset.images[i]) for i in index[start : start + AT_ONCE]])
        yield torch.from_numpy(pixels).movedim(3, 1).float() / 127.5 - 1


def _distance(groups: Sequence[Tensor]) -> float:
    return float(np.mean([_of_pairs(group.flatten(1)) for group in groups]))


def _of_pairs(x: Tensor) -> float:
    """Mean over all pairs of rows of x [n, features]."""
    return float(torch.pdist(x.double()).mean()) / x.shape[1] ** 0.5
