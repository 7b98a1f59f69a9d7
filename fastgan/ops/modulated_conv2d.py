"""modulated_conv2d, StyleGAN2's convolution: a style scales the input channels, demodulation normalises the output.

    y[n,o] = d[n,o] * conv(style[n,i] * x[n,i], weight)[o]
    d[n,o] = rsqrt(sum_i style[n,i]^2 * sum_k weight[o,i,k]^2 + 1e-8)

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", equations 1 and 3, in the form that scales
activations. The whole batch shares the weights of one convolution; a tensor [N, O, I, k, k] never exists. `d` is a
small matrix product. The elementwise pass after the convolution (`noise_bias_act`) applies it together with noise and
bias. That pass can also apply the style of the next convolution (`post`), whose input is then `scaled`. So a synthesis
layer costs a convolution and one pass over memory.
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from fastgan.ops.arguments import check_activation, check_parameter
from fastgan.ops.arithmetic import computes_in_fp16, to_arithmetic
from fastgan.ops.constants import constant
from fastgan.ops.convolution import conv2d, conv_transpose2d, filtered_conv2d
from fastgan.ops.filtered_noise_bias_act import filtered_noise_bias_act
from fastgan.ops.fixed_weights import of_weight
from fastgan.ops.layout import weight_like
from fastgan.ops.noise_bias_act import noise_bias_act
from fastgan.ops.noise_bias_act_to_rgb import noise_bias_act_to_rgb
from fastgan.ops.transforms import must_use_reference
from fastgan.ops.upfirdn2d import taps as bilinear_taps
from fastgan.ops.upfirdn2d import upfirdn2d

EPSILON = 1e-8


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    weight_gain: float = 1.0,
    demodulate: bool = True,
    factor: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | None = None,
    taps: Tensor | None = None,
    scaled: bool = False,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    post: Tensor | None = None,
    to_rgb: Tensor | None = None,
    act: str = "linear",
    slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Any:  # a tensor, or two with `to_rgb`
    """Modulated convolution, then noise, bias and activation; twice differentiable in every tensor but `taps`.

    Args:
        x: activations [N, I, H, W]; fp32, bf16, fp16 or fp64.
        weight: [O, I, kh, kw].
        style: [N, I], factors of the input channels.
        weight_gain: factor of the weight, such as that of an equalised learning rate. It costs no pass over the weight,
            since it joins a factor of the activations.
        demodulate: whether to normalise the output.
        factor: [N, O], the normalising factor of the output times `weight_gain`, if computed before: `demodulations`.
        up: 2 doubles the size: transposed convolution with `weight` as it is, then the low-pass filter `taps`.
        down: 2 halves the size: low-pass filter, then a convolution of stride 2. One of `up` and `down` is 1.
        padding: zeros on each side. Default: k // 2, which keeps (or doubles, or halves) the size for odd k.
        taps: the low-pass filter, [k] for both axes or [kh, kw], summing to 1. Default: bilinear, (1, 3, 3, 1).
        scaled: `x` has been multiplied by `style` already, by `post` of the layer before.
        noise, strength, bias, post, act, slope, gain, clamp: applied after the convolution, see `noise_bias_act`.
        to_rgb: [N, K, O], the weight of an image of K channels, made from the result before `post`. Without `up` and
            `down`. Returns two tensors then, see `noise_bias_act_to_rgb`.

    Returns:
        [N, O, H * up / down, W * up / down] in the dtype of the convolution (autocast's if that is on, else that of
        `x`) and the memory format of `x`.

    In fp16 weights and styles are divided by constants, so that the convolution's output is no larger than the
    demodulated result. The epilogue multiplies by them again, in fp32. So neither the convolution nor the gradients
    overflow unless the final result does. (A `scaled` input is not divided.)

    Raises:
        ValueError: shapes or options do not fit; the message names the argument.
    """
    _check(x, weight, style, factor, up, down, padding, to_rgb)
    if computes_in_fp16(x):
        weight, style, factor = _within_fp16(weight * weight_gain, style, demodulate, scaled)
    elif demodulate:
        factor = demodulation(weight, style, weight_gain) * weight_gain if factor is None else factor  # [N, O]
    elif scaled and weight_gain != 1:
        factor = to_arithmetic(style).new_full((x.shape[0], len(weight)), weight_gain)
    else:
        style, factor = to_arithmetic(style) * weight_gain, None
    if not scaled:
        x = noise_bias_act(x, scale=style, act="linear")
    weight = weight_like(weight.transpose(0, 1) if up == 2 else weight, x)
    pads = (weight.shape[2] // 2, weight.shape[3] // 2) if padding is None else (padding, padding)
    has_epilogue = act != "linear" or gain != 1 or any(
        part is not None for part in (noise, strength, bias, factor, post, clamp)
    )  # fmt: skip
    epilogue: _Epilogue = {
        "noise": noise, "strength": strength, "bias": bias, "scale": factor, "post": post,
        "act": act, "slope": slope, "gain": gain, "clamp": clamp,
    }  # fmt: skip
    if up == down:
        y = conv2d(x, weight, padding=pads)
        if to_rgb is not None:
            return noise_bias_act_to_rgb(y, to_rgb, **epilogue)
        return noise_bias_act(y, **epilogue) if has_epilogue else y
    taps = _default_taps(x.device) if taps is None else taps
    if down == 2:
        y = _downsampled(x, weight, pads, taps)
        return noise_bias_act(y, **epilogue) if has_epilogue else y
    y, around = _transposed(x, weight, pads, taps)
    if has_epilogue:
        return filtered_noise_bias_act(y, taps, padding=around, fir_gain=4.0, **epilogue)
    return upfirdn2d(y, taps, padding=around, gain=4.0)


class _Epilogue(TypedDict):
    """Arguments of `noise_bias_act`."""

    noise: Tensor | None
    strength: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    post: Tensor | None
    act: str
    slope: float
    gain: float
    clamp: float | None


def alias_free_conv2d(x: Tensor, weight: Tensor, style: Tensor, input_gain: Tensor, *, demodulate: bool) -> Tensor:
    """StyleGAN3's modulated convolution of x times `input_gain`, with padding k - 1 (Karras et al. 2021, appendix D.1).

    Weight and styles are scaled to unit mean square at first, which demodulation cancels: numbers stay within the range
    of fp16. Without it, styles are divided by the square root of the fan-in.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k].
        style: [N, I], in fp32 or fp64.
        input_gain: scalar, 1 / root mean square of x.
    """
    sides = weight.shape[2] - 1
    if not demodulate:
        style = style * (input_gain / math.sqrt(weight[0].numel()))
        return modulated_conv2d(x, weight, style, demodulate=False, padding=sides)
    weight = _of_unit_mean_square(weight)
    style = style * style.square().mean().rsqrt()
    factor = demodulation(weight, style, 1.0) * input_gain
    return modulated_conv2d(x, weight, style, factor=factor, padding=sides)


@of_weight
def _of_unit_mean_square(weight: Tensor) -> Tensor:
    """The weight of each output channel scaled to a mean square of 1."""
    return weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()


def demodulation(weight: Tensor, style: Tensor, weight_gain: float = 1.0) -> Tensor:
    """The factors `d` [N, O] for weight [O, I, kh, kw] times `weight_gain` and style [N, I], in fp32 or fp64."""
    with torch.autocast(style.device.type, enabled=False):
        energy = _energy(weight)  # [O, I]
        style = to_arithmetic(style).to(energy.dtype)
        return torch.rsqrt((style * weight_gain).square() @ energy.t() + EPSILON)


@of_weight
def _energy(weight: Tensor) -> Tensor:
    """Sums of squares over kh and kw, [O, I]."""
    weight = to_arithmetic(weight)
    return weight.square().sum((2, 3)) if must_use_reference((weight,)) else _Energy.apply(weight)


def demodulations(energies: Tensor, styles: Tensor, weight_gains: Sequence[float]) -> Tensor:
    """The factors of several layers in one product: `demodulation` times `weight_gains`, [L, N, O].

    Args:
        energies: [L, O, I], sums of the weights' squares over kh and kw, padded with zeros.
        styles: [L, N, I], padded alike, in the dtype of `energies`.
    """
    with torch.autocast(styles.device.type, enabled=False):
        # gain * rsqrt(gain^2 * sum + eps) = rsqrt(sum + eps / gain^2)
        smallest = _smallest_sums(tuple(weight_gains), energies.dtype, energies.device)
        return torch.baddbmm(smallest, styles * styles, energies.transpose(1, 2)).rsqrt()


@constant
def _smallest_sums(weight_gains: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[L, 1, 1]"""
    return torch.tensor([EPSILON / gain**2 for gain in weight_gains], dtype=dtype, device=device)[:, None, None]


class _Energy(torch.autograd.Function):
    """`weight.square().sum((2, 3))`, with a backward of one pass instead of three."""

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight)
        return weight.square().sum((2, 3))  # vector_norm over inner dimensions is far slower

    @staticmethod
    def backward(ctx, gradient: Tensor | None) -> Tensor | None:
        (weight,) = ctx.saved_tensors
        return None if gradient is None else weight * (2 * gradient)[:, :, None, None]


def _check(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    factor: Tensor | None,
    up: int,
    down: int,
    padding: int | None,
    to_rgb: Tensor | None,
) -> None:
    if x.dim() != 4:
        raise ValueError(f"modulated_conv2d: x has shape {list(x.shape)}, must be [N, I, H, W]")
    check_activation("modulated_conv2d", x)
    n, channels = x.shape[:2]
    if weight.dim() != 4 or weight.shape[1] != channels:
        raise ValueError(
            f"modulated_conv2d: weight has shape {list(weight.shape)}, must be [O, {channels}, kh, kw] for x "
            f"{list(x.shape)}"
        )
    if list(style.shape) != [n, channels]:
        raise ValueError(
            f"modulated_conv2d: style has shape {list(style.shape)}, must be {[n, channels]} for x {list(x.shape)}"
        )
    if factor is not None and list(factor.shape) != [n, len(weight)]:
        raise ValueError(
            f"modulated_conv2d: factor has shape {list(factor.shape)}, must be {[n, len(weight)]}, for x "
            f"{list(x.shape)} and weight {list(weight.shape)}"
        )
    check_parameter("modulated_conv2d", "weight", weight, x)
    if style.numel():
        check_parameter("modulated_conv2d", "style", style, x)
    if (up, down) not in ((1, 1), (2, 1), (1, 2)):
        raise ValueError(f"modulated_conv2d: up and down are {up} and {down}, must be 1, or one of them 2")
    if to_rgb is not None and (up, down) != (1, 1):
        raise ValueError(f"modulated_conv2d: to_rgb is given with up {up} and down {down}, must be None then")
    if padding is not None and padding < 0:
        raise ValueError(f"modulated_conv2d: padding is {padding}, must be at least 0")


def _within_fp16(weight: Tensor, style: Tensor, demodulate: bool, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and style divided by constants, and the factor [N, O] that demodulates and undoes the division.

    The factor is at least 1, so that the convolution's output is no larger than the result. It is no larger than
    needed, since backward multiplies the gradient by it, and the weight gradient before that is divided again. Autograd
    treats the divisors as constants: the result does not depend on them, so neither do its derivatives.
    """
    factor = demodulation(weight, style) if demodulate else None
    with torch.autocast(style.device.type, enabled=False):
        weight, style = to_arithmetic(weight), to_arithmetic(style)
        norm = weight.detach().square().sum((1, 2, 3)).sqrt().clamp(min=1e-12)  # [O]
        strongest = style.detach().abs().amax(1, keepdim=True).clamp(min=1e-12)  # [N, 1]
        if demodulate:  # norm * strongest >= 1 / factor
            divisor = norm * strongest.max() if scaled and len(style) else norm
        else:
            divisor = torch.ones_like(norm) if scaled else norm.max().clamp(max=1).expand_as(norm)
            strongest = strongest.maximum(1 / divisor.max())
        weight = weight / divisor[:, None, None, None]
        divisor = divisor[None]  # [1, O]
        if not scaled:
            style = style / strongest
            divisor = divisor * strongest
        return weight, style, (divisor.expand(len(style), -1) if factor is None else factor * divisor)


@constant
def _default_taps(device: torch.device) -> Tensor:
    return bilinear_taps(device=device)


# Resampling as in StyleGAN2: the filter is applied at the larger size.


def _transposed(
    x: Tensor, weight: Tensor, pads: tuple[int, int], taps: Tensor
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The transposed convolution by a weight [I, O, kh, kw], and the padding of the filter after it."""
    height, width = weight.shape[2:]
    rows, columns = taps.shape[0], taps.shape[-1]
    left, right = pads[1] + (columns + 1) // 2 - (width - 1), pads[1] + (columns - 2) // 2 - (width - 2)
    top, bottom = pads[0] + (rows + 1) // 2 - (height - 1), pads[0] + (rows - 2) // 2 - (height - 2)
    crop = max(0, -max(top, bottom)), max(0, -max(left, right))  # the filter reads it on neither side
    y = conv_transpose2d(x, weight, stride=2, padding=crop)  # [N, O, 2H - 2 + kh - 2 crop, ...]
    return y, (left + crop[1], right + crop[1], top + crop[0], bottom + crop[0])


def _downsampled(x: Tensor, weight: Tensor, pads: tuple[int, int], taps: Tensor) -> Tensor:
    rows, columns = taps.shape[0], taps.shape[-1]
    left, right = pads[1] + (columns - 1) // 2, pads[1] + (columns - 2) // 2
    around = (left, right, pads[0] + (rows - 1) // 2, pads[0] + (rows - 2) // 2)
    if weight.shape[2:].numel() == 1:
        return conv2d(upfirdn2d(x, taps, down=2, padding=around), weight)
    return filtered_conv2d(x, weight, taps, filter_padding=around, stride=2)
