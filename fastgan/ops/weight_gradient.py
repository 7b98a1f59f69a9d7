"""The gradient of a convolution's weight, by our own CPU kernel where that is faster than the library's.

`kernel.why_not` says whether this CPU and the chosen backends use the kernel at all, `is_suited` whether it takes given
tensors. Measurements: docs/notes/convolutions.md, "Weight gradients with AVX2" and "Weight gradients with AVX-512".
"""

import math

import torch
from torch import Tensor

from fastgan.ops.backends import Replacement
from fastgan.ops.layout import is_channels_last
from fastgan_kernels import extension
from fastgan_kernels.calls import WeightGradientCall

# Least channels of the larger image for which the kernel is faster. Other instruction sets have not been measured.
_MIN_CHANNELS = {
    "avx2": {torch.float32: 16},
    "avx512": {torch.float32: 64, torch.bfloat16: 16},
}
_PANEL = 16  # channels of the larger image that every instruction set computes together

kernel = Replacement("weight_gradient", isas=_MIN_CHANNELS)


def is_suited(dy: Tensor, x: Tensor, weight: Tensor, transposed: bool) -> bool:
    """Whether our kernel takes the tensors of this convolution and is faster for them, given that it is in use."""
    small, large = (x, dy) if transposed else (dy, x)
    n, channels, height, width = small.shape
    filled = large.shape[1] / (-(-large.shape[1] // _PANEL) * _PANEL)  # the rest of the panels is zeros
    return (
        x.dtype == dy.dtype
        and large.shape[1] >= _MIN_CHANNELS.get(extension.cpu_isa(), {}).get(x.dtype, math.inf)
        and weight.shape[2] * weight.shape[3] > 1  # a single tap is a matrix product, which the library does as fast
        and channels >= 8
        and filled >= 0.75
        and width >= 4
        and n * height * width >= 256  # the kernel is fast for long sums only
        and is_channels_last(x)
        and is_channels_last(dy)
    )


def weight_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], transposed: bool
) -> Tensor:
    """The gradient of `weight`, in channels_last, from the gradient `dy` of a convolution's output.

    Args:
        dy: [N, O, ...]; fp32 or bf16, in channels_last.
        x: [N, I, H, W], in the dtype of `dy`, in channels_last.
        weight: [O, I, kh, kw], or [I, O, kh, kw] if `transposed`; only its metadata is read.
        stride, padding: arguments of `torch.nn.functional.conv2d`, or `conv_transpose2d` if `transposed`.
    """
    small, large = (x, dy) if transposed else (dy, x)
    dw = torch.empty_like(weight, dtype=x.dtype, memory_format=torch.channels_last)
    n, a, h, w = small.shape
    _, b, large_h, large_w = large.shape
    kh, kw = weight.shape[2:]
    kernel.run(
        WeightGradientCall(dw.dtype, n, a, h, w, b, large_h, large_w, kh, kw, stride, *padding, dw, small, large)
    )
    return dw
