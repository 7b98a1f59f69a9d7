"""conv2d and conv_transpose2d, whose derivatives of every order are convolutions of the same kind.

A convolution is linear in image and weight, so three maps serve all orders:

    y = conv(x, w)               dx = grad_input(dy, w)     dw = grad_weight(x, dy)
    x' = grad_input(y', w)       dy = conv(dx', w)          dw = grad_weight(dx', y')
    w' = grad_weight(x, y)       dx = grad_input(y, dw')    dy = conv(x, dw')

(PyTorch's second derivative of the weight is a convolution by a kernel as large as the image. Gradient penalties and
path length consist of such derivatives.)

Who computes a map (`_convolve` and `_gradients` decide):

- PyTorch's library, by `aten.convolution` and `aten.convolution_backward`: on a GPU, under torch.compile and
  torch.func, and wherever no kernel of ours is named below;
- `fastgan.ops.few_channels`: on a CPU, if input or output has at most 4 channels. The library still writes the other
  image where that is large;
- `fastgan.ops.winograd`: on a CPU, 3x3 convolutions by weights that do not change, where it is faster;
- `fastgan.ops.weight_gradient`: on a CPU, grad_weight of the shapes for which it is faster;
- a product and a sum: grad_weight of a kernel for each channel, as large as the image.

The conditions in full are `few_channels.FewChannels.of` and `weight_gradient.is_suited`. Measurements:
docs/notes/convolutions.md.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import few_channels, weight_gradient, winograd
from fastgan.ops.arithmetic import compute_dtype, to_arithmetic
from fastgan.ops.engine import used_inputs
from fastgan.ops.fixed_weights import cast_weight
from fastgan.ops.layout import is_channels_last
from fastgan.ops.recordable import recordable
from fastgan.ops.transforms import backward_must_use_reference, must_use_reference
from fastgan.ops.upfirdn2d import LowPass, upfirdn2d


class _Geometry(NamedTuple):
    stride: int
    padding: tuple[int, int]
    groups: int
    transposed: bool
    cpp_kernels: bool  # whether our CPU kernels may compute parts of it


@recordable
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`, with the derivatives described at the top of this module.

    Args:
        x: [N, I, H, W].
        weight: [O, I / groups, kh, kw], in the dtype of `x` unless autocast is on.
        bias: [O], in the dtype of `x` unless autocast is on.
        stride: stride along both dimensions.
        padding: zeros on each side; one number, or (rows, columns).
        groups: number of equal parts of the channels, each of which is convolved by itself.

    Returns:
        [N, O, ...], as PyTorch. Differentiable any number of times.

    Raises:
        RuntimeError: shapes or dtypes do not fit, as PyTorch.
    """
    return _convolution(x, weight, bias, stride, padding, groups, transposed=False)


@recordable
def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`, with the derivatives described at the top of this module.

    Arguments and errors are those of `conv2d`, but weight is [I, O / groups, kh, kw].
    """
    return _convolution(x, weight, bias, stride, padding, groups, transposed=True)


@recordable
def filtered_conv2d(
    x: Tensor, weight: Tensor, taps: Tensor, *, filter_padding: tuple[int, int, int, int], stride: int
) -> Tensor:
    """`conv2d(upfirdn2d(x, taps, padding=filter_padding), weight, stride=stride)`, which saves `x` only.

    Backward filters `x` again for the gradient of the weight. This costs a pass, and saves the memory of an image if
    `x` is saved anyway, as the output of an activation is.

    Args:
        x: [N, I, H, W].
        weight: [O, I, kh, kw], in the dtype of `x` unless autocast is on.
        taps, filter_padding: see `upfirdn2d`.
        stride: stride along both dimensions.

    Returns:
        [N, O, ...]. Differentiable any number of times in x and weight.

    Raises:
        ValueError: the arguments do not fit the filter, see `upfirdn2d`.
        RuntimeError: shapes or dtypes do not fit the convolution, as PyTorch.
    """
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    converted = _autocast(x).dtype != x.dtype  # then the filtered image is the smaller one to save
    separate = not needs_grad or converted or taps.requires_grad or torch.compiler.is_compiling()
    if separate or must_use_reference((x, weight, taps)):
        return conv2d(upfirdn2d(x, taps, padding=filter_padding), weight, stride=stride)
    x, low_pass = LowPass.of(x, taps, filter_padding)
    geometry = _Geometry(stride, (0, 0), 1, False, _may_use_cpp_kernels(x))
    return _ConvolveFiltered.apply(x, _autocast(weight), low_pass, geometry)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding, groups: int, transposed: bool
) -> Tensor:
    pads = (padding, padding) if isinstance(padding, int) else tuple(padding)
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if torch.compiler.is_compiling() or must_use_reference((x, weight, bias)):
        function = F.conv_transpose2d if transposed else F.conv2d
        return function(x, weight, bias, stride=stride, padding=pads, groups=groups)
    geometry = _Geometry(stride, pads, groups, transposed, groups == 1 and _may_use_cpp_kernels(x))
    x, weight = _autocast(x), cast_weight(weight, compute_dtype(weight))
    bias = bias if bias is None else _autocast(bias)
    if not needs_grad:
        return _convolve(x, weight, bias, geometry)
    return _Convolve.apply(x, weight, bias, geometry)


def _may_use_cpp_kernels(x: Tensor) -> bool:
    """Whether our C++ kernels are available, and allowed, for a convolution of `x`."""
    return few_channels.kernel.why_not(x.device) is None


def _autocast(t: Tensor) -> Tensor:
    """Converts a tensor to autocast's dtype, if autocast is on. fp64 stays, as for PyTorch's convolutions."""
    return t.to(compute_dtype(t))


# The three maps, without a graph: the choice between the library and our kernels --------------------------------------


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, g: _Geometry) -> Tensor:
    few = _few_channels(x, weight, g) if bias is None else None
    if few and (y := few.forward(x, weight)) is not None:
        return y
    if g.cpp_kernels and bias is None and not g.transposed and winograd.is_suited(x, weight, g.stride, g.padding):
        return winograd.convolution(x, weight, g.padding[0])
    return _library_conv(x, weight, bias, g)


def _gradients(dy: Tensor, x: Tensor, weight: Tensor, g: _Geometry, mask: tuple[bool, bool, bool]):
    """The gradients of x, weight and bias that `mask` asks for, others None.

    The gradient of x does not read the data of x, nor that of weight the data of weight: only their metadata.
    """
    if not any(mask):
        return None, None, None
    dx = dw = None
    if few := _few_channels(x, weight, g):
        dx = few.grad_input(dy, weight, x) if mask[0] else None
        dw = few.grad_weight(dy, x, weight) if mask[1] else None
    elif mask[1] and g.cpp_kernels and weight_gradient.is_suited(dy, x, weight, g.transposed):
        dw = weight_gradient.weight_gradient(dy, x, weight, g.stride, g.padding, g.transposed)
    elif mask[1] and _weighs_whole_image(x, weight, g):
        dw = (to_arithmetic(x) * to_arithmetic(dy)).sum(0).unsqueeze(1).to(x.dtype)
    rest = mask[0] and dx is None, mask[1] and dw is None, mask[2]
    if not any(rest):
        return dx, dw, None
    library = _library_gradients(dy, x, weight, g, rest)
    return library[0] if dx is None else dx, library[1] if dw is None else dw, library[2]


def _weighs_whole_image(x: Tensor, weight: Tensor, g: _Geometry) -> bool:
    """Whether each channel has a kernel of its own, as large as the image. The library is slow for its gradient."""
    return g.groups > 1 and not g.transposed and weight.shape == (x.shape[1], 1, *x.shape[2:]) and not any(g.padding)


def _library_conv(x: Tensor, weight: Tensor, bias: Tensor | None, g: _Geometry) -> Tensor:
    return torch.ops.aten.convolution(x, weight, bias, *_library_options(g))


def _library_gradients(dy: Tensor, x: Tensor, weight: Tensor, g: _Geometry, mask: tuple[bool, bool, bool]):
    return torch.ops.aten.convolution_backward(dy, x, weight, [dy.shape[1]], *_library_options(g), mask)


def _library_options(g: _Geometry) -> tuple:
    """Stride, padding, dilation, transposed, output padding, groups."""
    return (g.stride, g.stride), g.padding, (1, 1), g.transposed, (0, 0), g.groups


def _few_channels(x: Tensor, weight: Tensor, g: _Geometry) -> few_channels.FewChannels | None:
    """The call of the kernels for few channels, or None if they do not take this convolution."""
    return few_channels.FewChannels.of(x, weight, g.stride, g.padding, g.transposed) if g.cpp_kernels else None


# The three maps, differentiable if grad mode is on -------------------------------------------------------------------


def _conv(x: Tensor, weight: Tensor, g: _Geometry) -> Tensor:
    if backward_must_use_reference((x, weight)):
        return _library_conv(x, weight, None, g)
    return _Convolve.apply(x, weight, None, g) if torch.is_grad_enabled() else _convolve(x, weight, None, g)


def _grad_input(dy: Tensor, weight: Tensor, like: Tensor, g: _Geometry) -> Tensor:
    """The gradient of the image `like`, of which only the metadata is read."""
    if backward_must_use_reference((dy, weight)):
        return _library_gradients(dy, like, weight, g, (True, False, False))[0]
    if torch.is_grad_enabled():
        return _GradInput.apply(dy, weight, like.detach(), g)
    return _gradients(dy, like, weight, g, (True, False, False))[0]


def _grad_weight(x: Tensor, dy: Tensor, like: Tensor, g: _Geometry) -> Tensor:
    """The gradient of the weight `like`, of which only the metadata is read."""
    if backward_must_use_reference((x, dy)):
        return _library_gradients(dy, x, like, g, (False, True, False))[1]
    if torch.is_grad_enabled():
        return _GradWeight.apply(x, dy, like.detach(), g)
    return _gradients(dy, x, like, g, (False, True, False))[1]


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, geometry):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.set_materialize_grads(False)
        ctx.call = geometry, _Metadata.of(x)
        return _convolve(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return None, None, None, None
        x, weight = ctx.saved_tensors
        geometry, metadata = ctx.call
        mask = needs_x, needs_weight, needs_bias = used_inputs(ctx, ctx.needs_input_grad[:3])
        x = metadata.empty() if x is None else x
        if not (torch.is_grad_enabled() or backward_must_use_reference((dy,), (x, weight))):
            return *_gradients(dy, x, weight, geometry, mask), None  # one call of the library
        dx = _grad_input(dy, weight, x, geometry) if needs_x else None
        dw = _grad_weight(x, dy, weight, geometry) if needs_weight else None
        return dx, dw, dy.sum((0, 2, 3)) if needs_bias else None, None


class _ConvolveFiltered(torch.autograd.Function):
    """The convolution of a filtered x. Backward filters x again for the gradient of the weight."""

    @staticmethod
    def forward(ctx, x, weight, low_pass, geometry):
        filtered = low_pass(x)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.set_materialize_grads(False)
        ctx.call = low_pass, geometry, x.shape, _Metadata.of(filtered)
        return _convolve(filtered, weight, None, geometry)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return None, None, None, None
        x, weight = ctx.saved_tensors
        low_pass, geometry, shape, metadata = ctx.call
        needs_x, needs_weight = used_inputs(ctx, ctx.needs_input_grad[:2])
        filtered = low_pass(x) if needs_weight else metadata.empty()
        dw = _grad_weight(filtered, dy, weight, geometry) if needs_weight else None
        dfiltered = _grad_input(dy, weight, filtered, geometry) if needs_x else None
        del filtered  # before the adjoint allocates another image
        return low_pass.adjoint(dfiltered, shape) if needs_x else None, dw, None, None


class _Metadata(NamedTuple):
    """Tensor metadata."""

    shape: torch.Size
    channels_last: bool
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(x: Tensor) -> "_Metadata":
        return _Metadata(x.shape, is_channels_last(x), x.dtype, x.device)

    def empty(self) -> Tensor:
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.empty(self.shape, dtype=self.dtype, device=self.device, memory_format=memory_format)


class _GradInput(torch.autograd.Function):
    """`_grad_input`, differentiable."""

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
        needs_dy, needs_weight = used_inputs(ctx, ctx.needs_input_grad[:2])
        ddy = _conv(dx, weight, ctx.geometry) if needs_dy else None
        return ddy, _grad_weight(dx, dy, weight, ctx.geometry) if needs_weight else None, None, None


class _GradWeight(torch.autograd.Function):
    """`_grad_weight`, differentiable."""

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
        needs_x, needs_dy = used_inputs(ctx, ctx.needs_input_grad[:2])
        dx = _grad_input(dy, dw, x, ctx.geometry) if needs_x else None
        return dx, _conv(x, dw, ctx.geometry) if needs_dy else None, None, None
