"""Sums of gradients: over backward passes, and over processes, in buckets that are sent while backward still runs.

`DistributedDataParallel` does not fit: a step has several backward passes per network, and their losses are not the
output of one `forward`. DDP can be made to work by a module that returns the loss, and `no_sync` for all but the last
backward. Measured that way over gloo, on the 91 MiB of StyleGAN2's discriminator at 128x128:

- By default DDP forms its buckets anew after its first step. From three processes on, that changes the order of
  summation: the same gradients had other bits in step 3 than in step 1, in 31 of 33 tensors. A resumed run would not be
  bit-identical. It also refuses networks that grow, whose later levels get no gradient.
- With `find_unused_parameters=True` buckets stay as they are. A step then takes 6 all-reduces instead of 4 for the same
  bytes, and one more traversal of the graph; and each run prints a warning of DDP's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgan.distributed import Ranks
from fastgan.ops.weights import computed_together

BUCKET_BYTES = 25 << 20  # large enough for full bandwidth, small enough to overlap with backward


class GradientSum:
    """Sums the gradients of a network over the backward passes of a step, and over all processes.

    A bucket is sent as soon as the last backward has finished its gradients. All processes send buckets in the same
    order. Where backward does not reach a parameter, its bucket and all later ones wait for `finish`.

    Args:
        parameters: of the network. One without a gradient in a step stays without; the same ones in all processes.
        ranks: the processes. Alone, nothing is sent.

    Attributes:
        sent_early: number of buckets, so far, that were sent before backward had ended.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks):
        self._parameters = list(parameters)
        self._buckets: list[_Bucket] = []
        self._missing: dict[int, int] = {}  # id of a bucket to its number of gradients that are not finished
        self._sent = self.sent_early = 0
        if ranks.world_size == 1:
            return
        members: list[nn.Parameter] = []
        for parameter in reversed(self._parameters):  # about the order in which backward finishes them
            members.append(parameter)
            if sum(each.nbytes for each in members) >= BUCKET_BYTES:
                self._buckets.append(_Bucket(members))
                members = []
        self._buckets += [_Bucket(members)] if members else []
        self._bucket_of = {id(parameter): bucket for bucket in self._buckets for parameter in bucket.parameters}
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def backward(self, loss: Tensor, is_last: bool = False) -> None:
        """Add the gradients of `loss`. is_last: `finish` comes next, so buckets are sent meanwhile."""
        if is_last:
            self._missing = {id(bucket): len(bucket.parameters) for bucket in self._buckets}
        earlier = [(parameter, parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        if self._buckets or not earlier or not computed_together(self._parameters):
            loss.backward()
            return
        for parameter, _ in earlier:
            parameter.grad = None
        loss.backward()
        # Added here by multi-tensor kernels; autograd would take a kernel for each parameter.
        both = [(gradient, parameter.grad) for parameter, gradient in earlier if parameter.grad is not None]
        if both:
            torch._foreach_add_(*map(list, zip(*both, strict=True)))
        for parameter, gradient in earlier:
            parameter.grad = gradient

    def finish(self) -> None:
        """Send the remaining buckets and wait for all. Gradients are the sums from here on."""
        self._missing = {}
        self.sent_early += self._sent
        while self._sent < len(self._buckets):
            self._send_next()
        for bucket in self._buckets:
            bucket.receive()
        self._sent = 0

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        bucket = id(self._bucket_of[id(parameter)])
        if bucket not in self._missing:
            return
        self._missing[bucket] -= 1
        while self._sent < len(self._buckets) and not self._missing[id(self._buckets[self._sent])]:
            self._send_next()

    def _send_next(self) -> None:
        self._buckets[self._sent].send()
        self._sent += 1


class _Bucket:
    """Parameters whose gradients are all-reduced together, in one flat buffer."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self._buffer = torch.empty(
            sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device
        )
        parts = self._buffer.split([p.numel() for p in parameters])
        self._views = [
            part.as_strided(p.shape, p.stride(), part.storage_offset())
            for part, p in zip(parts, parameters, strict=True)
        ]
        self._work: Any = None  # torch.distributed.Work after `send`

    @torch.no_grad()
    def send(self) -> None:
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)
        self._work = dist.all_reduce(self._buffer, async_op=True)

    def receive(self) -> None:
        self._work.wait()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.grad is not None:
                parameter.grad = view
