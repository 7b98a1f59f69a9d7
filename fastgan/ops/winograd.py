"""3x3 convolutions by fewer multiplications, for weights that do not change: our own CPU kernel.

The algorithm F(4x4, 3x3) takes a quarter of the multiplications (Lavin and Gray 2016, "Fast Algorithms for
Convolutional Neural Networks", arXiv 1509.09308). It transforms the weight, which only pays where the result is kept
(`fastgan.ops.fixed_weights`). Rounding errors are about twice those of a plain convolution. In bf16 they would be too
large, so the kernel is for fp32. An infinity spreads to its tile of 4x4 outputs. Measurements: docs/notes/sampling.md.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.backends import Replacement
from fastgan.ops.constants import constant
from fastgan.ops.fixed_weights import is_kept, of_weight
from fastgan.ops.layout import empty_nhwc, is_channels_last
from fastgan_kernels.calls import WinogradCall

PANEL = 32  # output channels that are computed together
SIDE = 4  # outputs of a tile along one axis
_MIN_CHANNELS, _MIN_TILES, _MIN_FILLED = 16, 16, 0.75  # where it is faster than the library

# Without AVX2 the library is slow too, but nothing was measured.
kernel = Replacement("winograd", isas=("avx2", "avx512"))


def is_suited(x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> bool:
    """Whether the kernel takes the convolution of `x` by a `weight` [O, I, kh, kw] and is faster for it."""
    outputs, inputs, *sides = weight.shape
    if sides != [3, 3] or stride != 1 or padding not in ((0, 0), (1, 1), (2, 2)) or x.dtype != torch.float32:
        return False
    height, width = (side + 2 * padding[0] - 2 for side in x.shape[2:])
    if min(height, width, outputs) < 1:
        return False  # the library raises the error
    tiles = -(-height // SIDE) * -(-width // SIDE)
    filled = height * width / (tiles * SIDE**2) * outputs / (-(-outputs // PANEL) * PANEL)  # the rest is zeros
    return (
        weight.dtype == x.dtype
        and inputs == x.shape[1]
        and inputs >= _MIN_CHANNELS
        and x.shape[0] * tiles >= _MIN_TILES
        and filled >= _MIN_FILLED
        and is_channels_last(x)
        and is_kept(weight)
        and kernel.why_not(x.device) is None
    )


def convolution(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """`torch.nn.functional.conv2d(x, weight, padding=padding)` of tensors that are suited; in channels_last."""
    n, inputs, height, width = x.shape
    outputs = len(weight)
    y = empty_nhwc(x, (n, outputs, height + 2 * padding - 2, width + 2 * padding - 2))
    kernel.run(WinogradCall(n, height, width, inputs, outputs, padding, y, x, transformed(weight)))
    return y


@of_weight
def transformed(weight: Tensor) -> Tensor:
    """A weight [O, I, 3, 3] as the kernel takes it: [36, ceil(O / 32), I, 32], padded with zeros."""
    outputs, inputs = weight.shape[:2]
    values = _values_at_points(weight.device)
    points = torch.einsum("pu,oiuv,qv->pqio", values, weight.double(), values).reshape(36, inputs, outputs)
    panels = -(-outputs // PANEL)
    padded = F.pad(points, (0, panels * PANEL - outputs)).view(36, inputs, panels, PANEL)
    return padded.transpose(1, 2).to(weight.dtype, memory_format=torch.contiguous_format)


@constant
def _values_at_points(device: torch.device) -> Tensor:
    """Matrix G [6, 3] in fp64: values of a polynomial of degree 2 at the points of csrc/winograd/cpu.cpp.

    Each is divided by the factors that the kernel leaves out: products of the differences from the other points.
    """
    points = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2))
    rows = []
    for point in points:
        factor = math.prod(point - other for other in points if other != point)
        rows.append([1 / factor, point / factor, point**2 / factor])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64, device=device)  # the last point is infinity
