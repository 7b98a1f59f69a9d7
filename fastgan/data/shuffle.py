"""Order of the training images and which of them are mirrored, as functions of the seed and the position.

The position is the number of images shown so far. It is the only state, so a resumed training continues exactly.
"""

from __future__ import annotations

import numpy as np


class Stream:
    """Endless stream of random values, generated in blocks; each block is determined by (seed, block number).

    A sub-class sets `dtype` and implements `_generate`. size: values in a block.
    """

    dtype: type

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._blocks: dict[int, np.ndarray] = {}

    def take(self, position: int, count: int) -> np.ndarray:
        """The values position..position+count-1, [count]. A pure function.

        Raises ValueError if position or count is negative.
        """
        if position < 0 or count < 0:
            raise ValueError(f"position and count must be 0 or more, not {position} and {count}")
        parts: list[np.ndarray] = [np.empty(0, self.dtype)]
        stop = position + count
        while position < stop:
            number, offset = divmod(position, self.size)
            parts.append(self._block(number)[offset : offset + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _block(self, number: int) -> np.ndarray:
        if number not in self._blocks:
            while len(self._blocks) >= 2:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = self._generate(number)
        return self._blocks[number]

    def _generate(self, number: int) -> np.ndarray:
        raise NotImplementedError


class ShuffledStream(Stream):
    """Indices of shuffled epochs, int64: every epoch is a permutation of 0..size-1, determined by (seed, epoch).

    Raises ValueError if size is less than 1.
    """

    dtype = np.int64

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size must be 1 or more, not {size}")
        super().__init__(size, seed)

    def _generate(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).permutation(self.size)


class CoinFlips(Stream):
    """Independent coin flips, bool, true with probability 1/2.

    They do not depend on the image either: one image is mirrored in some epochs and not in others.
    """

    dtype = bool

    def __init__(self, seed: int = 0) -> None:
        super().__init__(65536, seed)

    def _generate(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number, 1]).integers(2, size=self.size, dtype=np.uint8).astype(bool)
