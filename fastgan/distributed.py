"""Collectives between the processes of a run that torchrun has started: broadcast, all-reduce, all-gather."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgan.environment import number, process_count
from fastgan.errors import UserError

TIMEOUT = datetime.timedelta(hours=6)  # one may wait for another to decode a large data set; a dead one is noticed
LOCAL = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}  # with their values where torchrun has set none
ENVIRONMENT = ("RANK", "WORLD_SIZE", *LOCAL)  # what torchrun sets for each process

_connections = itertools.count()  # of this process; all processes of a run connect equally often

Value = TypeVar("Value")


class Ranks:
    """The processes of a run, seen from one of them. Alone, every collective returns its argument.

    Attributes:
        rank: number of this process; `is_first` says whether it is 0.
        world_size: number of processes.
        local_rank: number of this process on its machine, which is also that of its GPU.
        local_world_size: number of processes on its machine.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, local_world_size: int = 1):
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size
        self._pending_max: dict[str, tuple[dist.Work, Tensor]] = {}

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Mean over all processes, of a tensor of any shape."""
        if self.world_size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.world_size

    def all_reduce_means(self, values: dict[str, float]) -> dict[str, float]:
        """Mean of each named number over the processes where it is finite. All processes pass the same names."""
        if self.world_size == 1 or not values:
            return values
        own = torch.tensor(list(values.values()), dtype=torch.float64)
        finite = own.isfinite()
        sums, counts = self.all_reduce_mean(torch.stack([own.where(finite, 0.0), finite.to(own.dtype)]))
        return dict(zip(values, (sums / counts).tolist(), strict=True))

    def all_gather(self, value: Tensor) -> Tensor:
        """[n, ...] of each process to [n * world_size, ...], ordered by rank."""
        if self.world_size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.world_size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def previous_max(self, value: int, of: str = "") -> int:
        """The largest value that any process passed to the previous call; 0 at the first call.

        The all-reduce of this call runs in the background, so no process waits for another. Alone, returns `value`.
        of: name of the quantity, where there are several.
        """
        if self.world_size == 1:
            return value
        result = 0
        if of in self._pending_max:
            work, largest = self._pending_max[of]
            work.wait()
            result = int(largest.item())
        largest = torch.tensor(value)  # on the CPU: reading it never waits for a GPU
        self._pending_max[of] = dist.all_reduce(largest, op=dist.ReduceOp.MAX, async_op=True), largest
        return result

    def broadcast(self, value: Value) -> Value:
        """The first process's `value`, in all processes; anything that can be pickled."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def broadcast_modules(self, *modules: nn.Module) -> None:
        """Copy the first process's parameters and buffers to all processes, in place."""
        if self.world_size > 1:
            for module in modules:
                for tensor in module.state_dict().values():
                    received = tensor.contiguous()
                    dist.broadcast(received, 0)
                    tensor.copy_(received)

    def leave(self) -> None:
        """Wait for all processes to call this, so that no collective is pending, then destroy the process group."""
        if self.world_size > 1 and dist.is_initialized():
            for work, _ in self._pending_max.values():
                work.wait()
            dist.barrier()
            dist.destroy_process_group()

    @contextlib.contextmanager
    def local_first(self) -> Iterator[None]:
        """Run the block in one process of each machine, then in the others, which find the files that it made."""
        if self.world_size > 1 and self.local_rank:
            dist.barrier()
        yield
        if self.world_size > 1 and not self.local_rank:
            dist.barrier()


@contextlib.contextmanager
def connected(device: str, remedy: str) -> Iterator[Ranks]:
    """The processes that torchrun has started, connected within the block; this process alone without torchrun.

    Args:
        device: value of `--device`; "cpu" if only tensors on the CPU are exchanged.
        remedy: remedy shown if another process dies within the block: the last part of the UserError's message.
    """
    world_size = process_count()
    if world_size == 1:
        yield Ranks()
        return
    backend = "gloo" if device == "cpu" or not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"
    try:
        store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # The store still has the addresses of an earlier connection, and a process that reads one waits forever. On
        # one machine, torchrun restarts processes with the old store too; on several, their counts may differ.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE") == "1" else ""
        store = dist.PrefixStore(f"{attempt}.{next(_connections)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"cannot connect the {world_size} processes of this run: {line}; is it started by torchrun?"
        ) from None
    local_rank, local_world_size = (number(name, default, default, 2**20) for name, default in LOCAL.items())
    ranks = Ranks(rank, world_size, local_rank, local_world_size)
    try:
        yield ranks
        ranks.leave()
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"another process of this run is gone ({line}); {remedy}") from error
    finally:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):
                dist.destroy_process_group()


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an exception means that another process does not answer any more. gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or any(
        sign in str(error) for sign in ("gloo", "onnection closed", "onnection reset", "Broken pipe", "NCCL")
    )
