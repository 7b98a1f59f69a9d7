"""filtered_lrelu, StyleGAN3's activation: bias, upsampling, leaky ReLU, downsampling.

    u = up^2 * FIR_up(x + bias[c], with zeros inserted and around)
    z = clamp(gain * lrelu(u, slope), -limit, limit)
    y = FIR_down(z), every `down`-th pixel

The leaky ReLU works at a higher sampling rate, so that what it adds above the image's bandwidth can be filtered away
before it aliases (Karras et al. 2021, "Alias-Free Generative Adversarial Networks", section 2 and appendix D).

z is up to 16 times as large as x, and a kernel never writes it. For backward it keeps two bits of each of its elements:
whether it is below zero, and whether it is clamped. With these given, y is linear in x, and the adjoint is the same map
with the filters exchanged. So derivatives of any order are calls of one kernel.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

import fastgan_kernels
from fastgan.ops import backends
from fastgan.ops.arguments import check_activation, prepare
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.constants import constant
from fastgan.ops.fused import LinearOperation, define, register, schema_of
from fastgan.ops.layout import dense, is_channels_last
from fastgan.ops.noise_bias_act import noise_bias_act
from fastgan.ops.transforms import backward_must_use_reference, must_use_reference
from fastgan.ops.upfirdn2d import Options as FilterOptions
from fastgan.ops.upfirdn2d import Upfirdn2d, upfirdn2d
from fastgan_kernels.calls import FilteredLreluCall

BLOCK = 16  # channels whose signs share a word


class Options(NamedTuple):
    """The non-differentiable arguments, of the map as it is or transposed."""

    up: int
    down: int
    left: int
    top: int
    oh: int
    ow: int
    up_gain: float
    slope: float
    gain: float
    clamp: float
    flip: bool  # whether both filters are correlated with the image, not convolved
    transposed: bool  # whether the second of the two filters comes first
    signs_left: int  # column of the signs of the first column of z
    signs_top: int
    channels_last: bool  # else NCHW

    def filters(self, up_taps: Tensor, down_taps: Tensor) -> tuple[Tensor, Tensor]:
        """In the order in which they are applied."""
        return (down_taps, up_taps) if self.transposed else (up_taps, down_taps)


def filtered_lrelu(
    x: Tensor,
    up_taps: Tensor | None = None,
    down_taps: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: int | tuple[int, int, int, int] = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip: bool = False,
) -> Tensor:
    """Adds a bias, upsamples, applies a leaky ReLU, downsamples; differentiable any number of times in x and bias.

    Args:
        x: [N, C, H, W]; fp32, bf16, fp16 or fp64.
        up_taps, down_taps: the filters: [k] for both axes, or [k, k]; None for no filter.
        bias: [C], or None.
        up, down: factors of zero insertion and decimation.
        padding: (left, right, top, bottom) of the image after zero insertion, or one number for all sides; negative
            values crop it.
        gain: factor after the leaky ReLU, above 0.
        slope: of the leaky ReLU below zero; 1 for none.
        clamp: limit of the magnitude after the gain, 0 or above; None for none.
        flip: correlate with both filters instead of convolving; no difference for symmetric ones.

    Returns:
        [N, C, H', W'] with H' = (H * up + top + bottom - (taps_up - 1) - (taps_down - 1) + down - 1) // down and W'
        likewise, in the dtype and memory format of `x`.

    Raises:
        ValueError: a shape, dtype or option does not fit, or nothing is left of the image; the message names the
            argument.
        BackendUnavailable: none of the requested backends can serve.
    """
    x, up_taps, down_taps, bias, sides = _validate(x, up_taps, down_taps, bias, up, down, padding)
    if not gain > 0:
        raise ValueError(f"filtered_lrelu: gain is {gain}, must be above 0")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"filtered_lrelu: clamp is {clamp}, must be 0 or above, or None for none")
    backend = backends.choose("upfirdn2d", x.device)
    if not backends.has_kernels(backend, "filtered_lrelu", x.device) or not _fits(x, bias, up_taps, down_taps):
        return _separately(x, up_taps, down_taps, bias, up, down, sides, gain, slope, clamp, flip)
    oh, ow = _output_size(x, up_taps, down_taps, up, down, sides)
    limit = float("inf") if clamp is None else float(clamp)
    options = Options(
        up, down, sides[0], sides[2], oh, ow, float(up * up), float(slope), float(gain), limit, bool(flip), False, 0, 0,
        is_channels_last(x),
    )  # fmt: skip
    keeps_signs = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    link = _Link.apply(x, bias) if keeps_signs and slope != 1 and not is_compiling() else None
    return _Activation.apply(x, bias, link, up_taps, down_taps, backend, keeps_signs, options)


def _validate(x, up_taps, down_taps, bias, up, down, padding):
    name = "filtered_lrelu"
    if x.dim() != 4:
        raise ValueError(f"{name}: x has shape {list(x.shape)}, must be [N, C, H, W]")
    check_activation(name, x)
    for label, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"{name}: {label} is {factor}, must be a positive integer")
    sides = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    if len(sides) != 4:
        raise ValueError(f"{name}: padding is {padding}, must be (left, right, top, bottom), or one number")
    bias = prepare(name, "bias", bias, [(x.shape[1],)], x)
    filters = []
    for label, taps in (("up_taps", up_taps), ("down_taps", down_taps)):
        taps = _no_filter(x.device) if taps is None else taps
        if taps.dim() not in (1, 2) or 0 in taps.shape or taps.shape[0] != taps.shape[-1]:
            raise ValueError(f"{name}: {label} has shape {list(taps.shape)}, must be [k] or [k, k]")
        if taps.device != x.device or not taps.is_floating_point():
            raise ValueError(f"{name}: {label} is {taps.dtype} on {taps.device}, must be floating-point on {x.device}")
        filters.append(taps.to(arithmetic_dtype(x.dtype)).contiguous())
    x = dense(x)
    if min(_output_size(x, *filters, up, down, sides)) < 1:
        raise ValueError(
            f"{name}: nothing is left of x {list(x.shape)} with up {up}, padding {sides}, filters of "
            f"{len(filters[0])} and {len(filters[1])} taps"
        )
    return x, *filters, bias, sides


@constant
def _no_filter(device: torch.device) -> Tensor:
    return torch.ones(1, device=device)


def _output_size(x, up_taps, down_taps, up, down, sides) -> tuple[int, int]:
    left, right, top, bottom = sides
    lost = len(up_taps) + len(down_taps) - 2
    return (
        (x.shape[2] * up + top + bottom - lost + down - 1) // down,
        (x.shape[3] * up + left + right - lost + down - 1) // down,
    )


def _fits(x: Tensor, bias: Tensor | None, up_taps: Tensor, down_taps: Tensor) -> bool:
    """Whether the kernels take this call."""
    return (
        x.numel() > 0
        and len(up_taps) + len(down_taps) > 2
        and not (up_taps.requires_grad or down_taps.requires_grad)
        and not must_use_reference((x, bias))
    )


def _separately(x, up_taps, down_taps, bias, up, down, sides, gain, slope, clamp, flip) -> Tensor:
    """By the operations that it is made of."""
    act = {"act": "linear" if slope == 1 else "lrelu", "slope": slope, "gain": gain, "clamp": clamp}
    if len(up_taps) == len(down_taps) == up == down == 1 and not any(sides):
        return noise_bias_act(x, bias=bias, **act)
    if bias is not None:
        x = noise_bias_act(x, bias=bias, act="linear")
    x = upfirdn2d(x, up_taps, up=up, padding=sides, gain=float(up * up), flip=flip)
    return upfirdn2d(noise_bias_act(x, **act), down_taps, down=down, flip=flip)


class _Link(torch.autograd.Function):
    """An empty tensor by which x and the bias have second gradients of zeros, as they have by PyTorch's leaky ReLU.

    To save it keeps no memory of x.
    """

    @staticmethod
    def forward(ctx, x, bias):
        ctx.set_materialize_grads(False)
        ctx.like = [None if t is None else (t.shape, t.dtype, t.device) for t in (x, bias)]
        return x.new_empty(0)

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return None, None
        zeros = [like and torch.zeros(like[0], dtype=like[1], device=like[2]) for like in ctx.like]
        return tuple([z if need else None for z, need in zip(zeros, ctx.needs_input_grad, strict=True)])


class _Derivative(torch.autograd.Function):
    """`FilteredLreluSlopes` of a gradient; depends on the link of the call as well."""

    @staticmethod
    def forward(ctx, grad, link, up_taps, down_taps, signs, backend, options, adjoint):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(up_taps, down_taps, signs)
        ctx.call = backend, options, adjoint
        return FilteredLreluSlopes.apply(backend, (grad, up_taps, down_taps, signs), adjoint)

    @staticmethod
    def backward(ctx, grad_grad):
        if grad_grad is None:
            return (None,) * 8
        backend, options, adjoint = ctx.call
        ddy = _derivative(grad_grad, None, ctx.saved_tensors, backend, adjoint, options)
        return ddy, grad_grad.new_zeros(0), *[None] * 6


def _derivative(grad, link, constants, backend, options, adjoint) -> Tensor:
    """The gradient of x for one of the map with `options`; `constants`: taps and signs."""
    if backward_must_use_reference((grad,)):
        return FilteredLreluSlopes.reference((grad, *constants), adjoint)
    grad = FilteredLreluSlopes.prepare_gradient(grad, options)
    if link is not None and torch.is_grad_enabled():
        return _Derivative.apply(grad, link, *constants, backend, options, adjoint)
    return FilteredLreluSlopes.apply(backend, (grad, *constants), adjoint)


class _Activation(torch.autograd.Function):
    """The operation; its derivative is `FilteredLreluSlopes` of the signs that the kernel has found."""

    @staticmethod
    def forward(ctx, x, bias, link, up_taps, down_taps, backend, keeps_signs, options):
        ctx.set_materialize_grads(False)
        run = torch.ops.fastgan.filtered_lrelu_and_signs if is_compiling() else _launch
        y, signs = run(x, bias, up_taps, down_taps, *options, keeps_signs, backend)
        ctx.save_for_backward(link, up_taps, down_taps, signs)
        ctx.call = backend, options, FilteredLreluSlopes.adjoint((x, up_taps, down_taps, None), options)
        return y

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * 8
        link, *constants = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            dx, dbias = _derivative(grad, link, constants, *ctx.call), None
        elif _sums_too(grad, ctx.call[0]):
            dx, dbias = _launch_backward(grad, constants, *ctx.call)
        else:
            dx = _derivative(grad, link, constants, *ctx.call)
            dbias = dx.sum((0, 2, 3), dtype=arithmetic_dtype(dx.dtype))
        return dx if ctx.needs_input_grad[0] else None, dbias, *[None] * 6


def _sums_too(grad: Tensor, backend: str) -> bool:
    """Whether a kernel computes the bias's gradient beside that of x, of which no derivatives are wanted."""
    if is_compiling() or torch.is_grad_enabled() or backward_must_use_reference((grad,)):
        return False
    return hasattr(fastgan_kernels.BACKENDS[backend].launchers("filtered_lrelu"), "backward")


def _launch_backward(grad, constants, backend, options, adjoint) -> tuple[Tensor, Tensor]:
    grad = FilteredLreluSlopes.prepare_gradient(grad, options)
    inputs = (grad, *constants)
    dx = FilteredLreluSlopes.allocate_output(inputs, adjoint)
    dbias = grad.new_empty(dx.shape[1], dtype=arithmetic_dtype(dx.dtype))
    launchers = fastgan_kernels.BACKENDS[backend].launchers("filtered_lrelu")
    launchers.backward(call_of(dx, inputs, adjoint)._replace(dbias=dbias))
    return dx, dbias


def _allocate(x, bias, up_taps, down_taps, *rest) -> tuple[Tensor, Tensor]:
    """y and the signs of z; no signs unless they are kept."""
    *given, keeps_signs, _ = rest
    options = Options(*given)
    y = FilteredLreluSlopes.allocate_output((x,), options)
    shape = (len(x), -(-x.shape[1] // BLOCK), *_between(options, up_taps, down_taps)) if keeps_signs else (0, 0, 0, 0)
    return y, torch.empty(shape, dtype=torch.int32, device=x.device)


def _launch(x, bias, up_taps, down_taps, *rest) -> tuple[Tensor, Tensor]:
    *given, keeps_signs, backend = rest
    y, signs = _allocate(x, bias, up_taps, down_taps, *rest)
    call = call_of(y, (x, up_taps, down_taps, signs if keeps_signs else None), Options(*given))
    launchers = fastgan_kernels.BACKENDS[backend].launchers("filtered_lrelu")
    launchers.forward(call._replace(bias=bias, writes_signs=keeps_signs, reads_signs=False))
    return y, signs


define(
    f"filtered_lrelu_and_signs(Tensor x, Tensor? bias, Tensor up_taps, Tensor down_taps{schema_of(Options)}, "
    "bool keeps_signs, str backend) -> (Tensor, Tensor)",
    _launch,
    _allocate,
)


def _between(options: Options, up_taps: Tensor, down_taps: Tensor) -> tuple[int, int]:
    """Height and width of z."""
    _, second = options.filters(up_taps, down_taps)
    return (
        (options.oh - 1) * options.down + len(second),
        (options.ow - 1) * options.down + len(second),
    )


def call_of(y: Tensor, inputs, options: Options) -> FilteredLreluCall:
    """The call that fills `y` from x, or its gradient, and signs."""
    x, up_taps, down_taps, signs = inputs
    first, second = options.filters(up_taps, down_taps)
    if not options.flip:
        first, second = (taps.flip(tuple(range(taps.dim()))) for taps in (first, second))
    n, c, h, w = x.shape
    return FilteredLreluCall(
        n, c, h, w, options.oh, options.ow, options.channels_last, x.dtype, options.up, options.down, options.left,
        options.top, len(first), first.dim() == 1, len(second), second.dim() == 1, options.up_gain, options.slope,
        options.gain, options.clamp, False, True, options.signs_left, options.signs_top,
        0 if signs is None else signs.shape[2], 0 if signs is None else signs.shape[3], first, second, None, x, y,
        signs, None,
    )  # fmt: skip


@register
class FilteredLreluSlopes(LinearOperation):
    """filtered_lrelu without bias whose slopes are given by signs: linear in x. Its adjoint exchanges the filters.

    signs: int32 [N, ceil(C / 16), H, W] of z; of each word, bit k says that channel k is below zero, bit 16 + k that it
    is clamped. z is zero where there are no signs.
    """

    name = "filtered_lrelu"
    inputs = ("x", "up_taps", "down_taps", "signs")
    Options = Options

    @staticmethod
    def reference(inputs, options):
        x, up_taps, down_taps, signs = inputs
        first, second = options.filters(up_taps, down_taps)
        height, width = _between(options, up_taps, down_taps)
        right = width + len(first) - 1 - x.shape[3] * options.up - options.left
        bottom = height + len(first) - 1 - x.shape[2] * options.up - options.top
        up = FilterOptions(
            options.up, options.up, 1, 1, options.left, right, options.top, bottom, options.up_gain, options.flip,
            options.channels_last,
        )  # fmt: skip
        down = FilterOptions(1, 1, options.down, options.down, 0, 0, 0, 0, 1.0, options.flip, options.channels_last)
        upsampled = Upfirdn2d.reference((to_arithmetic(x), first), up)
        z = upsampled * slopes(signs, x.shape[1], (height, width), options, upsampled.dtype)
        return Upfirdn2d.reference((z, second), down).to(x.dtype)

    @staticmethod
    def allocate_output(inputs, options):
        x = inputs[0]
        format = torch.channels_last if options.channels_last else torch.contiguous_format
        shape = (*x.shape[:2], options.oh, options.ow)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format)

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        launchers.forward(call_of(output, inputs, options))

    @staticmethod
    def adjoint(inputs, options):
        x, up_taps, down_taps, _ = inputs
        first, second = options.filters(up_taps, down_taps)
        lost = len(first) + len(second) - 2
        return options._replace(
            up=options.down,
            down=options.up,
            left=lost - options.left,
            top=lost - options.top,
            oh=x.shape[2],
            ow=x.shape[3],
            flip=not options.flip,
            transposed=not options.transposed,
            signs_left=options.signs_left + options.left - (len(first) - 1),
            signs_top=options.signs_top + options.top - (len(first) - 1),
        )

    @staticmethod
    def prepare_gradient(grad, options):
        return grad.contiguous(memory_format=torch.channels_last if options.channels_last else torch.contiguous_format)


def slopes(signs: Tensor, channels: int, size: tuple[int, int], options: Options, dtype: torch.dtype) -> Tensor:
    """The slope of each element of z, [N, C, *size]: gain, gain * slope or zero."""
    bits = torch.arange(BLOCK, device=signs.device, dtype=torch.int32)
    each = signs[..., None] >> bits  # [N, blocks, H, W, 16]
    clamped = signs[..., None] >> (bits + BLOCK)
    above, below = (signs.new_full((), slope, dtype=dtype) for slope in (options.gain, options.gain * options.slope))
    value = torch.where((each & 1).bool(), below, above)
    value = torch.where((clamped & 1).bool(), 0.0, value).permute(0, 1, 4, 2, 3).flatten(1, 2)[:, :channels]
    left, top = -options.signs_left, -options.signs_top
    return F.pad(value, (left, size[1] - left - value.shape[3], top, size[0] - top - value.shape[2]))
