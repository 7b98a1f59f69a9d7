"""The random numbers of a training: each step, and in it each micro-batch, has a stream of its own.

Seeds follow from the training's, so nothing needs to be kept to go on with a training, and a micro-batch is the same
whichever process computes it, and whatever it computed before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Streams:
    """Sets torch's default random number generators, of the CPU and of `device`, to the stream that is due.

    Args:
        seed: of the training.
        device: of its networks.
        captured: whether steps are captured as graphs, within which a generator cannot be set. Then all streams of a
            step are one.
    """

    def __init__(self, seed: int, device: torch.device, captured: bool):
        self._seed, self._device, self._captured = seed, device, captured
        self._step = 0
        self._first: tuple[Tensor, ...] = ()

    def begin_step(self, step: int) -> None:
        """From here on random numbers are those of a step as a whole, the same in all processes."""
        self._step = step
        self._set()

    def end_of_whole(self) -> None:
        """The step as a whole needs no more: what is left of its stream is that of its first micro-batch."""
        self._first = self.pause()

    def begin(self, micro_batch: int) -> None:
        """From here on they are those of this micro-batch, from the first one on. They are counted through the step."""
        if micro_batch == 0:
            self.go_on(self._first)
        elif not self._captured:
            self._set(micro_batch)

    def pause(self) -> tuple[Tensor, ...]:
        """Where the stream is, for `go_on`."""
        if self._captured:
            return ()
        if self._device.type != "cuda":
            return (torch.get_rng_state(),)
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device)

    def go_on(self, place: tuple[Tensor, ...]) -> None:
        """To where a stream was when it paused."""
        for value, put in zip(place, (torch.set_rng_state, self._set_device), strict=False):
            put(value)

    def _set_device(self, value: Tensor) -> None:
        torch.cuda.set_rng_state(value, self._device)

    def _set(self, *micro_batch: int) -> None:
        mixed = np.random.SeedSequence([self._seed, self._step, *micro_batch]).generate_state(1, np.uint64)
        if self._device.type == "cpu":
            torch.default_generator.manual_seed(int(mixed[0]))  # torch.manual_seed looks for GPUs, which takes 0.1 ms
        else:
            torch.manual_seed(int(mixed[0]))
