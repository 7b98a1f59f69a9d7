"""Drop-in layers over the fused operations; none knows of a model, a training loop or a configuration.

Layers named "Equalized" keep weights of unit variance and scale them at run time, so that the optimizer's step is the
same share of every weight (Karras et al. 2018, "Progressive Growing of GANs", section 4.1).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.ops import minibatch_stddev, noise_bias_act, pixel_norm
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.upfirdn2d import taps, upfirdn2d

SQRT2 = math.sqrt(2.0)


def _default_gain(act: str, gain: float | None) -> float:
    """The gain that keeps the variance of what passes through the activation, where none is given."""
    if gain is not None:
        return gain
    return SQRT2 if act in ("relu", "lrelu", "silu") else 1.0


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
        self.lr_multiplier = lr_multiplier
        self.act = act
        self.gain = _default_gain(act, gain)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_features] to [N, out_features]."""
        weight = self.weight * self.weight_gain
        bias = self.bias if self.bias is None or self.lr_multiplier == 1 else self.bias * self.lr_multiplier
        if self.act == "linear" and self.gain == 1:
            return F.linear(x, weight, bias)
        return noise_bias_act(F.linear(x, weight), bias=bias, act=self.act, gain=self.gain)

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
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"EqualizedConv2d: kernel_size is {kernel_size}, must be odd")
        if down not in (1, 2):
            raise ValueError(f"EqualizedConv2d: down is {down}, must be 1 or 2")
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.down = down
        self.act = act
        self.gain = _default_gain(act, gain)
        self.clamp = clamp
        if down == 2:
            self.register_buffer("resample_filter", taps(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H / down, W / down]."""
        kernel_size = self.weight.shape[-1]
        weight = self.weight * self.weight_gain
        if self.down == 1:
            y = F.conv2d(x, weight, padding=kernel_size // 2)
        elif kernel_size == 1:
            y = F.conv2d(upfirdn2d(x, self.resample_filter, down=2, padding=(1, 1, 1, 1)), weight)
        else:
            pad = 1 + kernel_size // 2
            y = F.conv2d(upfirdn2d(x, self.resample_filter, padding=(pad,) * 4), weight, stride=2)
        if self.bias is None and self.act == "linear" and self.gain == 1 and self.clamp is None:
            return y
        return noise_bias_act(y, bias=self.bias, act=self.act, gain=self.gain, clamp=self.clamp)

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel_size, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size={kernel_size}, down={self.down}, act={self.act}"


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
        if self.strength is None:
            noise = None
        elif noise is None:
            noise = torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device, dtype=torch.float32)
        return noise_bias_act(
            x,
            noise=noise,
            strength=self.strength,
            bias=self.bias,
            scale=scale,
            post=post,
            slope=self.slope,
            gain=self.gain,
            clamp=self.clamp,
        )


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style, and whose output is normalised for it.

        y[n,o] = d[n,o] * conv(style[n,i] * x[n,i], weight)[o],   d = rsqrt(sum_i style^2 * sum_k weight^2 + 1e-8)

    One convolution with weights shared by the whole batch: the style scales the activations, never a copy of the
    weights for each sample (Karras et al. 2020, equations 1 and 3). `scaled` and `post` let neighbours do the scaling
    in their own elementwise pass; `demodulation` is what a fused epilogue needs for `d`.

    Args:
        in_channels, out_channels, kernel_size: sizes; the kernel is square and odd.
        demodulate: whether the output is normalised.
        up: 1, or 2 to double the resolution (transposed convolution and low-pass filter, as StyleGAN2).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, demodulate: bool = True, up: int = 1):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"ModulatedConv2d: kernel_size is {kernel_size}, must be odd")
        if up not in (1, 2):
            raise ValueError(f"ModulatedConv2d: up is {up}, must be 1 or 2")
        if up == 2 and kernel_size > 5:
            raise ValueError(f"ModulatedConv2d: kernel_size is {kernel_size}, must be 1, 3 or 5 with up=2")
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        # Demodulation cancels this factor; it keeps the convolution's own result in the range of 16-bit floats.
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate = demodulate
        self.up = up
        if up == 2:
            self.register_buffer("resample_filter", taps(), persistent=False)

    def demodulation(self, style: Tensor) -> Tensor:
        """The factor `d` [N, out_channels] in fp32 at least for a style [N, in_channels]."""
        with torch.autocast(style.device.type, enabled=False):
            energy = (to_arithmetic(self.weight) * self.weight_gain).square().sum((2, 3))  # [O, I]
            return torch.rsqrt(to_arithmetic(style).square() @ energy.t() + 1e-8)

    def convolve(self, x: Tensor, style: Tensor, *, scaled: bool = False) -> Tensor:
        """The convolution before demodulation: [N, in_channels, H, W] to [N, out_channels, H * up, W * up].

        `scaled` says that `x` has been multiplied by the style already (the `post` of the layer before).
        """
        if not scaled:
            x = noise_bias_act(x, scale=style, act="linear")
        weight = self.weight * self.weight_gain
        padding = self.weight.shape[-1] // 2
        if self.up == 1:
            return F.conv2d(x, weight, padding=padding)
        y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # [N, O, 2H - 2 + k, ...]
        pad = 2 - padding
        return upfirdn2d(y, self.resample_filter, padding=(pad, pad, pad, pad), gain=4.0)

    def forward(self, x: Tensor, style: Tensor, *, scaled: bool = False) -> Tensor:
        """[N, in_channels, H, W] and a style [N, in_channels] to [N, out_channels, H * up, W * up]."""
        y = self.convolve(x, style, scaled=scaled)
        return noise_bias_act(y, scale=self.demodulation(style), act="linear") if self.demodulate else y

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel_size, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size={kernel_size}, up={self.up}, demodulate={self.demodulate}"


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
        group_size: samples a group; the batch must be a multiple of it, or smaller.
        features: maps appended; the channels are split among them.
    """

    def __init__(self, group_size: int = 4, features: int = 1):
        super().__init__()
        self.group_size, self.features = group_size, features

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to [N, C + features, ...]."""
        return minibatch_stddev(x, self.group_size, self.features)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, features={self.features}"
