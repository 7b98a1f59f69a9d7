"""Seeding of a training's random numbers: by step, and within a step by micro-batch.

Seeds follow from the training's seed, so a checkpoint holds no RNG state, and a micro-batch draws the same numbers
whichever process computes it, and whatever was computed before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class StepRandomness:
    """Seeds torch's default generators, those of the CPU and of `device`, for each part of a step.

    Args:
        seed: the training's.
        device: of its networks.
        captured: whether steps are captured as CUDA graphs, in which a generator cannot be seeded. All micro-batches of
            a step then draw one after the other from the step's numbers.
    """

    def __init__(self, seed: int, device: torch.device, captured: bool):
        self._seed, self._device, self._captured = seed, device, captured
        self._step = 0
        self._after_shared: tuple[Tensor, ...] = ()

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
        elif not self._captured:
            self._set_seed(number)

    def state(self) -> tuple[Tensor, ...]:
        """RNG state of the CPU and, on a GPU, of the device; empty if steps are captured."""
        if self._captured:
            return ()
        if self._device.type != "cuda":
            return (torch.get_rng_state(),)
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device)

    def set_state(self, state: tuple[Tensor, ...]) -> None:
        """Restore what `state` has returned."""
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
