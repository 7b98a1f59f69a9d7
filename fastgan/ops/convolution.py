"""Convolutions whose derivatives of any order are convolutions of the same kind.

PyTorch differentiates its convolution twice, too, but takes the weight's gradient of the second order by a convolution
with a kernel as large as the image; gradient penalties and path length are made of these. Which takes longer hangs on
the CPU: docs/performance.md has what was measured. A convolution is linear in image and weight, so three maps are
enough for all orders:

    y = conv(x, w)        dx = back(dy, w)     dw = outer(x, dy)
    x' = back(y', w)      dy = conv(dx', w)    dw = outer(dx', y')
    w' = outer(x, y)      dx = back(y, dw')    dy = conv(x, dw')

and each of them is one call of a library convolution or of half of its backward pass, or on a CPU of one of our own
kernels where these are faster (`fastgan.ops.weight_gradient`, `fastgan.ops.few_channels`).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import backends, weight_gradient
from fastgan.ops.few_channels import FewChannels
from fastgan.ops.layout import is_channels_last
from fastgan.ops.recording import recordable
from fastgan.ops.transforms import backward_must_use_reference, must_use_reference
from fastgan.ops.upfirdn2d import LowPass, upfirdn2d


class _Geometry(NamedTuple):
    stride: int
    padding: tuple[int, int]
    transposed: bool
    own: bool  # whether kernels of our own may have a part in it


@recordable
def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int | tuple[int, int] = 0
) -> Tensor:
    """`torch.nn.functional.conv2d` with second derivatives of its own, see above.

    Args:
        x: [N, I, H, W].
        weight: [O, I, kh, kw], in the dtype of `x` unless autocast is on.
        bias: [O], likewise.
        stride, padding: in both dimensions; zeros are padded.

    Returns:
        [N, O, ...] as PyTorch's. Differentiable any number of times.

    Raises RuntimeError, as PyTorch's, where shapes or dtypes do not fit.
    """
    return _convolution(x, weight, bias, stride, padding, transposed=False)


@recordable
def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int | tuple[int, int] = 0
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d` with second derivatives of its own, see above.

    Args: as `conv2d`, but weight is [I, O, kh, kw].
    """
    return _convolution(x, weight, bias, stride, padding, transposed=True)


@recordable
def filtered_conv2d(
    x: Tensor, weight: Tensor, taps: Tensor, *, filter_padding: tuple[int, int, int, int], stride: int
) -> Tensor:
    """`conv2d(upfirdn2d(x, taps, padding=filter_padding), weight, stride=stride)`, with `x` kept and nothing else.

    What the filter makes of it is made again for the gradient of the weight. That spares the memory of an image where
    `x` is kept anyway, as the result of an activation is, and costs a pass.

    Args:
        x: [N, I, H, W].
        weight: [O, I, kh, kw], in the dtype of `x` unless autocast is on.
        taps, filter_padding: see `upfirdn2d`.
        stride: in both dimensions.

    Returns:
        [N, O, ...]. Differentiable any number of times in x and weight.

    Raises ValueError as `upfirdn2d`, RuntimeError as PyTorch's convolution, where shapes or dtypes do not fit.
    """
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    converted = _autocast(x)[0].dtype != x.dtype  # the smaller of the two is what comes behind the filter
    apart = not needs_grad or converted or taps.requires_grad or torch.compiler.is_compiling()
    if apart or must_use_reference((x, weight, taps)):
        return conv2d(upfirdn2d(x, taps, padding=filter_padding), weight, stride=stride)
    x, low_pass = LowPass.of(x, taps, filter_padding)
    geometry = _Geometry(stride, (0, 0), False, _may_be_own(x))
    return _ConvolveFiltered.apply(x, *_autocast(weight), low_pass, geometry)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding, transposed: bool) -> Tensor:
    pads = (padding, padding) if isinstance(padding, int) else tuple(padding)
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if torch.compiler.is_compiling() or must_use_reference((x, weight, bias)):
        function = F.conv_transpose2d if transposed else F.conv2d
        return function(x, weight, bias, stride=stride, padding=pads)
    geometry = _Geometry(stride, pads, transposed, _may_be_own(x))
    x, weight, bias = _autocast(x, weight, bias)
    if not needs_grad:
        return _convolve(x, weight, bias, geometry)
    return _Convolve.apply(x, weight, bias, geometry)


def _may_be_own(x: Tensor) -> bool:
    """Whether the compiled extension may make a part of a convolution of `x`."""
    return backends.why_not_beside_library("few_channels", x.device) is None


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in autocast's dtype, where that is on; as for PyTorch's convolutions, fp64 stays."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    eligible = (torch.float32, torch.bfloat16, torch.float16)
    return [t.to(dtype) if t is not None and t.dtype in eligible else t for t in tensors]


# The three maps, without a graph -------------------------------------------------------------------------------------


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, g: _Geometry) -> Tensor:
    few = _few_channels(x, weight, g) if bias is None else None
    if few and (y := few.forward(x, weight)) is not None:
        return y
    return _of_library(x, weight, bias, g)


def _gradients(dy: Tensor, x: Tensor, weight: Tensor, g: _Geometry, wanted: tuple[bool, bool, bool]):
    """Of x, weight and bias, those that are wanted. An operand that none of them is made of counts by its shape."""
    if not any(wanted):
        return None, None, None
    dx = dw = None
    if few := _few_channels(x, weight, g):
        dx = few.back(dy, weight, x) if wanted[0] else None
        dw = few.outer(dy, x, weight) if wanted[1] else None
    elif wanted[1] and g.own and weight_gradient.is_suited(dy, x, weight, g.transposed):
        dw = weight_gradient.weight_gradient(dy, x, weight, g.stride, g.padding, g.transposed)
    rest = wanted[0] and dx is None, wanted[1] and dw is None, wanted[2]
    if not any(rest):
        return dx, dw, None
    of_library = _gradients_of_library(dy, x, weight, g, rest)
    return of_library[0] if dx is None else dx, of_library[1] if dw is None else dw, of_library[2]


def _of_library(x: Tensor, weight: Tensor, bias: Tensor | None, g: _Geometry) -> Tensor:
    return torch.ops.aten.convolution(x, weight, bias, (g.stride, g.stride), g.padding, (1, 1), g.transposed, (0, 0), 1)


def _gradients_of_library(dy: Tensor, x: Tensor, weight: Tensor, g: _Geometry, wanted: tuple[bool, bool, bool]):
    biases = [weight.shape[1 if g.transposed else 0]]
    return torch.ops.aten.convolution_backward(
        dy, x, weight, biases, (g.stride, g.stride), g.padding, (1, 1), g.transposed, (0, 0), 1, wanted
    )


def _few_channels(x: Tensor, weight: Tensor, g: _Geometry) -> FewChannels | None:
    """How the convolution is best made by the kernels for few channels, or None if it is not."""
    return FewChannels.of(x, weight, g.stride, g.padding, g.transposed) if g.own else None


# ... and with one ----------------------------------------------------------------------------------------------------


def _conv(x: Tensor, weight: Tensor, g: _Geometry) -> Tensor:
    if backward_must_use_reference((x, weight)):
        return _of_library(x, weight, None, g)
    return _Convolve.apply(x, weight, None, g) if torch.is_grad_enabled() else _convolve(x, weight, None, g)


def _back(dy: Tensor, weight: Tensor, like: Tensor, g: _Geometry) -> Tensor:
    """The gradient with respect to an image, `like`, of which the shape counts."""
    if backward_must_use_reference((dy, weight)):
        return _gradients_of_library(dy, like, weight, g, (True, False, False))[0]
    if torch.is_grad_enabled():
        return _Back.apply(dy, weight, like.detach(), g)
    return _gradients(dy, like, weight, g, (True, False, False))[0]


def _outer(x: Tensor, dy: Tensor, like: Tensor, g: _Geometry) -> Tensor:
    """The gradient with respect to a weight, `like`, of which the shape counts."""
    if backward_must_use_reference((x, dy)):
        return _gradients_of_library(dy, x, like, g, (False, True, False))[1]
    if torch.is_grad_enabled():
        return _Outer.apply(x, dy, like.detach(), g)
    return _gradients(dy, x, like, g, (False, True, False))[1]


_engine_runs = getattr(torch._C, "_will_engine_execute_node", lambda node: True)  # as torch.autograd.graph asks it


def _wanted(ctx, count: int) -> tuple[bool, ...]:
    """Whether the backward pass that is running uses the gradient of each of a Function's first inputs.

    `ctx.needs_input_grad` is True for every tensor with a graph, also in an `autograd.grad` for the images alone
    (pytorch issue 174017): gradient penalties and path length would pay for a weight gradient a layer.
    """
    nodes = ctx.next_functions
    return tuple([need and _is_used(nodes[i][0]) for i, need in enumerate(ctx.needs_input_grad[:count])])


def _is_used(node) -> bool:
    try:
        return _engine_runs(node)
    except RuntimeError:  # the engine's answer for a leaf that `autograd.grad` was asked for
        return True


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, geometry):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.set_materialize_grads(False)
        ctx.call = geometry, _Kind.of(x)
        return _convolve(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return None, None, None, None
        x, weight = ctx.saved_tensors
        geometry, kind = ctx.call
        wanted = of_x, of_weight, of_bias = _wanted(ctx, 3)
        x = kind.empty() if x is None else x
        if not (torch.is_grad_enabled() or backward_must_use_reference((dy,), (x, weight))):
            return *_gradients(dy, x, weight, geometry, wanted), None  # by one call
        dx = _back(dy, weight, x, geometry) if of_x else None
        dw = _outer(x, dy, weight, geometry) if of_weight else None
        return dx, dw, dy.sum((0, 2, 3)) if of_bias else None, None


class _ConvolveFiltered(torch.autograd.Function):
    """The convolution of what a filter makes of x, which is made again for the gradient of the weight."""

    @staticmethod
    def forward(ctx, x, weight, low_pass, geometry):
        filtered = low_pass(x)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.set_materialize_grads(False)
        ctx.call = low_pass, geometry, x.shape, _Kind.of(filtered)
        return _convolve(filtered, weight, None, geometry)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return None, None, None, None
        x, weight = ctx.saved_tensors
        low_pass, geometry, shape, kind = ctx.call
        of_x, of_weight = _wanted(ctx, 2)
        filtered = low_pass(x) if of_weight else kind.empty()
        dw = _outer(filtered, dy, weight, geometry) if of_weight else None
        dfiltered = _back(dy, weight, filtered, geometry) if of_x else None
        del filtered  # before there is one image more
        return low_pass.adjoint(dfiltered, shape) if of_x else None, dw, None, None


class _Kind(NamedTuple):
    """What a tensor was like whose numbers are not needed any more."""

    shape: torch.Size
    channels_last: bool
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(x: Tensor) -> "_Kind":
        return _Kind(x.shape, is_channels_last(x), x.dtype, x.device)

    def empty(self) -> Tensor:
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.empty(self.shape, dtype=self.dtype, device=self.device, memory_format=memory_format)


class _Back(torch.autograd.Function):
    """`_back`, differentiable."""

    @staticmethod
    def forward(ctx, dy, weight, like, geometry):
        ctx.save_for_backward(dy, weight)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return _gradients(dy, like, weight, geometry, (True, False, False))[0]

    @staticmethod
    def backward(ctx, dx):
        if dx is None:
            return None, None, None, None
        dy, weight = ctx.saved_tensors
        of_dy, of_weight = _wanted(ctx, 2)
        ddy = _conv(dx, weight, ctx.geometry) if of_dy else None
        return ddy, _outer(dx, dy, weight, ctx.geometry) if of_weight else None, None, None


class _Outer(torch.autograd.Function):
    """`_outer`, differentiable."""

    @staticmethod
    def forward(ctx, x, dy, like, geometry):
        ctx.save_for_backward(x, dy)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return _gradients(dy, x, like, geometry, (False, True, False))[1]

    @staticmethod
    def backward(ctx, dw):
        if dw is None:
            return None, None, None, None
        x, dy = ctx.saved_tensors
        of_x, of_dy = _wanted(ctx, 2)
        dx = _back(dy, dw, x, ctx.geometry) if of_x else None
        return dx, _conv(x, dw, ctx.geometry) if of_dy else None, None, None
