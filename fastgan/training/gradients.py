"""Gradients of several processes, added up over all of them while backward is still computing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from fastgan.distributed import Ranks

BUCKET_BYTES = 25 << 20  # of gradients that are sent at once: large enough for the bandwidth, early enough to overlap


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
        if ranks.world_size == 1:
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
