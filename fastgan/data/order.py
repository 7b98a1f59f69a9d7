"""The order of training images, and what else of a stream of them is random."""

from __future__ import annotations

import numpy as np


class Stream:
    """An endless stream that is made in blocks, each determined by (seed, number of the block).

    The position in it is all the state there is. `dtype` is that of what it is made of.
    """

    dtype: type

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._blocks: dict[int, np.ndarray] = {}

    def take(self, position: int, count: int) -> np.ndarray:
        """The `count` values from `position` on, [count], of one block or of several.

        A pure function, so that resuming needs the position only. Both are 0 or more; raises ValueError otherwise.
        """
        if position < 0 or count < 0:
            raise ValueError(f"position and count must be 0 or more, not {position} and {count}")
        parts, stop = [np.empty(0, self.dtype)], position + count
        while position < stop:
            number, offset = divmod(position, self.size)
            parts.append(self._block(number)[offset : offset + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _block(self, number: int) -> np.ndarray:
        if number not in self._blocks:
            while len(self._blocks) >= 2:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = self._make(number)
        return self._blocks[number]

    def _make(self, number: int) -> np.ndarray:
        raise NotImplementedError


class ShuffledStream(Stream):
    """An endless stream of shuffled epochs: indices, int64.

    Every epoch is a permutation of 0..size-1 of its own, determined by (seed, epoch).
    size: 1 or more. Raises ValueError otherwise.
    """

    dtype = np.int64

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size must be 1 or more, not {size}")
        super().__init__(size, seed)

    def _make(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).permutation(self.size)


class CoinFlips(Stream):
    """An endless stream of coin flips, bool: true with probability 1/2, each independent of all others.

    They are independent of the order of images, too: the same image falls on either side in different epochs.
    """

    dtype = bool

    def __init__(self, seed: int = 0) -> None:
        super().__init__(65536, seed)

    def _make(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number, 1]).integers(2, size=self.size, dtype=np.uint8).astype(bool)
