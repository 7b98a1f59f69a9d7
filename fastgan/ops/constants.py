"""A cache for small constant tensors."""

from collections.abc import Callable
from functools import cache, wraps

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastgan.ops.transforms import transforms_active


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: caches the tensor that `make(*arguments, device)` returns, by its arguments.

    A cached tensor outlives the mode of the call that made it. So:

    - it is never an inference tensor, which could not be saved for a later backward pass;
    - nothing is cached under fake tensors, torch.func and torch.compile, where the result is no ordinary tensor, nor
      during capture of a CUDA graph, where it has no content yet.
    """

    @cache
    def cached(*arguments) -> Tensor:
        with torch.inference_mode(False):
            return make(*arguments)

    @wraps(make)
    def get(*arguments) -> Tensor:
        if is_compiling() or _is_mode_active() or _is_capturing(arguments[-1]):
            return make(*arguments)
        return cached(*arguments)

    return get


def _is_mode_active() -> bool:
    return torch._C._len_torch_dispatch_stack() > 0 or transforms_active()


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
