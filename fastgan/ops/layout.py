"""The one view that all kernels take of an activation: N samples, C channels, P positions, in one of two layouts."""

import torch
from fastgan_kernels.signatures import View
from torch import Tensor


def view_of(x: Tensor) -> View | None:
    """The kernels' view of `x` [N, C, ...], or None if it is not dense in either layout."""
    shape = x.shape
    n, c = shape[0], shape[1]
    p = 1
    for size in shape[2:]:
        p *= size
    if x.is_contiguous():
        return View(n, c, p, p == 1)
    if x.dim() == 4:
        dense = x.is_contiguous(memory_format=torch.channels_last)
    else:
        dense = x.movedim(1, -1).is_contiguous()
    return View(n, c, p, True) if dense else None


def dense(x: Tensor) -> Tensor:
    """`x`, or a dense copy of it in the layout that it is nearest to."""
    if view_of(x) is not None:
        return x
    channels_last = x.dim() > 2 and x.stride(1) == 1
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


def dense_like(x: Tensor, reference: Tensor) -> Tensor:
    """`x`, or a copy of it in the layout of `reference`, a dense tensor of the same shape."""
    return x if view_of(x) == view_of(reference) else torch.empty_like(reference, dtype=x.dtype).copy_(x)
