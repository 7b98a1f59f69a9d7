"""upsample_conv2d and conv_downsample2d: a convolution and 2x resampling as one strided convolution.

    conv(nearest-2x(x), w)     = conv_transpose(x, v, stride 2),   v[e] = w[k-1-e] + w[k-e]         (in each dimension)
    average-pool-2(conv(x, w)) = conv(x, v, stride 2),             v[e] = (w[e-1] + w[e]) / 2

w is zero outside of 0..k-1, k is odd, and the padding is k // 2. The identities are exact at the borders too. A strided
4x4 kernel needs 2.25 times fewer multiplications than a 3x3 kernel at the larger size (5x5: 2.8 times fewer), and the
larger intermediate image does not exist. Source: Karras et al. 2018, "Progressive Growing of GANs".
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.arguments import check_activation, check_parameter
from fastgan.ops.constants import constant
from fastgan.ops.convolution import conv2d, conv_transpose2d
from fastgan.ops.fixed_weights import of_weight
from fastgan.ops.layout import weight_like
from fastgan.ops.recordable import recordable


@recordable
def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Nearest-neighbour upsampling by 2, then a convolution with zero padding k // 2.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k], k odd; converted to the dtype of `x`.
        bias: [O]; converted to the dtype of `x`.

    Returns:
        [N, O, 2H, 2W], in the memory format of `x`. Differentiable any number of times.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    k = _check("upsample_conv2d", x, weight, bias)
    bias = bias if bias is None else bias.to(x.dtype)
    if k == 1:  # pixelwise: cheaper before the upsampling
        return F.interpolate(conv2d(x, weight.to(x.dtype), bias), scale_factor=2, mode="nearest")
    kernel = weight_like(_enlarged_kernel(weight.transpose(0, 1), 1.0, True), x)  # [I, O, k + 1, k + 1]
    return conv_transpose2d(x, kernel, bias, stride=2, padding=k // 2)


@recordable
def conv_downsample2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution with zero padding k // 2, then 2x2 average pooling.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k], k odd; converted to the dtype of `x`.
        bias: [O]; converted to the dtype of `x`.

    Returns:
        [N, O, H // 2, W // 2], in the memory format of `x`. Differentiable any number of times.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    k = _check("conv_downsample2d", x, weight, bias)
    bias = bias if bias is None else bias.to(x.dtype)
    if k == 1:
        return conv2d(F.avg_pool2d(x, 2), weight.to(x.dtype), bias)
    kernel = weight_like(_enlarged_kernel(weight, 0.5), x)
    return conv2d(x, kernel, bias, stride=2, padding=k // 2)


def _check(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """Validates the arguments of function `name`. Returns k."""
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


@of_weight
def _enlarged_kernel(weight: Tensor, factor: float, flipped: bool = False) -> Tensor:
    """v[i, j] = factor^2 * (w[i-1, j-1] + w[i-1, j] + w[i, j-1] + w[i, j]): [O, I, k, k] to [O, I, k + 1, k + 1].

    `flipped` reverses both axes of the result. Computed by a matrix product, which takes less than half the time of
    padding and adding. The result is in channels_last, unless the weight is in NCHW.
    """
    o, i, k = weight.shape[:3]
    sums = _summing_matrix(k, factor, flipped, weight.dtype, weight.device)
    with torch.autocast(weight.device.type, enabled=False):
        if weight.is_contiguous():
            return (weight.reshape(-1, k * k) @ sums.t()).reshape(o, i, k + 1, k + 1)
        kernel = sums @ weight.permute(0, 2, 3, 1).contiguous().view(o, k * k, i)  # [O, (k + 1)^2, I]
    return kernel.reshape(o, k + 1, k + 1, i).permute(0, 3, 1, 2)


@constant
def _summing_matrix(k: int, factor: float, flipped: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix [(k + 1)^2, k^2] that sums taps of the weight to taps of the larger kernel, times `factor^2`."""
    shifts = torch.eye(k + 1, k, device=device, dtype=dtype) * factor
    sums = shifts + shifts.roll(1, 0)  # sums of neighbours, along one axis
    return torch.kron(sums.flip(0), sums.flip(0)) if flipped else torch.kron(sums, sums)
