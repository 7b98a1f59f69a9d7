"""Drop-in layers over the fused operations; none knows of a model, a training loop or a configuration.

Layers named "Equalized" keep weights of unit variance and scale them at run time, so that the optimizer's step is the
same share of every weight (Karras et al. 2018, "Progressive Growing of GANs", section 4.1).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.ops import (
    adain,
    batch_norm_act,
    conv2d,
    conv_downsample2d,
    conv_transpose2d,
    minibatch_stddev,
    modulated_conv2d,
    noise_bias_act,
    pixel_norm,
    style_epilogue,
    upsample_conv2d,
)
from fastgan.ops.arithmetic import computes_in_fp16, to_arithmetic
from fastgan.ops.convolution import filtered_conv2d
from fastgan.ops.instance_norm import slope_of
from fastgan.ops.noise_bias_act import slope_below_zero
from fastgan.ops.upfirdn2d import BILINEAR, Filter, taps, upfirdn2d

SQRT2 = math.sqrt(2.0)


def _default_gain(act: str, gain: float | None) -> float:
    """The gain that keeps the variance of what passes through the activation, where none is given."""
    if gain is not None:
        return gain
    return SQRT2 if act in ("relu", "lrelu", "silu") else 1.0


def equalized(layer: nn.Module) -> tuple[Tensor, Tensor | None, float]:
    """Weight, bias and gain with which a layer of equalised rate computes `gain * act(linear(x, weight) + bias)`.

    Its rate c is a factor of the weight. Where the activation is homogeneous it goes behind the sums, which costs no
    pass over the weight, and none over its gradient:

        g * act(c * linear(x, w) + b) = c * g * act(linear(x, w) + b / c)

    Not in fp16, whose range sums of weights of unit variance may leave.
    """
    weight, rate, gain = layer.weight, layer.weight_gain, layer.gain
    passes = layer.bias is not None or layer.act != "linear"  # else there is none to give the rate to
    if passes and slope_below_zero(layer.act, 0.2) is not None and not computes_in_fp16(weight):
        return weight, _times(layer.bias, layer.bias_gain / rate), gain * rate
    return _times(weight, rate), _times(layer.bias, layer.bias_gain), gain


def _times(tensor: Tensor | None, factor: float) -> Tensor | None:
    return tensor if tensor is None or factor == 1 else tensor * factor


class EqualizedLinear(nn.Module):
    """Dense layer with equalised learning rate, bias and activation fused.

    Args:
        in_features, out_features: sizes.
        bias: whether there is one.
        bias_init: its initial value.
        lr_multiplier: scales the effective learning rate of weight and bias (0.01 in StyleGAN's mapping network).
        act, gain: activation and the factor after it (see `noise_bias_act`); by default sqrt(2) for the relu family.
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

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_features] to [N, out_features]."""
        if self.act == "linear" and self.gain == 1:  # x is smaller than the weight
            return F.linear(x * self.weight_gain, self.weight, _times(self.bias, self.bias_gain))
        weight, bias, gain = equalized(self)
        return noise_bias_act(F.linear(x, weight), bias=bias, act=self.act, gain=gain)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}, act={self.act}"


class EqualizedConv2d(nn.Module):
    """Convolution with equalised learning rate, bias and activation fused, optionally downsampling by 2.

    The padding keeps the size. With `down=2` the image is low-pass filtered first, and the convolution has stride 2.

    Args:
        in_channels, out_channels, kernel_size: sizes; the kernel is square and odd.
        bias: whether there is one.
        down: 1 or 2.
        act, gain, clamp: see `noise_bias_act`; the default gain is sqrt(2) for the relu family.
        resample_filter: with which `down` is done, see `taps`.
    """

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
        """The convolution alone, with the effective weight."""
        kernel_size = weight.shape[-1]
        if self.down == 1:
            return conv2d(x, weight, padding=kernel_size // 2)
        around = _around(self.resample_filter, down=2, more=kernel_size // 2)
        if kernel_size == 1:
            return conv2d(upfirdn2d(x, self.resample_filter, down=2, padding=around), weight)
        return filtered_conv2d(x, weight, self.resample_filter, filter_padding=around, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H / down, W / down]."""
        weight, bias, gain = equalized(self)
        y = self.convolve(x, weight)
        if bias is None and self.act == "linear" and gain == 1 and self.clamp is None:
            return y
        return noise_bias_act(y, bias=bias, act=self.act, gain=gain, clamp=self.clamp)

    def extra_repr(self) -> str:
        return f"{_sizes(self.weight)}, down={self.down}, act={self.act}"


def _around(filter: Tensor, up: int = 1, down: int = 1, more: int = 0) -> tuple[int, int, int, int]:
    """Zeros (left, right, top, bottom) with which a filter enlarges `up` times, or reduces `down` times, and no more.

    `more` are those of a convolution behind it. Negative where the filter is so short that rows are cropped.
    """
    sides = []
    for k in (filter.shape[-1], filter.shape[0]):
        missing = k - max(up, down)
        sides += [(missing + 1) // 2 + up - 1 + more, missing // 2 + more]
    return tuple(sides)


class _Filter2d(nn.Module):
    """A FIR filter without parameters; the filter is a buffer that no checkpoint holds."""

    def __init__(self, weights: Filter):
        super().__init__()
        self.register_buffer("filter", taps(weights), persistent=False)

    def extra_repr(self) -> str:
        return f"taps={len(self.filter)}"


class Blur2d(_Filter2d):
    """Low-pass filter that keeps the size, to come before or after a layer with a stride (StyleGAN2's `Blur`).

    Args:
        weights: of the filter, see `taps`.
        padding: zeros (before, behind) each axis; by default such that the size is kept.
        gain: factor of the result: 4 behind a convolution that is transposed with stride 2.
    """

    def __init__(self, weights: Filter = BILINEAR, *, padding: tuple[int, int] | None = None, gain: float = 1.0):
        super().__init__(weights)
        self.padding = _around(self.filter) if padding is None else (*padding, *padding)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same, or with `padding` given to H + before + behind - k + 1 and so on."""
        return upfirdn2d(x, self.filter, padding=self.padding, gain=self.gain)


class Upsample2d(_Filter2d):
    """Doubles the size by zero insertion and a low-pass filter; the brightness is kept (StyleGAN2's `Upsample`).

    Args:
        weights: of the filter, see `taps`.
        factor: of the enlargement.
    """

    def __init__(self, weights: Filter = BILINEAR, *, factor: int = 2):
        super().__init__(weights)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, factor * H, factor * W]."""
        around = _around(self.filter, up=self.factor)
        return upfirdn2d(x, self.filter, up=self.factor, padding=around, gain=self.factor**2)


class Downsample2d(_Filter2d):
    """Halves the size by a low-pass filter and decimation (StyleGAN2's `Downsample`).

    Args:
        weights: of the filter, see `taps`.
        factor: of the reduction.
    """

    def __init__(self, weights: Filter = BILINEAR, *, factor: int = 2):
        super().__init__(weights)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], sizes multiples of `factor`, to [N, C, H / factor, W / factor]."""
        return upfirdn2d(x, self.filter, down=self.factor, padding=_around(self.filter, down=self.factor))


class NoiseBiasLeakyReLU(nn.Module):
    """Noise, bias, leaky ReLU, gain and clamp in one pass; the end of a StyleGAN layer.

    Args:
        channels: of the activations.
        noise: whether noise is added, with a learned strength that starts at zero.
        per_channel: one strength a channel (StyleGAN) instead of a single one (StyleGAN2).
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
        noise: [N, 1, H, W] or [1, 1, H, W]; drawn anew from N(0, 1) if not given and the layer has noise.
        scale: [N, C], factor before: the demodulation of the convolution that made `x`.
        post: [N, C], factor after: the style of the only convolution that reads the result.
        """
        return noise_bias_act(x, scale=scale, post=post, **self.arguments(x.shape, x.device, noise))

    def arguments(self, shape: tuple[int, ...], device: torch.device, noise: Tensor | None = None) -> dict:
        """What the layer does to activations of a shape [N, C, H, W], as named arguments of `noise_bias_act`.

        Operations that end in it, such as `modulated_conv2d`, take them as well. `noise` as in `forward`.
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


class BatchNormAct(nn.modules.batchnorm._NormBase):
    """Batch norm and the activation behind it, fused; for [N, C] as well as for [N, C, ...].

    Parameters and buffers are those of `nn.BatchNorm2d`, by name, value and meaning. To PyTorch it is no batch norm,
    lest `nn.SyncBatchNorm.convert_sync_batchnorm` should replace it, and the activation be lost.

    Args:
        channels: of the activations.
        act, slope, gain: "linear", "relu" or "lrelu", see `batch_norm_act`.
        eps: added to the variance.
        momentum: the share of a batch in the running averages.

    Attributes:
        batches: how many batches follow one another in what the layer is given, see `batch_norm_act`.
    """

    batches = 1

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
        slope_of("BatchNormAct", act, slope, gain)
        self.act, self.slope, self.gain = act, slope, gain

    def forward(self, x: Tensor) -> Tensor:
        """x [N, channels, ...] to its shape. Raises ValueError for a single value per channel in training."""
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
    """Adaptive instance normalisation: the style of an image sets mean and deviation of each feature map.

        y = (1 + s) * (x - mean) / sqrt(var + eps) + b,   (s, b) = A w

    `A` is a learned affine map of equalised learning rate (Huang and Belongie 2017, equation 8; Karras et al. 2019,
    equation 1, with the scale learned as its distance from 1).

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
        return 1 + to_arithmetic(scale), bias  # the sum would round in 16 bits

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [N, channels, ...] and a style [N, w_dim] to the shape of x."""
        return adain(x, *self.style(w), eps=self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class StyleEpilogue(AdaIN):
    """All that stands between two convolutions of StyleGAN: noise, bias, leaky ReLU, instance norm, style; fused.

    Karras et al. 2019, figure 1b and equation 1. Each channel has a noise strength of its own, zero at the start.

    Args:
        channels: of the activations.
        w_dim: of the style.
        noise: whether noise is added.
        slope, gain: of the leaky ReLU below zero, and the factor after it.
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
        noise: [N, 1, H, W] or [1, 1, H, W]; drawn anew from N(0, 1) if not given and the layer has noise.
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


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` in all it takes and computes, on `fastgan.ops.conv2d`.

    That is faster on CPUs where the output has few channels, and on some where it is differentiated twice. What it
    does not know (groups, dilation, unequal strides, padding other than by a number of zeros) is PyTorch's.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _is_plain(self) or x.dim() != 4:
            return super()._conv_forward(x, weight, bias)
        return conv2d(x, weight, bias, stride=self.stride[0], padding=self.padding)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` in all it takes and computes, on `fastgan.ops.conv_transpose2d`; as `Conv2d`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not _is_plain(self) or x.dim() != 4 or output_size is not None or any(self.output_padding):
            return super().forward(x, output_size)
        return conv_transpose2d(x, self.weight, self.bias, stride=self.stride[0], padding=self.padding)


def _is_plain(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return (
        conv.groups == 1
        and tuple(conv.dilation) == (1, 1)
        and conv.stride[0] == conv.stride[1]
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


class _Transposable(nn.Module):
    """Base of layers whose `weight` [O, I, k, k] a transposed convolution may read, as [I, O, k, k].

    In a network that is moved to channels_last, it is that view of it that is so: a weight in the other order would be
    copied at each call, and its gradient on the way back.
    """

    reads_transposed = False

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        weight = self.weight.data
        in_channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        if self.reads_transposed and in_channels_last:
            self.weight.data = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)
        return self


class ModulatedConv2d(_Transposable):
    """Convolution whose input channels are scaled by a style, and whose output is normalised for it.

        y[n,o] = d[n,o] * conv(style[n,i] * x[n,i], weight)[o],   d = rsqrt(sum_i style^2 * sum_k weight^2 + 1e-8)

    `fastgan.ops.modulated_conv2d` with an equalised weight (Karras et al. 2020, equations 1 and 3).

    Args:
        in_channels, out_channels, kernel_size: sizes; the kernel is square.
        demodulate: whether the output is normalised.
        up, down: one of them may be 2, to double or halve the resolution with a low-pass filter, as StyleGAN2.
        resample_filter: that filter, see `taps`.
    """

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

    def forward(self, x: Tensor, style: Tensor, *, scaled: bool = False, **epilogue) -> Tensor:
        """[N, in_channels, H, W] and a style [N, in_channels] to [N, out_channels, H * up / down, W * up / down].

        `scaled` says that `x` has been multiplied by the style already (the `post` of the layer before). `epilogue` are
        arguments of `noise_bias_act` to be applied in the same pass, such as `NoiseBiasLeakyReLU.arguments` gives.
        """
        return modulated_conv2d(
            x,
            self.weight,
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


class _ResampledConv2d(_Transposable):
    """What the two convolutions that are fused with resampling have in common."""

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
            if bias:
                nn.init.zeros_(self.bias)
        self.act = act
        self.gain = _default_gain(act, gain)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, gain = equalized(self)
        if self.act == "linear" and gain == 1:
            return self._convolve(x, weight, bias)
        return noise_bias_act(self._convolve(x, weight, None), bias=bias, act=self.act, gain=gain)

    def extra_repr(self) -> str:
        return f"{_sizes(self.weight)}, bias={self.bias is not None}, act={self.act}"


class UpsampleConv2d(_ResampledConv2d):
    """Nearest-neighbour upsampling by 2, then a convolution of the same padding, as one transposed convolution.

    [N, in_channels, H, W] to [N, out_channels, 2H, 2W]; the numbers of `nn.Upsample(scale_factor=2)` and `nn.Conv2d`,
    with parameters of the same names and shapes, at 2.25 times fewer multiplications (`fastgan.ops.upsample_conv2d`).

    Args:
        in_channels, out_channels, kernel_size: sizes; the kernel is square and odd.
        bias: whether there is one.
        equalized: equalised learning rate (PGGAN) instead of `nn.Conv2d`'s initialisation.
        act, gain: activation and the factor after it (see `noise_bias_act`); by default sqrt(2) for the relu family.
    """

    reads_transposed = True

    @staticmethod
    def _convolve(x, weight, bias):
        return upsample_conv2d(x, weight, bias)


class ConvDownsample2d(_ResampledConv2d):
    """A convolution that keeps the size, then 2x2 average pooling, as one convolution of stride 2.

    [N, in_channels, H, W] to [N, out_channels, H // 2, W // 2]; the numbers of `nn.Conv2d` and `nn.AvgPool2d(2)`, with
    parameters of the same names and shapes, at 2.25 times fewer multiplications (`fastgan.ops.conv_downsample2d`).
    Bias and activation come after the pooling, as in PGGAN.

    Args: as `UpsampleConv2d`.
    """

    @staticmethod
    def _convolve(x, weight, bias):
        return conv_downsample2d(x, weight, bias)


def _noise_for(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """From N(0, 1), the same for all channels."""
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
        """[N, C, ...] to the same; latents [N, C] as well."""
        return pixel_norm(x, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class MinibatchStddev(nn.Module):
    """Appends the standard deviation over groups of samples as a feature map (Karras et al. 2018, section 3).

    Args:
        group_size: samples a group; the batch must be a multiple of it, or smaller. None: the batch is one group.
        features: maps appended; the channels are split among them.
    """

    def __init__(self, group_size: int | None = 4, features: int = 1):
        super().__init__()
        self.group_size, self.features = group_size, features

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to [N, C + features, ...]."""
        return minibatch_stddev(x, self.group_size, self.features)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, features={self.features}"
