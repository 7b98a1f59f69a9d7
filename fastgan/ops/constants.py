"""A cache for small constant tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils._python_dispatch import _disable_current_modes

from fastgan.ops.transforms import transforms_active

_harmless: ContextVar[int] = ContextVar("fastgan_harmless_modes", default=0)


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: caches the tensor that `make(*arguments, device)` returns, by its arguments.

    A cached tensor outlives the mode of the call that made it. So:

    - it is never an inference tensor, which could not be saved for a later backward pass;
    - nothing is cached under fake tensors, torch.func and torch.compile, where the result is no ordinary tensor, nor
      during capture of a CUDA graph, where it has no content yet. A mode that leaves tensors as they are may allow
      caching: `kept_in_mode`.

    A captured graph reads constants that were cached before, in the eager calls that come before capture. It could not
    make most of them: a graph copies nothing from the memory of the CPU.
    """
    kept: dict[tuple, Tensor] = {}

    @wraps(make)
    def get(*arguments):
        if is_compiling() or is_mode_active():
            return _made_again(make, arguments)
        if (found := kept.get(arguments)) is not None:
            return found
        if is_capturing(arguments[-1]):
            return _made_again(make, arguments)
        with torch.inference_mode(False), _disable_current_modes():
            return kept.setdefault(arguments, make(*arguments))

    return get


def _made_again(make: Callable[..., Tensor], arguments: tuple) -> Tensor:
    """For one call, where nothing is cached."""
    return make(*arguments)


def is_mode_active() -> bool:
    """Whether a dispatch mode, such as that of fake tensors, or torch.func is active."""
    return torch._C._len_torch_dispatch_stack() > _harmless.get() or transforms_active()


@contextmanager
def kept_in_mode() -> Iterator[None]:
    """Within the block one dispatch mode more may be active without any effect on what is cached."""
    token = _harmless.set(_harmless.get() + 1)
    try:
        yield
    finally:
        _harmless.reset(token)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: what it computes has no content yet, and lies in the graph's memory."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
