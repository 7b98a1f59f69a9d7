"""The layers of other code bases that `fastgan.patch` knows, one entry a layer.

An entry says by which class name or class a layer is found, what must be true of its parameters and attributes, what it
takes, and how it is computed on `fastgan.ops`. A layer may have several: the first that computes the same is taken.
The names and shapes are the public interface of rosinality's stylegan2-pytorch and style-based-gan-pytorch, of the code
bases that follow them, and of PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.ops import adain, modulated_conv2d, noise_bias_act, pixel_norm, upfirdn2d
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.patching.instances import runs_as_its_class
from fastgan.patching.probe import Draw


class Known(NamedTuple):
    recognises: Callable[[nn.Module], bool]  # by class
    why_not: Callable[[nn.Module], str | None]  # what does not fit, of parameters and attributes
    arguments: Callable[[nn.Module, Draw], tuple]  # to try it with
    forward: Callable  # (module, *arguments); `module._unpatched` is the original
    bypassed: Callable[[nn.Module], Iterable[nn.Module]] = lambda module: ()  # parts that are not called any more
    tried: Callable[[nn.Module], list[nn.Module]] = lambda module: [module]  # what stands for it when it is tried


def _named(*names: str) -> Callable[[nn.Module], bool]:
    """Layers whose class, or one that it is derived from, has a name; PyTorch's and fastgan's own are others."""
    ours = ("torch.nn.", "fastgan.")
    return lambda module: any(k.__name__ in names and not k.__module__.startswith(ours) for k in type(module).__mro__)


def _of_class(kind: type) -> Callable[[nn.Module], bool]:
    """Layers with a class of PyTorch that have not overridden its forward."""
    return lambda module: isinstance(module, kind) and type(module).forward is kind.forward


# Resampling by a FIR filter -------------------------------------------------------------------------------------------


def _is_filter(module: nn.Module, *factors: str) -> str | None:
    kernel, pad = module._buffers.get("kernel"), getattr(module, "pad", None)
    if kernel is None or kernel.dim() != 2:
        return "has no buffer `kernel` [kh, kw]"
    if not (isinstance(pad, tuple | list) and len(pad) in (2, 4) and all(isinstance(p, int) for p in pad)):
        return "has no `pad` of two or four integers"
    for factor in factors:
        if not isinstance(getattr(module, factor, None), int):
            return f"has no integer `{factor}`"
    return None


def filter_padding(pad: tuple[int, ...]) -> tuple[int, ...]:
    return (*pad, *pad) if len(pad) == 2 else tuple(pad)


def upsample(module: nn.Module, x: Tensor) -> Tensor:
    return upfirdn2d(x, module.kernel, up=module.factor, padding=filter_padding(module.pad))


def downsample(module: nn.Module, x: Tensor) -> Tensor:
    return upfirdn2d(x, module.kernel, down=module.factor, padding=filter_padding(module.pad))


def blur(module: nn.Module, x: Tensor) -> Tensor:
    return upfirdn2d(x, module.kernel, padding=filter_padding(module.pad))


def _any_image(module: nn.Module, draw: Draw) -> tuple[Tensor]:
    return (draw.image(5, least=3),)


# Bias and activation --------------------------------------------------------------------------------------------------


def _is_bias_and_lrelu(module: nn.Module) -> str | None:
    bias = module._parameters.get("bias", "missing")
    if not (bias is None or (isinstance(bias, Tensor) and bias.dim() == 1)):
        return "has no parameter `bias` [C]"
    slope, scale = getattr(module, "negative_slope", None), getattr(module, "scale", None)
    if not isinstance(slope, int | float) or not isinstance(scale, int | float) or slope < 0:
        return "has no numbers `negative_slope`, at least 0, and `scale`"
    return None


def fused_leaky_relu(module: nn.Module, x: Tensor) -> Tensor:
    return noise_bias_act(x, act="lrelu", **_bias_and_lrelu(module))


def _bias_and_lrelu(module: nn.Module) -> dict:
    return {"bias": module.bias, "slope": module.negative_slope, "gain": module.scale}


def _activations(module: nn.Module, draw: Draw) -> tuple[Tensor]:
    channels = 5 if module.bias is None else len(module.bias)
    return (draw.image(channels) if draw.all_given else draw.vector(channels),)


def _is_dense_with_lrelu(module: nn.Module) -> str | None:
    if not getattr(module, "activation", None):
        return "has no activation, so there is nothing to fuse"
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or bias is None or weight.dim() != 2 or bias.dim() != 1:
        return "has no parameters `weight` [O, I] and `bias` [O]"
    if not all(isinstance(getattr(module, number, None), int | float) for number in ("scale", "lr_mul")):
        return "has no numbers `scale` and `lr_mul`"
    return None


def equal_linear(module: nn.Module, x: Tensor) -> Tensor:
    if x.dim() != 2 or not module.activation:
        return module._unpatched(x)
    y = F.linear(x, module.weight * module.scale)
    return noise_bias_act(y, bias=module.bias * module.lr_mul, act="lrelu", gain=math.sqrt(2))


def pixel_norm_by_channels(module: nn.Module, x: Tensor) -> Tensor:
    return pixel_norm(x, eps=1e-8)


def _has_no_state(module: nn.Module) -> str | None:
    return "has parameters or parts" if module.state_dict() or module._modules else None


# StyleGAN2's convolution ----------------------------------------------------------------------------------------------


def _is_modulated(conv: nn.Module) -> str | None:
    weight = conv._parameters.get("weight")
    if weight is None or weight.dim() != 5 or len(weight) != 1:
        return "has no parameter `weight` [1, O, I, k, k]"
    if not isinstance(conv._modules.get("modulation"), nn.Module):
        return "has no part `modulation` that makes the style"
    if not isinstance(getattr(conv, "scale", None), int | float):
        return "has no number `scale`"
    flags = [getattr(conv, flag, None) for flag in ("demodulate", "upsample", "downsample")]
    if not all(isinstance(flag, bool) for flag in flags):
        return "has no flags `demodulate`, `upsample` and `downsample`"
    if any(flags[1:]):
        return _is_filter(conv.blur) if "blur" in conv._modules else "has no part `blur`"
    return None


def _blur_of(conv: nn.Module) -> list[nn.Module]:
    return [conv.blur] if conv.upsample or conv.downsample else []


def modulated(conv: nn.Module, x: Tensor, style: Tensor) -> Tensor:
    return _modulated(conv, x, style) if runs_as_its_class(*_blur_of(conv)) else conv._unpatched(x, style)


def _modulated(conv: nn.Module, x: Tensor, style: Tensor, **after) -> Tensor:
    taps, up, down = None, 1, 1
    if conv.upsample:  # the filter there has the gain of the zeros inserted, which is fastgan's own here
        taps, up = conv.blur.kernel / 4, 2
    elif conv.downsample:
        taps, down = conv.blur.kernel, 2
    return modulated_conv2d(
        x,
        conv.weight[0],
        conv.modulation(style),
        weight_gain=conv.scale,
        demodulate=conv.demodulate,
        up=up,
        down=down,
        taps=taps,
        **after,
    )


def _image_and_style(conv: nn.Module, draw: Draw) -> tuple[Tensor, Tensor]:
    return draw.image(conv.weight.shape[2], least=3), draw.vector(_features(conv.modulation))


def _features(affine: nn.Module) -> int:
    """How long the vectors are that a module takes, whose first matrix is that of a dense layer."""
    return next(p.shape[1] for p in affine.parameters() if p.dim() == 2)


def _is_styled(layer: nn.Module) -> str | None:
    """A modulated convolution, noise of one strength, bias and leaky ReLU."""
    if not {"conv", "noise", "activate"} <= set(layer._modules):
        return "has no parts `conv`, `noise` and `activate`"
    reason = _is_modulated(layer.conv)
    if reason is not None:
        return f"its part 'conv' {reason}"
    if layer.conv.downsample:
        return "makes the image smaller"
    strength = layer.noise._parameters.get("weight")
    if strength is None or strength.numel() != 1:
        return "its part 'noise' has no parameter `weight` of one element"
    reason = _is_bias_and_lrelu(layer.activate)
    return None if reason is None else f"its part 'activate' {reason}"


def _parts_of_styled(layer: nn.Module) -> list[nn.Module]:
    return [layer.conv, layer.noise, layer.activate, *_blur_of(layer.conv)]


def styled(layer: nn.Module, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
    conv, factor = layer.conv, 2 if layer.conv.upsample else 1
    shape = (1, *(factor * size for size in x.shape[2:]))
    draws_in_16_bits = noise is None and torch.is_autocast_enabled(x.device.type)
    if draws_in_16_bits or not runs_as_its_class(*_parts_of_styled(layer)):
        return layer._unpatched(x, style, noise)
    if noise is None:
        noise = x.new_empty(len(x), *shape).normal_()  # as the original draws it: from the same seed the same noise
    elif noise.shape[1:] != shape or len(noise) not in (1, len(x)):
        return layer._unpatched(x, style, noise)
    return _modulated(
        conv,
        x,
        style,
        noise=noise,
        strength=layer.noise.weight.view(()),
        act="lrelu",
        **_bias_and_lrelu(layer.activate),
    )


def _image_style_and_noise(layer: nn.Module, draw: Draw) -> tuple[Tensor, ...]:
    x, style = _image_and_style(layer.conv, draw)
    factor = 2 if layer.conv.upsample else 1
    noise = draw.tensor(len(x), 1, *(factor * size for size in x.shape[2:]))
    return (x, style, noise) if draw.all_given else (x, style)


# Instance normalisation -----------------------------------------------------------------------------------------------

_DIMS = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def _is_instance_norm(norm: nn.Module) -> str | None:
    return "keeps running statistics" if norm.track_running_stats else None


def instance_norm(norm: nn.Module, x: Tensor) -> Tensor:
    if x.dim() != _dims(norm) + 2 or x.shape[2:].numel() == 1:  # not a batch, or an error
        return norm._unpatched(x)
    return adain(x, norm.weight, norm.bias, eps=norm.eps)


def _dims(norm: nn.Module) -> int:
    return next(dims for kind, dims in _DIMS.items() if isinstance(norm, kind))


def _image_to_normalise(norm: nn.Module, draw: Draw) -> tuple[Tensor]:
    return (draw.image(norm.num_features, _dims(norm), least=3),)


_ADAIN = _named("AdaIN", "AdaIN1d", "AdaIN2d", "AdaptiveInstanceNorm")


def _is_adain(module: nn.Module) -> str | None:
    norms = [part for part in module.children() if any(_of_class(kind)(part) for kind in _DIMS)]
    if len(norms) != 1 or len(module._modules) != 2:
        return "has not two parts, an InstanceNorm and one that makes the style"
    if module._parameters or norms[0].affine or norms[0].track_running_stats:
        return "has parameters beside those that make the style, or running statistics"
    affine = _norm_and_affine(module)[1]
    return None if any(p.dim() == 2 for p in affine.parameters()) else "has no dense layer that makes the style"


def _norm_and_affine(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    first, second = module.children()
    return (first, second) if isinstance(first, tuple(_DIMS)) else (second, first)


def adain_of_scale(module: nn.Module, x: Tensor, style: Tensor) -> Tensor:
    return _adain(module, x, style, 0)


def adain_of_scale_around_one(module: nn.Module, x: Tensor, style: Tensor) -> Tensor:
    return _adain(module, x, style, 1)


def _adain(module: nn.Module, x: Tensor, style: Tensor, centre: int) -> Tensor:
    norm, affine = _norm_and_affine(module)
    usual = x.dim() == _dims(norm) + 2 and x.shape[2:].numel() > 1 and style.shape[:-1] == x.shape[:1]
    if not usual or not runs_as_its_class(norm):
        return module._unpatched(x, style)
    scale, bias = affine(style).flatten(1).chunk(2, 1)
    return adain(x, to_arithmetic(scale) + centre if centre else scale, bias, eps=norm.eps)


def _image_and_vector(module: nn.Module, draw: Draw) -> tuple[Tensor, Tensor]:
    norm, affine = _norm_and_affine(module)
    return draw.image(norm.num_features, _dims(norm), least=3), draw.vector(_features(affine))


# Sequences ------------------------------------------------------------------------------------------------------------

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_ACTIVATIONS = {
    nn.LeakyReLU: "lrelu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Softplus: "softplus",
    nn.Tanh: "tanh",
}


def _is_pair(conv: nn.Module, act: nn.Module) -> bool:
    return type(conv) in _CONVOLUTIONS and conv.bias is not None and type(act) in _ACTIVATIONS


def _fuses(conv: nn.Module, act: nn.Module) -> bool:
    return (
        _is_pair(conv, act)
        and (type(act) is not nn.LeakyReLU or act.negative_slope >= 0)
        and (type(act) is not nn.Softplus or (act.beta, act.threshold) == (1, 20))
        and runs_as_its_class(conv, act)
    )


def _has_pairs(module: nn.Module) -> bool:
    layers = list(module) if _of_class(nn.Sequential)(module) else []
    return any(_is_pair(*pair) for pair in pairwise(layers))


def _why_none_fuses(module: nn.Sequential) -> str | None:
    if _pairs(module):
        return None
    return "a convolution and the activation behind it have hooks, or a forward or options that are not the usual ones"


def _pairs(module: nn.Sequential) -> list[nn.Sequential]:
    """The pairs alone: what a sequence does with its parts is known. (That it is another sequence changes no part.)"""
    layers = list(module)
    return [nn.Sequential(*pair) for pair in pairwise(layers) if _fuses(*pair)]


def _image_to_convolve(pair: nn.Sequential, draw: Draw) -> tuple[Tensor]:
    conv = pair[0]
    reach = max(dilation * (size - 1) + 1 for size, dilation in zip(conv.kernel_size, conv.dilation, strict=True))
    return (draw.image(conv.in_channels, _CONVOLUTIONS[type(conv)], least=reach),)


def sequence(module: nn.Sequential, x: Tensor) -> Tensor:
    """As `nn.Sequential`, with a convolution's bias left to the activation behind it.

    What fuses is looked at in each call: parts may be exchanged, and hooks come, at any time.
    """
    layers = list(module)
    i = 0
    while i < len(layers):
        conv = layers[i]
        if i + 1 < len(layers) and _fuses(conv, layers[i + 1]) and x.dim() == _CONVOLUTIONS[type(conv)] + 2:
            act = layers[i + 1]
            slope = getattr(act, "negative_slope", 0.2)
            x = conv._conv_forward(x, conv.weight, None)
            x = noise_bias_act(x, bias=conv.bias, act=_ACTIVATIONS[type(act)], slope=slope)
            i += 2
        else:
            x = conv(x)
            i += 1
    return x


KNOWN = (
    Known(_named("Upsample"), lambda m: _is_filter(m, "factor"), _any_image, upsample),
    Known(_named("Downsample"), lambda m: _is_filter(m, "factor"), _any_image, downsample),
    Known(_named("Blur"), _is_filter, _any_image, blur),
    Known(_named("FusedLeakyReLU"), _is_bias_and_lrelu, _activations, fused_leaky_relu),
    Known(_named("EqualLinear"), _is_dense_with_lrelu, lambda m, draw: (draw.vector(m.weight.shape[1]),), equal_linear),
    Known(_named("PixelNorm"), _has_no_state, _any_image, pixel_norm_by_channels),
    Known(_named("ModulatedConv2d"), _is_modulated, _image_and_style, modulated, _blur_of),
    Known(_named("StyledConv"), _is_styled, _image_style_and_noise, styled, _parts_of_styled),
    *(Known(_of_class(kind), _is_instance_norm, _image_to_normalise, instance_norm) for kind in _DIMS),
    *(
        Known(_ADAIN, _is_adain, _image_and_vector, forward, lambda m: _norm_and_affine(m)[:1])
        for forward in (adain_of_scale, adain_of_scale_around_one)
    ),
    Known(_has_pairs, _why_none_fuses, _image_to_convolve, sequence, tried=_pairs),
)
