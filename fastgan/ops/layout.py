"""Memory layouts that kernels take: NCHW or channels_last for activations, one distance between taps for weights.

Kernels get addresses and sizes, no strides. So every tensor that a launcher gets, argument or result, has passed
through a function of this module, or is small and contiguous (`fastgan.ops.arguments.prepare`). `torch.empty_like` may
keep any strides of a tensor that is not dense: allocate results like dense tensors only. tests/ops/test_layouts.py
checks every launch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops.fixed_weights import cast_weight
from fastgan.ops.transforms import is_batch_of_gradients, transforms_active
from fastgan_kernels.calls import View


def view_of(x: Tensor) -> View | None:
    """The kernels' view of `x` [N, C, ...], or None if `x` is dense in neither layout (under torch.func: in NCHW)."""
    shape = x.shape
    n, c = shape[0], shape[1]
    p = 1
    for size in shape[2:]:
        p *= size
    if x.is_contiguous():
        return View(n, c, p, p == 1)
    if transforms_active():  # vmap has no memory formats
        return None
    # The first form is faster, but takes 4 dimensions only.
    nhwc = x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.movedim(1, -1).is_contiguous()
    return View(n, c, p, True) if nhwc else None


def require_view(x: Tensor) -> View:
    """The kernels' view of a dense `x`. Raises ValueError for another tensor."""
    view = view_of(x)
    if view is None:
        raise ValueError(f"a tensor {list(x.shape)} of strides {x.stride()} is dense neither in NCHW nor in NHWC")
    return view


def sizes_of(x: Tensor) -> tuple[int, int, torch.dtype]:
    """Number of samples, elements of a sample, and dtype of `x` [N, ...], for calls that see samples as rows."""
    n = x.shape[0]
    return n, x.numel() // n, x.dtype


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` [N, C, H, W] is dense and in channels_last.

    If sizes of 1 make both formats the same in memory, the strides decide, as in torch: the output of an operation may
    have larger sizes. False for every tensor under vmap, which has no memory formats.
    """
    if transforms_active() or is_batch_of_gradients(x) or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return (x.stride(1) == 1 and x.stride(3) >= x.shape[1]) or not x.is_contiguous()


def channels_last(x: Tensor) -> Tensor:
    """`x` [N, C, H, W] in channels_last, also in its strides if C is 1.

    With torch's own strides an image of one channel counts as NCHW, and so do the outputs of all layers after it.
    Under vmap, which has no memory formats, `x` is returned unchanged.
    """
    if transforms_active() or is_batch_of_gradients(x):
        return x
    if x.shape[1] == 1:
        n, c, h, w = x.shape
        return x.reshape(n, h, w, c).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def empty_nhwc(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor [N, C, ...] in channels_last, also in its strides if C is 1.

    It is no view of another tensor: autograd refuses in-place changes of a view that a custom Function returned.
    """
    dims = range(2, len(shape))
    return torch.empty_permuted(shape, (0, *dims, 1), dtype=dtype or like.dtype, device=like.device)


def dense(x: Tensor) -> Tensor:
    """`x`, or a dense copy in the nearer of the two layouts."""
    if view_of(x) is not None:
        return x
    channels_last = x.dim() > 2 and x.stride(1) == 1
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


def dense_like(x: Tensor, reference: Tensor) -> Tensor:
    """`x`, or a copy in the layout of `reference`, a dense tensor of the same shape."""
    if x.stride() == reference.stride():  # the usual case, and a cheap test
        return x
    return x if view_of(x) == view_of(reference) else torch.empty_like(reference, dtype=x.dtype).copy_(x)


def weight_like(weight: Tensor, x: Tensor) -> Tensor:
    """A convolution's weight [.., .., kh, kw] in dtype and memory format of its input `x` [N, C, H, W], in one pass.

    The convolution itself would copy a weight in another format, forward and backward.
    """
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return cast_weight(weight, x.dtype, memory_format)


def has_uniform_taps(weight: Tensor) -> bool:
    """Whether consecutive taps of a weight [.., .., kh, kw] are all the same distance apart in memory."""
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


def channels(t: Tensor, like: Tensor) -> Tensor:
    """Reshapes [C] or [N, C] to broadcast against `like` [N, C, ...]. A scalar stays a scalar."""
    if t.dim() == 0:
        return t
    return t.reshape(*([1] * (t.dim() == 1)), *t.shape, *([1] * (like.dim() - 2)))


def sum_over_positions(t: Tensor) -> Tensor:
    """Sums [N, C, ...] over positions, to [N, C]."""
    return t.sum(tuple(range(2, t.dim()))) if t.dim() > 2 else t
