"""Rules: which functions are piecewise linear and treat samples independently, and what a call of them computes.

`fastgan.penalties.recording` records a discriminator's forward pass call by call. Each function that is given a tensor
computed from the images needs a rule here, or the discriminator does not qualify for the one-pass penalty. A rule takes
the arguments of a call, with a `Proxy` in place of each tensor computed from the images, and returns an `Affine` or an
`Activation`.

To add a function, make it recordable, so that its call is seen as one, and give it a rule:

    @recordable  # from fastgan.ops.recordable
    def my_conv(x, weight, bias): ...

    @rule(my_conv)
    def _(x, weight, bias):
        require_only_first(x, weight, bias)
        return Affine(lambda x, weight: my_conv(x, weight, None), (x,), (weight,), bias=bias)

`fastgan.penalties.one_pass.check` verifies the rule on a batch.

Dimension 0 of every value counts samples. The recording refuses results with another number of samples; a rule must
refuse calls that may mix samples and keep their number. A function is safe if it leaves dimension 0 alone, or keeps the
row-major order of elements.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan import ops
from fastgan.ops.activations import slope_below_zero
from fastgan.ops.convolution import filtered_conv2d


class NotPiecewiseLinear(Exception):
    """Raised for a call without a rule, or one that its rule refuses; the message says why."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """Stands in for a tensor [N, ...] computed from the images."""

    number: int
    shape: torch.Size

    @property
    def rank(self) -> int:
        return len(self.shape)


class Affine(NamedTuple):
    """`function(*inputs, *weights, *constants) + bias`, linear in inputs and constants together for any weights.

    Attributes:
        function: holds no tensor.
        inputs: tensors computed from the images.
        weights: tensors independent of the images.
        constants: tensors or numbers independent of the images, of at most the output's rank.
        bias: [C], along dimension 1 of the output, or None.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Proxy, ...]
    weights: tuple[Tensor, ...] = ()
    constants: tuple[Tensor | float, ...] = ()
    bias: Tensor | None = None


class Activation(NamedTuple):
    """`clamp(gain * lrelu(input + bias))`.

    Attributes:
        input: [N, C, ...].
        bias: [C], or None.
        slope: below zero, from 0 (relu) to 1 (no activation) and beyond; not negative.
        gain: positive factor after the activation.
        clamp: limit of the output, or None.
    """

    input: Proxy
    bias: Tensor | None = None
    slope: float = 1.0
    gain: float = 1.0
    clamp: float | None = None


_RULES: dict[Callable, Callable[..., Affine | Activation]] = {}


def rule(*functions: Callable):
    """Decorator that registers a rule for these functions. A rule raises NotPiecewiseLinear for calls it refuses."""

    def register(declare: Callable[..., Affine | Activation]):
        for function in functions:
            _RULES[function] = declare
        return declare

    return register


def apply_rule(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Affine | Activation:
    """Declares the result of a call. Raises NotPiecewiseLinear if there is no rule, or the rule refuses."""
    declare = _RULES.get(function)
    if declare is None:
        raise NotPiecewiseLinear("is not known to be piecewise linear")
    try:
        return declare(*args, **kwargs)
    except NotPiecewiseLinear:
        raise
    except Exception as error:  # arguments that the rule does not expect
        raise NotPiecewiseLinear(f"is called in a way that is not known ({error})") from None


# Checks for rules -------------------------------------------------------------------------------------------------


def require_only_first(x: object, *others: object) -> Proxy:
    """Returns `x`. Raises NotPiecewiseLinear unless `x`, and only `x`, is computed from the images."""
    if not isinstance(x, Proxy) or any(map(_has_proxy, others)):
        raise NotPiecewiseLinear("takes one value computed from the images, the first argument")
    return x


def _has_proxy(value: object) -> bool:
    return isinstance(value, Proxy) or (isinstance(value, list | tuple) and any(map(_has_proxy, value)))


def _require_rank(x: Proxy, rank: int) -> None:
    if x.rank != rank:
        raise NotPiecewiseLinear(
            f"is given {list(x.shape)}, must be given {rank} dimensions, of which dimension 0 counts samples"
        )


def _require_other_dimensions(x: Proxy, *dims: object) -> None:
    """Raises NotPiecewiseLinear if one of these is no dimension, or is dimension 0."""
    for dim in dims:
        if not isinstance(dim, int) or isinstance(dim, bool) or dim % max(x.rank, 1) == 0:
            raise NotPiecewiseLinear(f"works along dimension {dim} of {list(x.shape)}; dimension 0 counts samples")


def _require_same_rank(*operands: object) -> None:
    """Raises NotPiecewiseLinear if a value is broadcast to more dimensions, which changes its dimension 0."""
    ranks = [x.rank if isinstance(x, Proxy) else x.dim() for x in operands if isinstance(x, Proxy | Tensor)]
    if any(isinstance(x, Proxy) and x.rank != max(ranks) for x in operands):
        raise NotPiecewiseLinear("broadcasts operands with different numbers of dimensions")


def _require_operands(*operands: object) -> None:
    if not all(isinstance(x, Proxy | Tensor | int | float) for x in operands):
        raise NotPiecewiseLinear("must be given tensors and numbers")
    _require_same_rank(*operands)


# Arithmetic -------------------------------------------------------------------------------------------------------


@rule(torch.add, Tensor.add, Tensor.add_)
def _(input, other):
    return _sum(input, other, 1)


@rule(torch.sub, Tensor.sub, Tensor.sub_)
def _(input, other):
    return _sum(input, other, -1)


@rule(torch.rsub, Tensor.__rsub__)
def _(input, other):
    return _sum(other, input, -1)


def _sum(a, b, sign: int) -> Affine:
    _require_operands(a, b)
    if isinstance(a, Proxy) and isinstance(b, Proxy):
        return Affine(lambda x, y: x + y if sign > 0 else x - y, (a, b))
    if isinstance(a, Proxy):
        return Affine(lambda x, k: x + k if sign > 0 else x - k, (a,), (), (b,))
    return Affine(lambda x, k: k + x if sign > 0 else k - x, (b,), (), (a,))


@rule(torch.mul, Tensor.mul, Tensor.mul_)
def _(input, other):
    x, factor = (input, other) if isinstance(input, Proxy) else (other, input)
    if isinstance(factor, Proxy):
        raise NotPiecewiseLinear("multiplies two values computed from the images")
    return _scaling(torch.mul, x, factor)


@rule(torch.div, Tensor.div, Tensor.div_)
def _(input, other):
    require_only_first(input, other)
    return _scaling(torch.div, input, other)


def _scaling(function: Callable, x: Proxy, factor: Tensor | float) -> Affine:
    _require_operands(x, factor)
    if isinstance(factor, Tensor):
        return Affine(function, (x,), (factor,))
    return Affine(lambda x: function(x, factor), (x,))


@rule(torch.matmul, Tensor.matmul)
def _(input, other):
    require_only_first(input, other)
    if input.rank < 2 or other.dim() not in (1, 2, input.rank):
        raise NotPiecewiseLinear(f"multiplies {list(input.shape)} by {list(other.shape)}, which may mix samples")
    return Affine(torch.matmul, (input,), (other,))


@rule(torch.cat, torch.concat)
def _(tensors, dim=0):
    if not isinstance(tensors, list | tuple):
        raise NotPiecewiseLinear("must be given a list")
    values = [i for i, each in enumerate(tensors) if isinstance(each, Proxy)]
    constants = [i for i, each in enumerate(tensors) if not isinstance(each, Proxy)]
    _require_other_dimensions(tensors[values[0]], dim)
    order = [(*values, *constants).index(i) for i in range(len(tensors))]
    return Affine(
        lambda *given: torch.cat([given[place] for place in order], dim),
        tuple(tensors[i] for i in values),
        (),
        tuple(tensors[i] for i in constants),
    )


@rule(ops.lerp_samples)
def _(a, b, t):
    if not (isinstance(a, Proxy) and isinstance(b, Proxy)) or isinstance(t, Proxy):
        raise NotPiecewiseLinear("must blend two values computed from the images, by weights that are not")
    return Affine(ops.lerp_samples, (a, b), (t,))


# Linear maps of one value -----------------------------------------------------------------------------------------


def _linear(function: Callable, x: object, *others: object, **options: object) -> Affine:
    """`function(x, *others, **options)`, linear in x; nothing else may be a tensor."""
    value = require_only_first(x, others, tuple(options.values()))
    if any(isinstance(other, Tensor) for other in (*others, *options.values())):
        raise NotPiecewiseLinear("is given another tensor")
    return Affine(lambda x: function(x, *others, **options), (value,))


def _linear_rule(function: Callable) -> None:
    @rule(function)
    def _(input, *others, **options):
        return _linear(function, input, *others, **options)


for _function in (
    torch.neg, Tensor.neg,
    # Keep the row-major order.
    torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, torch.squeeze, Tensor.squeeze, torch.unsqueeze,
    Tensor.unsqueeze, torch.unflatten, Tensor.unflatten, Tensor.contiguous, torch.clone, Tensor.clone,
    Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16,
    # Leave dimension 0 alone, given [C, H, W] too.
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.interpolate,
):  # fmt: skip
    _linear_rule(_function)


@rule(Tensor.view)
def _(input, *sizes):
    if not all(isinstance(size, int | list | tuple) for size in sizes):
        raise NotPiecewiseLinear("must be given sizes")  # a dtype reinterprets the bytes
    return _linear(Tensor.view, input, *sizes)


@rule(Tensor.expand)
def _(input, *sizes):
    require_only_first(input, *sizes)
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
    _require_rank(input, len(sizes))
    return Affine(lambda x: x.expand(sizes), (input,))


def _image_rule(function: Callable) -> None:
    @rule(function)
    def _(input, factor):
        require_only_first(input, factor)
        _require_rank(input, 4)  # [C, H, W] is a single image
        return Affine(lambda x: function(x, factor), (input,))


_image_rule(F.pixel_shuffle)
_image_rule(F.pixel_unshuffle)


@rule(torch.permute, Tensor.permute)
def _(input, *dims):
    require_only_first(input, *dims)
    dims = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims
    _require_other_dimensions(input, *dims[1:])
    return Affine(lambda x: x.permute(dims), (input,))


@rule(torch.transpose, Tensor.transpose)
def _(input, dim0, dim1):
    require_only_first(input, dim0, dim1)
    _require_other_dimensions(input, dim0, dim1)
    return Affine(lambda x: x.transpose(dim0, dim1), (input,))


def _reduction(function: Callable, x, dim, keepdim) -> Affine:
    require_only_first(x, dim, keepdim)
    dims = tuple(dim) if isinstance(dim, list | tuple) else (dim,)
    if dim is None or not dims:
        raise NotPiecewiseLinear("must name its dimensions, not including dimension 0")
    _require_other_dimensions(x, *dims)
    return Affine(lambda x: function(x, dims, keepdim), (x,))


def _reduction_rules(function: Callable, method: Callable) -> None:
    @rule(function)
    def _(input, dim=None, keepdim=False):
        return _reduction(function, input, dim, keepdim)

    @rule(method)
    def _(input, *dims, dim=None, keepdim=False):  # `x.sum(1, 2)`, `x.sum((1, 2), True)`
        if dims and isinstance(dims[-1], bool):
            *dims, keepdim = dims
        if dims:
            dim = dims[0] if len(dims) == 1 else tuple(dims)
        return _reduction(function, input, dim, keepdim)


_reduction_rules(torch.sum, Tensor.sum)
_reduction_rules(torch.mean, Tensor.mean)


def _splitting_rule(function: Callable, *methods: Callable) -> None:
    @rule(function, *methods)
    def _(input, size, dim=0):
        require_only_first(input, size, dim)
        _require_other_dimensions(input, dim)
        return Affine(lambda x: function(x, size, dim), (input,))


_splitting_rule(torch.chunk, Tensor.chunk)
_splitting_rule(torch.split, Tensor.split)


@rule(Tensor.__getitem__)
def _(input, index):
    require_only_first(input, index)
    whole = isinstance(index, tuple) and index and index[0] == slice(None)
    if not whole or not all(isinstance(i, int | slice | None | types.EllipsisType) for i in index):
        raise NotPiecewiseLinear("must be given an index that begins with ':', and goes on with numbers and slices")
    return Affine(lambda x: x[index], (input,))


@rule(F.pad)
def _(input, pad, mode="constant", value=None):
    require_only_first(input, pad, mode, value)
    if mode == "constant" and value not in (None, 0):
        raise NotPiecewiseLinear("must pad with zeros")
    if len(pad) // 2 >= input.rank:
        raise NotPiecewiseLinear(f"pads dimension 0 of {list(input.shape)}, which counts samples")
    return Affine(lambda x: F.pad(x, pad, mode), (input,))


@rule(ops.upfirdn2d)
def _(x, taps, **options):
    require_only_first(x, taps)
    return Affine(lambda x, taps: ops.upfirdn2d(x, taps, **options), (x,), (taps,))


# Convolutions and dense layers ------------------------------------------------------------------------------------


def _convolution_rule(function: Callable, rank: int) -> None:
    @rule(function)
    def _(input, weight, bias=None, *others, **options):
        require_only_first(input, weight, bias)
        _require_rank(input, rank)  # an input with one dimension less is a single image
        call = lambda x, weight: function(x, weight, None, *others, **options)
        return Affine(call, (input,), (weight,), bias=bias)


for _rank, _functions in {
    3: (F.conv1d, F.conv_transpose1d),
    4: (F.conv2d, F.conv_transpose2d, ops.conv2d, ops.conv_transpose2d, ops.upsample_conv2d, ops.conv_downsample2d),
    5: (F.conv3d, F.conv_transpose3d),
}.items():
    for _function in _functions:
        _convolution_rule(_function, _rank)


@rule(filtered_conv2d)
def _(x, weight, taps, **options):
    require_only_first(x, weight, taps)
    return Affine(lambda x, weight, taps: filtered_conv2d(x, weight, taps, **options), (x,), (weight, taps))


@rule(F.linear)
def _(input, weight, bias=None):
    require_only_first(input, weight, bias)
    if input.rank < 2 or weight.dim() != 2:
        raise NotPiecewiseLinear(f"is given {list(input.shape)}, must be given [N, ..., features]")
    if bias is None or (input.rank == 2 and bias.shape == weight.shape[:1]):
        return Affine(F.linear, (input,), (weight,), bias=bias)
    return Affine(lambda x, weight, bias: F.linear(x, weight) + bias, (input,), (weight,), (bias,))


# Activations ------------------------------------------------------------------------------------------------------


def _activation(x, bias, act: str, slope: float, gain: float = 1.0, clamp: float | None = None) -> Activation:
    require_only_first(x, bias)
    below = slope_below_zero(act, slope)
    if below is None:
        raise NotPiecewiseLinear(f"has the activation {act!r}, which is not piecewise linear")
    if not (gain > 0 and below >= 0):
        raise NotPiecewiseLinear(f"has slope {below} and gain {gain}, which must not be negative")
    if x.rank < 2:
        raise NotPiecewiseLinear(f"is given {list(x.shape)}, must be given [N, C, ...]")
    return Activation(x, bias, below, gain, clamp)


@rule(ops.noise_bias_act)
def _(x, *, bias=None, act="lrelu", slope=0.2, gain=1.0, clamp=None, **others):
    # A call with a residual is recorded as two.
    if any(other is not None for other in others.values()):
        raise NotPiecewiseLinear("must be given no noise, scale or post")
    return _activation(x, bias, act, slope, gain, clamp)


@rule(F.leaky_relu, torch._C._nn.leaky_relu_)
def _(input, negative_slope=0.01, inplace=False):
    return _activation(input, None, "lrelu", negative_slope)


@rule(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
def _(input, inplace=False):
    return _activation(input, None, "relu", 0.0)
