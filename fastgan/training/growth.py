"""When a progressively grown pair of networks reaches which resolution (Karras et al. 2018, arXiv 1710.10196).

The first level is trained alone; then each new one is faded in, and trained, by so many images each time. All of it
follows from the number of images seen, so a training that resumes has nothing to remember. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

# The published code's, for 8 GPUs: the batch against that from 64 pixels on, the learning rate against that below 128.
_BATCH_FACTORS = {4: 16, 8: 8, 16: 4, 32: 2}
_LR_FACTORS = {128: 1.5, 256: 2.0}
_LR_FACTOR_FROM_512 = 3.0


class Stage(NamedTuple):
    """What is trained now."""

    resolution: int
    alpha: float  # weight of the newest level: below 1 while it is faded in
    batch: int  # images a step
    lr_factor: float  # of the learning rate


@dataclass(frozen=True)
class Schedule:
    """How a training grows.

    Attributes:
        start: resolution of the first level: 4 in PGGAN, 8 in StyleGAN.
        resolution: of the last.
        train_images: images of each level on its own, before the next comes in.
        fade_images: images over which a new level is faded in.
        batches: images a step, by resolution.
        lr_factors: factor of the learning rate, by resolution.

    Raises ValueError for numbers that make no schedule.
    """

    start: int
    resolution: int
    train_images: int
    fade_images: int
    batches: Mapping[int, int]
    lr_factors: Mapping[int, float]

    def __post_init__(self):
        for name in ("start", "resolution"):
            value = getattr(self, name)
            if value < 4 or value & (value - 1):
                raise ValueError(f"{name} is {value}, must be a power of two from 4")
        if self.start > self.resolution:
            raise ValueError(f"start is {self.start}, must be at most the resolution {self.resolution}")
        for name in ("train_images", "fade_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be 0 at least")
        for name in ("batches", "lr_factors"):
            values = getattr(self, name)
            for level in self.levels:
                if values.get(level, 0) <= 0:
                    found = values.get(level, "missing")
                    raise ValueError(f"{name} at resolution {level} is {found}, must be a number above 0")

    @property
    def levels(self) -> list[int]:
        """All resolutions, from the first to the last."""
        return [2**i for i in range(self.start.bit_length() - 1, self.resolution.bit_length())]

    @classmethod
    def published(
        cls, start: int, resolution: int, batch: int, *, train_images: int = 600_000, fade_images: int = 600_000
    ) -> Schedule:
        """The schedule of the code published with PGGAN and StyleGAN, scaled to a batch of `batch` at the last level.

        There the batch is 32 from 64 pixels on, and twice as large at each level below, up to 512 at 4 pixels; the
        learning rate rises at 128, 256 and 512 pixels to 1.5, 2 and 3 times what it was.
        """
        levels = [2**i for i in range(2, resolution.bit_length())]
        batches = {r: batch * (_BATCH_FACTORS.get(r, 1) // _BATCH_FACTORS.get(resolution, 1)) for r in levels}
        lr_factors = {r: 1.0 if r < 128 else _LR_FACTORS.get(r, _LR_FACTOR_FROM_512) for r in levels}
        return cls(start, resolution, train_images, fade_images, batches, lr_factors)


def stage_at(images_seen: int, schedule: Schedule) -> Stage:
    """What is to be trained after so many real images; a function of these two alone.

    A new level begins with alpha 0, so that at first nothing changes in what is drawn; from there alpha is linear in
    images. Raises ValueError for a negative number of images.
    """
    if images_seen < 0:
        raise ValueError(f"images_seen is {images_seen}, must be 0 at least")
    levels = schedule.levels
    train, fade = schedule.train_images, schedule.fade_images
    grown, alpha = len(levels), 1.0  # past the end
    if train + fade:
        grown, within = divmod(images_seen, train + fade)
        if within >= train:
            grown, alpha = grown + 1, (within - train) / fade
    if grown >= len(levels):
        grown, alpha = len(levels) - 1, 1.0
    resolution = levels[grown]
    return Stage(resolution, alpha, schedule.batches[resolution], schedule.lr_factors[resolution])
