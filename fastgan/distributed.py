"""Several processes that torchrun has started: who is who, and what they tell each other."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgan.errors import UserError

TIMEOUT = datetime.timedelta(hours=6)  # one may wait for another to decode a large data set; who dies is noticed
LOCAL = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
ENVIRONMENT = ("RANK", "WORLD_SIZE", *LOCAL)  # what torchrun tells each process; some with what holds without it

Said = TypeVar("Said")


class Ranks:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: the number of this process; `first` says whether it is 0.
        count: how many there are.
        local: the number of this process among those of its machine, which is that of its GPU.
        neighbours: how many there are on its machine.
    """

    def __init__(self, rank: int = 0, count: int = 1, local: int = 0, neighbours: int = 1):
        self.rank, self.count, self.local, self.neighbours = rank, count, local, neighbours
        self._wish: tuple[dist.Work, Tensor] | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Over the processes, which all have to ask for it; of any shape."""
        if self.count == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.count

    def means(self, values: dict[str, float]) -> dict[str, float]:
        """The same of named numbers; each process has the same names. Those that are not finite are left out."""
        if self.count == 1 or not values:
            return values
        own = torch.tensor(list(values.values()), dtype=torch.float64)
        finite = own.isfinite()
        sums, counts = self.mean(torch.stack([own.where(finite, 0.0), finite.to(own.dtype)]))
        return dict(zip(values, (sums / counts).tolist(), strict=True))

    def gather(self, value: Tensor) -> Tensor:
        """[n, ...] of each process to [n * count, ...], in their order."""
        if self.count == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def wished(self, wish: int) -> int:
        """The largest wish of any process at the call before this one, 0 being none: none waits for another to answer.
        Alone, the one of this call."""
        if self.count == 1:
            return wish
        heard = 0
        if self._wish is not None:
            work, answer = self._wish
            work.wait()
            heard = int(answer.item())
        question = torch.tensor(wish)  # on the CPU, so no GPU has to be waited for
        self._wish = dist.all_reduce(question, op=dist.ReduceOp.MAX, async_op=True), question
        return heard

    def tell(self, said: Said) -> Said:
        """What the first process says, at all of them; anything that can be pickled."""
        told = [said]
        if self.count > 1:
            dist.broadcast_object_list(told)
        return told[0]

    def agree(self, *modules: nn.Module) -> None:
        """Gives all processes the first one's parameters and buffers."""
        if self.count > 1:
            for module in modules:
                for tensor in module.state_dict().values():
                    held = tensor.contiguous()
                    dist.broadcast(held, 0)
                    tensor.copy_(held)

    def part(self) -> None:
        """Waits until all have come here; from here on none hears of another, or waits for it."""
        if self.count > 1 and dist.is_initialized():
            if self._wish is not None:
                self._wish[0].wait()
            dist.barrier()
            dist.destroy_process_group()

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """The block is run by one process of each machine, and then by the others: they find the files it made."""
        if self.count > 1 and self.local:
            dist.barrier()
        yield
        if self.count > 1 and not self.local:
            dist.barrier()


@contextlib.contextmanager
def joined(device: str, remedy: str) -> Iterator[Ranks]:
    """The processes that torchrun has started with this one, connected within the block; alone without torchrun.

    device: the value of `--device`, or "cpu" if no more than what lies in the CPU's memory is exchanged.
    Losing another process within the block raises UserError, which says the remedy.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    backend = "gloo" if device == "cpu" or not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"
    try:
        store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # On one machine, torchrun starts processes again with the store, and the addresses in it, of those before.
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"cannot connect the {count} processes of this run: {line}; is it started by torchrun?"
        ) from None
    local, neighbours = (int(os.environ.get(name, default)) for name, default in LOCAL.items())
    ranks = Ranks(rank, count, local, neighbours)
    try:
        yield ranks
        ranks.part()
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"another process of this run is gone ({line}); {remedy}") from error
    finally:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):
                dist.destroy_process_group()


def _is_loss(error: RuntimeError) -> bool:
    """Whether an exception means that another process does not answer any more. gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or any(
        sign in str(error) for sign in ("gloo", "onnection closed", "onnection reset", "Broken pipe", "NCCL")
    )
