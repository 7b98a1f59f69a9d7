"""Effective weights of layers: parameters scaled, and converted to the dtype of convolutions.

Each layer computes its own. On a GPU that is several kernels a layer, forward and backward, and all together take less
time than their launches. So a network whose `forward` is decorated with `shares_kernels` computes them at its beginning
for all layers, in a few multi-tensor kernels. They hold for that call, so none is ever older than its parameter.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from fastgan.ops.arithmetic import compute_dtype
from fastgan.ops.fixed_weights import cast_weight, is_kept, of_weight
from fastgan.ops.weights import computed_together, converted, finished_together


class Use(NamedTuple):
    """How a layer uses its parameters: `gain * act(linear(x, weight * its weight) + bias * its bias)`."""

    weight: float = 1.0
    bias: float = 1.0
    gain: float = 1.0
    converts: tuple[str, ...] = ("weight",)  # parameters that its convolution reads as they are


class Effective(NamedTuple):
    """Effective weight, bias and gain: `gain * act(linear(x, weight) + bias)`."""

    weight: Tensor
    bias: Tensor | None
    gain: float


class HasEffectiveWeights(nn.Module):
    """Base class of layers with a weight, and with a bias or None."""

    weight: Tensor
    bias: Tensor | None

    def use(self) -> Use:
        """May depend on autocast."""
        raise NotImplementedError

    def effective(self) -> Effective:
        """In the dtype of the parameters, if the layer computes them itself: convolutions convert them. Fixed weights
        (`fastgan.ops.fixed_weights`) are converted here, once."""
        shared = shared_weights()
        found = None if shared is None else shared.get(self)
        if found is not None and found.state == _state(self):
            return found.effective
        use = self.use()
        bias = None if self.bias is None else _times(self.bias, use.bias)
        if bias is not None and "bias" in use.converts and is_kept(bias):
            bias = cast_weight(bias, compute_dtype(bias))
        weight = _times(self.weight, use.weight)
        if "weight" in use.converts and is_kept(weight):
            weight = cast_weight(weight, compute_dtype(weight))
        return Effective(weight, bias, use.gain)


def _times(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else _product(tensor, factor)


@of_weight
def _product(tensor: Tensor, factor: float) -> Tensor:
    return tensor * factor


# Sharing --------------------------------------------------------------------------------------------------------------


class _Shared(NamedTuple):
    effective: Effective
    state: tuple


Shared = dict[HasEffectiveWeights, _Shared]

_shared: ContextVar[Shared | None] = ContextVar("fastgan_shared_weights", default=None)


def _state(layer: HasEffectiveWeights) -> tuple:
    """Everything that effective weights depend on: parameters, their versions, and modes."""
    parameters = layer._parameters.get("weight"), layer._parameters.get("bias")
    versions = [None if x is None or x.is_inference() else x._version for x in parameters]
    needs_grad = [x is not None and x.requires_grad for x in parameters] if torch.is_grad_enabled() else ()
    return *map(id, parameters), *versions, *needs_grad, compute_dtype(layer.weight)


def shared_weights() -> Shared | None:
    """The effective weights that layers use now, for `with_shared_weights` of a later call."""
    return None if is_compiling() else _shared.get()


def with_shared_weights(shared: Shared, function: Callable) -> Callable:
    """`function`, in whose calls layers use these effective weights."""

    def call(*args: Any, **kwargs: Any) -> Any:
        token = _shared.set(shared)
        try:
            return function(*args, **kwargs)
        finally:
            _shared.reset(token)

    return call


def shares_kernels(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator of a network's `forward`, see the top of this module."""

    @wraps(forward)
    def call(network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        shared = {} if is_compiling() else _effective_weights(network)
        return (with_shared_weights(shared, forward) if shared else forward)(network, *args, **kwargs)

    return call


def _effective_weights(network: nn.Module) -> Shared:
    """Effective weights of all layers; none if sharing does not pay or a hook may change parameters within the call."""
    first = next(network.parameters(), None)
    if first is None or not computed_together([first]):  # the usual case on a CPU, and a cheap test
        return {}
    modules = list(network.modules())
    layers = [module for module in modules if isinstance(module, HasEffectiveWeights) and _has_plain_parameters(module)]
    weights = [layer.weight for layer in layers]
    if not layers or not computed_together(weights) or any(module._forward_pre_hooks for module in modules):
        return {}
    shared: Shared = {}
    for group in finished_together(weights):
        shared |= _of_group(layers[group])
    return shared


def _has_plain_parameters(layer: HasEffectiveWeights) -> bool:
    """Whether weight and bias are not computed by a parametrization."""
    parameters = layer._parameters
    return type(parameters.get("weight")) is nn.Parameter and layer.bias is parameters.get("bias")


def _of_group(layers: Sequence[HasEffectiveWeights]) -> Shared:
    made = {(layer, name): getattr(layer, name) for layer in layers for name in ("weight", "bias")}
    uses = {layer: layer.use() for layer in layers}
    jobs = defaultdict(list)  # tensors that a multi-tensor kernel takes together
    for (layer, name), parameter in made.items():
        if parameter is not None:
            use = uses[layer]
            dtype = compute_dtype(parameter) if name in use.converts else parameter.dtype
            if dtype != parameter.dtype or getattr(use, name) != 1:
                jobs[parameter.device, parameter.dtype, dtype].append((layer, name))
    for (_, _, dtype), job in jobs.items():
        factors = [getattr(uses[layer], name) for layer, name in job]
        made |= zip(job, converted([made[key] for key in job], factors, dtype), strict=True)
    return {
        layer: _Shared(Effective(made[layer, "weight"], made[layer, "bias"], use.gain), _state(layer))
        for layer, use in uses.items()
    }
