"""Linearization of noise_bias_act with a piecewise linear activation, in one pass, for one-pass gradient penalties.

    y = clamp(gain * lrelu(u + bias), -limit, limit)        `derivative` is dy/du, [N, C, ...]
    linearized(factor * u + t) = factor * y + derivative * t         factor [N], any t

Both functions launch kernels of noise_bias_act's backward passes, whose sums have the same form.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan_kernels
from fastgan.ops import backends
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.layout import channels, dense, dense_like, view_of
from fastgan.ops.noise_bias_act import Options, call_of, derivative_from_output, resolve_options


def linearized(
    x: Tensor, y: Tensor | None, *, factor: Tensor | None, bias: Tensor | None, slope: float, gain: float,
    clamp: float | None,
) -> Tensor:  # fmt: skip
    """Evaluates the linearization of `y = noise_bias_act(u, bias=bias, act="lrelu", ...)` around u at another point.

    The point is `x = factor * u + t`. The result is `derivative * (x + factor * bias)`, and `factor * y` where y was
    clamped. Not differentiable.

    Args:
        x: [N, C, ...], in the dtype of `y`.
        y: the output for u; None if `slope` is 1 and there is no clamp.
        factor: [N], one for each sample; None for zeros.
        bias: [C] or None, the bias of the call that computed `y`.
        slope, gain, clamp: arguments of that call; slope and gain are not negative.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    if y is not None and x.dtype != y.dtype:
        raise ValueError(f"linearized: x has dtype {x.dtype}, must be that of y, {y.dtype}")
    options = resolve_options("linearized", "lrelu", slope, gain, clamp, x.dtype)
    backend = backends.choose("noise_bias_act", x.device)
    if backend == "torch":
        result = _reference(x, y, factor, bias, options)
    else:
        result = _launch(backend, x, y, factor, bias, options)
    if y is None or factor is None or options.clamp == math.inf:
        return result
    # This test is cheap on a CPU. On a GPU it would synchronize.
    if y.device.type == "cpu" and (y.numel() == 0 or _lies_within(dense(y), options.clamp)):
        return result
    below_limit = options.clamp * (1 - torch.finfo(y.dtype).eps / 2)  # the next number below the limit
    clamped = F.hardshrink(y, below_limit)  # y where it was clamped, else 0
    return torch.addcmul(result, clamped, _per_sample(factor, y).to(y.dtype))


def _reference(x: Tensor, y: Tensor | None, factor: Tensor | None, bias: Tensor | None, options: Options) -> Tensor:
    """`derivative * (x + factor * bias)`, in plain PyTorch."""
    moved = to_arithmetic(x)
    if factor is not None and bias is not None:
        moved = moved + _per_sample(factor, x) * channels(bias.to(moved.dtype), x)
    return (moved * derivative_from_output(None if y is None else to_arithmetic(y), options)).to(x.dtype)


def _launch(
    backend: str, x: Tensor, y: Tensor | None, factor: Tensor | None, bias: Tensor | None, options: Options
) -> Tensor:
    """The same by the double-backward kernel, which computes `derivative * (gx + gstrength[c] * noise)`."""
    result = torch.empty_like(dense(x if y is None else y))
    x = dense_like(x, result)
    noise = strength = None
    if factor is not None and bias is not None:
        strength = bias.to(arithmetic_dtype(x.dtype)).contiguous()
        noise = _as_noise(factor.to(strength.dtype), x)
    if result.numel():
        call = call_of(result, (noise, strength, None, None, None), options)
        fastgan_kernels.BACKENDS[backend].launchers("noise_bias_act").double_backward(
            call._replace(
                from_output=True, dy=result, reference=x if y is None else dense_like(y, result),
                gx=x, gstrength=strength, ddy=result,
            )
        )  # fmt: skip
    return result


def weighted_channel_sums(x: Tensor, factor: Tensor) -> Tensor:
    """Sums factor[n] * x[n, c, ...] over samples and positions, to [C] in the dtype of `factor` [N].

    This is the gradient of `bias` in `linearized`, for the gradient x of the activation's input.

    On a CPU torch would copy a 16-bit `x` to fp32 first. There the backward kernel computes the sum in one pass, as the
    gradient of a noise strength per channel with `factor` as the noise.
    """
    backend = backends.choose("noise_bias_act", x.device)
    if backend != "cpp" or x.dtype.itemsize != 2 or view_of(x) is None:
        return factor @ (x.flatten(2).sum(2, dtype=factor.dtype) if x.dim() > 2 else x.to(factor.dtype))
    sums = torch.empty(x.shape[1], dtype=factor.dtype, device=x.device)
    if x.numel() == 0:  # kernels are not called for empty tensors
        return sums.zero_()
    call = call_of(x, (_as_noise(factor, x), sums, None, None, None), Options("lrelu", 1.0, 1.0, math.inf))
    fastgan_kernels.BACKENDS[backend].launchers("noise_bias_act").backward(
        call._replace(from_output=True, dy=x, reference=x, dx=torch.empty_like(x), dstrength=sums)
    )
    return sums


def _per_sample(factor: Tensor, like: Tensor) -> Tensor:
    """[N] as [N, 1, ...], with the rank of `like`."""
    return factor.view(-1, *[1] * (like.dim() - 1))


def _as_noise(factor: Tensor, like: Tensor) -> Tensor:
    """[N] as noise [N, 1, ...] that is the same at all positions of `like`."""
    return _per_sample(factor, like).expand(-1, 1, *like.shape[2:]).contiguous()


def _lies_within(y: Tensor, limit: float) -> bool:
    """Whether all elements of a dense `y` lie between -limit and limit."""
    flat = y.as_strided((y.numel(),), (1,), y.storage_offset())
    # torch is faster in one pass for 16-bit dtypes, and in two passes for others.
    least, most = flat.aminmax() if y.dtype.itemsize == 2 else (flat.amin(), flat.amax())
    return bool(-limit < least and most < limit)
