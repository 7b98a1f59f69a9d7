"""Progressive growing (Karras et al. 2018, arXiv 1710.10196): its schedule, and applying it to networks.

The first level is trained alone; then each new one is faded in over a number of images, and trained for another. The
stage follows from the number of images seen alone, so a checkpoint holds nothing of it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fastgan.runs.checkpoint import State
    from fastgan.runs.config import Config

# Of the published code for 8 GPUs: batch relative to that from 64 pixels on, learning rate relative to that below 128.
_BATCH_FACTORS = {4: 16, 8: 8, 16: 4, 32: 2}
_LR_FACTORS = {128: 1.5, 256: 2.0}
_LR_FACTOR_FROM_512 = 3.0


class Stage(NamedTuple):
    """Sizes and rates at a point of the schedule."""

    resolution: int
    alpha: float  # weight of the newest level: below 1 while it is faded in
    batch: int  # images per step
    lr_factor: float  # factor on the learning rate


@dataclass(frozen=True)
class Schedule:
    """Schedule of growth.

    Attributes:
        start: resolution of the first level: 4 in PGGAN, 8 in StyleGAN.
        resolution: of the last level.
        train_images: number of images to train each level with, before the next is faded in.
        fade_images: number of images to fade a level in with.
        batches: images a step, by resolution.
        lr_factors: factor of the learning rate, by resolution.

    Raises ValueError, naming the attribute, for an invalid value.
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
        """Schedule of the code published with PGGAN and StyleGAN, scaled to `batch` images a step at the last level.

        The published batch is 32 from 64 pixels on, and twice as large at each level below, up to 512 at 4 pixels; the
        learning rate is 1.5, 2 and 3 times the initial one from 128, 256 and 512 pixels on.
        """
        levels = [2**i for i in range(2, resolution.bit_length())]
        batches = {r: batch * (_BATCH_FACTORS.get(r, 1) // _BATCH_FACTORS.get(resolution, 1)) for r in levels}
        lr_factors = {r: 1.0 if r < 128 else _LR_FACTORS.get(r, _LR_FACTOR_FROM_512) for r in levels}
        return cls(start, resolution, train_images, fade_images, batches, lr_factors)


def stage_at(images_seen: int, schedule: Schedule) -> Stage:
    """The stage after `images_seen` real images.

    A new level begins with alpha 0, so images do not change at first; alpha then rises linearly. Raises ValueError for
    a negative number of images.
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


class Growth:
    """Grows the networks of a training with the number of images shown."""

    def __init__(self, state: State, config: Config):
        options, side = config.growth, config.data.resolution
        levels = [2**i for i in range(options.grow_from.bit_length() - 1, side.bit_length())]
        batches = options.level_batch or [config.training.batch] * len(levels)
        factors = options.level_lr or [1.0] * len(levels)
        self.state = state
        self.schedule = Schedule(
            options.grow_from,
            side,
            options.level_images,
            options.fade_images,
            dict(zip(levels, batches, strict=True)),
            dict(zip(levels, factors, strict=True)),
        )

    def advance(self) -> Stage:
        """Grow the networks to the stage of the next step, and return it.

        At a new level the optimizers start anew (Karras et al. 2018, appendix A.1).
        """
        state, stage = self.state, stage_at(self.state.images, self.schedule)
        for network in state.networks:
            network.grow_to(stage.resolution, stage.alpha)
        if state.stage is not None and state.stage[0] != stage.resolution:
            state.optimizer_g.state.clear()
            state.optimizer_d.state.clear()
        state.stage = stage.resolution, stage.alpha
        return stage

    def batch_at(self, images_seen: int) -> int:
        """Batch of the step after `images_seen` images."""
        return stage_at(images_seen, self.schedule).batch
