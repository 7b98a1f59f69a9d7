"""The gradient of a convolution's weight, by a kernel of our own where that is faster than the library's.

On a CPU with AVX2 the library makes most gradients of weights at half to four fifths of the rate of the convolution
itself: nearly half of the time that wide convolutions take in training. With AVX-512 that is so of small images, and in
bf16 of few channels (docs/performance.md).
"""

import math

import torch
from torch import Tensor

import fastgan_kernels
from fastgan.ops import backends
from fastgan.ops.layout import is_channels_last
from fastgan_kernels import extension
from fastgan_kernels.calls import WeightGradientCall

# Channels of the larger image from which on it is faster, by instruction set and dtype; others have not been measured.
_FASTER_WITH = {
    "avx2": {torch.float32: 16},
    "avx512": {torch.float32: 64, torch.bfloat16: 16},
}
_PART = 16  # channels: of a panel, what is computed together everywhere


def why_not(device: torch.device) -> str | None:
    """Why the library makes all gradients of weights for tensors of `device`, or None if our kernel makes some."""
    if reason := backends.why_not_beside_library("weight_gradient", device):
        return reason
    isa = extension.module().cpu_isa()
    return None if isa in _FASTER_WITH else f"measured to be faster with {', '.join(_FASTER_WITH)} only, not with {isa}"


def is_suited(dy: Tensor, x: Tensor, weight: Tensor, transposed: bool) -> bool:
    """Whether our kernel, where it serves at all, takes the tensors of a convolution, and is faster for them."""
    small, large = (x, dy) if transposed else (dy, x)
    n, channels, height, width = small.shape
    filled = large.shape[1] / (-(-large.shape[1] // _PART) * _PART)  # of the panels, the rest is zeros
    return (
        x.dtype == dy.dtype
        and large.shape[1] >= _FASTER_WITH.get(extension.module().cpu_isa(), {}).get(x.dtype, math.inf)
        and weight.shape[2] * weight.shape[3] > 1  # of a single tap it is a matrix product, as the library knows it
        and channels >= 8
        and filled >= 0.75
        and width >= 4
        and n * height * width >= 256  # it is made for long sums
        and is_channels_last(x)
        and is_channels_last(dy)
    )


def weight_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], transposed: bool
) -> Tensor:
    """The gradient of `weight`, in channels_last, for that of the output, `dy`, of a convolution of `x`.

    Args:
        dy: [N, O, ...]; fp32 or bf16, in channels_last.
        x: [N, I, H, W]; likewise.
        weight: [O, I, kh, kw], or [I, O, kh, kw] if `transposed`; its shape counts.
        stride, padding: as of `torch.nn.functional.conv2d`, or `conv_transpose2d` if `transposed`.
    """
    small, large = (x, dy) if transposed else (dy, x)
    dw = torch.empty_like(weight, dtype=x.dtype, memory_format=torch.channels_last)
    fastgan_kernels.BACKENDS["cpp"].launchers("weight_gradient").run(
        WeightGradientCall(dw.dtype, *small.shape, *large.shape[1:], *dw.shape[2:], stride, *padding, dw, small, large)
    )
    return dw
