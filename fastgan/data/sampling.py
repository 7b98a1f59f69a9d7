"""The order of training images."""

from __future__ import annotations

import numpy as np


class ShuffledStream:
    """An endless stream of shuffled epochs; the position in it is all the state there is.

    Every epoch is a permutation of 0..size-1 of its own, determined by (seed, epoch).
    size: 1 or more. Raises ValueError otherwise.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size must be 1 or more, not {size}")
        self.size, self.seed = size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def take(self, position: int, count: int) -> np.ndarray:
        """The `count` indices from `position` on, int64 [count], of one epoch or of several.

        A pure function, so that resuming needs the position only. Both are 0 or more; raises ValueError otherwise.
        """
        if position < 0 or count < 0:
            raise ValueError(f"position and count must be 0 or more, not {position} and {count}")
        parts, stop = [np.empty(0, np.int64)], position + count
        while position < stop:
            epoch, offset = divmod(position, self.size)
            parts.append(self._epoch(epoch)[offset : offset + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return self._epochs[epoch]
