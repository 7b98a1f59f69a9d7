"""Activations of the fused operations: their names, and the piecewise linear ones in the form that kernels take.

Kernels know linear, relu and lrelu as one leaky ReLU, whose slope below zero is 1, 0, or the caller's.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "silu", "softplus")
PIECEWISE_LINEAR = ("linear", "relu", "lrelu")
_SLOPES = {"linear": 1.0, "relu": 0.0}


class LeakyRelu(Protocol):
    """Options of an operation with a piecewise linear activation: the slope below zero, and the factor after it."""

    @property
    def slope(self) -> float: ...

    @property
    def gain(self) -> float: ...


def slope_below_zero(act: str, slope: float) -> float | None:
    """The slope below zero of a piecewise linear activation (above zero it is 1). None for other activations."""
    return float(_SLOPES.get(act, slope)) if act in PIECEWISE_LINEAR else None


def require_slope(operation: str, act: str, slope: float, gain: float) -> float:
    """`slope_below_zero`. Raises ValueError for other activations, and for a slope or gain that is not finite."""
    below = slope_below_zero(act, slope)
    if below is None:
        raise ValueError(f"{operation}: act is {act!r}, must be piecewise linear: one of {', '.join(PIECEWISE_LINEAR)}")
    check_finite(operation, slope, gain)
    return below


def check_finite(operation: str, slope: float, gain: float) -> None:
    # Not math.isfinite: torch.compile cannot trace it for a number that changes between calls.
    if not (-math.inf < slope < math.inf and -math.inf < gain < math.inf):
        raise ValueError(f"{operation}: slope and gain must be finite, are {slope} and {gain}")


def leaky_relu(u: Tensor, options: LeakyRelu) -> Tensor:
    """`gain * lrelu(u)`."""
    z = u if options.slope == 1 else F.leaky_relu(u, options.slope)
    return z if options.gain == 1 else z * options.gain


def leaky_relu_derivative(u: Tensor, options: LeakyRelu) -> Tensor:
    """The derivative of `leaky_relu` at u."""
    return torch.where(u > 0, torch.ones_like(u), options.slope) * options.gain
