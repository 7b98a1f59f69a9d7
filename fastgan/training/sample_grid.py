"""The picture of samples that a training writes: real images above, generated ones below, by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastgan.data import ImageDataset
from fastgan.models import ModelConfig
from fastgan.runs.checkpoint import State
from fastgan.runs.config import Config
from fastgan.runs.drawing import draw, latents
from fastgan.runs.grid import Section, draw_grid, save_picture
from fastgan.training.growth import Growth

COLUMNS = 12
MOST_CLASSES = 64  # a row each


class SampleGrid:
    """Writes grids of one run. All show the same real images, and fakes of the same latents."""

    def __init__(self, run: Path, dataset: ImageDataset, state: State, model: ModelConfig, config: Config):
        self._run, self._dataset, self._state, self._config = run, dataset, state, config
        rng = np.random.default_rng(config.machine.seed)
        shown = rng.integers(dataset.at_hand, size=(2, COLUMNS))
        self._reals = Section("real", [("", np.asarray(dataset.images[index])) for index in shown])
        self._names = dataset.class_names[:MOST_CLASSES] if model.num_classes else [""] * 8
        self._z = latents(range(COLUMNS * len(self._names)), model.z_dim)
        classes = torch.arange(len(self._names)).repeat_interleave(COLUMNS)
        self._labels = classes if model.num_classes else None

    def write(self) -> Path:
        """Draw and save the grid of the current state; returns its path."""
        names, seen, size = self._names, self._state.images, self._dataset.images.shape[1:]
        images = draw(self._state.ema, self._z, self._labels, batch=self._config.training.batch)
        scale = size[0] // images.shape[1]  # networks that still grow draw smaller images
        images = images.repeat(scale, 1).repeat(scale, 2).reshape(len(names), COLUMNS, *size)
        fakes = Section(f"generated, after {seen:,} images", list(zip(names, images, strict=True)))
        path = _grid_path(self._run, seen)
        save_picture(draw_grid([self._reals, fakes]), path)
        return path

    def is_missing(self, growth: Growth | None) -> bool:
        """Whether the last saved step should have written a grid, but was killed before it did."""
        interval, images = self._config.output.grid_interval, self._state.images
        if not interval or _grid_path(self._run, images).exists():
            return False
        batches = set(growth.schedule.batches.values()) if growth else {self._config.training.batch}
        starts = [images - batch for batch in batches if batch <= images]
        if growth:
            starts = [start for start in starts if start + growth.batch_at(start) == images]
        return any(images // interval > start // interval for start in starts)


def _grid_path(run: Path, images: int) -> Path:
    return run / f"grid-{images:09d}.png"
