"""Which critics are piecewise linear and treat samples independently: found by tracing, told step by step.

Such a critic is, around any image, a linear map of that image plus what constants (biases, label planes) make of it.
`fastgan.one_pass` differentiates it on that ground; here it is found out whether a critic is one. It is traced by
`torch.fx`; what lies between images and logits must be a layer registered here, of exactly that type, or a function out
of a short list. A module's type alone says nothing: what its `forward` does between its layers counts just as much.

To make a layer known, register a function that tells its linear map, weights, bias and activation:

    @layer(MyConv2d)
    def _(conv):
        return PiecewiseLinear(conv.convolve, (conv.weight * conv.gain,), conv.bias, slope=0.2)

What does not depend on the images (embeddings of labels, modulations by them, any function of parameters) may be any
code that can be traced; it is run as it is, with its own autograd.
"""

from __future__ import annotations

import operator
import random
import types
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple
from unittest import mock
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastgan import layers
from fastgan.ops import noise_bias_act
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last
from fastgan.ops.noise_bias_act import slope_below_zero
from fastgan.ops.upfirdn2d import upfirdn2d


class NotPiecewiseLinear(Exception):
    """A critic is not known to be piecewise linear with independent samples; the message says why."""


class Path(int):
    """The number of a value that depends on the images."""


class Affine(NamedTuple):
    """A step `function(*paths, *weights, *constants)`, linear in paths and constants together, whatever the weights.

    `paths` are values that depend on the images; weights and constants do not. Where the samples of constants count
    [N, ...], they have the number of dimensions of the result.
    """

    function: Callable[..., Tensor]
    paths: tuple[Path, ...]
    weights: tuple[Tensor, ...] = ()
    constants: tuple[Tensor | float, ...] = ()


class PiecewiseLinear(NamedTuple):
    """A layer: `clamp(gain * lrelu(linear(x, *weights) + bias))`.

    Attributes:
        linear: of x [N, ...], linear in it for given weights; None for x itself.
        weights: the effective ones, after equalised rates, as functions of the layer's parameters.
        bias: [C], along dimension 1.
        slope: below zero: 1 if there is no activation, 0 for relu.
        gain: after the activation.
        clamp: limit of the result, or None.
    """

    linear: Callable[..., Tensor] | None = None
    weights: tuple[Tensor, ...] = ()
    bias: Tensor | None = None
    slope: float = 1.0
    gain: float = 1.0
    clamp: float | None = None

    @property
    def activates(self) -> bool:
        return self.slope != 1 or self.gain != 1 or self.clamp is not None


# Layers -----------------------------------------------------------------------------------------------------------

_LAYERS: dict[type[nn.Module], tuple[Callable, Callable[[nn.Module], PiecewiseLinear]]] = {}


def layer(*kinds: type[nn.Module]):
    """Decorator of a function from a layer of exactly one of these types to its `PiecewiseLinear`.

    The function is called anew for every batch, and raises NotPiecewiseLinear for options that it does not know.
    """

    def register(declare: Callable[[nn.Module], PiecewiseLinear]):
        for kind in kinds:
            _LAYERS[kind] = kind.forward, declare
        return declare

    return register


def activation(act: str, slope: float = 0.2, gain: float = 1.0, clamp: float | None = None) -> dict[str, Any]:
    """The options of `noise_bias_act` as fields of `PiecewiseLinear`."""
    below = slope_below_zero(act, slope)
    if below is None:
        raise NotPiecewiseLinear(f"its activation {act!r} is curved")
    if not (gain > 0 and below >= 0):
        raise NotPiecewiseLinear(f"its slope {below} and gain {gain} must not be negative")
    return {"slope": below, "gain": gain, "clamp": clamp}


@layer(layers.EqualizedConv2d)
def _(conv):
    weight, bias, gain = layers.equalized(conv)
    return PiecewiseLinear(conv.convolve, (weight,), bias, **activation(conv.act, gain=gain, clamp=conv.clamp))


@layer(layers.EqualizedLinear)
def _(dense):
    weight, bias, gain = layers.equalized(dense)
    return PiecewiseLinear(_matrix_product, (weight,), bias, **activation(dense.act, gain=gain))


def _matrix_product(x: Tensor, weight: Tensor) -> Tensor:
    if x.dim() != 2:  # a bias would be along the last dimension, and not along dimension 1
        raise NotPiecewiseLinear(f"a dense layer is given {x.dim()} dimensions, must be [N, features]")
    return F.linear(x, weight)


@layer(layers.UpsampleConv2d, layers.ConvDownsample2d)
def _(conv):
    weight, bias, gain = layers.equalized(conv)
    options = activation(conv.act, gain=gain)
    return PiecewiseLinear(lambda x, weight: conv._convolve(x, weight, None), (weight,), bias, **options)


@layer(nn.Conv1d, nn.Conv2d, nn.Conv3d, layers.Conv2d)
def _(conv):
    return PiecewiseLinear(lambda x, weight: conv._conv_forward(x, weight, None), (conv.weight,), conv.bias)


@layer(nn.Linear)
def _(dense):
    return PiecewiseLinear(_matrix_product, (dense.weight,), dense.bias)


@layer(nn.LeakyReLU)
def _(act):
    return PiecewiseLinear(**activation("lrelu", act.negative_slope))


@layer(nn.ReLU)
def _(act):
    return PiecewiseLinear(slope=0.0)


@layer(nn.Identity)
def _(identity):
    return PiecewiseLinear()


@layer(
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Flatten, nn.Unflatten, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d, layers.Blur2d, layers.Upsample2d, layers.Downsample2d,
)  # fmt: skip
def _(module):
    return PiecewiseLinear(module.forward)


# Functions --------------------------------------------------------------------------------------------------------
#
# A rule makes an `Affine` or a pair (path, PiecewiseLinear) of a call's arguments, in which what depends on the images
# is a `Path`. It is tried once in tracing, where what will be known only at run time is `UNKNOWN`.

UNKNOWN = object()


def _paths_in(*arguments: object) -> list[Path]:
    found: list[Path] = []
    fx.node.map_aggregate(arguments, lambda a: found.append(a) if isinstance(a, Path) else None)
    return found


def _require_path_first(x: object, *others: object) -> None:
    if not isinstance(x, Path) or _paths_in(*others):
        raise NotPiecewiseLinear("only its first argument may depend on the images")


def _linear_in_first(function: Callable[..., Tensor]):
    def rule(x, *others, **options):
        _require_path_first(x, others, options)
        # Tensors among the other arguments may have a gradient of their own.
        at = [i for i, other in enumerate(others) if isinstance(other, Tensor)]
        named = [name for name, other in options.items() if isinstance(other, Tensor)]

        def call(x, *weights):
            given, by_name = list(others), dict(options)
            for i, weight in zip(at, weights, strict=False):
                given[i] = weight
            by_name |= zip(named, weights[len(at) :], strict=True)
            return function(x, *given, **by_name)

        return Affine(call, (x,), (*(others[i] for i in at), *(options[name] for name in named)))

    return rule


def _same_rank(result: Tensor, *paths: Tensor) -> Tensor:
    """Broadcasting to more dimensions would make another one of dimension 0, which counts samples."""
    if any(path.dim() != result.dim() for path in paths):
        raise NotPiecewiseLinear("operands with different numbers of dimensions are broadcast")
    return result


def _sum(sign: int):
    def rule(a, b):
        if isinstance(a, Path) and isinstance(b, Path):
            return Affine(lambda x, y: _same_rank(x + y if sign > 0 else x - y, x, y), (a, b))
        if isinstance(a, Path):
            return Affine(lambda x, k: _same_rank(x + k if sign > 0 else x - k, x), (a,), (), (b,))
        return Affine(lambda x, k: _same_rank(k + x if sign > 0 else k - x, x), (b,), (), (a,))

    return rule


def _product(a, b):
    if not isinstance(a, Path):
        a, b = b, a
    _require_path_first(a, b)
    if isinstance(b, Tensor):
        return Affine(lambda x, factor: _same_rank(x * factor, x), (a,), (b,))
    return Affine(lambda x: x * b, (a,))


def _quotient(a, b):
    _require_path_first(a, b)
    if isinstance(b, Tensor):
        return Affine(lambda x, divisor: _same_rank(x / divisor, x), (a,), (b,))
    return Affine(lambda x: x / b, (a,))


def _concatenation(tensors, dim=0):
    if not isinstance(tensors, list | tuple):
        raise NotPiecewiseLinear("its argument must be a list")
    if dim == 0:
        raise NotPiecewiseLinear("it joins along dimension 0, that of samples")
    tensors = list(tensors)
    paths = [i for i, each in enumerate(tensors) if isinstance(each, Path)]
    constants = [i for i, each in enumerate(tensors) if not isinstance(each, Path)]

    def call(*given):
        parts = [given[(*paths, *constants).index(i)] for i in range(len(tensors))]
        if dim % parts[0].dim() == 0:
            raise NotPiecewiseLinear("it joins along dimension 0, that of samples")
        return torch.cat(parts, dim)

    return Affine(call, tuple(tensors[i] for i in paths), (), tuple(tensors[i] for i in constants))


def _reduction(name: str):
    def rule(x, dim=None, keepdim=False):
        _require_path_first(x, dim, keepdim)
        dims = (dim,) if isinstance(dim, int) else dim
        if not isinstance(dims, list | tuple) or not dims or 0 in dims:
            raise NotPiecewiseLinear("it must name its dimensions, and leave out dimension 0, that of samples")

        def call(x):
            if any(d % x.dim() == 0 for d in dims):
                raise NotPiecewiseLinear("it reduces dimension 0, that of samples")
            return getattr(x, name)(dims, keepdim)

        return Affine(call, (x,))

    return rule


def _padding(x, pad, mode="constant", value=None):
    _require_path_first(x, pad, mode, value)
    if mode != "constant" or value not in (None, 0):
        raise NotPiecewiseLinear("it must pad with zeros")
    return Affine(lambda x: F.pad(x, pad), (x,))


def _item(x, index):
    _require_path_first(x, index)
    whole = isinstance(index, tuple) and index and index[0] == slice(None)
    if not whole or not all(isinstance(i, int | slice | None | types.EllipsisType) for i in index):
        raise NotPiecewiseLinear("an index must begin with ':', and go on with numbers and slices")
    return Affine(lambda x: x[index], (x,))


def _noise_bias_act(x, *, bias=None, act="lrelu", slope=0.2, gain=1.0, clamp=None):
    _require_path_first(x, bias)
    return x, PiecewiseLinear(bias=bias, **activation(act, slope, gain, clamp))


_ADD, _SUBTRACT = _sum(1), _sum(-1)

_FUNCTIONS: dict[Callable, Callable] = {
    operator.add: _ADD, operator.iadd: _ADD, torch.add: _ADD,
    operator.sub: _SUBTRACT, operator.isub: _SUBTRACT, torch.sub: _SUBTRACT,
    operator.mul: _product, operator.imul: _product, torch.mul: _product,
    operator.truediv: _quotient, operator.itruediv: _quotient, torch.div: _quotient,
    operator.neg: _linear_in_first(operator.neg), operator.getitem: _item,
    torch.cat: _concatenation, torch.concat: _concatenation,
    torch.sum: _reduction("sum"), torch.mean: _reduction("mean"),
    F.pad: _padding,
    noise_bias_act: _noise_bias_act,
    **{
        function: _linear_in_first(function)
        for function in (
            torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, F.avg_pool2d, F.adaptive_avg_pool2d,
            F.interpolate, F.pixel_shuffle, F.pixel_unshuffle, upfirdn2d, channels_last, to_arithmetic,
        )
    },
}  # fmt: skip
_METHODS: dict[str, Callable] = {
    "add": _ADD, "sub": _SUBTRACT, "mul": _product, "div": _quotient,
    "sum": _reduction("sum"), "mean": _reduction("mean"),
    **{
        name: _linear_in_first(getattr(Tensor, name))
        for name in (
            "flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous", "clone", "to", "float", "double",
            "half", "bfloat16",
        )
    },
}  # fmt: skip
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv, *_IN_PLACE)
# What asks about a value's form, not its content.
_FORM_ATTRIBUTES = ("shape", "dtype", "device", "ndim")
_FORM_METHODS = ("size", "dim", "numel")


# Tracing ----------------------------------------------------------------------------------------------------------


def plan(critic: nn.Module, labelled: bool) -> Plan:
    """The plan of a critic that is called with images, and labels if `labelled`; raises NotPiecewiseLinear.

    Plans are kept, one for each structure that the critic was met in: its modules, their types and modes, and whatever
    plain values they hold as attributes (how far a fade-in has come, say). What `forward` reads from elsewhere (global
    variables) is taken to stay as it was.
    """
    if not isinstance(critic, nn.Module):
        raise NotPiecewiseLinear(f"{critic!r} is not a module, and cannot be looked into")
    key = labelled, _structure(critic)
    kept = _plans.setdefault(critic, {})
    if key not in kept:
        if len(kept) >= 16:
            kept.clear()
        try:
            kept[key] = _trace(critic, *key)
        except NotPiecewiseLinear as reason:
            kept[key] = str(reason)
    found = kept[key]
    if isinstance(found, str):
        raise NotPiecewiseLinear(found)
    return found


def rule_out(critic: nn.Module, labelled: bool, reason: str) -> None:
    """The critic does not qualify after all, as it is now."""
    _plans[critic][labelled, _structure(critic)] = reason


_plans: WeakKeyDictionary[nn.Module, dict[tuple, Plan | str]] = WeakKeyDictionary()


class Plan:
    """A traced critic: its nodes in order, each with what it takes to run it. It holds no module and no parameter."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module]):
        self.graph = graph  # owns the nodes
        self.agrees = False  # with the critic, as seen on a first batch
        self.rules = _rules(graph, modules)
        self.fused = {node for node in self.rules if _is_left_to_activation(node, modules)}
        images = next(iter(graph.nodes))
        last_use = {node: user for user in graph.nodes for node in user.all_input_nodes}
        self.steps: list[tuple[fx.Node, Callable | None, list[fx.Node]]] = []
        for node in graph.nodes:
            done = [each for each, user in last_use.items() if user is node and (each is images or each in self.rules)]
            self.steps.append((node, self.rules.get(node), done))

    def run(self, critic: nn.Module, recorder, labels: Tensor | None) -> Path:
        """Runs the critic: what does not depend on the images as it is, the rest as steps of `recorder`.

        `recorder` holds the images as value `Path(0)`. Returns the value that is the critic's result.
        """
        values: dict[fx.Node, Any] = {}
        biases: dict[fx.Node, Tensor] = {}  # of convolutions, left to the activation behind them

        def content(node):
            value = values[node]
            return recorder.values[value] if isinstance(value, Path) else value

        for node, rule, done in self.steps:
            if node.op == "output":
                return values[node.args[0]]
            if node.op == "placeholder":
                values[node] = labels if values else Path(0)
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(_within(node.target))(critic)
            elif node.op == "call_module" and rule is not None:
                (x,) = node.args
                declared = rule(critic.get_submodule(_within(node.target)))
                if x in biases:
                    declared = declared._replace(bias=biases.pop(x))
                if node in self.fused and declared.bias is not None:
                    biases[node] = declared.bias
                    declared = declared._replace(bias=None)
                values[node] = recorder.layer(values[x], declared)
            elif rule is not None:
                found = rule(*fx.node.map_arg(node.args, values.get), **fx.node.map_arg(node.kwargs, values.get))
                values[node] = recorder.affine(found) if isinstance(found, Affine) else recorder.layer(*found)
            else:
                args, kwargs = fx.node.map_arg(node.args, content), fx.node.map_arg(node.kwargs, content)
                if node.op == "call_module":
                    values[node] = critic.get_submodule(_within(node.target))(*args, **kwargs)
                elif node.op == "call_method":
                    values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
                else:
                    values[node] = node.target(*args, **kwargs)
            for each in done:
                recorder.forget(values[each])
        raise AssertionError("a graph ends with its output")


class _Called(nn.Module):
    """The critic as it is called. Wrapped, so that it is judged like any other module, and its defaults hold."""

    def __init__(self, critic: nn.Module):
        super().__init__()
        self.critic = critic


class _CalledWithLabels(_Called):
    def forward(self, images, labels):
        return self.critic(images, labels)


class _CalledWithout(_Called):
    def forward(self, images):
        return self.critic(images)


def _within(target: str) -> str:
    """The name of something within the critic, without the wrapper that it is traced in."""
    return target.partition(".")[2]


class _Proxy(fx.Proxy):
    """Records `x += y` as what it is; torch.fx takes it for `x = x + y`, and other readers of x see another x."""

    def __iadd__(self, other):
        return self._overwritten(operator.iadd, other)

    def __isub__(self, other):
        return self._overwritten(operator.isub, other)

    def __imul__(self, other):
        return self._overwritten(operator.imul, other)

    def __itruediv__(self, other):
        return self._overwritten(operator.itruediv, other)

    def _overwritten(self, function, other):
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # or a number computed from a buffer would be taken for a constant

    def __init__(self):
        super().__init__(autowrap_functions=(noise_bias_act, upfirdn2d, channels_last, to_arithmetic))

    def is_leaf_module(self, m, module_qualified_name):
        ours = type(m) in _LAYERS or type(m).__module__ == layers.__name__
        return ours or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node):
        return _Proxy(node, self)

    def create_node(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            raise NotPiecewiseLinear("it switches gradients off within its forward")
        return super().create_node(*args, **kwargs)


def _no_autocast(self):
    raise NotPiecewiseLinear("it switches autocast within its forward")


def _trace(critic: nn.Module, labelled: bool, structure: tuple) -> Plan:
    called = (_CalledWithLabels if labelled else _CalledWithout)(critic)
    random_before = _random_state()
    try:
        with torch.enable_grad(), mock.patch.object(torch.autocast, "__enter__", _no_autocast):
            graph = _Tracer().trace(called)
    except NotPiecewiseLinear:
        raise
    except Exception as error:  # whatever stands in a forward: tracing fails in as many ways
        raise NotPiecewiseLinear(f"its forward cannot be traced: {_first_line(error)}") from None
    if _random_state() != random_before:
        raise NotPiecewiseLinear("it draws random numbers in its forward")
    if _structure(critic) != structure:
        raise NotPiecewiseLinear("its forward changes the module")
    with torch.no_grad():
        return Plan(graph, dict(called.named_modules(remove_duplicate=False)))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _random_state() -> tuple:
    _, keys, position, *_ = np.random.get_state()
    return random.getstate(), keys.tobytes(), position, torch.get_rng_state().numpy().tobytes()


def _rules(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, Callable]:
    """What runs each node that depends on the images, or NotPiecewiseLinear, naming the first that cannot be."""
    rules: dict[fx.Node, Callable] = {}
    images = next(iter(graph.nodes))
    depends = lambda node: node is images or node in rules
    for node in graph.nodes:
        if node.op == "output":
            if not (isinstance(node.args[0], fx.Node) and depends(node.args[0])):
                raise NotPiecewiseLinear("its result is not one tensor that depends on the images")
        elif node.op == "get_attr" and "." not in node.target:
            raise NotPiecewiseLinear("it makes a tensor in its forward; register it as a buffer")
        elif node.op in ("call_function", "call_method", "call_module"):
            asks_form = _asks_form(node)
            if not node.users and not asks_form and node.target is not operator.getitem:
                raise NotPiecewiseLinear(f"the result of {_name(node, modules)} is not used")
            if not asks_form and any(map(depends, node.all_input_nodes)):
                try:
                    rules[node] = _rule(node, modules, depends)
                except NotPiecewiseLinear as reason:
                    raise NotPiecewiseLinear(f"{_name(node, modules)}: {reason}") from None
    return rules


def _rule(node: fx.Node, modules: dict[str, nn.Module], depends: Callable[[fx.Node], bool]) -> Callable:
    module = modules.get(node.target) if node.op == "call_module" else None
    if (node.target in _IN_PLACE or getattr(module, "inplace", False)) and not _overwrites_unseen(node, modules):
        raise NotPiecewiseLinear("it overwrites what may be read elsewhere")
    if module is not None:
        declare = _LAYERS.get(type(module), (None, None))[1]
        if declare is None:
            raise NotPiecewiseLinear("is not known to be piecewise linear")
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            raise NotPiecewiseLinear("must be given one tensor")
        declare(module)
        return declare
    rule = (_METHODS if node.op == "call_method" else _FUNCTIONS).get(node.target)
    if rule is None:
        raise NotPiecewiseLinear("is not known to be linear")
    known = lambda each: Path(0) if depends(each) else UNKNOWN
    try:
        rule(*fx.node.map_arg(node.args, known), **fx.node.map_arg(node.kwargs, known))
    except TypeError as error:
        raise NotPiecewiseLinear(f"is called in a way that is not known ({_first_line(error)})") from None
    return rule


def _asks_form(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _FORM_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _FORM_ATTRIBUTES


def _overwrites_unseen(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether what this node overwrites is a tensor of its own, and read by this node alone."""
    target = node.args[0]
    if not isinstance(target, fx.Node) or len(target.users) > 1:
        return False
    if target.op == "call_module":
        return type(modules[target.target]) not in (nn.Identity, nn.Flatten, nn.Unflatten)
    return target.op == "call_function" and target.target in _ARITHMETIC


def _is_left_to_activation(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether this is a plain convolution or dense layer, and an activation that can add its bias its only reader."""
    users = [user for user in node.users if user.op == "call_module"]
    return (
        node.op == "call_module"
        and len(node.users) == len(users) == 1
        and type(modules[node.target]) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, layers.Conv2d, nn.Linear)
        and type(modules[users[0].target]) in (nn.LeakyReLU, nn.ReLU)
    )


def _name(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{type(modules[node.target]).__name__} '{_within(node.target)}'"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{target}()"


# What a trace depends on ------------------------------------------------------------------------------------------

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_VALUES = (
    bool, int, float, complex, str, bytes, type(None), type, Enum, torch.dtype, torch.device, torch.memory_format
)  # fmt: skip


def _structure(critic: nn.Module) -> tuple:
    """All that decides what the critic's forward does, apart from the values of tensors."""
    if nn.modules.module._has_any_global_hook():
        raise NotPiecewiseLinear("there are hooks on all modules")
    parts = []
    for name, module in critic.named_modules(remove_duplicate=False):
        kind, own = type(module), vars(module)
        what = f"{kind.__name__} '{name}'" if name else kind.__name__
        if any(own[hooks] for hooks in _HOOKS):
            raise NotPiecewiseLinear(f"{what} has a hook")
        if kind in _LAYERS and (kind.forward is not _LAYERS[kind][0] or "forward" in own):
            raise NotPiecewiseLinear(f"the forward of {what} is not its own")
        if kind.__call__ is not nn.Module.__call__:
            raise NotPiecewiseLinear(f"{what} has a __call__ of its own")
        try:
            attributes = tuple((k, _frozen(v)) for k, v in own.items() if k not in _OF_EVERY_MODULE)
        except _Opaque as value:
            raise NotPiecewiseLinear(f"{what} has an attribute that cannot be followed: {value}") from None
        given = tuple(k for k, v in (*module._parameters.items(), *module._buffers.items()) if v is not None)
        parts.append((name, kind, kind.forward, module.training, given, attributes))
    return tuple(parts)


class _Opaque(Exception):
    pass


def _frozen(value: object, depth: int = 4) -> object:
    """A hashable copy of an attribute's value."""
    if isinstance(value, types.FunctionType) and not value.__closure__:
        return value
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | type | None):
        return value
    if isinstance(value, _VALUES):
        return type(value), value
    if depth and isinstance(value, list | tuple):
        return type(value), tuple(_frozen(each, depth - 1) for each in value)
    if depth and isinstance(value, set | frozenset):
        return type(value), frozenset(_frozen(each, depth - 1) for each in value)
    if depth and isinstance(value, dict):
        return type(value), tuple((_frozen(k, 1), _frozen(v, depth - 1)) for k, v in value.items())
    if depth and not isinstance(value, Tensor | nn.Module) and hasattr(value, "__dict__"):
        return type(value), _frozen(vars(value), depth - 1)
    raise _Opaque(f"{type(value).__name__}")
