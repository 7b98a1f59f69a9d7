"""Drop-in layers over the fused operations. They know nothing about models, training or configurations.

Every layer is twice differentiable on every backend, once under `torch.compile`.

Equalized learning rate: "Equalized" layers store weights of unit variance and scale them at run time, so that all
weights learn at the same relative speed (Karras et al. 2018, "Progressive Growing of GANs", section 4.1).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fastgan.effective import HasEffectiveWeights, Use
from fastgan.ops import (
    adain,
    batch_norm_act,
    conv2d,
    conv_downsample2d,
    conv_transpose2d,
    filtered_lrelu,
    minibatch_stddev,
    modulated_conv2d,
    noise_bias_act,
    pixel_norm,
    style_epilogue,
    upsample_conv2d,
)
from fastgan.ops.activations import require_slope, slope_below_zero
from fastgan.ops.arithmetic import computes_in_fp16, to_arithmetic
from fastgan.ops.bias_act_blur import bias_act_blur, saves_passes
from fastgan.ops.convolution import filtered_conv2d
from fastgan.ops.upfirdn2d import BILINEAR, Filter, forked_upfirdn2d, taps, upfirdn2d

SQRT2 = math.sqrt(2.0)


def _default_gain(act: str, gain: float | None) -> float:
    """`gain`, or if it is None the gain that keeps the variance through the activation."""
    if gain is not None:
        return gain
    return SQRT2 if act in ("relu", "lrelu", "silu") else 1.0


class _Equalized(HasEffectiveWeights):
    """Base class of layers with equalized learning rate."""

    weight_gain: float
    bias_gain: float
    act: str
    gain: float

    def use(self) -> Use:
        """The run-time scale c of the weight w moves behind the sums if the activation is homogeneous, which saves a
        pass over the weight and one over its gradient:

            g * act(c * linear(x, w) + b) = c * g * act(linear(x, w) + b / c)

        Not in fp16, whose range the unscaled sums may exceed.
        """
        has_pass = self.bias is not None or self.act != "linear"  # an activation pass that takes the factor
        if has_pass and slope_below_zero(self.act, 0.2) is not None and not computes_in_fp16(self.weight):
            return Use(1.0, self.bias_gain / self.weight_gain, self.gain * self.weight_gain)
        return Use(self.weight_gain, self.bias_gain, self.gain)


class EqualizedLinear(_Equalized):
    """Linear layer with equalized learning rate; bias and activation are fused.

    Args:
        in_features, out_features: as for `nn.Linear`.
        bias: whether to add a bias.
        bias_init: initial value of the bias.
        lr_multiplier: factor of the effective learning rate (0.01 in StyleGAN's mapping network).
        act, gain: activation and the factor after it, see `noise_bias_act`; default gain: sqrt(2) for the relu family.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        act: str = "linear",
        gain: float | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier)) if bias else None
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.act = act
        self.gain = _default_gain(act, gain)

    @property
    def _scales_x(self) -> bool:
        """Whether x is scaled, which is smaller than the weight."""
        return self.act == "linear" and self.gain == 1

    def use(self) -> Use:
        return Use(bias=self.bias_gain, converts=("weight", "bias")) if self._scales_x else super().use()

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_features] to [N, out_features]."""
        weight, bias, gain = self.effective()
        if self._scales_x:
            return F.linear(x * self.weight_gain, weight, bias)
        return noise_bias_act(F.linear(x, weight), bias=bias, act=self.act, gain=gain)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}, act={self.act}"


class EqualizedConv2d(_Equalized):
    """Convolution with equalized learning rate; bias and activation are fused. Optionally downsamples by 2.

    Padding keeps the size. With `down=2` a low-pass filter comes first, and the convolution has stride 2.

    Args:
        in_channels, out_channels: as for `nn.Conv2d`.
        kernel_size: of the square kernel, odd.
        bias: whether to add a bias.
        down: 1 or 2.
        act, gain, clamp: see `noise_bias_act`; default gain: sqrt(2) for the relu family.
        resample_filter: filter for `down=2`, see `taps`.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool = True,
        down: int = 1,
        act: str = "linear",
        gain: float | None = None,
        clamp: float | None = None,
        resample_filter: Filter = BILINEAR,
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"EqualizedConv2d: kernel_size is {kernel_size}, must be odd")
        if down not in (1, 2):
            raise ValueError(f"EqualizedConv2d: down is {down}, must be 1 or 2")
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain, self.bias_gain = 1 / math.sqrt(in_channels * kernel_size**2), 1.0
        self.down = down
        self.act = act
        self.gain = _default_gain(act, gain)
        self.clamp = clamp
        if down == 2:
            self.register_buffer("resample_filter", taps(resample_filter), persistent=False)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution without bias and activation, for an effective weight."""
        kernel_size = weight.shape[-1]
        if self.down == 1:
            return conv2d(x, weight, padding=kernel_size // 2)
        padding = self._padding()
        if kernel_size == 1:
            return conv2d(upfirdn2d(x, self.resample_filter, down=2, padding=padding), weight)
        return filtered_conv2d(x, weight, self.resample_filter, filter_padding=padding, stride=2)

    def _padding(self) -> tuple[int, int, int, int]:
        """Padding of the filter."""
        return _filter_padding(self.resample_filter, down=2, extra=self.weight.shape[-1] // 2)

    def forward(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H / down, W / down]; the residual is added last."""
        weight, bias, gain = self.effective()
        return self._activated(self.convolve(x, weight), bias, gain, residual)

    def convolved(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The convolution's output, and the arguments of `noise_bias_act` that complete the layer."""
        weight, bias, gain = self.effective()
        return self.convolve(x, weight), {"bias": bias, "act": self.act, "gain": gain, "clamp": self.clamp}

    def _activated(self, y: Tensor, bias: Tensor | None, gain: float, residual: Tensor | None = None) -> Tensor:
        """The end of the layer."""
        if bias is None and self.act == "linear" and gain == 1 and self.clamp is None:
            return y if residual is None else y + residual
        return noise_bias_act(y, bias=bias, act=self.act, gain=gain, clamp=self.clamp, residual=residual)

    def after(self, first: "EqualizedConv2d", x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """`self(first(x), residual=residual)` in fewer passes, for a `first` that keeps the size and `down=2` here.

        On a GPU the activation of `first` is applied while this layer filters, unless one of the two has hooks.
        """
        if not saves_passes(x.device) or _has_hooks(first) or _has_hooks(self):
            return self(first(x), residual=residual)
        y, activation = first.convolved(x)
        y = bias_act_blur(y, self.resample_filter, padding=self._padding(), **activation)
        weight, bias, gain = self.effective()
        return self._activated(conv2d(y, weight, stride=2), bias, gain, residual)

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x, self(x)`, for an `x` that another branch reads too, and a 1x1 kernel with `down=2`.

        Give the returned x to that branch: the gradients of both are then added without a pass of its own.
        """
        if _has_hooks(self):
            return x, self(x)
        weight, bias, gain = self.effective()
        x, y = forked_upfirdn2d(x, self.resample_filter, down=2, padding=self._padding())
        return x, self._activated(conv2d(y, weight), bias, gain)

    def extra_repr(self) -> str:
        return f"{_sizes(self.weight)}, down={self.down}, act={self.act}"


def _has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its `forward`."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _filter_padding(filter: Tensor, up: int = 1, down: int = 1, extra: int = 0) -> tuple[int, int, int, int]:
    """Padding (left, right, top, bottom) with which `upfirdn2d` changes the size by exactly `up / down`.

    `extra` is the padding of a convolution that follows. Negative, which crops, if the filter is short.
    """
    sides = []
    for k in (filter.shape[-1], filter.shape[0]):
        missing = k - max(up, down)
        sides += [(missing + 1) // 2 + up - 1 + extra, missing // 2 + extra]
    left, right, top, bottom = sides
    return left, right, top, bottom


class _Filter2d(nn.Module):
    """Base class of layers with a FIR filter, a buffer that is not part of the state dict."""

    filter: Tensor

    def __init__(self, weights: Filter):
        super().__init__()
        self.register_buffer("filter", taps(weights), persistent=False)

    def extra_repr(self) -> str:
        return f"taps={len(self.filter)}"


class Blur2d(_Filter2d):
    """Low-pass filter that keeps the size, for use before or after a strided layer (StyleGAN2's `Blur`).

    Args:
        weights: of the filter, see `taps`.
        padding: zeros (before, after) for both axes; by default the size is kept.
        gain: factor of the output; 4 after a transposed convolution of stride 2.
    """

    _four_taps: Tensor  # the filter, with a zero behind three taps: kernels take four

    def __init__(self, weights: Filter = BILINEAR, *, padding: tuple[int, int] | None = None, gain: float = 1.0):
        super().__init__(weights)
        self.padding = _filter_padding(self.filter) if padding is None else (*padding, *padding)
        self.gain = gain
        self._added_taps = 1 if self.filter.shape == (3,) else 0
        four_taps = F.pad(self.filter, (0, 1)) if self._added_taps else self.filter
        self.register_buffer("_four_taps", four_taps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape; given `padding`, to H + before + after - k + 1 rows, and columns likewise."""
        return upfirdn2d(x, self.filter, padding=self.padding, gain=self.gain)

    def after(self, first: EqualizedConv2d, x: Tensor) -> Tensor:
        """`self(first(x))` in fewer passes, for a `first` that keeps the size.

        On a GPU the activation of `first` is applied while this layer filters, unless one of the two has hooks.
        """
        if self.gain != 1 or not saves_passes(x.device) or _has_hooks(first) or _has_hooks(self):
            return self(first(x))
        y, activation = first.convolved(x)
        left, right, top, bottom = self.padding
        padding = left + self._added_taps, right, top + self._added_taps, bottom
        return bias_act_blur(y, self._four_taps, padding=padding, **activation)


class Upsample2d(_Filter2d):
    """Upsampling by zero insertion and a low-pass filter; keeps the mean (StyleGAN2's `Upsample`).

    Args:
        weights: of the filter, see `taps`.
        factor: of the upsampling.
    """

    def __init__(self, weights: Filter = BILINEAR, *, factor: int = 2):
        super().__init__(weights)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, factor * H, factor * W]."""
        padding = _filter_padding(self.filter, up=self.factor)
        return upfirdn2d(x, self.filter, up=self.factor, padding=padding, gain=self.factor**2)


class Downsample2d(_Filter2d):
    """Downsampling by a low-pass filter and decimation (StyleGAN2's `Downsample`).

    Args:
        weights: of the filter, see `taps`.
        factor: of the downsampling.
    """

    def __init__(self, weights: Filter = BILINEAR, *, factor: int = 2):
        super().__init__(weights)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], sizes multiples of `factor`, to [N, C, H / factor, W / factor]."""
        return upfirdn2d(x, self.filter, down=self.factor, padding=_filter_padding(self.filter, down=self.factor))


class NoiseBiasLeakyReLU(nn.Module):
    """Noise, bias, leaky ReLU, gain and clamp in one pass: the end of a StyleGAN2 layer.

    Args:
        channels: of the activations.
        noise: whether to add noise, with a learned strength that starts at zero.
        per_channel: a strength for each channel (StyleGAN) instead of one (StyleGAN2).
        slope, gain, clamp: see `noise_bias_act`.
    """

    def __init__(
        self,
        channels: int,
        *,
        noise: bool = True,
        per_channel: bool = False,
        slope: float = 0.2,
        gain: float = SQRT2,
        clamp: float | None = None,
    ):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.strength = nn.Parameter(torch.zeros(channels if per_channel else ())) if noise else None
        self.slope, self.gain, self.clamp = slope, gain, clamp

    def forward(
        self, x: Tensor, noise: Tensor | None = None, *, scale: Tensor | None = None, post: Tensor | None = None
    ) -> Tensor:
        """Args:
        x: [N, C, H, W].
        noise: [N, 1, H, W] or [1, 1, H, W]; None: drawn from N(0, 1), if the layer has noise.
        scale: [N, C], factor of x: the demodulation of the convolution before.
        post: [N, C], factor of the output: the style of the convolution after, if it is the only reader.
        """
        return noise_bias_act(x, scale=scale, post=post, **self.arguments(x.shape, x.device, noise))

    def arguments(self, shape: tuple[int, ...], device: torch.device, noise: Tensor | None = None) -> dict:
        """Keyword arguments of `noise_bias_act` for activations of a shape [N, C, H, W]; `noise` as in `forward`.

        Operations that end in it, such as `modulated_conv2d`, take them too.
        """
        if self.strength is None:
            noise = None
        elif noise is None:
            noise = _noise_for(shape, device)
        return {
            "noise": noise,
            "strength": self.strength,
            "bias": self.bias,
            "act": "lrelu",
            "slope": self.slope,
            "gain": self.gain,
            "clamp": self.clamp,
        }


class FilteredLReLU(nn.Module):
    """Bias, and a leaky ReLU between an upsampling and a downsampling filter: the end of a StyleGAN3 layer.

    Args:
        channels: of the activations.
        up_weights, down_weights: of the filters, see `taps`. StyleGAN3's are `fastgan.models.alias_free.low_pass`.
        up, down: factors of zero insertion and decimation.
        padding: (left, right, top, bottom) of the image after zero insertion; by default the output has `up` / `down`
            times the size of the input.
        slope, gain, clamp: see `filtered_lrelu`.
    """

    up_filter: Tensor
    down_filter: Tensor

    def __init__(
        self,
        channels: int,
        up_weights: Filter = BILINEAR,
        down_weights: Filter = BILINEAR,
        *,
        up: int = 2,
        down: int = 2,
        padding: tuple[int, int, int, int] | None = None,
        slope: float = 0.2,
        gain: float = SQRT2,
        clamp: float | None = None,
    ):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("up_filter", taps(up_weights), persistent=False)
        self.register_buffer("down_filter", taps(down_weights), persistent=False)
        both = len(self.up_filter) + len(self.down_filter) - 1 - down  # padding on both sides
        before = (both + up) // 2
        self.options: dict[str, Any] = {
            "up": up,
            "down": down,
            "padding": padding or (before, both - before) * 2,
            "slope": slope,
            "gain": gain,
            "clamp": clamp,
        }

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, H * up / down, W * up / down], by the default padding."""
        return filtered_lrelu(x, self.up_filter, self.down_filter, self.bias, **self.options)

    def extra_repr(self) -> str:
        sizes = f"taps={len(self.up_filter)}, {len(self.down_filter)}"
        return ", ".join([f"{len(self.bias)}", sizes, *(f"{name}={self.options[name]}" for name in ("up", "down"))])


class BatchNormAct(nn.modules.batchnorm._NormBase):
    """Batch norm and an activation, fused; for [N, C] and [N, C, ...].

    Parameters and buffers are those of `nn.BatchNorm2d`. It is not a subclass, because `convert_sync_batchnorm` would
    replace it and drop the activation.

    Args:
        channels: of the activations.
        act, slope, gain: "linear", "relu" or "lrelu", see `batch_norm_act`.
        eps: added to the variance.
        momentum: weight of a batch in the running averages.

    Attributes:
        batches: number of batches that are concatenated in the input, each with its own statistics, see
            `batch_norm_act`.
    """

    batches = 1

    num_batches_tracked: Tensor
    momentum: float

    def __init__(
        self,
        channels: int,
        *,
        act: str = "lrelu",
        slope: float = 0.2,
        gain: float = 1.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ):
        super().__init__(channels, eps=eps, momentum=momentum)
        require_slope("BatchNormAct", act, slope, gain)
        self.act, self.slope, self.gain = act, slope, gain

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, ...] to the same shape. Raises ValueError in training for a single value per channel."""
        if self.training:
            self.num_batches_tracked.add_(self.batches)
        return batch_norm_act(
            x,
            self.weight,
            self.bias,
            running_mean=self.running_mean,
            running_var=self.running_var,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            act=self.act,
            slope=self.slope,
            gain=self.gain,
            batches=self.batches,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, act={self.act}, eps={self.eps}, momentum={self.momentum}"


class AdaIN(nn.Module):
    """Adaptive instance normalization: the style sets mean and standard deviation of each feature map.

        y = (1 + s) * (x - mean) / sqrt(var + eps) + b,   (s, b) = A w

    A is a linear layer with equalized learning rate (Huang and Belongie 2017, equation 8; Karras et al. 2019,
    equation 1, with 1 added to the scale).

    Args:
        channels: of the activations.
        w_dim: of the style.
        eps: added to the variance.
    """

    def __init__(self, channels: int, w_dim: int, *, eps: float = 1e-5):
        super().__init__()
        self.affine = EqualizedLinear(w_dim, 2 * channels)
        self.eps = eps

    def style(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and bias [N, channels] for a style [N, w_dim]."""
        scale, bias = self.affine(w).chunk(2, 1)
        return 1 + to_arithmetic(scale), bias  # 16 bits would round the sum

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [N, channels, ...] and a style w [N, w_dim] to the shape of x."""
        return adain(x, *self.style(w), eps=self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class StyleEpilogue(AdaIN):
    """The end of a StyleGAN layer, fused: noise, bias, leaky ReLU, AdaIN (Karras et al. 2019, figure 1b, equation 1).

    Each channel has a learned noise strength that starts at zero.

    Args:
        channels: of the activations.
        w_dim: of the style.
        noise: whether to add noise.
        slope, gain: slope of the leaky ReLU below zero, and the factor after it.
        eps: added to the variance.
    """

    def __init__(
        self,
        channels: int,
        w_dim: int,
        *,
        noise: bool = True,
        slope: float = 0.2,
        gain: float = 1.0,
        eps: float = 1e-8,
    ):
        super().__init__(channels, w_dim, eps=eps)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.strength = nn.Parameter(torch.zeros(channels)) if noise else None
        self.slope, self.gain = slope, gain

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """Args:
        x: [N, channels, H, W].
        w: style [N, w_dim].
        noise: [N, 1, H, W] or [1, 1, H, W]; None: drawn from N(0, 1), if the layer has noise.
        """
        if self.strength is None:
            noise = None
        elif noise is None:
            noise = _noise_for(x.shape, x.device)
        scale, bias = self.style(w)
        return style_epilogue(
            x,
            noise=noise,
            strength=self.strength,
            bias=self.bias,
            style_scale=scale,
            style_bias=bias,
            slope=self.slope,
            gain=self.gain,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"noise={self.strength is not None}, gain={self.gain}, eps={self.eps}"


class Conv2d(HasEffectiveWeights, nn.Conv2d):
    """Drop-in `nn.Conv2d` on `fastgan.ops.conv2d`, which has faster CPU kernels for few channels and weight gradients.

    Dilation, unequal strides and other padding than zeros take PyTorch's convolution.
    """

    def use(self) -> Use:
        return Use(converts=("weight", "bias"))

    def forward(self, input: Tensor) -> Tensor:
        weight, bias, _ = self.effective()
        return self._conv_forward(input, weight, bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _is_plain(self) or x.dim() != 4:
            return super()._conv_forward(x, weight, bias)
        padding: tuple[int, int] = self.padding  # type: ignore[assignment]  # not a string
        return conv2d(x, weight, bias, stride=self.stride[0], padding=padding, groups=self.groups)


class ConvTranspose2d(nn.ConvTranspose2d):
    """Drop-in `nn.ConvTranspose2d` on `fastgan.ops.conv_transpose2d`; see `Conv2d`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not _is_plain(self) or x.dim() != 4 or output_size is not None or any(self.output_padding):
            return super().forward(x, output_size)
        padding: tuple[int, int] = self.padding  # type: ignore[assignment]  # not a string
        return conv_transpose2d(x, self.weight, self.bias, stride=self.stride[0], padding=padding, groups=self.groups)


def _is_plain(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return (
        tuple(conv.dilation) == (1, 1)
        and conv.stride[0] == conv.stride[1]
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


class _Transposable(nn.Module):
    """Base class of layers whose `weight` [O, I, k, k] may be read by a transposed convolution, as [I, O, k, k].

    When a network moves to channels_last, the transposed view of such a weight is made channels_last. Otherwise every
    call would copy the weight, and every backward its gradient.
    """

    reads_transposed = False

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        stored = self.parametrizations.weight.original if is_parametrized(self, "weight") else self.weight
        weight = stored.data
        in_channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        if self.reads_transposed and in_channels_last:
            stored.data = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)
        return self


class ModulatedConv2d(_Transposable):
    """Modulated convolution with equalized learning rate: StyleGAN2's mod, conv and demod.

        y[n,o] = d[n,o] * conv(style[n,i] * x[n,i], weight)[o],   d = rsqrt(sum_i style^2 * sum_k weight^2 + 1e-8)

    Karras et al. 2020, equations 1 and 3, in the form that scales activations instead of weights.

    Args:
        in_channels, out_channels: as for `nn.Conv2d`.
        kernel_size: of the square kernel.
        demodulate: whether to demodulate, that is to multiply by d.
        up, down: one of them may be 2, to resample with a low-pass filter.
        resample_filter: the filter, see `taps`.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        demodulate: bool = True,
        up: int = 1,
        down: int = 1,
        resample_filter: Filter = BILINEAR,
    ):
        super().__init__()
        if (up, down) not in ((1, 1), (2, 1), (1, 2)):
            raise ValueError(f"ModulatedConv2d: up and down are {up} and {down}, must be 1, or one of them 2")
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate = demodulate
        self.up, self.down = up, down
        self.reads_transposed = up == 2
        self.register_buffer("resample_filter", taps(resample_filter) if up != down else None, persistent=False)

    def forward(
        self, x: Tensor, style: Tensor, *, weight: Tensor | None = None, scaled: bool = False, **epilogue
    ) -> Any:  # a tensor, or two with `to_rgb`
        """[N, in_channels, H, W] and a style [N, in_channels] to [N, out_channels, H * up / down, W * up / down].

        Args:
            weight: the layer's weight, if it has been converted to the dtype of the convolution before.
            scaled: `x` has already been multiplied by the style, as `post` of the layer before.
            epilogue: arguments of `noise_bias_act` for the same pass, for example `NoiseBiasLeakyReLU.arguments()`; and
                `factor` and `to_rgb`, see `modulated_conv2d`.
        """
        return modulated_conv2d(
            x,
            self.weight if weight is None else weight,
            style,
            weight_gain=self.weight_gain,
            demodulate=self.demodulate,
            up=self.up,
            down=self.down,
            taps=self.resample_filter,
            scaled=scaled,
            **epilogue,
        )

    def extra_repr(self) -> str:
        return f"{_sizes(self.weight)}, up={self.up}, down={self.down}, demodulate={self.demodulate}"


class _ResampledConv2d(_Equalized, _Transposable):
    """Base class of convolutions fused with resampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        bias: bool = True,
        equalized: bool = False,
        act: str = "linear",
        gain: float | None = None,
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"{type(self).__name__}: kernel_size is {kernel_size}, must be odd")
        plain = nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias)
        self.weight, self.bias = plain.weight, plain.bias
        self.weight_gain = self.bias_gain = 1.0
        if equalized:
            self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
            nn.init.normal_(self.weight)
            if self.bias is not None:
                nn.init.zeros_(self.bias)
        self.act = act
        self.gain = _default_gain(act, gain)

    def use(self) -> Use:
        return super().use()._replace(converts=())  # a larger kernel is computed from the weight

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, gain = self.effective()
        if self.act == "linear" and gain == 1:
            return self._convolve(x, weight, bias)
        return noise_bias_act(self._convolve(x, weight, None), bias=bias, act=self.act, gain=gain)

    @staticmethod
    def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{_sizes(self.weight)}, bias={self.bias is not None}, act={self.act}"


class UpsampleConv2d(_ResampledConv2d):
    """Nearest-neighbour upsampling by 2 and a convolution, as one transposed convolution.

    [N, in_channels, H, W] to [N, out_channels, 2H, 2W]. Same results and parameters as `nn.Upsample(scale_factor=2)`
    and `nn.Conv2d` with "same" padding, at 2.25 times fewer multiplications for 3x3 (`fastgan.ops.upsample_conv2d`).

    Args:
        in_channels, out_channels: as for `nn.Conv2d`.
        kernel_size: of the square kernel, odd.
        bias: whether to add a bias.
        equalized: equalized learning rate (PGGAN) instead of `nn.Conv2d`'s initialization.
        act, gain: activation and the factor after it, see `noise_bias_act`; default gain: sqrt(2) for the relu family.
    """

    reads_transposed = True

    @staticmethod
    def _convolve(x, weight, bias):
        return upsample_conv2d(x, weight, bias)


class ConvDownsample2d(_ResampledConv2d):
    """A convolution and 2x2 average pooling, as one convolution of stride 2.

    [N, in_channels, H, W] to [N, out_channels, H // 2, W // 2]. Same results and parameters as `nn.Conv2d` with "same"
    padding and `nn.AvgPool2d(2)`, at 2.25 times fewer multiplications for 3x3 (`fastgan.ops.conv_downsample2d`). Bias
    and activation come after the pooling, as in PGGAN.

    Args: as `UpsampleConv2d`.
    """

    @staticmethod
    def _convolve(x, weight, bias):
        return conv_downsample2d(x, weight, bias)


def _noise_for(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Noise [N, 1, H, W] from N(0, 1)."""
    return torch.randn(shape[0], 1, *shape[2:], device=device, dtype=torch.float32)


def _sizes(weight: Tensor) -> str:
    out_channels, in_channels, kernel_size, _ = weight.shape
    return f"{in_channels}, {out_channels}, kernel_size={kernel_size}"


class PixelNorm(nn.Module):
    """Scales the channels of each position to a mean square of one (Karras et al. 2018, section 4.2).

    Args:
        eps: added to the mean square.
    """

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to the same shape; also latents [N, C]."""
        return pixel_norm(x, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class MinibatchStddev(nn.Module):
    """Appends the standard deviation over groups of samples as a feature map (Karras et al. 2018, section 3).

    Args:
        group_size: samples a group; the batch must be a multiple of it, or smaller. None: the whole batch.
        features: number of maps; each is the mean over its share of the channels.
    """

    mixes_samples = True  # gradient penalties take double backward

    def __init__(self, group_size: int | None = 4, features: int = 1):
        super().__init__()
        self.group_size, self.features = group_size, features

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to [N, C + features, ...]."""
        return minibatch_stddev(x, self.group_size, self.features)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, features={self.features}"
