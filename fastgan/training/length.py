"""Length of a training: a number of images, or a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastgan.distributed import Ranks
from fastgan.runs.config import TrainingOptions

if TYPE_CHECKING:
    from fastgan.runs.checkpoint import Header, State


class Length:
    """Length of a training, which schedules follow: `--images`, or `--minutes` of the time that its loop runs."""

    def __init__(self, options: TrainingOptions):
        self.images, self._batch = int(options.images), int(options.batch)  # no longer "auto"
        self.seconds = 60 * options.minutes

    @property
    def total(self) -> float:
        """Minutes, or images."""
        return self.seconds / 60 if self.seconds else self.images

    def reached(self, state: State) -> float:
        """Minutes, or images, that are done."""
        return state.seconds / 60 if self.seconds else state.images

    def done(self, state: State) -> float:
        """Share that is done, from 0 to 1."""
        return min(1.0, self.reached(state) / self.total)

    def is_over(self, state: State) -> bool:
        return self.reached(state) >= self.total

    def why_no_more(self, header: Header) -> str | None:
        """Why a training that resumes from there would have nothing left to do; None if it may have."""
        if self.seconds:
            # The same time again makes up for what a kill just after the last save has left undone.
            is_same = self.seconds == 60 * header.config.training.minutes
            over, used = header.seconds >= self.seconds and not is_same, f"trained for {header.seconds / 60:.4g}"
            what = f"--minutes {self.total:g}"
        else:
            over, used = self.images <= header.images - self._batch, f"seen {header.images}"
            what = f"--images {self.images}"
        return f"{what}: {header.path} has {used} already; give more" if over else None


class Clock:
    """Measures the time of a training with `--minutes` into `state.seconds`, the same in all processes.

    The time runs from the first step on, with everything that the loop does: data, steps, evaluation, saving. A resumed
    training goes on with what was used when its checkpoint was saved.
    """

    def __init__(self, state: State, length: Length, ranks: Ranks):
        self._state, self._ranks, self._runs = state, ranks, length.seconds > 0
        self._start = time.monotonic() - state.seconds

    def read(self) -> None:
        """Update the time after a step. Several processes use that of the step before, as none waits for another."""
        if self._runs:
            used = round(1000 * (time.monotonic() - self._start))
            self._state.seconds = max(self._state.seconds, self._ranks.previous_max(used, "milliseconds") / 1000)
