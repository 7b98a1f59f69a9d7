"""adain and style_epilogue: instance normalisation with a style, alone and with noise, bias and activation before it.

    u = x + strength[c] * noise + bias[c]
    z = gain * act(u)
    y = style_scale[n,c] * (z - mean[n,c]) / sqrt(var[n,c] + eps) + style_bias[n,c]

Mean and population variance of z are taken over all positions, for each sample and channel. AdaIN (Huang and Belongie
2017, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", equation 8) is the last line with
z = x. All three lines are the layers between two convolutions of StyleGAN (Karras et al. 2019, "A Style-Based Generator
Architecture for Generative Adversarial Networks", equation 1 and figure 1b).

Both functions are the operation `InstanceNorm` below. Its gradient is written in two places:

- `InstanceNorm.reference_backward`: in plain PyTorch; the specification, and the source of second derivatives;
- `InstanceNorm.launch_backward`: the kernels, csrc/norm/ (C++ and CUDA), kernels/triton/instance_norm.py and
  kernels/triton/norm.py (Triton).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.activations import leaky_relu, leaky_relu_derivative, require_slope
from fastgan.ops.arguments import check_activation, prepare
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import channels, dense, dense_like, require_view, sum_over_positions
from fastgan.ops.noise_bias_act import noise_gradient
from fastgan_kernels.calls import NormCall


class Options(NamedTuple):
    """The non-differentiable arguments. `slope` is that of the activation below zero."""

    slope: float
    gain: float
    eps: float


def adain(x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """`scale * (x - mean) / sqrt(var + eps) + bias`: instance normalisation with a style; twice differentiable.

    Args:
        x: activations [N, C, ...], any number of further dimensions; fp32, bf16, fp16 or fp64.
        scale: [N, C], or [C] for all samples. Default: 1.
        bias: [N, C] or [C]. Default: 0.
        eps: added to the variance.

    Returns:
        A tensor of the shape, dtype and memory format of `x`. Statistics and arithmetic are fp32 (fp64 for fp64 input);
        scale and bias are converted to that precision.

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the argument.
        BackendUnavailable: none of the requested backends can serve.

    For `(1 + s) * norm(x) + bias` pass `scale=1 + s`.
    """
    check_eps("adain", eps)
    check_activation("adain", x)
    style = (_style("adain", "scale", scale, x), _style("adain", "bias", bias, x))
    return _apply(dense(x), (None, None, None, *style), Options(1.0, 1.0, float(eps)))


def style_epilogue(
    x: Tensor,
    *,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    style_scale: Tensor | None = None,
    style_bias: Tensor | None = None,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    """`style_scale * instance_norm(gain * act(x + strength * noise + bias)) + style_bias`; twice differentiable.

    Args:
        x: activations [N, C, ...], any number of further dimensions; fp32, bf16, fp16 or fp64.
        noise: [N, 1, ...] or [1, 1, ...], the same for all channels.
        strength: factor of the noise: a scalar or [C] (StyleGAN). Default: 1.
        bias: [C].
        style_scale: [N, C], or [C] for all samples. Default: 1.
        style_bias: [N, C] or [C]. Default: 0.
        act: "linear", "relu" or "lrelu".
        slope: slope of "lrelu" below zero.
        gain: factor after the activation. The norm cancels it, but for `eps`.
        eps: added to the variance.

    Returns:
        A tensor of the shape, dtype and memory format of `x`. Statistics and arithmetic are fp32 (fp64 for fp64 input);
        the other tensors are converted to that precision.

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the argument.
        BackendUnavailable: none of the requested backends can serve.
    """
    name = "style_epilogue"
    # Piecewise linear, since the kernels recompute z in each pass over x.
    slope = require_slope(name, act, slope, gain)
    check_eps(name, eps)
    check_activation(name, x)
    if strength is not None and noise is None:
        raise ValueError(f"{name}: strength is given without noise")
    n, c, *spatial = x.shape
    small = (
        prepare(name, "noise", noise, ((n, 1, *spatial), (1, 1, *spatial)), x),
        prepare(name, "strength", strength, ((), (c,)), x),
        prepare(name, "bias", bias, ((c,),), x),
        _style(name, "style_scale", style_scale, x),
        _style(name, "style_bias", style_bias, x),
    )
    return _apply(dense(x), small, Options(slope, float(gain), float(eps)))


def check_eps(name: str, eps: float) -> None:
    if not 0 < eps < math.inf:
        raise ValueError(f"{name}: eps is {eps}, must be finite and above zero")


def _style(operation: str, name: str, tensor: Tensor | None, x: Tensor) -> Tensor | None:
    """Converts a style for the kernels: [N, C], expanded if it is [C]."""
    n, c = x.shape[:2]
    if tensor is not None and list(tensor.shape) == [c]:
        tensor = tensor.expand(n, c)
    return prepare(operation, name, tensor, ((n, c), (c,)), x)


def _apply(x: Tensor, small: tuple[Tensor | None, ...], options: Options) -> Tensor:
    """Chooses the backend and runs the operation. `small` are the inputs after `x`."""
    return InstanceNorm.apply(backends.choose("instance_norm", x.device), (x, *small), options)


@register
class InstanceNorm(FusedOperation):
    """adain and style_epilogue.

    Saved for backward: x and the small tensors but style_bias. Statistics [2, N, C]: mean and 1 / sqrt(var + eps).
    """

    name = "instance_norm"
    inputs = ("x", "noise", "strength", "bias", "style_scale", "style_bias")
    Options = Options
    num_statistics = 1

    @staticmethod
    def reference(inputs, options):
        x, *before, style_scale, style_bias = inputs
        z = leaky_relu(_before_activation(to_arithmetic(x), *before), options)
        y, _ = _normalised(z - _mean(z), options)
        if style_scale is not None:
            y = y * channels(style_scale, x)
        if style_bias is not None:
            y = y + channels(style_bias, x)
        return y.to(x.dtype)

    @staticmethod
    def allocate_output(inputs, options):
        return torch.empty_like(inputs[0])

    @staticmethod
    def allocate_statistics(inputs, options):
        x = inputs[0]
        return (torch.empty(2, *x.shape[:2], dtype=arithmetic_dtype(x.dtype), device=x.device),)

    @staticmethod
    def launch_forward(launchers, output, inputs, options, statistics):
        x, *small = inputs
        launchers.forward(NormCall(*_shared_fields(x, small, options), x, statistics, output))

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        return inputs[:5]

    @staticmethod
    def output_mask(needs_grad):
        return (needs_grad[0] or needs_grad[1], *needs_grad[1:])  # the gradient of the noise is a sum of dx

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        x, noise, strength, bias, style_scale, *_ = saved
        dy = to_arithmetic(grad)
        u = _before_activation(to_arithmetic(x), noise, strength, bias)
        normal, inverse = _normalised(centred(leaky_relu(u, options), _mean), options)
        dstyle_scale = sum_over_positions(dy * normal) if needs_grad[4] else None
        dstyle_bias = sum_over_positions(dy) if needs_grad[5] else None
        if not any(needs_grad[:4]):
            return None, None, None, None, dstyle_scale, dstyle_bias

        g = dy if style_scale is None else dy * channels(style_scale, dy)
        dz = inverse * (g - _mean(g) - normal * _mean(g * normal))
        du = dz * leaky_relu_derivative(u, options)
        noisy = sum_over_positions(du * noise) if needs_grad[2] else None
        return (
            du.to(grad.dtype) if needs_grad[0] else None,
            noise_gradient(du, noise, strength) if needs_grad[1] else None,
            None if noisy is None else (noisy.sum() if strength.dim() == 0 else noisy.sum(0)),
            sum_over_positions(du).sum(0) if needs_grad[3] else None,
            dstyle_scale,
            dstyle_bias,
        )

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        x, noise, strength, *_ = saved
        n, c = x.shape[:2]
        shapes = (
            noise.shape if needs_grad[1] else None,
            strength.shape if needs_grad[2] else None,
            (c,),
            (n, c),
            (n, c),
        )
        arithmetic = arithmetic_dtype(x.dtype)
        return (
            torch.empty_like(x) if needs_grad[0] or needs_grad[1] else None,
            *(
                torch.empty(shape, dtype=arithmetic, device=x.device) if need and shape is not None else None
                for need, shape in zip(needs_grad[1:], shapes, strict=True)
            ),
        )

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        x, *small, statistics = saved
        dx, dnoise, *sums = grads
        shared = _shared_fields(x, (*small, None), options)
        launchers.backward(NormCall(*shared, x, statistics, None, dense_like(grad, x), dx, *sums))
        if dnoise is not None:
            dnoise.copy_(_noise_gradient(dx, small[1]).sum_to_size(dnoise.shape))


def _noise_gradient(dx: Tensor, strength: Tensor | None) -> Tensor:
    """`noise_gradient` of each sample by a matrix product, which reads dx once: [N, 1, ...]."""
    n, c, *spatial = dx.shape
    dx = to_arithmetic(dx).flatten(2) if spatial else to_arithmetic(dx)[:, :, None]
    factors = dx.new_ones(c) if strength is None else strength.expand(c)
    with torch.autocast(dx.device.type, enabled=False):
        by_pixel = dx.stride(1) == 1
        summed = dx.transpose(1, 2) @ factors if by_pixel else torch.bmm(factors.expand(n, 1, c), dx)
    return summed.reshape(n, 1, *spatial)


def _shared_fields(x: Tensor, small: Sequence[Tensor | None], options: Options) -> tuple:
    """The fields of a call up to the style, which are the same for both passes."""
    noise, strength, *_ = small
    noise_per_sample = noise is not None and noise.shape[0] > 1
    strength_per_channel = strength is not None and strength.dim() > 0
    return *require_view(x), x.dtype, False, *options, noise_per_sample, strength_per_channel, *small


def _before_activation(x, noise, strength, bias):
    if noise is not None:
        x = x + (noise if strength is None else channels(strength, x) * noise)
    return x if bias is None else x + channels(bias, x)


def _mean(t: Tensor) -> Tensor:
    """The mean over positions, [N, C, ...] to [N, C, 1, ...]."""
    return t.mean(tuple(range(2, t.dim())), keepdim=True) if t.dim() > 2 else t


def _normalised(centred: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """`centred` / sqrt(var + eps), and 1 / sqrt(var + eps) [N, C, 1, ...]."""
    inverse = torch.rsqrt(_mean(centred.square()) + options.eps)
    return centred * inverse, inverse


def centred(z: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """`z - mean(z)`, with the mean subtracted twice.

    The formulas of the gradients assume that the result sums to zero. Rounding of the first mean leaves up to 5e-4 in
    fp32 at a mean of 1e4 (docs/notes/operations.md, "Exactness of the norms"). The second mean is zero but for
    rounding, so its derivative is zero.
    """
    difference = z - mean(z)
    return difference - mean(difference.detach())
