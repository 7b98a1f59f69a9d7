"""Memory layouts that kernels take: activations in one of two, described by a `View`; weights with one step per tap.

Kernels see addresses and sizes, no strides. So every tensor that a launcher gets, argument or result, has been through
a function of this module, or is small and contiguous (`fastgan.ops.arguments.prepared`). `torch.empty_like` allocates
results of dense tensors only: of others it may keep any strides. tests/ops/test_layouts.py holds every launch to this.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops.transforms import is_batch_of_gradients, transforms_active
from fastgan_kernels.calls import View


def view_of(x: Tensor) -> View | None:
    """The kernels' view of `x` [N, C, ...], or None if it is dense in neither layout (within torch.func: in NCHW)."""
    shape = x.shape
    n, c = shape[0], shape[1]
    p = 1
    for size in shape[2:]:
        p *= size
    if x.is_contiguous():
        return View(n, c, p, p == 1)
    if transforms_active():  # vmap knows no memory formats
        return None
    # For 4 dimensions the same question is answered quicker.
    nhwc = x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.movedim(1, -1).is_contiguous()
    return View(n, c, p, True) if nhwc else None


def sizes_of(x: Tensor) -> tuple[int, int, torch.dtype]:
    """Samples, elements of a sample, and dtype of `x` [N, ...], for calls that see samples as rows."""
    n = x.shape[0]
    return n, x.numel() // n, x.dtype


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` [N, C, H, W] is dense and in channels_last.

    Where sizes of 1 make the formats one in memory, its strides tell, as for torch's own operations: what is made of it
    may be larger. Within torch.func no tensor counts as one in channels_last: vmap knows no memory formats.
    """
    if transforms_active() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return (x.stride(1) == 1 and x.stride(3) >= x.shape[1]) or not x.is_contiguous()


def channels_last(x: Tensor) -> Tensor:
    """`x` [N, C, H, W] in channels_last, in a way that shows: images of one channel look alike in both formats, torch
    takes them for NCHW, and so does every layer after. Batches of vmap stay as they are: it knows no memory formats."""
    if transforms_active() or is_batch_of_gradients(x):
        return x
    if x.shape[1] == 1:
        n, c, h, w = x.shape
        return x.reshape(n, h, w, c).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def empty_nhwc(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised [N, C, ...] whose channels are adjacent in memory, also in its strides where C is 1.

    Not a view of another tensor: autograd forbids to modify a view in place that a custom Function returns.
    """
    dims = range(2, len(shape))
    return torch.empty_permuted(shape, (0, *dims, 1), dtype=dtype or like.dtype, device=like.device)


def dense(x: Tensor) -> Tensor:
    """`x`, or a dense copy of it in the layout that it is nearest to."""
    if view_of(x) is not None:
        return x
    channels_last = x.dim() > 2 and x.stride(1) == 1
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


def dense_like(x: Tensor, reference: Tensor) -> Tensor:
    """`x`, or a copy of it in the layout of `reference`, a dense tensor of the same shape."""
    if x.stride() == reference.stride():  # nearly always, and quicker to tell
        return x
    return x if view_of(x) == view_of(reference) else torch.empty_like(reference, dtype=x.dtype).copy_(x)


def weight_like(weight: Tensor, x: Tensor) -> Tensor:
    """The weight [.., .., kh, kw] of a convolution in dtype and memory format of its input `x` [N, C, H, W], in one
    pass. A weight in another format would be copied by the convolution itself, forward and backward."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return weight.to(dtype=x.dtype, memory_format=memory_format)


def has_one_step(weight: Tensor) -> bool:
    """Whether one distance leads from each tap of a weight [.., .., kh, kw] to the next."""
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


def channels(t: Tensor, like: Tensor) -> Tensor:
    """[C] or [N, C] shaped to broadcast against [N, C, ...]; a scalar stays one."""
    if t.dim() == 0:
        return t
    return t.reshape(*([1] * (t.dim() == 1)), *t.shape, *([1] * (like.dim() - 2)))


def over_positions(t: Tensor) -> Tensor:
    """Sums [N, C, ...] to [N, C]."""
    return t.sum(tuple(range(2, t.dim()))) if t.dim() > 2 else t
