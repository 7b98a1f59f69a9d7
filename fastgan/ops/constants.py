"""Small constant tensors, kept between calls."""

from collections.abc import Callable
from functools import cache, wraps

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastgan.ops.transforms import transforms_active


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: keeps each tensor that `make(*arguments, device)` returns, for the calls that follow.

    A kept tensor outlives the mode of the call that made it. So it is never an inference tensor, which could not be
    saved for a later backward pass. Where it would be no ordinary tensor (fake tensors, torch.func, torch.compile), or
    have no content yet (capture of a CUDA graph), that call makes one for itself.
    """

    @cache
    def made(*arguments) -> Tensor:
        with torch.inference_mode(False):
            return make(*arguments)

    @wraps(make)
    def get(*arguments) -> Tensor:
        if is_compiling() or _is_mode_active() or _is_captured(arguments[-1]):
            return make(*arguments)
        return made(*arguments)

    return get


def _is_mode_active() -> bool:
    return torch._C._len_torch_dispatch_stack() > 0 or transforms_active()


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
