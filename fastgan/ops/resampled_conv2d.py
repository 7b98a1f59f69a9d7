"""Convolutions fused with the resampling beside them: one strided convolution with a kernel larger by one.

    conv(nearest-2x(x), w)     = conv_transpose(x, v, stride 2),   v[e] = w[k-1-e] + w[k-e]         (in each dimension)
    average-pool-2(conv(x, w)) = conv(x, v, stride 2),             v[e] = (w[e-1] + w[e]) / 2

with w zero outside of 0..k-1, for odd k and padding k // 2; exact at the borders as well, where what lies outside is
zero on either side. A 4x4 kernel at a quarter of the places makes 2.25 times fewer multiplications than a 3x3 one at
all of them (5x5: 2.8), and the larger image is never written. As in Karras et al. 2018 ("Progressive Growing of GANs").
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.arguments import check_activation, check_parameter
from fastgan.ops.constants import constant
from fastgan.ops.convolution import conv2d, conv_transpose2d
from fastgan.ops.layout import weight_like
from fastgan.ops.recording import recordable


@recordable
def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Nearest-neighbour upsampling by 2, then a convolution with zero padding k // 2.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k], k odd; taken in the dtype of `x`.
        bias: [O], likewise.

    Returns:
        [N, O, 2H, 2W], in the memory format of `x`. Differentiable any number of times.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
    """
    k = _check("upsample_conv2d", x, weight, bias)
    bias = bias if bias is None else bias.to(x.dtype)
    if k == 1:  # a pixel alone: fewer multiplications before it is repeated
        return F.interpolate(conv2d(x, weight.to(x.dtype), bias), scale_factor=2, mode="nearest")
    wide = weight_like(_widened(weight.transpose(0, 1), 1.0, flipped=True), x)  # [I, O, k + 1, k + 1]
    return conv_transpose2d(x, wide, bias, stride=2, padding=k // 2)


@recordable
def conv_downsample2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution with zero padding k // 2, then 2x2 average pooling.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k], k odd; taken in the dtype of `x`.
        bias: [O], likewise.

    Returns:
        [N, O, H // 2, W // 2], in the memory format of `x`. Differentiable any number of times.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
    """
    k = _check("conv_downsample2d", x, weight, bias)
    bias = bias if bias is None else bias.to(x.dtype)
    if k == 1:
        return conv2d(F.avg_pool2d(x, 2), weight.to(x.dtype), bias)
    wide = weight_like(_widened(weight, 0.5), x)
    return conv2d(x, wide, bias, stride=2, padding=k // 2)


def _check(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """Returns k."""
    if x.dim() != 4:
        raise ValueError(f"{name}: x has shape {list(x.shape)}, must be [N, I, H, W]")
    check_activation(name, x)
    if weight.dim() != 4 or weight.shape[1] != x.shape[1] or weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f"{name}: weight has shape {list(weight.shape)}, must be [O, {x.shape[1]}, k, k] for x {list(x.shape)}"
        )
    if weight.shape[2] % 2 == 0:
        raise ValueError(f"{name}: weight has shape {list(weight.shape)}, its kernel size must be odd")
    check_parameter(name, "weight", weight, x)
    if bias is not None:
        if list(bias.shape) != [len(weight)]:
            raise ValueError(f"{name}: bias has shape {list(bias.shape)}, must be {[len(weight)]}")
        check_parameter(name, "bias", bias, x)
    return weight.shape[2]


def _widened(weight: Tensor, factor: float, flipped: bool = False) -> Tensor:
    """v[i, j] = factor^2 * (w[i-1, j-1] + w[i-1, j] + w[i, j-1] + w[i, j]): [O, I, k, k] to [O, I, k + 1, k + 1].

    `flipped` reverses both axes of the result. By matrix products, which take less than half the time of padding and
    adding; the result is in channels_last unless the weight is in NCHW.
    """
    o, i, k = weight.shape[:3]
    sums = _sums(k, factor, flipped, weight.dtype, weight.device)
    with torch.autocast(weight.device.type, enabled=False):
        if weight.is_contiguous():
            return (weight.reshape(-1, k * k) @ sums.t()).reshape(o, i, k + 1, k + 1)
        wide = sums @ weight.permute(0, 2, 3, 1).contiguous().view(o, k * k, i)  # [O, (k + 1)^2, I]
    return wide.reshape(o, k + 1, k + 1, i).permute(0, 3, 1, 2)


@constant
def _sums(k: int, factor: float, flipped: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[(k + 1)^2, k^2]: which taps each tap of the wider kernel is the sum of, times `factor^2`."""
    one = torch.eye(k + 1, k, device=device, dtype=dtype) * factor
    sums = one + one.roll(1, 0)  # of neighbours, in one dimension
    return torch.kron(sums.flip(0), sums.flip(0)) if flipped else torch.kron(sums, sums)
