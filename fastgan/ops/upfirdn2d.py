"""upfirdn2d, StyleGAN2's resampling: zero insertion, padding, FIR filter, decimation.

    u[i * up] = x[i], all else 0               zero insertion; H * up rows, W * up columns
    p = u with `padding` zeros around          cropped where padding is negative
    f[i] = sum_k taps[k] * p[i + K - 1 - k]    convolution, where the filter lies within p ("valid"); K = len(taps)
    y[i] = gain * f[i * down]

along both axes. `flip` correlates with the filter instead. Sources: Karras et al. 2020, "Analyzing and Improving the
Image Quality of StyleGAN", for the filters; Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", for the
reason to filter. The operation is linear in x, and its adjoint is the same operation with up and down exchanged, the
filter flipped and other padding (`adjoint`). So derivatives of any order are calls of the same kernel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

import fastgan_kernels
from fastgan.ops import backends
from fastgan.ops.arguments import check_activation
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.fused import LinearOperation, register
from fastgan.ops.layout import channels_last, dense, is_channels_last
from fastgan.ops.recordable import recordable, recordable_in_parts
from fastgan.ops.transforms import backward_must_use_reference, must_use_reference
from fastgan_kernels.calls import Upfirdn2dCall

BILINEAR = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's resampling filter, separable


Filter = tuple[float, ...] | tuple[tuple[float, ...], ...]


def taps(weights: Filter = BILINEAR, device: torch.device | None = None) -> Tensor:
    """A filter tensor [k], for both axes, or [kh, kw], scaled to a sum of 1."""
    filter = torch.tensor(weights, dtype=torch.float32, device=device)
    return filter / filter.sum()


class Options(NamedTuple):
    """The non-differentiable arguments. Padding applies to the upsampled image; negative padding crops."""

    up_x: int
    up_y: int
    down_x: int
    down_y: int
    left: int
    right: int
    top: int
    bottom: int
    gain: float
    flip: bool  # whether the filter is correlated with the image, not convolved
    channels_last: bool  # memory format of input and output; else NCHW


@recordable
def upfirdn2d(
    x: Tensor,
    taps: Tensor,
    *,
    up: int | tuple[int, int] = 1,
    down: int | tuple[int, int] = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    gain: float = 1.0,
    flip: bool = False,
) -> Tensor:
    """Upsamples by zero insertion, pads, convolves with a filter, decimates; differentiable any number of times in x.

    Args:
        x: [N, C, H, W]; fp32, bf16, fp16 or fp64. Each channel is filtered alone.
        taps: the filter: [k], applied along both axes, or [kh, kw]. If it requires a gradient, the reference runs, on
            any backend.
        up, down: factors of zero insertion and decimation: one for both axes, or (x, y).
        padding: (left, right, top, bottom) of the upsampled image; negative values crop it.
        gain: factor of the result; up * up keeps the brightness of an upsampled image.
        flip: correlate with the filter instead of convolving; no difference for a symmetric filter.

    Returns:
        [N, C, (H * up + top + bottom - kh) // down + 1, (W * up + left + right - kw) // down + 1], in the dtype and
        memory format of `x`. Arithmetic is fp32 (fp64 for fp64 input), and `taps` are converted to that precision.

    Raises:
        ValueError: a shape, dtype or option does not fit, or the padded image is smaller than the filter.
        BackendUnavailable: none of the requested backends can serve.
    """
    x, taps, options = validate("upfirdn2d", x, taps, up, down, padding, gain, flip)
    backend = "torch" if taps.requires_grad else backends.choose("upfirdn2d", x.device)
    return Upfirdn2d.apply(backend, (x, taps), options)


def validate(
    name: str, x: Tensor, taps: Tensor, up: int | tuple[int, int], down: int | tuple[int, int],
    padding: tuple[int, int, int, int], gain: float, flip: bool,
) -> tuple[Tensor, Tensor, Options]:  # fmt: skip
    """Validates the arguments of function `name` and converts them for the kernels. Raises ValueError."""
    if x.dim() != 4:
        raise ValueError(f"{name}: x has shape {list(x.shape)}, must be [N, C, H, W]")
    check_activation(name, x)
    if taps.dim() not in (1, 2) or 0 in taps.shape:
        raise ValueError(f"{name}: taps has shape {list(taps.shape)}, must be [k] or [kh, kw]")
    if taps.device != x.device:
        raise ValueError(f"{name}: taps is on {taps.device}, x on {x.device}")
    if not taps.is_floating_point():
        raise ValueError(f"{name}: taps has dtype {taps.dtype}, must be floating-point")
    if len(padding) != 4:
        raise ValueError(f"{name}: padding is {padding}, must be (left, right, top, bottom)")
    up_x, up_y = _pair(name, "up", up)
    down_x, down_y = _pair(name, "down", down)
    left, right, top, bottom = padding
    x = dense(x)
    taps = taps.to(arithmetic_dtype(x.dtype)).contiguous()
    options = Options(
        up_x, up_y, down_x, down_y, left, right, top, bottom, float(gain), bool(flip), is_channels_last(x)
    )
    size = _padded(x.shape, options)
    if size[0] < taps.shape[0] or size[1] < taps.shape[-1]:
        raise ValueError(
            f"{name}: the padded image {list(size)} is smaller than the filter [{taps.shape[0]}, {taps.shape[-1]}]: "
            f"x {list(x.shape)}, up {up}, padding {tuple(padding)}"
        )
    return x, taps, options


def _pair(name: str, argument: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= 1 for v in pair):
        raise ValueError(f"{name}: {argument} is {value}, must be a positive integer or a pair (x, y) of them")
    return pair


def _padded(shape: Sequence[int], options: Options) -> tuple[int, int]:
    """Height and width after zero insertion and padding."""
    return (
        shape[2] * options.up_y + options.top + options.bottom,
        shape[3] * options.up_x + options.left + options.right,
    )


def output_shape(x: Tensor, taps: Tensor, options: Options) -> tuple[int, int, int, int]:
    """[N, C, H, W] of the result."""
    height, width = _padded(x.shape, options)
    n, c = x.shape[:2]
    return (
        n,
        c,
        (height - taps.shape[0]) // options.down_y + 1,
        (width - taps.shape[-1]) // options.down_x + 1,
    )


def adjoint(shape: Sequence[int], taps: Tensor, options: Options) -> Options:
    """The options of the adjoint, which maps the gradient of the output to the gradient of an x of `shape`."""
    kh, kw = taps.shape[0], taps.shape[-1]
    height, width = _padded(shape, options)
    rows, columns = (height - kh) // options.down_y + 1, (width - kw) // options.down_x + 1
    left, top = kw - 1 - options.left, kh - 1 - options.top
    return Options(
        options.down_x,
        options.down_y,
        options.up_x,
        options.up_y,
        left,
        (shape[3] - 1) * options.up_x + kw - columns * options.down_x - left,
        top,
        (shape[2] - 1) * options.up_y + kh - rows * options.down_y - top,
        options.gain,
        not options.flip,
        options.channels_last,
    )


def call_of(y: Tensor | None, x: Tensor, taps: Tensor, options: Options) -> Upfirdn2dCall:
    """The call that fills `y`; without it one that describes the filter, for kernels that fuse it."""
    up_x, up_y, down_x, down_y, left, _, top, _, gain, flip, channels_last = options
    n, c, h, w = x.shape
    oh, ow = output_shape(x, taps, options)[2:] if y is None else y.shape[2:]
    return Upfirdn2dCall(
        n, c, h, w, oh, ow, channels_last, x.dtype, up_x, up_y, down_x, down_y, left, top,
        taps.shape[0], taps.shape[-1], taps.dim() == 1, gain, flip, taps, x, y,
    )  # fmt: skip


@register
class Upfirdn2d(LinearOperation):
    """Its adjoint is `adjoint`. Nothing is saved but the taps."""

    name = "upfirdn2d"
    inputs = ("x", "taps")
    Options = Options

    @staticmethod
    def reference(inputs, options):
        x, taps = inputs
        n, c, h, w = x.shape
        u = to_arithmetic(x).reshape(n, c, h, 1, w, 1)
        u = F.pad(u, (0, options.up_x - 1, 0, 0, 0, options.up_y - 1))
        u = u.reshape(n, c, h * options.up_y, w * options.up_x)
        padding = options[4:8]
        p = F.pad(u, [max(side, 0) for side in padding])
        if min(padding) < 0:
            p = F.pad(p, [min(side, 0) for side in padding])
        filter = torch.outer(taps, taps) if taps.dim() == 1 else taps
        filter = filter if options.flip else filter.flip(0, 1)  # conv2d correlates
        filter = (filter * options.gain).expand(c, 1, *filter.shape)
        if p.numel() == 0:  # conv2d refuses zero channels
            _, _, oh, ow = output_shape(x, taps, options)
            y = F.pad(p, (0, ow - p.shape[3], 0, oh - p.shape[2]))
        else:
            y = F.conv2d(p, filter, stride=(options.down_y, options.down_x), groups=c)
        y = y.to(x.dtype)
        return channels_last(y) if options.channels_last else y.contiguous()

    @staticmethod
    def allocate_output(inputs, options):
        x, taps = inputs
        format = torch.channels_last if options.channels_last else torch.contiguous_format
        return torch.empty(output_shape(x, taps, options), dtype=x.dtype, device=x.device, memory_format=format)

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        launchers.forward(call_of(output, *inputs, options))

    @staticmethod
    def adjoint(inputs, options):
        x, taps = inputs
        return adjoint(x.shape, taps, options)

    @staticmethod
    def prepare_gradient(grad, options):
        return grad.contiguous(memory_format=torch.channels_last if options.channels_last else torch.contiguous_format)


# Forks ----------------------------------------------------------------------------------------------------------------


def _separately(x: Tensor, taps: Tensor, **options) -> tuple[Tensor, Tensor]:
    return x, upfirdn2d(x, taps, **options)


@recordable_in_parts(_separately)
def forked_upfirdn2d(
    x: Tensor, taps: Tensor, *, up: int = 1, down: int = 1, padding: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> tuple[Tensor, Tensor]:
    """`x, upfirdn2d(x, taps, ...)`, for an x that another branch reads too.

    Use the returned x for that branch: backward then adds its gradient while it filters that of the second result. The
    sum of the two is no pass of its own. Arguments and errors: see `upfirdn2d`. Both results are differentiable any
    number of times.
    """
    needs_grad = torch.is_grad_enabled() and x.requires_grad
    if not needs_grad or taps.requires_grad or is_compiling() or must_use_reference((x,)):
        return _separately(x, taps, up=up, down=down, padding=padding)
    given, taps, options = validate("upfirdn2d", x, taps, up, down, padding, 1.0, False)
    backend = backends.choose("upfirdn2d", x.device)
    if backend == "torch" or given is not x:
        return _separately(x, taps, up=up, down=down, padding=padding)
    return _Fork.apply(x, taps, backend, options)


class _Fork(torch.autograd.Function):
    """x and the filtered x. The adjoint of `_Join`."""

    @staticmethod
    def forward(ctx, x, taps, backend, options):
        ctx.save_for_backward(taps)
        ctx.set_materialize_grads(False)
        ctx.call = backend, options, adjoint(x.shape, taps, options)
        return x, Upfirdn2d.apply(backend, (x, taps), options)  # autograd returns a view of x

    @staticmethod
    def backward(ctx, grad, grad_filtered):
        (taps,), (backend, options, adjoint_options) = ctx.saved_tensors, ctx.call
        if grad_filtered is None:
            return grad, None, None, None
        if backward_must_use_reference((grad, grad_filtered)):
            dx = Upfirdn2d.reference((grad_filtered, taps), adjoint_options)
            return dx if grad is None else dx + grad, None, None, None
        grad_filtered = Upfirdn2d.prepare_gradient(grad_filtered, options)
        if grad is None:
            dx = Upfirdn2d.apply(backend, (grad_filtered, taps), adjoint_options)
        else:
            grad = Upfirdn2d.prepare_gradient(grad, options)
            dx = _Join.apply(grad, grad_filtered, taps, backend, adjoint_options, options)
        return dx, None, None, None


class _Join(torch.autograd.Function):
    """The sum of `grad` and the filtered `grad_filtered`, in one pass. The adjoint of `_Fork`."""

    @staticmethod
    def forward(ctx, grad, grad_filtered, taps, backend, options, adjoint_options):
        ctx.save_for_backward(taps)
        ctx.call = backend, adjoint_options
        dx = Upfirdn2d.allocate_output((grad_filtered, taps), options)
        if dx.numel():
            call = call_of(dx, grad_filtered, taps, options)._replace(addend=grad)
            fastgan_kernels.BACKENDS[backend].launchers("upfirdn2d").forward(call)
        return dx

    @staticmethod
    def backward(ctx, gx):
        (taps,), (backend, options) = ctx.saved_tensors, ctx.call
        if backward_must_use_reference((gx,)):
            return gx, Upfirdn2d.reference((gx, taps), options), None, None, None, None
        prepared = Upfirdn2d.prepare_gradient(gx, options)
        if torch.is_grad_enabled() and prepared.requires_grad:
            fork = _Fork.apply(prepared, taps, backend, options)
        else:
            fork = gx, Upfirdn2d.apply(backend, (prepared, taps), options)
        return *fork, None, None, None, None


class LowPass(NamedTuple):
    """A filter without resampling, with backend and memory format fixed at construction, for use in a backward pass."""

    backend: str
    taps: Tensor
    options: Options

    @staticmethod
    def of(x: Tensor, taps: Tensor, padding: tuple[int, int, int, int]) -> tuple[Tensor, "LowPass"]:
        """`x` converted for the kernels, and the filter. Raises ValueError as `upfirdn2d`."""
        x, taps, options = validate("upfirdn2d", x, taps, 1, 1, padding, 1.0, False)
        return x, LowPass(backends.choose("upfirdn2d", x.device), taps, options)

    def __call__(self, x: Tensor) -> Tensor:
        return Upfirdn2d.apply(self.backend, (x, self.taps), self.options)

    def adjoint(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Maps the gradient of the result to the gradient of an image of `shape`."""
        options = adjoint(shape, self.taps, self.options)
        if backward_must_use_reference((grad,)):
            return Upfirdn2d.reference((grad, self.taps), options)
        grad = Upfirdn2d.prepare_gradient(grad, self.options)
        return Upfirdn2d.apply(self.backend, (grad, self.taps), options)
