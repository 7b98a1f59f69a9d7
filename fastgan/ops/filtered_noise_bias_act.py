"""filtered_noise_bias_act: an FIR filter, then noise_bias_act: the end of a layer that doubles the resolution.

    y = noise_bias_act(upfirdn2d(x, taps, padding=padding, gain=fir_gain), ...)

Only GPUs have fused kernels, for channels_last. The CUDA kernels keep the filtered values and their gradient in
registers: forward reads x and writes y, backward reads dy and x, which it filters again, and writes dx. Elsewhere the
function calls the two operations. On a CPU fusing does not pay
(docs/notes/operations.md, "Fusing the filter with noise_bias_act").
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import dense_like
from fastgan.ops.noise_bias_act import (
    NoiseBiasAct,
    noise_bias_act,
    prepare_small,
    resolve_options,
    saves_output,
)
from fastgan.ops.noise_bias_act import Options as EpilogueOptions
from fastgan.ops.noise_bias_act import call_of as noise_bias_act_call
from fastgan.ops.upfirdn2d import Options as FilterOptions
from fastgan.ops.upfirdn2d import Upfirdn2d, adjoint, output_shape, upfirdn2d, validate
from fastgan.ops.upfirdn2d import call_of as upfirdn2d_call
from fastgan_kernels.calls import FilteredNoiseBiasActCall


class Options(NamedTuple):
    """The non-differentiable arguments of the filter, then of noise_bias_act. All activations are in channels_last."""

    left: int
    right: int
    top: int
    bottom: int
    fir_gain: float
    slope: float
    gain: float
    clamp: float

    @property
    def filter(self) -> FilterOptions:
        return FilterOptions(1, 1, 1, 1, *self[:4], self.fir_gain, False, True)

    @property
    def epilogue(self) -> EpilogueOptions:
        return EpilogueOptions("lrelu", *self[5:])


def filtered_noise_bias_act(
    x: Tensor,
    taps: Tensor,
    *,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    fir_gain: float = 1.0,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    post: Tensor | None = None,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """`noise_bias_act(upfirdn2d(x, taps, padding=padding, gain=fir_gain), ...)`; twice differentiable in every tensor.

    Args:
        x: [N, C, H, W], the output of a transposed convolution; fp32, bf16, fp16 or fp64.
        taps, padding: see `upfirdn2d`; padding is (left, right, top, bottom).
        fir_gain: factor of the filter: 4 after a transposed convolution of stride 2.
        noise, strength, bias, scale, post, act, slope, gain, clamp: see `noise_bias_act`; the noise has the size of the
            result.

    Returns:
        [N, C, H + top + bottom - kh + 1, W + left + right - kw + 1], in the dtype and memory format of `x`. Fused
        kernels do not round the filtered values to 16 bits.

    Raises:
        ValueError: a shape, dtype or option does not fit; the message names the argument.
        BackendUnavailable: none of the requested backends can serve.
    """
    x, taps, filter = validate("filtered_noise_bias_act", x, taps, 1, 1, padding, fir_gain, False)
    named = {"noise": noise, "strength": strength, "bias": bias, "scale": scale, "post": post}
    backend = backends.choose("noise_bias_act", x.device)
    options = resolve_options("filtered_noise_bias_act", act, slope, gain, clamp, x.dtype)
    fused = backends.has_kernels(backend, "filtered_noise_bias_act", x.device)
    if not (fused and _fits(x, taps, noise, filter, options)):
        filtered = upfirdn2d(x, taps, padding=padding, gain=fir_gain)
        return noise_bias_act(filtered, **named, act=act, slope=slope, gain=gain, clamp=clamp)
    small = prepare_small("filtered_noise_bias_act", x, output_shape(x, taps, filter), **named)
    return FilteredNoiseBiasAct.apply(backend, (x, taps, *small), Options(*filter[4:9], *options[1:4]))


def _fits(x: Tensor, taps: Tensor, noise: Tensor | None, filter: FilterOptions, options: EpilogueOptions) -> bool:
    """Whether the kernels take this call: channels in vectors of 16 bytes, four taps along each axis, a leaky ReLU."""
    return (
        filter.channels_last
        and x.numel() > 0
        and x.shape[1] % (16 // x.element_size()) == 0
        and taps.shape == (4,)
        and options.act == "lrelu"
        and not taps.requires_grad
        and not (noise is not None and noise.requires_grad)
    )


def _without_taps(flags):
    """Drops the entry of taps: from (x, taps, noise, ...) to the inputs of noise_bias_act."""
    return [flags[0], *flags[2:]]


@register
class FilteredNoiseBiasAct(FusedOperation):
    """Saved for backward: what `NoiseBiasAct` saves, with x in place of the filtered values; and the taps."""

    name = "filtered_noise_bias_act"
    inputs = ("x", "taps", "noise", "strength", "bias", "scale", "post")
    Options = Options

    @staticmethod
    def reference(inputs, options):
        x, taps, *small = inputs
        filtered = Upfirdn2d.reference((to_arithmetic(x), taps), options.filter)
        return NoiseBiasAct.reference((filtered, *small), options.epilogue).to(x.dtype)

    @staticmethod
    def allocate_output(inputs, options):
        return Upfirdn2d.allocate_output(inputs[:2], options.filter)

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        x, taps, *small = inputs
        filter = upfirdn2d_call(output, x, taps, options.filter)
        launchers.forward(FilteredNoiseBiasActCall(filter, noise_bias_act_call(output, small, options.epilogue)))

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        x, taps, *small = inputs
        # noise_bias_act saves its first input, here x, only if the derivative is not computed from the output.
        activation, *small = NoiseBiasAct.saved_tensors(
            (x, *small), output, options.epilogue, _without_taps(needs_grad)
        )
        return activation, taps, *small

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        activation, taps, *small = saved
        if not saves_output(small[3], small[4], options.epilogue):
            activation = Upfirdn2d.reference((to_arithmetic(activation), taps), options.filter)
        du, *sums = NoiseBiasAct.reference_backward(
            to_arithmetic(grad), (activation, *small), options.epilogue, _without_taps(needs_grad)
        )
        adjoint_filter = adjoint(_shape_of_x(grad, options), taps, options.filter)
        return Upfirdn2d.reference((du, taps), adjoint_filter).to(grad.dtype), None, *sums

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        _, taps, *small = saved
        _, *sums = NoiseBiasAct.allocate_grads(grad, (None, *small), options.epilogue, _without_taps(needs_grad))
        dx = torch.empty(
            _shape_of_x(grad, options), dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
        )
        return dx, None, *sums

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        activation, taps, *small = saved
        dx, _, _, *sums = grads
        grad = grad.contiguous(memory_format=torch.channels_last)
        from_output = saves_output(small[3], small[4], options.epilogue)
        reference = grad if activation is None else dense_like(activation, grad if from_output else dx)
        filter = upfirdn2d_call(dx, grad, taps, adjoint(dx.shape, taps, options.filter))
        outputs = dict(zip(("dstrength", "dbias", "dscale", "dpost"), sums, strict=True))
        epilogue = noise_bias_act_call(grad, small, options.epilogue)._replace(
            from_output=from_output, reference=reference, **outputs
        )
        launchers.backward(FilteredNoiseBiasActCall(filter, epilogue))

    @staticmethod
    def double_backward(launchers, grad, saved, grad_grads, options, needs_grad):
        activation, taps, *small = saved
        gx, _, *gsums = grad_grads
        if gx is None:
            return None
        filter, epilogue = options.filter, options.epilogue
        from_output = saves_output(small[3], small[4], epilogue)

        def filtered(x):
            x = x.contiguous(memory_format=torch.channels_last)
            y = Upfirdn2d.allocate_output((x, taps), filter)
            Upfirdn2d.launch_forward(launchers.of("upfirdn2d"), y, (x, taps), filter)
            return y

        # dx is the adjoint filter of du, so the gradient of du is gx filtered.
        inner = activation if from_output else filtered(activation)
        grad_grads, needs_grad = (filtered(gx), *gsums), [needs_grad[0], *_without_taps(needs_grad[1:])]
        ddy, du, *sums = NoiseBiasAct.double_backward(
            launchers.of("noise_bias_act"), grad, (inner, *small), grad_grads, epilogue, needs_grad
        )
        dx = None
        if du is not None:
            dx = torch.empty_like(activation, memory_format=torch.channels_last)
            Upfirdn2d.launch_forward(launchers.of("upfirdn2d"), dx, (du, taps), adjoint(dx.shape, taps, filter))
        return ddy, dx, None, *sums


def _shape_of_x(grad, options) -> tuple[int, int, int, int]:
    n, c, oh, ow = grad.shape
    return n, c, oh + 3 - options.top - options.bottom, ow + 3 - options.left - options.right
