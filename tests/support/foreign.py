"""Layers as other code bases have them, written anew from their public interface: names, shapes, what is computed."""

import math
import types

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SQRT2 = math.sqrt(2)


def direct_upfirdn2d(x, kernel, up=(1, 1), down=(1, 1), pads=(0, 0, 0, 0), flip=False):
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h * up[1], w * up[0])
    spread[:, :, :: up[1], :: up[0]] = x
    kernel = (kernel if flip else kernel.flip(0, 1)).to(x.dtype)
    return F.conv2d(F.pad(spread, pads), kernel.expand(c, 1, -1, -1), groups=c)[:, :, :: down[1], :: down[0]]


def resampling_kernel(gain=1):
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(row, row) / 64 * gain


# ---- rosinality's StyleGAN2 ------------------------------------------------------------------------------------------


class _Filter(nn.Module):
    def __init__(self, pad, gain=1, factor=2):
        super().__init__()
        self.register_buffer("kernel", resampling_kernel(gain))
        self.pad, self.factor = pad, factor


class Upsample(_Filter):
    def __init__(self):
        super().__init__((2, 1), gain=4)

    def forward(self, input):
        return direct_upfirdn2d(input, self.kernel, up=(self.factor,) * 2, pads=self.pad * 2)


class Downsample(_Filter):
    def __init__(self):
        super().__init__((1, 1))

    def forward(self, input):
        return direct_upfirdn2d(input, self.kernel, down=(self.factor,) * 2, pads=self.pad * 2)


class Blur(_Filter):
    def forward(self, input):
        return direct_upfirdn2d(input, self.kernel, pads=self.pad * 2)


class FusedLeakyReLU(nn.Module):
    def __init__(self, channels, negative_slope=0.2, scale=SQRT2):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, input):
        biased = input + self.bias.view(1, -1, *[1] * (input.dim() - 2))
        return self.scale * F.leaky_relu(biased, self.negative_slope)


class EqualLinear(nn.Module):
    def __init__(self, in_dim, out_dim, lr_mul=1.0, activation=None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_mul)
        self.bias = nn.Parameter(torch.ones(out_dim))
        self.scale, self.lr_mul, self.activation = lr_mul / math.sqrt(in_dim), lr_mul, activation

    def forward(self, input):
        y = F.linear(input, self.scale * self.weight, self.lr_mul * self.bias)
        return SQRT2 * F.leaky_relu(y, 0.2) if self.activation else y


class PixelNorm(nn.Module):
    def forward(self, input):
        return input / (input.square().mean(1, keepdim=True) + 1e-8).sqrt()


class ModulatedConv2d(nn.Module):
    def __init__(self, i, o, k, style_dim, demodulate=True, upsample=False, downsample=False, eps=1e-8):
        super().__init__()
        if upsample:
            self.blur = Blur((1, 1) if k == 3 else (2, 2), gain=4)
        elif downsample:
            self.blur = Blur((2, 2) if k == 3 else (1, 1))
        self.weight = nn.Parameter(torch.randn(1, o, i, k, k))
        self.modulation = EqualLinear(style_dim, i)
        self.scale = 1 / math.sqrt(i * k * k)
        self.demodulate, self.upsample, self.downsample, self.eps = demodulate, upsample, downsample, eps

    def forward(self, input, style):
        weight, images = self.scale * self.weight * self.modulation(style)[:, None, :, None, None], []
        if self.demodulate:
            weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + self.eps).sqrt()
        for image, w in zip(input.split(1), weight, strict=True):
            if self.upsample:
                images.append(self.blur(F.conv_transpose2d(image, w.transpose(0, 1), stride=2)))
            elif self.downsample:
                images.append(F.conv2d(self.blur(image), w, stride=2))
            else:
                images.append(F.conv2d(image, w, padding=w.shape[-1] // 2))
        return torch.cat(images)


class NoiseInjection(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image, noise=None):
        if noise is None:
            noise = image.new_empty(len(image), 1, *image.shape[2:]).normal_()
        return image + self.weight * noise


class StyledConv(nn.Module):
    def __init__(self, i, o, style_dim, upsample=False):
        super().__init__()
        self.conv = ModulatedConv2d(i, o, 3, style_dim, upsample=upsample)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(o)

    def forward(self, input, style, noise=None):
        return self.activate(self.noise(self.conv(input, style), noise=noise))


class Generator(nn.Module):
    """A mapping, a block, and a convolution to RGB."""

    def __init__(self, channels=6, style_dim=5):
        super().__init__()
        self.style = nn.Sequential(PixelNorm(), EqualLinear(style_dim, style_dim, 0.01, activation="fused_lrelu"))
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.conv1 = StyledConv(channels, channels, style_dim, upsample=True)
        self.conv2 = StyledConv(channels, channels, style_dim)
        self.to_rgb = ModulatedConv2d(channels, 3, 1, style_dim, demodulate=False)
        self.upsample = Upsample()

    def forward(self, z):
        w = self.style(z)
        x = self.conv2(self.conv1(self.input.expand(len(z), -1, -1, -1), w), w)
        return self.upsample(self.to_rgb(x, w))


# ---- adaptive instance normalisation ---------------------------------------------------------------------------------


class Equalized:
    """A forward pre-hook that makes the weight from another parameter."""

    def __call__(self, module, args):
        module.weight = module.weight_orig * math.sqrt(2 / module.weight_orig.shape[1])


def equalized(layer):
    weight = layer.weight
    del layer._parameters["weight"]
    layer.weight_orig = nn.Parameter(weight.data)
    layer.register_forward_pre_hook(Equalized())
    return layer


class AdaptiveInstanceNorm(nn.Module):
    """style-based-gan-pytorch's: the style has the scale itself, and comes from a layer with a hook."""

    def __init__(self, channels, style_dim):
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.style = equalized(nn.Linear(style_dim, 2 * channels))

    def forward(self, input, style):
        gamma, beta = self.style(style)[:, :, None, None].chunk(2, 1)
        return gamma * self.norm(input) + beta


class AdaIN(nn.Module):
    """StarGAN v2's, and vocoders' in one dimension: the style has the distance of the scale from 1."""

    def __init__(self, style_dim, channels, norm=nn.InstanceNorm2d):
        super().__init__()
        self.norm = norm(channels)
        self.fc = nn.Linear(style_dim, 2 * channels)

    def forward(self, x, s):
        gamma, beta = self.fc(s).view(len(s), -1, *[1] * (x.dim() - 2)).chunk(2, 1)
        return (1 + gamma) * self.norm(x) + beta


# ---- StyleGAN1 ------------------------------------------------------------------------------------------------------


class StyleGAN1:
    """Layers of style-based-gan-pytorch whose names StyleGAN2 has as well."""

    class Blur(nn.Module):
        """A copy of the filter for each channel."""

        def __init__(self, channels):
            super().__init__()
            row = torch.tensor([1.0, 2.0, 1.0]) / 4
            self.register_buffer("weight", torch.outer(row, row).expand(channels, 1, 3, 3).clone())
            self.register_buffer("weight_flip", self.weight.flip(2, 3))

        def forward(self, input):
            return F.conv2d(input, self.weight, padding=1, groups=len(self.weight))


class EqualConv2d(nn.Module):
    def __init__(self, *sizes, **options):
        super().__init__()
        self.conv = equalized(nn.Conv2d(*sizes, **options))

    def forward(self, input):
        return self.conv(input)


class BlurLayer(nn.Module):
    """StyleGAN.pytorch's."""

    def __init__(self, kernel=(1, 2, 1), stride=1):
        super().__init__()
        row = torch.tensor(kernel, dtype=torch.float32)
        self.register_buffer("kernel", (torch.outer(row, row) / row.sum() ** 2)[None, None])
        self.stride = stride

    def forward(self, x):
        filters, pad = self.kernel.expand(x.shape[1], -1, -1, -1), (self.kernel.shape[2] - 1) // 2
        return F.conv2d(x, filters, stride=self.stride, padding=pad, groups=x.shape[1])


class EqualizedConv2d(nn.Module):
    """StyleGAN.pytorch's, with what comes between the convolution and its bias."""

    def __init__(self, i, o, kernel_size, intermediate=None, downscale=None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(o))
        self.kernel_size, self.w_mul, self.b_mul = kernel_size, math.sqrt(2 / (i * kernel_size**2)), 1
        self.upscale, self.intermediate, self.downscale = None, intermediate, downscale

    def forward(self, x):
        x = F.conv2d(x, self.weight * self.w_mul, padding=self.kernel_size // 2)
        for part in (self.intermediate, self.downscale):
            x = x if part is None else part(x)
        return x + self.bias.view(1, -1, 1, 1) * self.b_mul


# ---- lucidrains' StyleGAN2 ------------------------------------------------------------------------------------------


class Conv2DMod(nn.Module):
    def __init__(self, i, o, kernel, demod=True, stride=1, eps=1e-8):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, kernel, kernel))
        self.kernel, self.demod, self.stride, self.dilation, self.eps = kernel, demod, stride, 1, eps

    def forward(self, x, y):
        images, pad = [], (self.kernel - 1) // 2
        for image, distance in zip(x.split(1), y, strict=True):
            w = self.weight * (1 + distance)[:, None, None]
            if self.demod:
                w = w * torch.rsqrt(w.square().sum((1, 2, 3), keepdim=True) + self.eps)
            images.append(F.conv2d(image, w, padding=pad))
        return torch.cat(images)


# ---- NVIDIA's StyleGAN2: layers -------------------------------------------------------------------------------------

ACTIVATIONS = {
    "linear": (lambda x, a: x, 1), "relu": (lambda x, a: F.relu(x), SQRT2),
    "lrelu": (lambda x, a: F.leaky_relu(x, 0.2 if a is None else a), SQRT2), "tanh": (lambda x, a: x.tanh(), 1),
    "sigmoid": (lambda x, a: x.sigmoid(), 1), "elu": (lambda x, a: F.elu(x), 1),
    "softplus": (lambda x, a: F.softplus(x), 1), "swish": (lambda x, a: x * x.sigmoid(), SQRT2),
}  # fmt: skip


def plain_bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None):
    if b is not None:
        x = x + b.view([-1 if i == dim else 1 for i in range(x.dim())])
    function, usual = ACTIVATIONS[act]
    gain = usual if gain is None else gain
    x = function(x, alpha)
    x = x if gain == 1 else x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


class FullyConnectedLayer(nn.Module):
    def __init__(self, i, o, activation="linear", lr_multiplier=1):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(o, i) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(o))
        self.weight_gain, self.bias_gain = lr_multiplier / math.sqrt(i), lr_multiplier

    def forward(self, x):
        b = self.bias if self.bias_gain == 1 else self.bias * self.bias_gain
        return plain_bias_act(x @ (self.weight * self.weight_gain).t(), b, act=self.activation)


class Conv2dLayer(nn.Module):
    def __init__(self, i, o, k, bias=True, activation="linear", up=1, down=1, conv_clamp=None, trainable=True):
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.register_buffer("resample_filter", resampling_kernel())
        self.padding, self.weight_gain = k // 2, 1 / math.sqrt(i * k * k)
        self.act_gain = ACTIVATIONS[activation][1]
        weight, bias = torch.randn(o, i, k, k), torch.zeros(o) if bias else None
        if trainable:
            self.weight, self.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)

    def forward(self, x, gain=1):
        assert self.resample_filter.dtype == torch.float32  # as the official functions want it
        w, pad = self.weight * self.weight_gain, self.padding
        if self.up == 2:
            x = direct_upfirdn2d(F.conv2d(x, w), 4 * self.resample_filter, up=(2, 2), pads=(2, 1, 2, 1))
        elif self.down == 2:
            x = F.conv2d(direct_upfirdn2d(x, self.resample_filter, pads=(pad + 1,) * 4), w, stride=2)
        else:
            x = F.conv2d(x, w, padding=pad)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return plain_bias_act(x, self.bias, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


def modulated_by_samples(x, weight, styles, up=1, demodulate=True, f=None):
    images = []
    for image, style in zip(x.split(1), styles, strict=True):
        w = weight * style[:, None, None]
        if demodulate:
            w = w * (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        if up == 2:
            image = F.conv_transpose2d(image, w.transpose(0, 1), stride=2)
            images.append(direct_upfirdn2d(image, 4 * f, pads=(1,) * 4))
        else:
            images.append(F.conv2d(image, w, padding=weight.shape[-1] // 2))
    return torch.cat(images)


class SynthesisLayer(nn.Module):
    def __init__(self, i, o, w_dim, resolution, up=1, use_noise=True, activation="lrelu", conv_clamp=None):
        super().__init__()
        self.resolution, self.up, self.use_noise = resolution, up, use_noise
        self.activation, self.conv_clamp, self.padding = activation, conv_clamp, 1
        self.register_buffer("resample_filter", resampling_kernel())
        self.act_gain = ACTIVATIONS[activation][1]
        self.affine = FullyConnectedLayer(w_dim, i)
        self.weight, self.bias = nn.Parameter(torch.randn(o, i, 3, 3)), nn.Parameter(torch.zeros(o))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, x, w, noise_mode="random", fused_modconv=True, gain=1):
        assert x.shape[2:] == (self.resolution // self.up,) * 2
        styles = self.affine(w)
        y = modulated_by_samples(x, self.weight, styles, self.up, f=self.resample_filter.to(x.dtype))
        if self.use_noise and noise_mode == "random":
            y = y + torch.randn(len(x), 1, self.resolution, self.resolution) * self.noise_strength
        elif self.use_noise and noise_mode == "const":
            y = y + self.noise_const * self.noise_strength
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return plain_bias_act(y, self.bias, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


class ToRGBLayer(nn.Module):
    def __init__(self, i, o, w_dim, conv_clamp=None):
        super().__init__()
        self.conv_clamp, self.weight_gain = conv_clamp, 1 / math.sqrt(i)
        self.affine = FullyConnectedLayer(w_dim, i)
        self.weight, self.bias = nn.Parameter(torch.randn(o, i, 1, 1)), nn.Parameter(torch.zeros(o))

    def forward(self, x, w, fused_modconv=True):
        y = modulated_by_samples(x, self.weight, self.affine(w) * self.weight_gain, demodulate=False)
        return plain_bias_act(y, self.bias, clamp=self.conv_clamp)


class StyleGAN3:
    """Has a layer of the same name as StyleGAN2's."""

    class SynthesisLayer(nn.Module):
        """Twice the rate for the nonlinearity, unless to the image; computes in fp32, whatever x is."""

        def __init__(self, i, o, w_dim, size, *, up=2, down=2, k=3, is_torgb=False, radial=False, conv_clamp=0.8):
            super().__init__()
            self.is_torgb, self.use_fp16, self.conv_clamp = is_torgb, np.bool_(False), conv_clamp
            self.up_factor, self.down_factor, self.magnitude_ema_beta = up, down, 0.9
            self.in_size = np.array([size, size])
            self.out_size = self.in_size * up // down
            self.affine = FullyConnectedLayer(w_dim, i)
            self.weight, self.bias = nn.Parameter(torch.randn(o, i, k, k)), nn.Parameter(torch.zeros(o))
            self.register_buffer("magnitude_ema", torch.ones(()))
            down_filter = torch.randn((6 * down,) * (2 if radial else 1))
            self.register_buffer("up_filter", None if is_torgb else torch.randn(6 * up))
            self.register_buffer("down_filter", None if is_torgb else down_filter)
            taps = 0 if is_torgb else 6 * (up + down) - 2
            total = int((self.out_size[0] - 1) * down + 1 - (size + k - 1) * up + taps)
            self.padding = [(total + up) // 2, total - (total + up) // 2] * 2

        def forward(self, x, w, noise_mode="random", force_fp32=False, update_emas=False):
            assert x.shape[2:] == tuple(self.in_size)
            if update_emas:
                magnitude = x.detach().float().square().mean()
                self.magnitude_ema.copy_(magnitude.lerp(self.magnitude_ema, self.magnitude_ema_beta))
            s, weight, k = self.affine(w), self.weight, self.weight.shape[-1]
            if self.is_torgb:
                s = s / math.sqrt(weight[0].numel())
            function, gain = stylegan3_networks().modulated_conv2d, self.magnitude_ema.rsqrt()
            x = function(x.float(), weight, s, not self.is_torgb, k - 1, gain) + self.bias[:, None, None].float()
            x = self._filtered(x, self.up_filter, up=(self.up_factor,) * 2, pads=self.padding) * self.up_factor**2
            x = x if self.is_torgb else F.leaky_relu(x, 0.2) * SQRT2
            x = x.clamp(-self.conv_clamp, self.conv_clamp)
            return self._filtered(x, self.down_filter)[:, :, :: self.down_factor, :: self.down_factor]

        @staticmethod
        def _filtered(x, f, **options):
            f = torch.ones(1) if f is None else f
            assert f.dtype == torch.float32
            return direct_upfirdn2d(x, torch.outer(f, f) if f.dim() == 1 else f, **options)


class MinibatchStdLayer(nn.Module):
    def __init__(self, group_size, num_channels=1):
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x):
        n, c, h, w = x.shape
        size = n if self.group_size is None else min(self.group_size, n)
        groups = x.reshape(size, -1, self.num_channels, c // self.num_channels, h, w)
        deviation = ((groups - groups.mean(0)).square().mean(0) + 1e-8).sqrt().mean((2, 3, 4))
        return torch.cat([x, deviation[:, :, None, None].repeat(size, 1, h, w)], 1)


# ---- modules of functions --------------------------------------------------------------------------------------------


def official_bias_act():
    """A module like `torch_utils.ops.bias_act`; it counts its calls."""
    module = types.ModuleType("torch_utils.ops.bias_act")
    module.calls = 0

    def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
        module.calls += 1
        return plain_bias_act(x, b, dim, act, alpha, gain, clamp)

    module.bias_act = bias_act
    return module


def official_upfirdn2d():
    """A module like `torch_utils.ops.upfirdn2d`, with one function that calls the other; it counts its calls."""
    module = types.ModuleType("torch_utils.ops.upfirdn2d")
    module.calls = 0

    def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
        module.calls += 1
        pair = lambda value: (value, value) if isinstance(value, int) else tuple(value)
        f = torch.ones(1, 1) if f is None else f.to(x.dtype)
        f = torch.outer(f, f) if f.dim() == 1 else f
        pads = pair(padding)
        pads = (pads[0], pads[0], pads[1], pads[1]) if len(pads) == 2 else pads
        return direct_upfirdn2d(x, f * gain, pair(up), pair(down), pads, flip_filter)

    def upsample2d(x, f, up=2):
        return module.upfirdn2d(x, f, up=up, padding=[2, 1, 2, 1], gain=up * up)

    module.upfirdn2d, module.upsample2d = upfirdn2d, upsample2d
    return module


def official_filtered_lrelu():
    """A module like `torch_utils.ops.filtered_lrelu`; it counts its calls."""
    module, filters = types.ModuleType("torch_utils.ops.filtered_lrelu"), official_upfirdn2d()
    module.calls = 0

    def filtered_lrelu(
        x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=2**0.5, slope=0.2, clamp=None, flip_filter=False,
        impl="cuda",
    ):  # fmt: skip
        module.calls += 1
        x = x if b is None else x + b.to(x.dtype)[:, None, None]
        x = filters.upfirdn2d(x, fu, up=up, padding=padding, gain=up**2, flip_filter=flip_filter)
        x = nn.functional.leaky_relu(x, slope) * gain
        x = x if clamp is None else x.clamp(-clamp, clamp)
        return filters.upfirdn2d(x, fd, down=down, flip_filter=flip_filter)

    module.filtered_lrelu = filtered_lrelu
    return module


def official_networks():
    """A module with a function `modulated_conv2d`, whose parameters a decorator hides."""
    module = types.ModuleType("training.networks")

    def plain(
        x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None, demodulate=True,
        flip_weight=True, fused_modconv=True,
    ):  # fmt: skip
        layer = ModulatedConv2d(weight.shape[1], len(weight), weight.shape[-1], 1, demodulate, up == 2, down == 2)
        layer.scale, layer.modulation = 1.0, nn.Identity()
        if up == 2 or down == 2:
            layer.blur.kernel = resample_filter.to(x.dtype) * up * up
        del layer.weight
        layer.__dict__["weight"] = (weight if flip_weight == (up == 1) else weight.flip(2, 3))[None]
        y = layer(x, styles)
        return y if noise is None else y + noise

    module.modulated_conv2d = lambda *a, **k: plain(*a, **k)
    return module


def stylegan3_networks():
    """A module with StyleGAN3's `modulated_conv2d`, which shares the name with another function."""
    module = types.ModuleType("training.networks_stylegan3")

    def plain(x, w, s, demodulate=True, padding=0, input_gain=None):
        if demodulate:
            w = w * w.square().mean((1, 2, 3), keepdim=True).rsqrt()
            s = s * s.square().mean().rsqrt()
        w = w * s[:, None, :, None, None]
        if demodulate:
            w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        if input_gain is not None:
            w = w * input_gain.expand(s.shape)[:, None, :, None, None]
        w = w.to(x.dtype)
        return torch.cat([F.conv2d(image, each, padding=padding) for image, each in zip(x.split(1), w, strict=True)])

    module.modulated_conv2d = lambda *a, **k: plain(*a, **k)
    return module


class OfficialSynthesis(nn.Module):
    """Two layers that end in a leaky ReLU, and one that makes colours of each, on the functions of official modules."""

    def __init__(self, bias_act, networks, channels=4, w_dim=5, clamp=0.8):
        super().__init__()
        self.functions, self.clamp = lambda: (bias_act.bias_act, networks.modulated_conv2d), clamp
        self.const = nn.Parameter(torch.randn(channels, 4, 4))
        self.mapping = FullyConnectedLayer(w_dim, w_dim, "lrelu")
        sizes = [(channels, 3), (3, 1), (channels, 3), (3, 1)]
        self.affines = nn.ModuleList([FullyConnectedLayer(w_dim, channels) for _ in sizes])
        self.weights = nn.ParameterList([torch.randn(o, channels, k, k) for o, k in sizes])
        self.biases = nn.ParameterList([torch.randn(o) * 0.1 for o, _ in sizes])

    def forward(self, w):
        """Styles [N, w_dim] to images."""
        bias_act, modulated_conv2d = self.functions()
        x, image = self.const.expand(len(w), -1, -1, -1), 0
        for affine, weight, bias in zip(self.affines, self.weights, self.biases, strict=True):
            style = affine(w) + 1
            if weight.shape[-1] == 3:
                x = modulated_conv2d(x, weight, style, padding=1)
                x = bias_act(x, bias, act="lrelu", clamp=self.clamp)
            else:
                y = modulated_conv2d(x, weight, style, demodulate=False)
                image = image + bias_act(y, bias, clamp=self.clamp)
        return image
