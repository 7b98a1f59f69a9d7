"""The layers of NVIDIA's StyleGAN2 for PyTorch, as `training.networks` and `training.networks_stylegan2` have them.

Names, shapes and meaning of parameters and attributes are their public interface. What is left, the layers of the
synthesis network, calls functions: see `fastgan.patching.functions`.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.ops import conv2d, minibatch_stddev, noise_bias_act, upfirdn2d
from fastgan.ops.convolution import filtered_conv2d
from fastgan.patching.known import NOTHING_TO_FUSE, Known, has_numbers, named
from fastgan.patching.probe import Draw

# By the official name of an activation: the name here, and the gain where none is given.
ACTIVATIONS = {
    "linear": ("linear", 1.0),
    "relu": ("relu", math.sqrt(2)),
    "lrelu": ("lrelu", math.sqrt(2)),
    "tanh": ("tanh", 1.0),
    "sigmoid": ("sigmoid", 1.0),
    "softplus": ("softplus", 1.0),
    "swish": ("silu", math.sqrt(2)),
}


def _why_not_activation(module: nn.Module) -> str | None:
    act = getattr(module, "activation", None)
    return None if act in ACTIVATIONS else f"has the activation {act!r}, for which there is no kernel"


# Dense layer ---------------------------------------------------------------------------------------------------------


def _is_dense(module: nn.Module) -> str | None:
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or not has_numbers(module, "weight_gain", "bias_gain"):
        return "has no parameter `weight` [O, I], or no numbers `weight_gain` and `bias_gain`"
    if getattr(module, "activation", None) == "linear":
        return NOTHING_TO_FUSE
    return _why_not_activation(module)


def dense(module: nn.Module, x: Tensor) -> Tensor:
    if x.dim() != 2:
        return module._unpatched(x)
    act, gain = ACTIVATIONS[module.activation]
    bias = module.bias
    if bias is not None and module.bias_gain != 1:
        bias = bias * module.bias_gain
    y = F.linear(x, module.weight.to(x.dtype) * module.weight_gain)
    return noise_bias_act(y, bias=bias, act=act, gain=gain)


def _vectors(module: nn.Module, draw: Draw) -> tuple[Tensor]:
    return (draw.vector(module.weight.shape[1]),)


# Convolution ---------------------------------------------------------------------------------------------------------


def _is_convolution(module: nn.Module) -> str | None:
    weight = getattr(module, "weight", None)  # a buffer where it is not trained
    if not isinstance(weight, Tensor) or weight.dim() != 4 or not has_numbers(module, "weight_gain", "act_gain"):
        return "has no `weight` [O, I, k, k], or no numbers `weight_gain` and `act_gain`"
    size, taps = weight.shape[-1], module._buffers.get("resample_filter")
    if size % 2 == 0 or weight.shape[2] != size or getattr(module, "padding", None) != size // 2:
        return "has a kernel that is not odd and square, or a padding that does not keep the size"
    up, down = getattr(module, "up", None), getattr(module, "down", None)
    if (up, down) not in ((1, 1), (1, 2), (2, 1)) or (up == 2 and size > 1):
        return f"has up {up} and down {down} for a kernel of {size}, which is not supported"
    if (up, down) != (1, 1) and (taps is None or taps.dim() not in (1, 2)):
        return "has no buffer `resample_filter`"
    if not hasattr(module, "conv_clamp"):
        return "has no `conv_clamp`"
    return _why_not_activation(module)


def convolution(module: nn.Module, x: Tensor, gain: float = 1) -> Tensor:
    act, _ = ACTIVATIONS[module.activation]
    clamp = None if module.conv_clamp is None else float(module.conv_clamp * gain)
    if clamp is not None and not clamp > 0:
        return module._unpatched(x, gain)
    y, bias, gain = _resampled(module, x), module.bias, float(module.act_gain * gain)
    if bias is None and act == "linear" and gain == 1 and clamp is None:
        return y
    return noise_bias_act(y, bias=bias, act=act, gain=gain, clamp=clamp)


def _resampled(module: nn.Module, x: Tensor) -> Tensor:
    """The convolution, with the filter before or behind it."""
    pad, taps, weight = module.padding, module.resample_filter, (module.weight * module.weight_gain).to(x.dtype)
    if module.up == 2:  # of one tap: the image is smaller before it is enlarged
        before, behind = (taps.shape[-1] + 1) // 2, (taps.shape[-1] - 2) // 2
        top, bottom = (taps.shape[0] + 1) // 2, (taps.shape[0] - 2) // 2
        return upfirdn2d(conv2d(x, weight), taps, up=2, padding=(before, behind, top, bottom), gain=4.0)
    if module.down == 1:
        return conv2d(x, weight, padding=pad)
    rows, columns = taps.shape[0], taps.shape[-1]
    around = (
        pad + (columns - 1) // 2, pad + (columns - 2) // 2, pad + (rows - 1) // 2, pad + (rows - 2) // 2
    )  # fmt: skip
    if weight.shape[-1] == 1:
        return conv2d(upfirdn2d(x, taps, down=2, padding=around), weight)
    return filtered_conv2d(x, weight, taps, filter_padding=around, stride=2)


def _keep_filter(module: nn.Module) -> None:
    """The official functions take a filter in fp32 only."""
    if module.resample_filter is not None:
        module.resample_filter = module.resample_filter.float()


def _image_and_gain(module: nn.Module, draw: Draw) -> tuple:
    x = draw.image(module.weight.shape[1], least=module.weight.shape[-1] + 1)
    return (x, 0.7) if draw.all_given else (x,)


# Minibatch standard deviation ----------------------------------------------------------------------------------------


def _is_stddev(module: nn.Module) -> str | None:
    size, maps = getattr(module, "group_size", 0), getattr(module, "num_channels", None)
    if module.state_dict() or not isinstance(maps, int) or not (size is None or (isinstance(size, int) and size > 0)):
        return "has no `group_size`, whole or None, and no number `num_channels`"
    return None


def stddev(module: nn.Module, x: Tensor) -> Tensor:
    size = len(x) if module.group_size is None else min(module.group_size, len(x))
    if x.dim() != 4 or not size or len(x) % size or x.shape[1] % module.num_channels:
        return module._unpatched(x)
    return minibatch_stddev(x, size, module.num_channels)


def _groups(module: nn.Module, draw: Draw) -> tuple[Tensor]:
    return (draw.tensor(draw.n * (module.group_size or 1), 2 * module.num_channels, *draw.size[:2]),)


KNOWN = (
    Known(named("FullyConnectedLayer"), _is_dense, _vectors, dense, "noise_bias_act"),
    Known(named("Conv2dLayer"), _is_convolution, _image_and_gain, convolution, "noise_bias_act", arrange=_keep_filter),
    Known(named("MinibatchStdLayer"), _is_stddev, _groups, stddev, "minibatch_stddev"),
)
