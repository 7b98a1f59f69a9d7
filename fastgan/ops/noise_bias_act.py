"""noise_bias_act: the elementwise work between two convolutions of a generator or discriminator, in one pass.

    u = scale[n,c] * x + strength[c] * noise + bias[c]
    z = clamp(gain * act(u), -limit, limit)
    y = z * post[n,c] + residual

`scale` is the demodulation of the previous convolution, `post` the style of the next one (Karras et al. 2020,
"Analyzing and Improving the Image Quality of StyleGAN", section 2.2, in the form that scales activations instead of
weights). `residual` is the other branch of a residual block.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.activations import ACTIVATIONS, check_finite, slope_below_zero
from fastgan.ops.arguments import check_activation, prepare
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.compiling import constant_to_compiler
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import channels, dense, dense_like, require_view, sum_over_positions
from fastgan.ops.recordable import recordable_in_parts
from fastgan_kernels.calls import NoiseBiasActCall, View

# Activations whose derivative can be computed from the output. The next layer saves the output anyway, so the input
# need not be saved. (Softplus is missing: far below zero 1 - exp(-y) would be rounding error only.)
_FROM_OUTPUT = ("lrelu", "tanh", "sigmoid")


class Options(NamedTuple):
    """The non-differentiable arguments. `slope` is that of lrelu below zero; `clamp` is infinite for no limit."""

    act: str
    slope: float
    gain: float
    clamp: float
    from_x: bool = False  # backward computes the derivative from x, also where y is as good


def _without_residual(x: Tensor, *, residual: Tensor | None = None, **others) -> Tensor:
    return NotImplemented if residual is None else noise_bias_act(x, **others) + residual


@recordable_in_parts(_without_residual)
def noise_bias_act(
    x: Tensor,
    *,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    post: Tensor | None = None,
    residual: Tensor | None = None,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """`clamp(gain * act(scale * x + strength * noise + bias)) * post + residual`, fused.

    Twice differentiable in every tensor.

    Args:
        x: activations [N, C, ...], any number of further dimensions; fp32, bf16, fp16 or fp64.
        noise: [N, 1, ...] or [1, 1, ...], the same for all channels.
        strength: factor of the noise: a scalar (StyleGAN2) or [C] (StyleGAN). Default: 1.
        bias: [C].
        scale: [N, C], factor before everything else: the demodulation of the previous convolution.
        post: [N, C], factor after the clamp: the style of the next convolution.
        residual: added last; shape, dtype and device of `x`. Its gradient is that of the result: no kernel runs.
        act: "linear", "relu", "lrelu", "tanh", "sigmoid", "silu" or "softplus". Relu is lrelu of slope 0, so minus
            infinity becomes NaN.
        slope: slope of "lrelu" below zero.
        gain: factor after the activation.
        clamp: limits the result, before `post`, to [-clamp, clamp]; None for no limit.

    Returns:
        A tensor of the shape, dtype and memory format of `x`. Arithmetic is fp32 (fp64 for fp64 input); the other
        tensors are converted to that precision.

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the argument.
        BackendUnavailable: none of the requested backends can serve.
    """
    options = resolve_options("noise_bias_act", act, slope, gain, clamp, x.dtype)
    check_activation("noise_bias_act", x)
    x = dense(x)
    small = prepare_small("noise_bias_act", x, x.shape, noise, strength, bias, scale, post)
    if residual is not None:
        _check_residual(residual, x)
        residual = dense_like(residual, x)
        # The sum does not tell the sign of x. A linear operation without clamp does not need it.
        options = options._replace(from_x=_is_curved(options) or options.clamp < math.inf)
    backend = backends.choose("noise_bias_act", x.device)
    return NoiseBiasAct.apply(backend, (x, *small, residual), options)


def _check_residual(residual: Tensor, x: Tensor) -> None:
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError(
            f"noise_bias_act: residual is {list(residual.shape)} {residual.dtype} on {residual.device}, must be as x: "
            f"{list(x.shape)} {x.dtype} on {x.device}"
        )


def _is_curved(options: Options) -> bool:
    """Whether the activation is not the identity."""
    return options.act != "lrelu" or options.slope != 1


def resolve_options(
    operation: str, act: str, slope: float, gain: float, clamp: float | None, dtype: torch.dtype
) -> Options:
    """Validates the options and converts them for the kernels. Raises ValueError, naming the operation."""
    if act not in ACTIVATIONS:
        raise ValueError(f"{operation}: act is {act!r}, must be one of {', '.join(ACTIVATIONS)}")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"{operation}: clamp is {clamp}, must be above zero (or None for no limit)")
    check_finite(operation, slope, gain)
    clamp = math.inf if clamp is None else _rounded(float(clamp), dtype)
    below = slope_below_zero(act, slope)
    if below is not None:
        act, slope = "lrelu", below
    return Options(act, float(slope), float(gain), clamp)


@constant_to_compiler
def _rounded(clamp: float, dtype: torch.dtype) -> float:
    """`clamp` rounded to the output's dtype, since backward compares the output with it."""
    return _round(clamp, dtype)


@cache
def _round(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype).item()


def prepare_small(operation, x, shape, noise, strength, bias, scale, post) -> tuple[Tensor | None, ...]:
    """Converts the small tensors for the kernels.

    `shape` is that of the activation [N, C, ...]; dtype and device are those of `x`. Raises ValueError.
    """
    if strength is not None and noise is None:
        raise ValueError(f"{operation}: strength is given without noise")
    n, c, *spatial = shape
    return (
        noise if noise is None else prepare(operation, "noise", noise, ((n, 1, *spatial), (1, 1, *spatial)), x),
        strength if strength is None else prepare(operation, "strength", strength, ((), (c,)), x),
        bias if bias is None else prepare(operation, "bias", bias, ((c,),), x),
        scale if scale is None else prepare(operation, "scale", scale, ((n, c),), x),
        post if post is None else prepare(operation, "post", post, ((n, c),), x),
    )


def _activation(u: Tensor, options: Options) -> Tensor:
    if options.act == "lrelu":
        return u if options.slope == 1 else F.leaky_relu(u, options.slope)
    curves: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu, "softplus": F.softplus
    }  # fmt: skip
    return curves[options.act](u)


def saves_output(scale: Tensor | None, post: Tensor | None, options: Options) -> bool:
    """Whether backward computes the derivative from y, which is saved then in place of x."""
    monotonic = options.act in _FROM_OUTPUT and options.gain > 0 and options.slope >= 0
    return monotonic and scale is None and post is None and not options.from_x


@register
class NoiseBiasAct(FusedOperation):
    """Saved for backward: y if `saves_output`, else x; and the small tensors."""

    name = "noise_bias_act"
    inputs = ("x", "noise", "strength", "bias", "scale", "post", "residual")
    Options = Options
    adds_last_input = True

    @staticmethod
    def reference(inputs, options):
        x, noise, strength, bias, scale, post, *residual = inputs
        u = _before_activation(to_arithmetic(x), noise, strength, bias, scale)
        z = _clamped(_activation(u, options) * options.gain, options)
        y = z if post is None else z * channels(post, x)
        if residual and residual[0] is not None:
            y = y + to_arithmetic(residual[0])
        return y.to(x.dtype)

    @staticmethod
    def allocate_output(inputs, options):
        return torch.empty_like(inputs[0])

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        x, *small, residual = inputs
        launchers.forward(call_of(output, small, options)._replace(x=x, y=output, residual=residual))

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        x, noise, strength, bias, scale, post = inputs
        if not saves_output(scale, post, options):
            return inputs
        # For act="linear" backward depends on the clamp mask only, which has no derivative.
        if not _is_curved(options):
            output = None if options.clamp == math.inf else output.detach()
        return output, noise if needs_grad[1] or needs_grad[2] else None, strength, None, None, None

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        activation, noise, strength, bias, scale, post = saved
        dtype = grad.dtype
        grad = to_arithmetic(grad)
        activation = None if activation is None else activation.to(grad.dtype)
        if saves_output(scale, post, options):
            z = None  # needed for the gradient of post only, and post is None here
            du = grad * derivative_from_output(activation, options)
        else:
            u = _before_activation(activation, noise, strength, bias, scale)
            z = _clamped(_activation(u, options) * options.gain, options)
            du = grad * _derivative_from_input(u, options)
            if post is not None:
                du = du * channels(post, du)
        noisy = sum_over_positions(du * noise) if needs_grad[2] else None
        return (
            (du if scale is None else du * channels(scale, du)).to(dtype),
            noise_gradient(du, noise, strength) if needs_grad[1] else None,
            None if noisy is None else (noisy.sum() if strength.dim() == 0 else noisy.sum(0)),
            sum_over_positions(du).sum(0) if needs_grad[3] else None,
            sum_over_positions(du * activation) if needs_grad[4] else None,
            sum_over_positions(grad * z) if needs_grad[5] else None,
        )

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        activation, noise, strength, *_ = saved
        n, c = grad.shape[:2]
        arithmetic = arithmetic_dtype(grad.dtype)

        def small(need: bool, shape: tuple[int, ...]) -> Tensor | None:
            return torch.empty(shape, dtype=arithmetic, device=grad.device) if need else None

        return (
            torch.empty_like(dense(grad) if activation is None else activation),
            small(needs_grad[1], noise.shape if needs_grad[1] else ()),
            small(needs_grad[2], strength.shape if needs_grad[2] else ()),
            small(needs_grad[3], (c,)),
            small(needs_grad[4], (n, c)),
            small(needs_grad[5], (n, c)),
        )

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        activation, *small = saved
        dx, dnoise, *sums = grads
        grad = dense_like(grad, dx)
        activation = grad if activation is None else dense_like(activation, dx)
        from_output = saves_output(small[3], small[4], options)
        shared = _shared_fields(dx, small, options)
        call = NoiseBiasActCall(*shared, None, None, from_output, grad, activation, dx, *sums)
        launch_with_noise_gradient(launchers.backward, call, dnoise)

    @staticmethod
    def double_backward(launchers, grad, saved, grad_grads, options, needs_grad):
        activation, *small = saved
        gx, gnoise, *gsums = grad_grads
        from_output = saves_output(small[3], small[4], options)
        if gnoise is not None or needs_grad[2]:
            return None  # about the noise: left to autograd
        if gx is None or (from_output and options.act != "lrelu"):
            return None  # the derivative of the slope depends on y: left to autograd
        like = dense(gx if activation is None else activation)
        piecewise_linear = options.act == "lrelu" and small[3] is None and small[4] is None
        if piecewise_linear and not from_output and all(g is None for g in gsums):
            # The second derivative is zero, and that of dy is backward's map of x.
            ddy = torch.empty_like(like)
            call = call_of(ddy, small, options)
            launchers.backward(call._replace(dy=dense_like(gx, ddy), reference=dense_like(activation, ddy), dx=ddy))
            return ddy, *[None] * 6
        # With the derivative from the output, only dy has a gradient that is not zero.
        needs_grad = [False] * len(needs_grad) if from_output else needs_grad
        ddy, *sums = NoiseBiasAct.allocate_grads(like, (like, *small), options, (True, *needs_grad[2:]))
        dx = None if from_output else torch.empty_like(ddy)
        grad, gx = dense_like(grad, ddy), dense_like(gx, ddy)
        activation = grad if activation is None else dense_like(activation, ddy)
        # A sum or a transposition after the backward pass gives expanded or strided gradients.
        gsums = [None if g is None else to_arithmetic(g).contiguous() for g in gsums]
        shared = _shared_fields(ddy, small, options, *gsums[2:])
        launchers.double_backward(
            NoiseBiasActCall(*shared, None, None, from_output, grad, activation, dx, *sums[1:], gx, *gsums, ddy)
        )
        return ddy, dx, *sums


def noise_gradient(du: Tensor, noise: Tensor, strength: Tensor | None) -> Tensor:
    """The gradient of the noise from that of u [N, C, ...]: a sum over channels, and over samples that share it."""
    weighted = du if strength is None else du * channels(strength, du)
    return weighted.sum(1, keepdim=True).sum_to_size(noise.shape)


def launch_with_noise_gradient(launch: Callable, call: Any, dnoise: Tensor | None) -> None:
    """Launches a backward kernel, which computes the gradient of each sample's noise if `dnoise` [N or 1, 1, ...] is
    wanted."""
    if dnoise is None:
        launch(call)
    elif len(dnoise) == call.n:
        launch(call._replace(dnoise=dnoise))
    else:
        of_samples = dnoise.new_empty(call.n, *dnoise.shape[1:])
        launch(call._replace(dnoise=of_samples))
        torch.sum(of_samples, 0, keepdim=True, out=dnoise)


def _shared_fields(x: Tensor, small: Sequence[Tensor | None], options: Options, *per_sample: Tensor | None) -> tuple:
    """The fields of a call up to `post`, which are the same for all passes over an activation `x`.

    An `x` [N, C] is passed as N positions of one sample if no small tensor and none of `per_sample` differs by sample.
    """
    noise, strength, _, scale, post = small
    view = require_view(x)
    if view.p == 1 and noise is None and scale is None and post is None and not any(t is not None for t in per_sample):
        view = View(1, view.c, view.n, True)
    noise_per_sample = noise is not None and noise.shape[0] > 1
    return *view, x.dtype, *options[:4], noise_per_sample, strength is not None and strength.dim() > 0, *small


def call_of(x: Tensor, small: Sequence[Tensor | None], options: Options) -> NoiseBiasActCall:
    """The call for an activation `x`, without the tensors of a pass, for kernels that include this operation."""
    return NoiseBiasActCall(*_shared_fields(x, small, options))


def _before_activation(x, noise, strength, bias, scale):
    u = x if scale is None else x * channels(scale, x)
    if noise is not None:
        u = u + (noise if strength is None else channels(strength, x) * noise)
    return u if bias is None else u + channels(bias, x)


def _clamped(z, options):
    return z if options.clamp == math.inf else z.clamp(-options.clamp, options.clamp)


def _derivative_from_input(u: Tensor, options: Options) -> Tensor:
    """d clamp(gain * act(u)) / du."""
    match options.act:
        case "lrelu":
            slope = torch.where(u > 0, torch.ones_like(u), options.slope)
        case "tanh":
            slope = 1 - torch.tanh(u).square()
        case "sigmoid":
            slope = torch.sigmoid(u) * torch.sigmoid(-u)
        case "silu":
            slope = torch.sigmoid(u) * (1 + u * torch.sigmoid(-u))
        case "softplus":
            slope = torch.sigmoid(u)
    slope = slope * options.gain
    if options.clamp == math.inf:
        return slope
    return torch.where((_activation(u, options) * options.gain).abs() <= options.clamp, slope, 0.0)


def derivative_from_output(y: Tensor | None, options: Options) -> Tensor | float:
    """The same derivative, from `y = clamp(gain * act(u))`. `y` is None if the operation is linear without clamp."""
    if y is None:
        return options.gain
    a = y / options.gain
    match options.act:
        case "lrelu":
            slope = torch.where(y > 0, torch.ones_like(y), options.slope)
        case "tanh":
            slope = 1 - a.square()
        case "sigmoid":
            slope = a * (1 - a)
    slope = slope * options.gain
    return slope if options.clamp == math.inf else torch.where(y.abs() < options.clamp, slope, 0.0)
