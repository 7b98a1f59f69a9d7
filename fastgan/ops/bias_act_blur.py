"""bias_act_blur: bias, leaky ReLU and clamp, then an FIR filter: between two convolutions of a discriminator's block.

    z = clamp(gain * lrelu(x + bias[c]), -limit, limit)
    y = FIR(z)

    dx = z'(x + bias) * FIR^T(dy),   dbias = sum(dx)

z stays in registers. Forward reads x and writes y; backward reads dy and x and writes dx: two and three passes, where
the two operations take four and five. Both maps are linear in dy, so the second derivative is

    ddy = FIR(z'(x + bias) * (gx + gbias))
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.activations import slope_below_zero
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import dense_like
from fastgan.ops.noise_bias_act import NoiseBiasAct, noise_bias_act, prepare_small, resolve_options
from fastgan.ops.noise_bias_act import Options as ActivationOptions
from fastgan.ops.noise_bias_act import call_of as noise_bias_act_call
from fastgan.ops.recordable import recordable_in_parts
from fastgan.ops.upfirdn2d import Options as FilterOptions
from fastgan.ops.upfirdn2d import Upfirdn2d, adjoint, upfirdn2d, validate
from fastgan.ops.upfirdn2d import call_of as upfirdn2d_call
from fastgan_kernels.calls import BiasActBlurCall


class Options(NamedTuple):
    """The non-differentiable arguments of the activation, then of the filter. All activations are in channels_last."""

    slope: float
    gain: float
    clamp: float
    left: int
    right: int
    top: int
    bottom: int

    @property
    def activation(self) -> ActivationOptions:
        return ActivationOptions("lrelu", *self[:3], from_x=True)

    @property
    def filter(self) -> FilterOptions:
        return FilterOptions(1, 1, 1, 1, *self[3:], 1.0, False, True)


def _separately(x: Tensor, taps: Tensor, *, padding: tuple[int, int, int, int] = (0, 0, 0, 0), **activation) -> Tensor:
    return upfirdn2d(noise_bias_act(x, **activation), taps, padding=padding)


@recordable_in_parts(_separately)
def bias_act_blur(
    x: Tensor,
    taps: Tensor,
    *,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    bias: Tensor | None = None,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """`upfirdn2d(noise_bias_act(x, bias=bias, ...), taps, padding=padding)`; twice differentiable in x and bias.

    Args:
        x: [N, C, H, W], the output of a convolution; fp32, bf16, fp16 or fp64.
        taps, padding: see `upfirdn2d`; padding is (left, right, top, bottom).
        bias, act, slope, gain, clamp: see `noise_bias_act`.

    Returns:
        [N, C, H + top + bottom - kh + 1, W + left + right - kw + 1], in the dtype and memory format of `x`. Fused
        kernels do not round the activated values to 16 bits.

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the argument.
        BackendUnavailable: none of the requested backends can serve.

    Fused kernels serve channels_last with C * itemsize a multiple of 64, four separable taps and a piecewise linear
    activation; the two operations serve all other calls.
    """
    x, taps, filter = validate("bias_act_blur", x, taps, 1, 1, padding, 1.0, False)
    options = resolve_options("bias_act_blur", act, slope, gain, clamp, x.dtype)
    backend = backends.choose("upfirdn2d", x.device)
    fused = backends.has_kernels(backend, "bias_act_blur", x.device)
    if not (fused and _fits(x, taps, filter, act)):
        return _separately(x, taps, padding=padding, bias=bias, act=act, slope=slope, gain=gain, clamp=clamp)
    bias = prepare_small("bias_act_blur", x, x.shape, None, None, bias, None, None)[2]
    return BiasActBlur.apply(backend, (x, taps, bias), Options(*options[1:4], *filter[4:8]))


def _fits(x: Tensor, taps: Tensor, filter: FilterOptions, act: str) -> bool:
    """Whether the kernels take this call."""
    return (
        filter.channels_last
        and x.numel() > 0
        and x.shape[1] * x.element_size() % 64 == 0
        and taps.shape == (4,)
        and slope_below_zero(act, 0.0) is not None
        and not taps.requires_grad
    )


@register
class BiasActBlur(FusedOperation):
    """Saved for backward: x, taps and bias."""

    name = "bias_act_blur"
    inputs = ("x", "taps", "bias")
    Options = Options

    @staticmethod
    def reference(inputs, options):
        x, taps, bias = inputs
        z = NoiseBiasAct.reference((to_arithmetic(x), *_small(bias)), options.activation)
        return Upfirdn2d.reference((z, taps), options.filter).to(x.dtype)

    @staticmethod
    def allocate_output(inputs, options):
        return Upfirdn2d.allocate_output(inputs[:2], options.filter)

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        x, taps, bias = inputs
        filter = upfirdn2d_call(output, x, taps, options.filter)
        launchers.forward(BiasActBlurCall(filter, noise_bias_act_call(x, _small(bias), options.activation)))

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        return inputs

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        x, taps, bias = saved
        dz = Upfirdn2d.reference((to_arithmetic(grad), taps), adjoint(x.shape, taps, options.filter))
        of_small = (True, False, False, needs_grad[2], False, False)
        dx, _, _, dbias, *_ = NoiseBiasAct.reference_backward(dz, (x, *_small(bias)), options.activation, of_small)
        return dx.to(grad.dtype), None, dbias

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        x, _, bias = saved
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dbias = torch.empty_like(bias, dtype=arithmetic_dtype(x.dtype)) if needs_grad[2] else None
        return dx, None, dbias

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        x, taps, bias = saved
        dx, _, dbias = grads
        grad = grad.contiguous(memory_format=torch.channels_last)
        filter = upfirdn2d_call(dx, grad, taps, adjoint(dx.shape, taps, options.filter))
        activation = noise_bias_act_call(dx, _small(bias), options.activation)
        launchers.backward(
            BiasActBlurCall(filter, activation._replace(reference=dense_like(x, dx), dx=dx, dbias=dbias))
        )

    @staticmethod
    def double_backward(launchers, grad, saved, grad_grads, options, needs_grad):
        x, taps, bias = saved
        gx, _, gbias = grad_grads
        if gx is None:
            return None
        x = x.contiguous(memory_format=torch.channels_last)
        # The first argument has the place of dz, of which the result does not depend.
        of_small = None, None, gbias, None, None
        seen, *_ = NoiseBiasAct.double_backward(
            launchers.of("noise_bias_act"), gx, (x, *_small(bias)), (gx, *of_small), options.activation, [False] * 7
        )
        ddy = torch.empty_like(grad, memory_format=torch.channels_last)
        Upfirdn2d.launch_forward(launchers.of("upfirdn2d"), ddy, (seen, taps), options.filter)
        return ddy, None, None, None


def _small(bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """The small tensors of noise_bias_act."""
    return None, None, bias, None, None


def saves_passes(device: torch.device) -> bool:
    """Whether a network does better with this operation than with noise_bias_act and `filtered_conv2d`.

    It takes 5 passes over memory instead of 11, and keeps one image more: better on a GPU. Not on a CPU, whose kernel
    activates each element once for each row of the filter.
    """
    backend = backends.choose("upfirdn2d", device)
    return backend != "cpp" and backends.has_kernels(backend, "bias_act_blur", device)
