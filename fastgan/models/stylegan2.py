"""StyleGAN2: mapping network, skip generator, residual critic (Karras et al. 2020, arXiv 1912.04958)."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.layers import EqualizedConv2d, EqualizedLinear, MinibatchStddev, ModulatedConv2d, NoiseBiasLeakyReLU
from fastgan.ops import noise_bias_act, pixel_norm
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last
from fastgan.ops.upfirdn2d import taps, upfirdn2d


class Mapping(nn.Module):
    """z [N, z_dim] and a label [N] to w [N, w_dim]; keeps the running mean of w for truncation."""

    def __init__(self, config):
        super().__init__()
        width = config.z_dim
        self.embed = EqualizedLinear(config.num_classes, width) if config.num_classes else None
        sizes = [width * (2 if config.num_classes else 1)] + [width] * config.mapping_layers
        self.layers = nn.ModuleList(
            EqualizedLinear(i, o, act="lrelu", lr_multiplier=config.mapping_lr) for i, o in itertools.pairwise(sizes)
        )
        self.register_buffer("w_avg", torch.zeros(width))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = pixel_norm(z)
        if self.embed is not None:
            x = torch.cat([x, pixel_norm(_embedded(self.embed, label))], 1)
        for layer in self.layers:
            x = layer(x)
        if self.training and torch.is_grad_enabled():
            self.w_avg.lerp_(x.detach().mean(0, dtype=self.w_avg.dtype), 1 - 0.995)
        return x


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU: the convolution and one elementwise pass."""

    def __init__(self, config, in_channels: int, out_channels: int, resolution: int, up: int = 1):
        super().__init__()
        self.affine = EqualizedLinear(config.z_dim, in_channels, bias_init=1.0)
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, up=up)
        self.epilogue = NoiseBiasLeakyReLU(out_channels, clamp=256.0)
        self.register_buffer("noise_const", torch.randn(1, 1, resolution, resolution))

    def forward(self, x: Tensor, style: Tensor, noise: str, *, scaled: bool = False, post: Tensor | None = None):
        field = None  # drawn anew
        if noise != "random":
            field = self.noise_const if noise == "const" else torch.zeros_like(self.noise_const)
        shape = (len(x), 1, *self.noise_const.shape[2:])
        return self.conv(x, style, scaled=scaled, post=post, **self.epilogue.arguments(shape, x.device, field))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the image, not demodulated: so narrow that a matrix product a sample serves."""

    def __init__(self, config, in_channels: int):
        super().__init__()
        self.affine = EqualizedLinear(config.z_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(config.channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(config.channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        n, c, height, width = x.shape
        style = self.affine(w) / math.sqrt(c)
        weight = style[:, :, None] * self.weight.t()  # [N, C, 3]
        y = torch.bmm(x.permute(0, 2, 3, 1).reshape(n, height * width, c), weight.to(x.dtype))  # a view of NHWC
        y = y.reshape(n, height, width, -1).permute(0, 3, 1, 2)
        return noise_bias_act(y, bias=self.bias, act="linear", clamp=256.0)


class Synthesis(nn.Module):
    """ws [N, num_ws, w_dim] to the image: one ToRGB a resolution, summed while upsampling ("skip" architecture)."""

    def __init__(self, config):
        super().__init__()
        channels = [config.features(r) for r in config.resolutions]
        self.num_ws = 2 * len(channels)
        self.const = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        self.first = SynthesisLayer(config, channels[0], channels[0], 4)
        self.up = nn.ModuleList()
        self.same = nn.ModuleList()
        for r, before, after in zip(config.resolutions[1:], channels, channels[1:], strict=False):
            self.up.append(SynthesisLayer(config, before, after, r, up=2))
            self.same.append(SynthesisLayer(config, after, after, r))
        self.to_rgb = nn.ModuleList(ToRGB(config, c) for c in channels)
        self.register_buffer("resample_filter", taps(), persistent=False)

    def forward(self, ws: Tensor, noise: str | Sequence[str] = "random") -> Tensor:
        """`noise` is "random", "const" (the fixed noise image of each layer) or "none", or one such word a layer."""
        w = ws.unbind(1)
        noise = _noise_words(noise, self.num_ws - 1)
        x = self.const.expand(len(ws), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.first(x, self.first.affine(w[0]), noise[0])
        image = self.to_rgb[0](x, w[1])
        for i, (up, same, to_rgb) in enumerate(zip(self.up, self.same, self.to_rgb[1:], strict=True)):
            style = same.affine(w[2 * i + 2])
            # Read by `same` alone: it may be scaled here.
            x = up(x, up.affine(w[2 * i + 1]), noise[2 * i + 1], post=style)
            x = same(x, style, noise[2 * i + 2], scaled=True)
            image = self._upsampled(image) + to_rgb(x, w[2 * i + 3])
        return to_arithmetic(image)

    def _upsampled(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):  # errors of 16 bits would add up
            return upfirdn2d(to_arithmetic(image), self.resample_filter, up=2, padding=(2, 1, 2, 1), gain=4.0)


class Generator(nn.Module):
    """z [N, z_dim], label [N] to an image [N, channels, R, R] of nominal range [-1, 1], fp32."""

    supports = frozenset({"style_mixing", "truncation", "noise"})

    def __init__(self, config):
        super().__init__()
        self.z_dim = config.z_dim
        self.mapping = Mapping(config)
        self.synthesis = Synthesis(config)
        self.num_ws = self.synthesis.num_ws
        self.noise_resolutions = [4, *(r for r in config.resolutions[1:] for _ in range(2))]  # of each layer with noise

    def forward(
        self,
        z: Tensor,
        label: Tensor | None = None,
        *,
        style_mixing: float = 0.0,
        truncation: float = 1.0,
        noise: str | Sequence[str] = "random",
    ) -> Tensor:
        """`synthesize` of `styles`; their arguments."""
        return self.synthesize(self.styles(z, label, style_mixing=style_mixing, truncation=truncation), noise=noise)

    def styles(
        self, z: Tensor, label: Tensor | None = None, *, style_mixing: float = 0.0, truncation: float = 1.0
    ) -> Tensor:
        """The style of each layer, ws [N, num_ws, w_dim].

        Args:
            z: [N, z_dim] from N(0, 1).
            label: [N] int64 class indices, for a conditional generator.
            style_mixing: probability that a sample's later layers take the w of another latent.
            truncation: psi; w is drawn towards its mean by this factor (1: not at all).
        """
        ws = self.mapping(z, label)[:, None].expand(-1, self.num_ws, -1)
        if style_mixing:
            other = self.mapping(torch.randn_like(z), label)[:, None]
            layer = torch.arange(self.num_ws, device=z.device)
            cutoff = torch.randint(1, self.num_ws, (len(z), 1), device=z.device)
            cutoff = torch.where(torch.rand(len(z), 1, device=z.device) < style_mixing, cutoff, self.num_ws)
            ws = torch.where((layer < cutoff)[:, :, None], ws, other)
        if truncation != 1:
            ws = self.mapping.w_avg.lerp(ws.to(self.mapping.w_avg.dtype), truncation)
        return ws

    def synthesize(self, ws: Tensor, *, noise: str | Sequence[str] = "random") -> Tensor:
        """The image of styles ws [N, num_ws, w_dim].

        noise: "random", "const" (the fixed noise image of each layer) or "none"; or a sequence of these words, one for
        each of `noise_resolutions`.
        """
        return self.synthesis(ws, noise)


def _noise_words(noise: str | Sequence[str], layers: int) -> list[str]:
    words = [noise] * layers if isinstance(noise, str) else list(noise)
    if len(words) != layers or not {*words} <= {"random", "const", "none"}:
        raise ValueError(
            f"noise is {noise!r}, must be 'random', 'const' or 'none', or {layers} such words, one a layer"
        )
    return words


class ResidualBlock(nn.Module):
    """Halves the resolution; both branches are scaled so that the variance of their sum stays 1."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = EqualizedConv2d(in_channels, in_channels, 3, act="lrelu", clamp=256.0)
        self.down = EqualizedConv2d(in_channels, out_channels, 3, down=2, act="lrelu", gain=1.0, clamp=256.0)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, down=2)
        self.skip.weight_gain *= math.sqrt(0.5)  # in the small weight instead of the large activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.conv(x)) + self.skip(x)  # sqrt(2) of lrelu and sqrt(1/2) of the sum make gain 1


class Critic(nn.Module):
    """image [N, channels, R, R], label [N] to logits [N] in fp32; labels by projection (Miyato & Koyama 2018)."""

    def __init__(self, config):
        super().__init__()
        channels = [config.features(r) for r in reversed(config.resolutions)]
        last = channels[-1]
        self.from_rgb = EqualizedConv2d(config.channels, channels[0], 1, act="lrelu", clamp=256.0)
        self.blocks = nn.ModuleList(ResidualBlock(i, o) for i, o in itertools.pairwise(channels))
        self.stddev = MinibatchStddev()
        self.conv = EqualizedConv2d(last + 1, last, 3, act="lrelu", clamp=256.0)
        self.dense = EqualizedLinear(last * 16, last, act="lrelu")
        self.embed = EqualizedLinear(config.num_classes, last) if config.num_classes else None
        self.out = EqualizedLinear(last, last if config.num_classes else 1)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.from_rgb(channels_last(image))
        for block in self.blocks:
            x = block(x)
        x = self.out(self.dense(self.conv(self.stddev(x)).flatten(1)))
        x = to_arithmetic(x)
        if self.embed is None:
            return x.squeeze(1)
        direction = pixel_norm(to_arithmetic(_embedded(self.embed, label)))
        return (x * direction).sum(1) / math.sqrt(x.shape[1])


def _embedded(embed: EqualizedLinear, label: Tensor | None) -> Tensor:
    num_classes = embed.weight.shape[1]
    if label is None:
        raise ValueError(f"this network has {num_classes} classes: it needs a label [N] for every sample")
    return embed(F.one_hot(label, num_classes).to(embed.weight.dtype))
