"""Seeding of a training's random numbers: by step, and within a step by micro-batch.

Seeds follow from the training's seed, so a checkpoint holds no RNG state, and a micro-batch draws the same numbers
whichever process computes it, and whatever was computed before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgan.runs.cpu_graphs import repeated

RandomState = list[Tensor]  # of the generators; a replayed step fills it anew


class StepRandomness:
    """Seeds torch's default generators, those of the CPU and of `device`, for each part of a step.

    Args:
        seed: the training's.
        device: of its networks.
        seeds_within: whether generators can be seeded within a step, which a CUDA graph cannot. Otherwise all
            micro-batches of a step draw one after the other from the step's numbers.
    """

    def __init__(self, seed: int, device: torch.device, seeds_within: bool):
        self._seed, self._device, self.seeds_within = seed, device, seeds_within
        self._step = 0
        self._after_shared: RandomState = []

    def begin_step(self, step: int) -> None:
        """Seed for what a step draws once for the whole batch: the same numbers in all processes."""
        self._step = step
        self._set_seed()

    def end_shared(self) -> None:
        """Marks the end of the draws for the whole batch; micro-batch 0 continues from this RNG state."""
        self._after_shared = self.state()

    def begin_micro_batch(self, number: int) -> None:
        """Seed for a micro-batch. `number` counts through all processes."""
        if number == 0:
            self.set_state(self._after_shared)
        elif self.seeds_within:
            repeated(lambda: self._set_seed(number))

    def state(self) -> RandomState:
        """RNG state of the CPU and, on a GPU, of the device; empty if it cannot be restored within a step."""
        state: RandomState = []
        if self.seeds_within:
            repeated(lambda: self._read_into(state))
        return state

    def set_state(self, state: RandomState) -> None:
        """Restore what `state` has returned."""
        if self.seeds_within:
            repeated(lambda: self._restore(state))

    def _read_into(self, state: RandomState) -> None:
        on_device = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        state[:] = [torch.get_rng_state(), *on_device]

    def _restore(self, state: RandomState) -> None:
        for value, setter in zip(state, (torch.set_rng_state, self._set_device_state), strict=False):
            setter(value)

    def _set_device_state(self, value: Tensor) -> None:
        torch.cuda.set_rng_state(value, self._device)

    def _set_seed(self, *micro_batch: int) -> None:
        mixed = np.random.SeedSequence([self._seed, self._step, *micro_batch]).generate_state(1, np.uint64)
        if self._device.type == "cpu":
            torch.default_generator.manual_seed(int(mixed[0]))  # torch.manual_seed looks for GPUs, which takes 0.1 ms
        else:
            torch.manual_seed(int(mixed[0]))
