"""Layers of NVIDIA's StyleGAN2 and StyleGAN3 for PyTorch.

They are those of `training.networks`, `training.networks_stylegan2` and `training.networks_stylegan3`.

Names, shapes and meaning of parameters and attributes are their public interface. Their blocks also call the function
`upfirdn2d`, which `fastgan.patching.functions` replaces.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.ops import conv2d, filtered_lrelu, minibatch_stddev, modulated_conv2d, noise_bias_act, upfirdn2d
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.convolution import filtered_conv2d
from fastgan.ops.modulated_conv2d import alias_free_conv2d
from fastgan.patching.known import NOTHING_TO_FUSE, Known, has_numbers, named
from fastgan.patching.probe import Draw

LEAST_SIZE = 24  # side of StyleGAN3's feature maps in a comparison, about the reach of a layer's filters

# Official name of an activation -> (fastgan's name, default gain).
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
    weight = getattr(module, "weight", None)  # a buffer if it is not trained
    if not isinstance(weight, Tensor) or weight.dim() != 4 or not has_numbers(module, "weight_gain", "act_gain"):
        return "has no `weight` [O, I, k, k], or no numbers `weight_gain` and `act_gain`"
    size, taps = weight.shape[-1], module._buffers.get("resample_filter")
    if size % 2 == 0 or weight.shape[2] != size or getattr(module, "padding", None) != size // 2:
        return "has a kernel that is not odd and square, or a padding that changes the size"
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
    """The convolution with its resampling filter."""
    pad, taps, weight = module.padding, module.resample_filter, (module.weight * module.weight_gain).to(x.dtype)
    if module.up == 2:  # a 1x1 kernel: convolve before upsampling, on fewer pixels
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


def _filter_to_fp32(module: nn.Module) -> None:
    """Casts the filter to fp32: the official functions take no other."""
    if module.resample_filter is not None:
        module.resample_filter = module.resample_filter.float()


def _image_and_gain(module: nn.Module, draw: Draw) -> tuple:
    x = draw.image(module.weight.shape[1], min_size=module.weight.shape[-1] + 1)
    return (x, 0.7) if draw.optional_arguments else (x,)


# Synthesis -----------------------------------------------------------------------------------------------------------


def _is_modulated(module: nn.Module) -> str | None:
    weight, affine = module._parameters.get("weight"), module._modules.get("affine")
    bias = module._parameters.get("bias")
    if weight is None or weight.dim() != 4 or weight.shape[2] != weight.shape[3] or bias is None or affine is None:
        return "has no parameters `weight` [O, I, k, k] and `bias` [O], or no submodule `affine` that makes the style"
    if affine._parameters.get("weight") is None or affine.weight.shape[0] != weight.shape[1]:
        return "has a submodule `affine` that makes no style"
    return None if hasattr(module, "conv_clamp") else "has no `conv_clamp`"


def _is_synthesis(module: nn.Module) -> str | None:
    reason = _is_modulated(module)
    if reason is not None:
        return reason
    up, size, taps = getattr(module, "up", None), module.weight.shape[-1], module._buffers.get("resample_filter")
    if up not in (1, 2) or getattr(module, "padding", None) != size // 2 or size % 2 == 0:
        return "has an `up` that is not 1 or 2, or a padding that changes the size"
    if taps is None or taps.dim() not in (1, 2) or not has_numbers(module, "act_gain", "resolution"):
        return "has no buffer `resample_filter`, or no numbers `act_gain` and `resolution`"
    noisy = getattr(module, "use_noise", None)
    if not isinstance(noisy, bool) or (noisy and not {"noise_const", "noise_strength"} <= set(dir(module))):
        return "has no flag `use_noise`, or no `noise_const` and `noise_strength`"
    return _why_not_activation(module)


def synthesis(
    module: nn.Module, x: Tensor, w: Tensor, noise_mode: str = "random", fused_modconv: bool = True, gain: float = 1
) -> Tensor:
    act, _ = ACTIVATIONS[module.activation]
    size, clamp = module.resolution // module.up, module.conv_clamp
    fits = x.shape[2:] == (size, size) and x.dim() == 4 and noise_mode in ("random", "const", "none")
    if not fits or not gain > 0 or (clamp is not None and not clamp > 0):
        return module._unpatched(x, w, noise_mode, fused_modconv, gain)
    styles, noise = module.affine(w), None
    if module.use_noise and noise_mode == "random":
        noise = torch.randn([len(x), 1, module.resolution, module.resolution], device=x.device)
    elif module.use_noise and noise_mode == "const":
        noise = module.noise_const[None, None]
    return modulated_conv2d(
        x,
        module.weight,
        styles,
        up=module.up,
        padding=module.padding,
        taps=module.resample_filter if module.up == 2 else None,
        noise=noise,
        strength=None if noise is None else module.noise_strength,
        bias=module.bias,
        act=act,
        gain=float(module.act_gain * gain),
        clamp=None if clamp is None else float(clamp * gain),
    )


def to_rgb(module: nn.Module, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
    clamp = module.conv_clamp
    if x.dim() != 4 or module.weight.shape[-1] != 1 or (clamp is not None and not clamp > 0):
        return module._unpatched(x, w, fused_modconv)
    styles = module.affine(w) * module.weight_gain
    return modulated_conv2d(x, module.weight, styles, demodulate=False, bias=module.bias, clamp=clamp)


def _is_to_rgb(module: nn.Module) -> str | None:
    return _is_modulated(module) or (None if has_numbers(module, "weight_gain") else "has no number `weight_gain`")


def _shrink(module: nn.Module) -> None:
    """Makes the copy a layer for 4x4 images, since it takes one size only."""
    _filter_to_fp32(module)
    module.resolution = 4 * module.up
    if module.use_noise:
        module.noise_const = module.noise_const[: module.resolution, : module.resolution].clone()


def _image_and_w(module: nn.Module, draw: Draw) -> tuple:
    x = draw.tensor(draw.n, module.weight.shape[1], 4, 4)
    w = draw.vector(module.affine.weight.shape[1])
    if not hasattr(module, "use_noise"):
        return x, w, False
    return (x, w, "const", False, 0.7) if draw.optional_arguments else (x, w, "none", True)


# StyleGAN3's synthesis -----------------------------------------------------------------------------------------------


def _is_alias_free(module: nn.Module) -> bool:
    """Distinguishes StyleGAN3's layer from StyleGAN2's of the same name."""
    return named("SynthesisLayer")(module) and hasattr(module, "up_factor")


def _why_not_alias_free(module: nn.Module) -> str | None:
    reason = _is_modulated(module)
    if reason is not None:
        return reason
    if not all(isinstance(getattr(module, name, None), int) for name in ("up_factor", "down_factor")):
        return "has no integers `up_factor` and `down_factor`"
    padding, sizes = getattr(module, "padding", None), [getattr(module, name, ()) for name in ("in_size", "out_size")]
    if not isinstance(padding, list) or len(padding) != 4 or any(len(size) != 2 for size in sizes):
        return "has no `padding` of four integers, or no `in_size` and `out_size` of two"
    if not {"up_filter", "down_filter", "magnitude_ema"} <= set(module._buffers):
        return "has no buffers `up_filter`, `down_filter` and `magnitude_ema`"
    if not hasattr(module, "is_torgb") or not hasattr(module, "use_fp16"):  # the latter is NumPy's bool
        return "has no flags `is_torgb` and `use_fp16`"
    return None if has_numbers(module, "magnitude_ema_beta") else "has no number `magnitude_ema_beta`"


def alias_free_synthesis(
    module: nn.Module,
    x: Tensor,
    w: Tensor,
    noise_mode: str = "random",
    force_fp32: bool = False,
    update_emas: bool = False,
) -> Tensor:
    width, height = module.in_size
    clamp = module.conv_clamp
    fits = x.dim() == 4 and x.shape[2:] == (height, width) and noise_mode in ("random", "const", "none")
    if not fits or (clamp is not None and not clamp > 0):
        return module._unpatched(x, w, noise_mode, force_fp32, update_emas)
    if update_emas:
        with torch.no_grad():
            magnitude = x.detach().float().square().mean()
            module.magnitude_ema.copy_(magnitude.lerp(module.magnitude_ema, module.magnitude_ema_beta))
    in_fp16 = module.use_fp16 and not force_fp32 and x.is_cuda
    x = x.to(torch.float16 if in_fp16 else torch.float32)
    gain = module.magnitude_ema.rsqrt()
    x = alias_free_conv2d(x, module.weight, to_arithmetic(module.affine(w)), gain, demodulate=not module.is_torgb)
    return filtered_lrelu(
        x,
        module.up_filter,
        module.down_filter,
        module.bias,
        up=module.up_factor,
        down=module.down_factor,
        padding=tuple(module.padding),
        gain=1.0 if module.is_torgb else math.sqrt(2),
        slope=1.0 if module.is_torgb else 0.2,
        clamp=None if clamp is None else float(clamp),
    )


def _shrink_alias_free(module: nn.Module) -> None:
    """Makes the copy a layer for smaller images, with the same padding, and casts its buffers to fp32."""
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else buffer.float()
    common = math.gcd(module.up_factor, module.down_factor)
    step_in, step_out = module.down_factor // common, module.up_factor // common
    steps = min(
        *((size - LEAST_SIZE) // step_in for size in module.in_size),
        *((size - 2) // step_out for size in module.out_size),
    )
    module.in_size = [size - max(steps, 0) * step_in for size in module.in_size]
    module.out_size = [size - max(steps, 0) * step_out for size in module.out_size]


def _alias_free_image_and_w(module: nn.Module, draw: Draw) -> tuple:
    width, height = module.in_size
    x = draw.tensor(draw.n, module.weight.shape[1], int(height), int(width))
    w = draw.vector(module.affine.weight.shape[1])
    return (x, w, "const", True, True) if draw.optional_arguments else (x, w)


# Minibatch standard deviation ----------------------------------------------------------------------------------------


def _is_stddev(module: nn.Module) -> str | None:
    size, maps = getattr(module, "group_size", 0), getattr(module, "num_channels", None)
    if module.state_dict() or not isinstance(maps, int) or not (size is None or (isinstance(size, int) and size > 0)):
        return "needs `group_size` (an integer or None) and an integer `num_channels`"
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
    Known(
        named("Conv2dLayer"),
        _is_convolution,
        _image_and_gain,
        convolution,
        "noise_bias_act",
        fix_buffers=_filter_to_fp32,
    ),
    Known(
        lambda module: named("SynthesisLayer")(module) and not _is_alias_free(module),
        _is_synthesis,
        _image_and_w,
        synthesis,
        "modulated_conv2d",
        fix_buffers=_shrink,
    ),
    Known(
        _is_alias_free,
        _why_not_alias_free,
        _alias_free_image_and_w,
        alias_free_synthesis,
        "filtered_lrelu",
        fix_buffers=_shrink_alias_free,
        piecewise_linear=("bias",),  # the official plugin misses it, the official plain version does not
    ),
    Known(named("ToRGBLayer"), _is_to_rgb, _image_and_w, to_rgb, "modulated_conv2d"),
    Known(named("MinibatchStdLayer"), _is_stddev, _groups, stddev, "minibatch_stddev"),
)
