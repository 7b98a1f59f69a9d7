"""Images that several processes look at together: the numbers are those of one process.

They are looked at in blocks whose bounds do not depend on the number of processes, each block by one process alone, and
the first process puts the blocks together in their order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch.distributed as dist

from fastgan.distributed import Ranks
from fastgan.progress import ProgressBar

BLOCK = 64  # images


def gathered(
    ranks: Ranks, count: int, of_block: Callable[[int, int], np.ndarray], title: str = ""
) -> np.ndarray | None:
    """of_block(start, stop) of all blocks of range(count), one behind the other: [count, ...] in the first process,
    None in the others. All must call it.

    title: of a progress bar of the first process's share; none if empty.
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
            parts.append(of_block(start, min(start + BLOCK, count)))
            bar.update(len(parts[-1]))
    if ranks.world_size > 1:
        received = [None] * ranks.world_size if ranks.is_first else None
        dist.gather_object(parts, received)
        if received is None:
            return None
        parts = [part for each in received for part in each]
    return np.concatenate(parts)


def looked_up(
    ranks: Ranks,
    look_up: Callable[[Callable[[], np.ndarray]], np.ndarray],
    compute: Callable[[], np.ndarray | None],
) -> np.ndarray | None:
    """look_up(compute) in the first process; where that calls `compute`, which may be `gathered`, all do.

    Gives None in all but the first. All must call it.
    """
    if ranks.world_size == 1:
        return look_up(compute)
    if not ranks.is_first:
        if ranks.broadcast(False):
            compute()
        return None
    called = False

    def together() -> np.ndarray:
        nonlocal called
        called = ranks.broadcast(True)
        return compute()

    found = look_up(together)
    if not called:
        ranks.broadcast(False)
    return found
