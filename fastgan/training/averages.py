"""Means of losses and other scalars between two lines of the log, kept on the device."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor


class Averages:
    """Means of scalars over the steps since the last `read`, non-finite values left out.

    Sums are tensors on the device, added to in place: nothing waits for the device, and a captured graph adds to them
    at every replay.
    """

    def __init__(self) -> None:
        self._added: list[tuple[str, Tensor]] = []
        self._sums: dict[tuple[str, ...], Tensor] = {}  # by names: fp64 [3, names] = sum, finite values, all values

    def add(self, **values: Tensor) -> None:
        """Add one value of each of these 0-dim tensors."""
        self._added += [(name, value.detach()) for name, value in values.items()]

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Count what is added within the block, at its end; nothing if the block fails."""
        self._added.clear()
        try:
            yield
            self._count()
        finally:
            self._added.clear()

    def _count(self) -> None:
        if not self._added:
            return
        names, added = zip(*self._added, strict=True)
        self._added.clear()
        values = torch.stack(added).to(torch.float64)
        finite = values.isfinite()
        sums = torch.stack([values.where(finite, 0.0), finite.to(values.dtype), torch.ones_like(values)])
        if names in self._sums:
            self._sums[names].add_(sums)
        else:
            self._sums[names] = sums

    def read(self) -> dict[str, float]:
        """Return the means, in one transfer from the device, and start anew. NaN where no value was finite."""
        self._count()
        if not self._sums:
            return {}
        sums, finite, seen = torch.cat(list(self._sums.values()), 1).tolist()
        torch._foreach_zero_(list(self._sums.values()))
        totals: dict[str, list[float]] = {}
        for name, *column in zip(itertools.chain(*self._sums), sums, finite, seen, strict=True):
            totals[name] = [a + b for a, b in zip(totals.get(name, (0.0, 0.0, 0.0)), column, strict=True)]
        return {name: total / count if count else math.nan for name, (total, count, seen) in totals.items() if seen}
