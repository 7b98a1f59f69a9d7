"""Tensors computed from weights alone, kept from call to call while the weights do not change.

A network that only draws images computes the same things of its weights in every call: conversions to bf16, sums of
squares, larger kernels. `fixed_weights` keeps them for the calls within a block:

    kept = FixedWeights(network.parameters)
    with fixed_weights(kept):
        images = network(z)

An entry belongs to a weight's memory and version. A weight that was changed in place is computed anew, and then all
entries are dropped, as they are after a step of any optimizer: fused ones change weights without a new version. (A
change through `weight.data` has no version and is not seen, as everywhere in autograd.)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastgan.ops.constants import is_capturing, is_mode_active
from fastgan.ops.transforms import must_use_reference

_steps = 0  # of all optimizers, from the first `FixedWeights` on


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


@cache
def _count_steps() -> None:
    register_optimizer_step_post_hook(_count_step)


class _Entry(NamedTuple):
    version: int
    source: Tensor  # an alias of the weight: its memory cannot become another tensor's
    result: Any


class FixedWeights:
    """The kept tensors of one network.

    Args:
        weights: returns the weights of the network. Nothing is kept of other tensors, which may be new in every call.
    """

    def __init__(self, weights: Callable[[], Iterable[Tensor]]):
        _count_steps()
        self._weights = weights
        self._entries: dict[tuple, _Entry] = {}
        self._known: set[int] = set()  # addresses of weights, and of results, which other functions take
        self._step = _steps
        self._up_to_date = False  # whether `_known` has been compared with the weights in this block

    def _start(self) -> None:
        self._up_to_date = False
        if self._step != _steps:
            self._entries.clear()
            self._known.clear()
            self._step = _steps

    def _knows(self, weight: Tensor) -> bool:
        address = _address(weight)
        if address not in self._known and not self._up_to_date:
            weights = set(map(_address, self._weights()))
            if not weights <= self._known:  # at first, or the network has moved
                self._entries.clear()
                self._known = weights
            self._up_to_date = True
        return address in self._known

    def _of(self, function: Callable, weight: Tensor, arguments: tuple) -> Any:
        key = function, weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, *arguments
        found = self._entries.get(key)
        if found is not None and found.version == weight._version:
            return found.result
        if found is not None:  # others may have been computed from the same weight, or from this result
            self._entries.clear()
            self._known = set(map(_address, self._weights()))
        with torch.inference_mode(False), torch.no_grad():
            result = function(weight, *arguments)
        self._entries[key] = _Entry(weight._version, weight.detach(), result)
        if isinstance(result, Tensor):
            self._known.add(_address(result))
        return result


_active: ContextVar[FixedWeights | None] = ContextVar("fastgan_fixed_weights", default=None)


@contextmanager
def fixed_weights(kept: FixedWeights) -> Iterator[None]:
    """Keeps results of functions decorated `of_weight` within the block, and for later blocks with the same `kept`."""
    kept._start()
    token = _active.set(kept)
    try:
        yield
    finally:
        _active.reset(token)


def is_kept(weight: Tensor) -> bool:
    """Whether results of functions `of_weight` are kept for this weight."""
    return _kept_for(weight) is not None


def of_weight(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a function of a weight and of hashable arguments, whose result is kept if weights are fixed.

    The result must not be changed. Nothing is kept of a weight that requires a gradient.
    """

    @wraps(function)
    def call(weight: Tensor, *arguments: Any) -> Any:
        kept = _kept_for(weight)
        return function(weight, *arguments) if kept is None else kept._of(function, weight, arguments)

    return call


def _kept_for(weight: Tensor) -> FixedWeights | None:
    if is_compiling() or (kept := _active.get()) is None:
        return None
    if weight.requires_grad or weight.is_inference() or is_mode_active() or is_capturing(weight.device):
        return None
    if must_use_reference((weight,)):  # a tangent of forward-mode AD
        return None
    return kept if kept._knows(weight) else None


@of_weight
def cast_weight(
    weight: Tensor, dtype: torch.dtype, memory_format: torch.memory_format = torch.preserve_format
) -> Tensor:
    """A weight in another dtype or memory format; itself if it is as asked."""
    return weight.to(dtype=dtype, memory_format=memory_format)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
