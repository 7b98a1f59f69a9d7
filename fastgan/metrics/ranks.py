"""Several processes that take a measurement together, as torchrun starts them. The numbers are those of one process.

Images are looked at in blocks whose bounds do not depend on the number of processes, each block by one process alone,
and the first process puts the blocks together in their order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from tqdm import tqdm

from fastgan.errors import UserError

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # what torchrun tells each process
BLOCK = 64  # images


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    def device(self, name: str) -> str:
        """What `--device` means here: of several processes, each takes a GPU of its own where it may choose."""
        import torch

        if name in ("auto", "cuda") and self.count > 1 and torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        return name

    def gathered(self, count: int, of_block: Callable[[int, int], np.ndarray], title: str = "") -> np.ndarray | None:
        """of_block(start, stop) of all blocks of range(count), one behind the other: [count, ...] in the first process,
        None in the others. All must call it.

        title: of a progress bar of the first process's share; none if empty. Raises UserError if another process is
        gone.
        """
        starts = range(0, count, BLOCK)
        share = -(-len(starts) // self.count)
        mine = starts[self.rank * share : (self.rank + 1) * share]
        parts = []
        with tqdm(
            total=min(count, share * BLOCK), desc=title, unit=" images", disable=not title or self.rank > 0, leave=False
        ) as bar:
            for start in mine:
                parts.append(of_block(start, min(start + BLOCK, count)))
                bar.update(len(parts[-1]))
        if self.count > 1:
            import torch.distributed as dist

            received = [None] * self.count if self.rank == 0 else None
            with _loss_is_a_mistake():
                dist.gather_object(parts, received)
            if received is None:
                return None
            parts = [part for each in received for part in each]
        return np.concatenate(parts)

    def looked_up(
        self, look_up: Callable[[Callable[[], np.ndarray]], np.ndarray], compute: Callable[[], np.ndarray | None]
    ) -> np.ndarray | None:
        """look_up(compute) in the first process; where that calls `compute`, which may be `gathered`, all do.

        Gives None in all but the first. All must call it. Raises UserError if another process is gone.
        """
        if self.count == 1:
            return look_up(compute)
        if self.rank:
            if self._told(None):
                compute()
            return None
        called = False

        def together() -> np.ndarray:
            nonlocal called
            called = self._told(True)
            return compute()

        found = look_up(together)
        if not called:
            self._told(False)
        return found

    def _told(self, value: bool | None) -> bool:
        """What the first process says to all."""
        import torch.distributed as dist

        message = [value]
        with _loss_is_a_mistake():
            dist.broadcast_object_list(message)
        return message[0]


ALONE = Ranks()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun started with it; by itself if it did not."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    import torch.distributed as dist

    try:
        # gloo also where there are GPUs: what is exchanged lies in the CPU's memory. One may wait for another's work.
        dist.init_process_group("gloo", timeout=timedelta(hours=6))
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot connect the {count} processes: {line}; are they started by torchrun?") from None
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _loss_is_a_mistake() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise UserError("another process of this measurement is gone; its message says why") from None
