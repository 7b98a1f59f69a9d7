"""Work on images shared by several processes, with the same result as one process.

Images are processed in blocks whose bounds do not depend on the number of processes, each block by one process.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch.distributed as dist

from fastgan.distributed import Ranks
from fastgan.progress import ProgressBar

BLOCK = 64  # images


def compute_in_blocks(
    ranks: Ranks, count: int, compute_block: Callable[[int, int], np.ndarray], title: str = ""
) -> np.ndarray | None:
    """compute_block(start, stop) of all blocks of range(count), concatenated: [count, ...] in the first process, None
    in the others. All processes must call it.

    title: of the first process's progress bar; no bar if empty.
    """
    starts = range(0, count, BLOCK)
    share = -(-len(starts) // ranks.world_size)
    mine = starts[ranks.rank * share : (ranks.rank + 1) * share]
    parts = []
    with ProgressBar(
        total=min(count, share * BLOCK),
        desc=title,
        unit=" images",
        disable=not title or not ranks.is_first,
        leave=False,
    ) as bar:
        for start in mine:
            parts.append(compute_block(start, min(start + BLOCK, count)))
            bar.update(len(parts[-1]))
    if ranks.world_size > 1:
        received: list[list[np.ndarray]] | None = [[]] * ranks.world_size if ranks.is_first else None
        dist.gather_object(parts, received)
        if received is None:
            return None
        parts = [part for each in received for part in each]
    return np.concatenate(parts)


def load_or_compute_together(
    ranks: Ranks,
    load_or_compute: Callable[[Callable[[], np.ndarray]], np.ndarray],
    compute: Callable[[], np.ndarray | None],
) -> np.ndarray | None:
    """load_or_compute(compute) in the first process; None in the others. All processes must call it.

    If it calls `compute`, all processes do, so `compute` may use `compute_in_blocks`.
    """
    if not ranks.is_first:
        if ranks.broadcast(False):
            compute()
        return None
    called = False

    def together() -> np.ndarray:
        nonlocal called
        called = ranks.broadcast(True)
        result = compute()
        assert result is not None, "compute() returns the result in the first process"
        return result

    found = load_or_compute(together)
    if not called:
        ranks.broadcast(False)
    return found
