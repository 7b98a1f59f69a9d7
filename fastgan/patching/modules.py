"""Table of the layers of other code bases that `fastgan.patch` replaces.

An entry says how a layer is recognised, what its parameters and attributes must be, which arguments it takes, and how
`fastgan.ops` computes it. A layer may have several entries: the first that computes the same is used. Names and shapes
are the public interface of rosinality's stylegan2-pytorch and style-based-gan-pytorch, lucidrains' stylegan2-pytorch,
huangzh13's StyleGAN.pytorch, and PyTorch. NVIDIA's layers are in `fastgan.patching.official`, sequences in
`fastgan.patching.sequences`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.ops import adain, modulated_conv2d, noise_bias_act, pixel_norm, upfirdn2d
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.modulated_conv2d import EPSILON
from fastgan.patching import official, sequences
from fastgan.patching.instances import runs_as_its_class
from fastgan.patching.known import NOTHING_TO_FUSE, Known, has_numbers, named, of_class
from fastgan.patching.probe import Draw

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


def _is_blur_by_channels(module: nn.Module) -> str | None:
    """StyleGAN1's blur: one copy of the filter a channel, and flipped copies for the backward pass."""
    weight, flipped = module._buffers.get("weight"), module._buffers.get("weight_flip")
    if weight is None or flipped is None or weight.shape[1:] != (1, 3, 3) or flipped.shape != weight.shape:
        return "has no buffers `weight` and `weight_flip` [C, 1, 3, 3]"
    if weight.device.type == "meta":
        return "is on the meta device, where nothing can be compared"
    if not torch.equal(weight, weight[:1].expand_as(weight)) or not torch.equal(flipped, weight.flip(2, 3)):
        return "has different filters for channels, or for the backward pass"
    return None


def _one_filter(module: nn.Module) -> None:
    with torch.no_grad():
        module.weight.copy_(module.weight[:1].expand_as(module.weight))
        module.weight_flip.copy_(module.weight.flip(2, 3))


def blur_by_channels(module: nn.Module, x: Tensor) -> Tensor:
    return upfirdn2d(x, module.weight[0, 0], padding=(1, 1, 1, 1), flip=True)


def _image_to_blur(module: nn.Module, draw: Draw) -> tuple[Tensor]:
    return (draw.image(len(module.weight), min_size=3),)


def _is_blur_with_stride(module: nn.Module) -> str | None:
    kernel = module._buffers.get("kernel")
    if kernel is None or kernel.dim() != 4 or kernel.shape[:2] != (1, 1):
        return "has no buffer `kernel` [1, 1, k, k]"
    return None if isinstance(getattr(module, "stride", None), int) else "has no integer `stride`"


def blur_with_stride(module: nn.Module, x: Tensor) -> Tensor:
    pad = (module.kernel.shape[2] - 1) // 2
    return upfirdn2d(x, module.kernel[0, 0], down=module.stride, padding=(pad,) * 4, flip=True)


def _any_image(module: nn.Module, draw: Draw) -> tuple[Tensor]:
    return (draw.image(5, min_size=3),)


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
    return (draw.image(channels) if draw.optional_arguments else draw.vector(channels),)


def _is_dense_with_lrelu(module: nn.Module) -> str | None:
    if not getattr(module, "activation", None):
        return NOTHING_TO_FUSE
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or bias is None or weight.dim() != 2 or bias.dim() != 1:
        return "has no parameters `weight` [O, I] and `bias` [O]"
    if not has_numbers(module, "scale", "lr_mul"):
        return "has no numbers `scale` and `lr_mul`"
    return None


def equal_linear(module: nn.Module, x: Tensor) -> Tensor:
    if x.dim() != 2 or not module.activation:
        return module._unpatched(x)
    y = F.linear(x, module.weight * module.scale)
    return noise_bias_act(y, bias=module.bias * module.lr_mul, act="lrelu", gain=math.sqrt(2))


def _vectors(module: nn.Module, draw: Draw) -> tuple[Tensor]:
    return (draw.vector(module.weight.shape[1]),)


def pixel_norm_by_channels(module: nn.Module, x: Tensor) -> Tensor:
    return pixel_norm(x, eps=1e-8)


def _has_no_state(module: nn.Module) -> str | None:
    return "has parameters or submodules" if module.state_dict() or module._modules else None


# StyleGAN2's convolution ----------------------------------------------------------------------------------------------


def _is_modulated(conv: nn.Module) -> str | None:
    weight = conv._parameters.get("weight")
    if weight is None or weight.dim() != 5 or len(weight) != 1:
        return "has no parameter `weight` [1, O, I, k, k]"
    if not isinstance(conv._modules.get("modulation"), nn.Module):
        return "has no submodule `modulation` that makes the style"
    if not isinstance(getattr(conv, "scale", None), int | float):
        return "has no number `scale`"
    flags = [getattr(conv, flag, None) for flag in ("demodulate", "upsample", "downsample")]
    if not all(isinstance(flag, bool) for flag in flags):
        return "has no flags `demodulate`, `upsample` and `downsample`"
    if any(flags[1:]):
        return _is_filter(conv.blur) if "blur" in conv._modules else "has no submodule `blur`"
    return None


def _blur_of(conv: nn.Module) -> list[nn.Module]:
    return [conv.blur] if conv.upsample or conv.downsample else []


def modulated(conv: nn.Module, x: Tensor, style: Tensor) -> Tensor:
    return _modulated(conv, x, style) if runs_as_its_class(*_blur_of(conv)) else conv._unpatched(x, style)


def _modulated(conv: nn.Module, x: Tensor, style: Tensor, **after) -> Tensor:
    taps, up, down = None, 1, 1
    if conv.upsample:  # their filter includes the gain of upsampling, which fastgan applies itself
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
    return draw.image(conv.weight.shape[2], min_size=3), draw.vector(_features(conv.modulation))


def _is_modulated_around_one(conv: nn.Module) -> str | None:
    """lucidrains' convolution, whose style is the difference from 1."""
    weight = conv._parameters.get("weight")
    if weight is None or weight.dim() != 4 or weight.shape[2] != weight.shape[3]:
        return "has no parameter `weight` [O, I, k, k]"
    if not isinstance(getattr(conv, "demod", None), bool) or getattr(conv, "kernel", None) != weight.shape[2]:
        return "has no flag `demod`, or a `kernel` that is not its weight's"
    if (getattr(conv, "stride", None), getattr(conv, "dilation", None)) != (1, 1):
        return "has a stride or a dilation"
    return None if getattr(conv, "eps", None) == EPSILON else f"has no `eps` of {EPSILON}"


def modulated_around_one(conv: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    padding = (conv.weight.shape[2] - 1) // 2
    return modulated_conv2d(x, conv.weight, to_arithmetic(y) + 1, demodulate=conv.demod, padding=padding)


def _image_and_factors(conv: nn.Module, draw: Draw) -> tuple[Tensor, Tensor]:
    return draw.image(conv.weight.shape[1], min_size=3), draw.vector(conv.weight.shape[1])


def _features(affine: nn.Module) -> int:
    """Number of input features of a module that begins with a dense layer."""
    return next(p.shape[1] for p in affine.parameters() if p.dim() == 2)


def _is_styled(layer: nn.Module) -> str | None:
    """A modulated convolution, noise of one strength, bias and leaky ReLU."""
    if not {"conv", "noise", "activate"} <= set(layer._modules):
        return "has no submodules `conv`, `noise` and `activate`"
    reason = _is_modulated(layer.conv)
    if reason is not None:
        return f"its submodule 'conv' {reason}"
    if layer.conv.downsample:
        return "downsamples"
    strength = layer.noise._parameters.get("weight")
    if strength is None or strength.numel() != 1:
        return "its submodule 'noise' has no parameter `weight` of one element"
    reason = _is_bias_and_lrelu(layer.activate)
    return None if reason is None else f"its submodule 'activate' {reason}"


def _parts_of_styled(layer: nn.Module) -> list[nn.Module]:
    return [layer.conv, layer.noise, layer.activate, *_blur_of(layer.conv)]


def styled(layer: nn.Module, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
    conv, factor = layer.conv, 2 if layer.conv.upsample else 1
    shape = (1, *(factor * size for size in x.shape[2:]))
    draws_in_16_bits = noise is None and torch.is_autocast_enabled(x.device.type)
    if draws_in_16_bits or not runs_as_its_class(*_parts_of_styled(layer)):
        return layer._unpatched(x, style, noise)
    if noise is None:
        noise = x.new_empty(
            len(x), *shape
        ).normal_()  # drawn as the original draws it: the same seed gives the same noise
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
    return (x, style, noise) if draw.optional_arguments else (x, style)


# Instance normalisation -----------------------------------------------------------------------------------------------

_DIMS = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def _is_instance_norm(norm: nn.Module) -> str | None:
    return "keeps running statistics" if norm.track_running_stats else None


def instance_norm(norm: nn.Module, x: Tensor) -> Tensor:
    if x.dim() != _dims(norm) + 2 or x.shape[2:].numel() == 1:  # unbatched, or an error
        return norm._unpatched(x)
    return adain(x, norm.weight, norm.bias, eps=norm.eps)


def _dims(norm: nn.Module) -> int:
    return next(dims for kind, dims in _DIMS.items() if isinstance(norm, kind))


def _image_to_normalise(norm: nn.Module, draw: Draw) -> tuple[Tensor]:
    return (draw.image(norm.num_features, _dims(norm), min_size=3),)


_ADAIN = named("AdaIN", "AdaIN1d", "AdaIN2d", "AdaptiveInstanceNorm")


def _is_adain(module: nn.Module) -> str | None:
    norms = [part for part in module.children() if any(of_class(kind)(part) for kind in _DIMS)]
    if len(norms) != 1 or len(module._modules) != 2:
        return "needs two submodules, an InstanceNorm and one that makes the style"
    if module._parameters or norms[0].affine or norms[0].track_running_stats:
        return "has further parameters, or running statistics"
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
    return draw.image(norm.num_features, _dims(norm), min_size=3), draw.vector(_features(affine))


KNOWN = (
    Known(named("Upsample"), lambda m: _is_filter(m, "factor"), _any_image, upsample, "upfirdn2d"),
    Known(named("Downsample"), lambda m: _is_filter(m, "factor"), _any_image, downsample, "upfirdn2d"),
    Known(named("Blur"), _is_filter, _any_image, blur, "upfirdn2d"),
    Known(named("Blur"), _is_blur_by_channels, _image_to_blur, blur_by_channels, "upfirdn2d", fix_buffers=_one_filter),
    Known(named("BlurLayer"), _is_blur_with_stride, _any_image, blur_with_stride, "upfirdn2d"),
    Known(named("FusedLeakyReLU"), _is_bias_and_lrelu, _activations, fused_leaky_relu, "noise_bias_act"),
    Known(named("EqualLinear"), _is_dense_with_lrelu, _vectors, equal_linear, "noise_bias_act"),
    Known(named("PixelNorm"), _has_no_state, _any_image, pixel_norm_by_channels, "pixel_norm"),
    Known(named("ModulatedConv2d"), _is_modulated, _image_and_style, modulated, "modulated_conv2d", _blur_of),
    Known(named("StyledConv"), _is_styled, _image_style_and_noise, styled, "modulated_conv2d", _parts_of_styled),
    Known(named("Conv2DMod"), _is_modulated_around_one, _image_and_factors, modulated_around_one, "modulated_conv2d"),
    *(Known(of_class(kind), _is_instance_norm, _image_to_normalise, instance_norm, "adain") for kind in _DIMS),
    *(
        Known(_ADAIN, _is_adain, _image_and_vector, forward, "adain", lambda m: _norm_and_affine(m)[:1])
        for forward in (adain_of_scale, adain_of_scale_around_one)
    ),
    *official.KNOWN,
    *sequences.KNOWN,
)
