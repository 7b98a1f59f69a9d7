"""adain and style_epilogue: instance normalisation with a style, alone and as the end of a whole StyleGAN layer.

    u = x + strength[c] * noise + bias[c]
    z = gain * act(u)
    y = style_scale[n,c] * (z - mean[n,c]) / sqrt(var[n,c] + eps) + style_bias[n,c]

Mean and population variance are those of z over all positions of a channel of a sample. AdaIN (Huang and Belongie 2017,
"Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", equation 8) is the last line with z = x;
the whole is what stands between two convolutions of StyleGAN (Karras et al. 2019, "A Style-Based Generator Architecture
for Generative Adversarial Networks", equation 1 and figure 1b).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.arguments import check_activation, prepared
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import channels, dense, dense_like, over_positions, view_of
from fastgan_kernels.calls import NormCall

# Piecewise linear: they differ in their slope below zero only. The kernels make z anew in each of their passes over x.
_SLOPES = {"linear": 1.0, "relu": 0.0}
ACTIVATIONS = ("linear", "relu", "lrelu")


class Options(NamedTuple):
    """What is not differentiable. `slope` is that of the activation below zero."""

    slope: float
    gain: float
    eps: float


def adain(x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """`scale * (x - mean) / sqrt(var + eps) + bias`: instance normalisation with a style; twice differentiable.

    Args:
        x: activations [N, C, ...], any number of further dimensions; fp32, bf16, fp16 or fp64.
        scale: [N, C], or [C] where all samples share it; 1 if not given.
        bias: [N, C] or [C]; 0 if not given.
        eps: added to the variance.

    Returns:
        A tensor of the shape, dtype and memory format of `x`. Statistics and arithmetic are fp32 (fp64 for fp64 input);
        scale and bias are taken in that precision.

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the argument.
        BackendUnavailable: none of the backends that were asked for can serve.

    A style layer that gives `s` for `(1 + s) * norm(x) + bias` passes `1 + s`.
    """
    check_eps("adain", eps)
    check_activation("adain", x)
    style = (_style("adain", "scale", scale, x), _style("adain", "bias", bias, x))
    return _apply((dense(x), None, None, None, *style), Options(1.0, 1.0, float(eps)))


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
        strength: of the noise: a scalar or [C] (StyleGAN); 1 if not given.
        bias: [C].
        style_scale: [N, C], or [C] where all samples share it; 1 if not given.
        style_bias: [N, C] or [C]; 0 if not given.
        act: "linear", "relu" or "lrelu".
        slope: of "lrelu" below zero.
        gain: factor after the activation; the norm leaves of it what `eps` makes of it.
        eps: added to the variance.

    Returns:
        A tensor of the shape, dtype and memory format of `x`. Statistics and arithmetic are fp32 (fp64 for fp64 input);
        the other tensors are taken in that precision.

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the argument.
        BackendUnavailable: none of the backends that were asked for can serve.

    The gradient of `noise` takes the plain path.
    """
    name = "style_epilogue"
    slope = slope_of(name, act, slope, gain)
    check_eps(name, eps)
    check_activation(name, x)
    if strength is not None and noise is None:
        raise ValueError(f"{name}: strength is given without noise")
    n, c, *spatial = x.shape
    inputs = (
        dense(x),
        prepared(name, "noise", noise, ((n, 1, *spatial), (1, 1, *spatial)), x),
        prepared(name, "strength", strength, ((), (c,)), x),
        prepared(name, "bias", bias, ((c,),), x),
        _style(name, "style_scale", style_scale, x),
        _style(name, "style_bias", style_bias, x),
    )
    return _apply(inputs, Options(slope, float(gain), float(eps)))


def slope_of(operation: str, act: str, slope: float, gain: float) -> float:
    """The slope of an activation below zero. Raises ValueError for one that is not piecewise linear."""
    if act not in ACTIVATIONS:
        raise ValueError(f"{operation}: act is {act!r}, must be piecewise linear: one of {', '.join(ACTIVATIONS)}")
    # Not isfinite: torch.compile could not trace that of a number that has changed between calls.
    if not (-math.inf < slope < math.inf and -math.inf < gain < math.inf):
        raise ValueError(f"{operation}: slope and gain must be finite, are {slope} and {gain}")
    return float(_SLOPES.get(act, slope))


def check_eps(name: str, eps: float) -> None:
    if not 0 < eps < math.inf:
        raise ValueError(f"{name}: eps is {eps}, must be finite and above zero")


def _style(operation: str, name: str, tensor: Tensor | None, x: Tensor) -> Tensor | None:
    """[N, C] as the kernels take it, also of a [C] that all samples share."""
    n, c = x.shape[:2]
    if tensor is not None and list(tensor.shape) == [c]:
        tensor = tensor.expand(n, c)
    return prepared(operation, name, tensor, ((n, c), (c,)), x)


def _apply(inputs: tuple[Tensor | None, ...], options: Options) -> Tensor:
    x, noise, *_ = inputs
    backend = backends.choose("instance_norm", x.device)
    if noise is not None and noise.requires_grad:
        backend = "torch"
    return InstanceNorm.apply(backend, inputs, options)


@register
class InstanceNorm(FusedOperation):
    """Both operations as `FusedOperation` wants them told.

    Kept for the backward pass: x and the small tensors. Mean and 1 / sqrt(var + eps) are statistics [2, N, C].
    """

    name = "instance_norm"
    inputs = ("x", "noise", "strength", "bias", "style_scale", "style_bias")
    Options = Options
    num_statistics = 1

    @staticmethod
    def reference(inputs, options):
        x, *before, style_scale, style_bias = inputs
        z = activated(_before_activation(to_arithmetic(x), *before), options)
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
        return needs_grad

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        x, noise, strength, bias, style_scale, *_ = saved
        dy = to_arithmetic(grad)
        u = _before_activation(to_arithmetic(x), noise, strength, bias)
        normal, inverse = _normalised(centred(activated(u, options), _mean), options)
        dstyle_scale = over_positions(dy * normal) if needs_grad[4] else None
        dstyle_bias = over_positions(dy) if needs_grad[5] else None
        if not any(needs_grad[:4]):
            return None, None, None, None, dstyle_scale, dstyle_bias

        g = dy if style_scale is None else dy * channels(style_scale, dy)
        dz = inverse * (g - _mean(g) - normal * _mean(g * normal))
        du = dz * derivative(u, options)
        noisy = over_positions(du * noise) if needs_grad[2] else None
        return (
            du.to(grad.dtype) if needs_grad[0] else None,
            None,
            None if noisy is None else (noisy.sum() if strength.dim() == 0 else noisy.sum(0)),
            over_positions(du).sum(0) if needs_grad[3] else None,
            dstyle_scale,
            dstyle_bias,
        )

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        x, _, strength, *_ = saved
        n, c = x.shape[:2]
        shapes = (None, strength.shape if needs_grad[2] else None, (c,), (n, c), (n, c))
        arithmetic = arithmetic_dtype(x.dtype)
        return (
            torch.empty_like(x) if needs_grad[0] else None,
            *(
                torch.empty(shape, dtype=arithmetic, device=x.device) if need and shape is not None else None
                for need, shape in zip(needs_grad[1:], shapes, strict=True)
            ),
        )

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        x, *small, statistics = saved
        dx, _, *sums = grads
        shared = _shared_fields(x, (*small, None), options)
        launchers.backward(NormCall(*shared, x, statistics, None, dense_like(grad, x), dx, *sums))


def _shared_fields(x: Tensor, small: Sequence[Tensor | None], options: Options) -> tuple:
    """The fields of a call, up to the style, that both passes have."""
    noise, strength, *_ = small
    noise_per_sample = noise is not None and noise.shape[0] > 1
    strength_per_channel = strength is not None and strength.dim() > 0
    return *view_of(x), x.dtype, False, *options, noise_per_sample, strength_per_channel, *small


def _before_activation(x, noise, strength, bias):
    if noise is not None:
        x = x + (noise if strength is None else channels(strength, x) * noise)
    return x if bias is None else x + channels(bias, x)


def activated(u: Tensor, options: NamedTuple) -> Tensor:
    """gain * act(u), of options that have a slope and a gain."""
    z = u if options.slope == 1 else F.leaky_relu(u, options.slope)
    return z if options.gain == 1 else z * options.gain


def derivative(u: Tensor, options: NamedTuple) -> Tensor:
    """Its derivative."""
    return torch.where(u > 0, torch.ones_like(u), options.slope) * options.gain


def _mean(t: Tensor) -> Tensor:
    """Over positions, [N, C, ...] to [N, C, 1, ...]."""
    return t.mean(tuple(range(2, t.dim())), keepdim=True) if t.dim() > 2 else t


def _normalised(centred: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """`centred` / sqrt(var + eps), and 1 / sqrt(var + eps) [N, C, 1, ...]."""
    inverse = torch.rsqrt(_mean(centred.square()) + options.eps)
    return centred * inverse, inverse


def centred(z: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """`z - mean(z)`, and what rounding leaves of the mean subtracted as well: 5e-4 in fp32 at a mean of 1e4.

    The formulas of gradients take the sum of what they are given for zero. That remainder is zero but for rounding, and
    so is its derivative.
    """
    about_zero = z - mean(z)
    return about_zero - mean(about_zero.detach())
