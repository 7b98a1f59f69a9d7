"""Fuses pairs of layers in an `nn.Sequential`: a convolution or batch norm, followed by an activation.

A convolution's bias and the activation become one pass of `noise_bias_act`. Batch norm and activation become
`batch_norm_act`. Other layers of the sequence are called as they are.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.ops import batch_norm_act, noise_bias_act
from fastgan.patching.instances import has_only_weight_pre_hooks, run_pre_hooks, runs_as_its_class
from fastgan.patching.known import Known, has_numbers, named, of_class
from fastgan.patching.probe import Draw

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_NORMS = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
_ACTIVATIONS = {
    nn.LeakyReLU: "lrelu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Softplus: "softplus",
    nn.Tanh: "tanh",
}
_AFTER_NORM = (nn.LeakyReLU, nn.ReLU)

_is_wrapped = named(
    "EqualConv2d"
)  # rosinality's style-based-gan-pytorch: a pre-hook of its submodule computes the weight
_is_equalized = named("EqualizedConv2d")  # huangzh13's StyleGAN.pytorch


# Convolutions without their bias -------------------------------------------------------------------------------------


def _convolution(module: nn.Module) -> nn.Module | None:
    """The layer that holds a convolution's weight and bias; None for an unknown module."""
    if type(module) in _CONVOLUTIONS:
        return module
    if _is_wrapped(module):
        inner = module._modules.get("conv")
        return inner if type(inner) is nn.Conv2d and len(module._modules) == 1 else None
    if _is_equalized(module):
        weight, known = module._parameters.get("weight"), {"upscale", "downscale", "intermediate"}
        fits = weight is not None and weight.dim() == 4 and set(module._modules) <= known
        return module if fits and has_numbers(module, "w_mul", "b_mul", "kernel_size") else None
    return None


def _in_channels(module: nn.Module) -> int:
    conv = _convolution(module)
    return conv.weight.shape[1] if _is_equalized(conv) else conv.in_channels


def _without_bias(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the convolution's result without the bias, and the bias."""
    conv = _convolution(module)
    if _is_equalized(conv):
        y = F.conv2d(x, conv.weight * conv.w_mul, padding=conv.kernel_size // 2)
        for part in (conv.intermediate, conv.downscale):
            y = y if part is None else part(y)
        return y, conv.bias if conv.b_mul == 1 else conv.bias * conv.b_mul
    x = run_pre_hooks(conv, x)
    return conv._conv_forward(x, conv.weight, None), conv.bias


def _adds_bias_apart(conv: nn.Module) -> bool:
    """Whether the original adds the bias in a separate pass, which fusing saves on any device."""
    return _is_equalized(conv) and (conv.intermediate is not None or conv.downscale is not None)


# Pairs ---------------------------------------------------------------------------------------------------------------


def _is_pair(first: nn.Module, act: nn.Module) -> bool:
    if type(act) not in _ACTIVATIONS:
        return False
    conv = _convolution(first)
    return (conv is not None and conv.bias is not None) or (type(first) in _NORMS and type(act) in _AFTER_NORM)


def why_not_fused(first: nn.Module, act: nn.Module) -> str | None:
    """Why a pair is not fused, or None."""
    conv = _convolution(first)
    if conv is None:
        return _why_norm_not_fused(first, act)
    bare = first is conv or runs_as_its_class(first)
    if not (bare and runs_as_its_class(act) and has_only_weight_pre_hooks(conv)):
        reason = "have hooks, or their own forward"
    elif type(act) is nn.LeakyReLU and act.negative_slope < 0:
        reason = "have a negative slope"
    elif type(act) is nn.Softplus and (act.beta, act.threshold) != (1, 20):
        reason = "have a softplus with non-default options"
    elif _is_equalized(conv) and conv.upscale is not None:
        reason = "have an upsampling between them"
    else:
        return why_nothing_is_gained(conv)
    return f"a convolution and its activation {reason}"


def why_nothing_is_gained(conv: nn.Module) -> str | None:
    """Why fusing a convolution and its activation gains nothing; None if it gains."""
    if conv.bias.device.type != "cpu" or _adds_bias_apart(conv):
        return None
    return (
        "a convolution and its activation: nothing is gained on a CPU, where the convolution adds the bias for free "
        "(measured: 0.91 to 0.99 times as fast when fused)"
    )


def _why_norm_not_fused(norm: nn.Module, act: nn.Module) -> str | None:
    if not runs_as_its_class(norm, act):
        return "batch norm and its activation have hooks, or their own forward"
    if norm.momentum is None:
        return "batch norm has a cumulative average (momentum None)"
    if type(act) is nn.LeakyReLU and act.negative_slope < 0:
        return "batch norm and its activation have a negative slope"
    return None


def _run(first: nn.Module, act: nn.Module, x: Tensor) -> Tensor | None:
    """Computes a pair in one operation; None if the pair must be called as it is."""
    slope, kind = getattr(act, "negative_slope", 0.2), _ACTIVATIONS[type(act)]
    if type(first) in _NORMS:
        return _normalized(first, x, kind, slope) if _takes(first, x) else None
    conv = _convolution(first)
    if x.dim() != conv.weight.dim() if _is_equalized(conv) else x.dim() != _CONVOLUTIONS[type(conv)] + 2:
        return None
    if _is_equalized(conv) and conv.downscale is not None and min(x.shape[2:]) >= 128:
        return None  # there the original averages the weight instead of the image
    y, bias = _without_bias(first, x)
    return noise_bias_act(y, bias=bias, act=kind, slope=slope)


def _takes(norm: nn.Module, x: Tensor) -> bool:
    """Whether batch norm accepts x. If not, PyTorch's own layer raises the error."""
    dims = _NORMS[type(norm)]
    shaped = x.dim() == dims + 2 or (dims == 1 and x.dim() == 2)
    return shaped and x.shape[1] == norm.num_features and x.numel() > x.shape[1]


def _normalized(norm: nn.Module, x: Tensor, act: str, slope: float) -> Tensor:
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    # As `nn.BatchNorm2d`: running statistics are used in eval mode, and updated in training if they are tracked.
    running = not norm.training or norm.track_running_stats
    return batch_norm_act(
        x,
        norm.weight,
        norm.bias,
        running_mean=norm.running_mean if running else None,
        running_var=norm.running_var if running else None,
        training=norm.training or norm.running_mean is None,
        momentum=norm.momentum,
        eps=norm.eps,
        act=act,
        slope=slope,
    )


# Sequences of them ---------------------------------------------------------------------------------------------------


def _has_pairs(module: nn.Module) -> bool:
    return of_class(nn.Sequential)(module) and any(_is_pair(*pair) for pair in pairwise(module))


def _pairs(module: nn.Sequential) -> list[tuple[nn.Sequential, str]]:
    """Fused pairs, each as a sequence of the same layers, with its operation."""
    return [
        (nn.Sequential(*pair), "batch_norm_act" if type(pair[0]) in _NORMS else "noise_bias_act")
        for pair in pairwise(module)
        if _is_pair(*pair) and why_not_fused(*pair) is None
    ]


def _probed(module: nn.Sequential) -> list[nn.Sequential]:
    """The pairs: they are all that changes in a sequence."""
    return [pair for pair, _ in _pairs(module)]


def _why_some_left(module: nn.Sequential) -> str | None:
    reasons = [why_not_fused(*pair) for pair in pairwise(module) if _is_pair(*pair)]
    return next((reason for reason in reasons if reason is not None), None)


def _why_none_fuses(module: nn.Sequential) -> str | None:
    return None if _pairs(module) else _why_some_left(module)


def _input(pair: nn.Sequential, draw: Draw) -> tuple[Tensor]:
    first = pair[0]
    if type(first) in _NORMS:
        dims = _NORMS[type(first)]
        return (draw.image(first.num_features, dims),)
    conv = _convolution(first)
    if _is_equalized(conv):
        return (draw.image(_in_channels(first), min_size=2 * conv.kernel_size),)
    reach = max(dilation * (size - 1) + 1 for size, dilation in zip(conv.kernel_size, conv.dilation, strict=True))
    return (draw.image(_in_channels(first), _CONVOLUTIONS[type(conv)], min_size=reach),)


def sequence(module: nn.Sequential, x: Tensor) -> Tensor:
    """`nn.Sequential.forward` with each fused pair as one operation.

    Pairs are found at each call, since layers may be exchanged and hooks added at any time.
    """
    parts = list(module)
    i = 0
    while i < len(parts):
        y = None
        if i + 1 < len(parts) and _is_pair(*parts[i : i + 2]) and why_not_fused(*parts[i : i + 2]) is None:
            y = _run(*parts[i : i + 2], x)
        x, i = (parts[i](x), i + 1) if y is None else (y, i + 2)
    return x


KNOWN = (
    Known(
        _has_pairs, _why_none_fuses, _input, sequence, "", probed=_probed, pairs=_pairs, why_some_left=_why_some_left
    ),
)  # fmt: skip
