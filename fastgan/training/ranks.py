"""Several processes that train as one: who is who, and what they tell each other.

`torchrun` starts them. Each holds the networks and computes an equal share of every batch; gradients are added up over
all of them while backward is still computing, so that each makes the same step. The first one writes the files.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgan.errors import UserError

BUCKET_BYTES = 25 << 20  # of gradients that are sent at once: large enough for the bandwidth, early enough to overlap
TIMEOUT = datetime.timedelta(hours=6)  # one may wait for another to decode a large data set; who dies is noticed
LOCAL = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # set by torchrun


class Ranks:
    """The processes of a training, seen from one of them.

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

    def tell(self, text: str) -> str:
        """What the first process says, at all of them."""
        told = [text]
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
def joined(device: str) -> Iterator[Ranks]:
    """The processes that torchrun has started with this one, connected within the block; alone without torchrun.

    device: the value of `--device`. Losing another process within the block raises UserError.
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
        raise UserError(
            f"another process of this run is gone ({line}); what it last saved is whole: go on with --resume"
        ) from error
    finally:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):
                dist.destroy_process_group()


def _is_loss(error: RuntimeError) -> bool:
    """Whether an exception means that another process does not answer any more. gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or any(
        sign in str(error) for sign in ("gloo", "onnection closed", "onnection reset", "Broken pipe", "NCCL")
    )


class GradientSum:
    """The gradients of a network, added up over all processes, in a few large pieces.

    A piece is sent as soon as backward is done with it, and travels while backward goes on: see `expect`. Pieces are
    sent in the same order by all; those behind one with a parameter that backward does not reach, of a network that
    grows, wait for its end.

    Args:
        parameters: of the network. Those that a step leaves without gradients stay without: the same in all processes.
        ranks: the processes.

    Attributes:
        sent_early: how many pieces, so far, were on their way before backward ended.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks):
        self._pieces: list[_Piece] = []
        self._missing: dict[int, int] = {}  # piece to the number of its parameters that are still waited for
        self._sent = self.sent_early = 0
        if ranks.count == 1:
            return
        piece: list[nn.Parameter] = []
        for parameter in reversed(list(parameters)):  # about the order in which backward comes to them
            piece.append(parameter)
            if sum(each.nbytes for each in piece) >= BUCKET_BYTES:
                self._pieces.append(_Piece(piece))
                piece = []
        self._pieces += [_Piece(piece)] if piece else []
        self._home = {id(parameter): piece for piece in self._pieces for parameter in piece.parameters}
        for piece in self._pieces:
            for parameter in piece.parameters:
                parameter.register_post_accumulate_grad_hook(self._arrived)

    def expect(self) -> None:
        """The next backward is the last one before `finish`: what it is done with may be sent."""
        self._missing = {id(piece): len(piece.parameters) for piece in self._pieces}

    def finish(self) -> None:
        """Sends what has not been sent. From here on gradients are the sums."""
        self._missing = {}
        self.sent_early += self._sent
        while self._sent < len(self._pieces):
            self._send()
        for piece in self._pieces:
            piece.receive()
        self._sent = 0

    def _arrived(self, parameter: nn.Parameter) -> None:
        piece = id(self._home[id(parameter)])
        if piece not in self._missing:
            return
        self._missing[piece] -= 1
        while self._sent < len(self._pieces) and not self._missing[id(self._pieces[self._sent])]:  # all alike in order
            self._send()

    def _send(self) -> None:
        self._pieces[self._sent].send()
        self._sent += 1


class _Piece:
    """Parameters whose gradients travel together, through memory of their own."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self._flat = torch.empty(
            sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device
        )
        parts = self._flat.split([p.numel() for p in parameters])
        self._views = [
            part.as_strided(p.shape, p.stride(), part.storage_offset())
            for part, p in zip(parts, parameters, strict=True)
        ]
        self._work: dist.Work | None = None

    @torch.no_grad()
    def send(self) -> None:
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)
        self._work = dist.all_reduce(self._flat, async_op=True)

    def receive(self) -> None:
        self._work.wait()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.grad is not None:
                parameter.grad = view
