"""StyleGAN2: mapping network, skip generator, residual critic (Karras et al. 2020, arXiv 1912.04958)."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.layers import EqualizedConv2d, EqualizedLinear, MinibatchStddev, ModulatedConv2d, NoiseBiasLeakyReLU
from fastgan.models.labels import projected
from fastgan.models.mapping import Mapping, StyleBased, dense_layers, noise_field, noise_words
from fastgan.models.recomputing import Recomputing
from fastgan.ops import noise_bias_act
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last
from fastgan.ops.upfirdn2d import taps, upfirdn2d

ANY_SHAPE = True  # also of images that are not square


def names_at_any_resolution(config) -> tuple[dict[str, str], dict[str, str]]:
    """See `fastgan.models.names_at_any_resolution`."""
    top = config.resolution
    return {}, {"from_rgb": f"from_rgb.{top}"} | {
        f"blocks.{i}": f"blocks.{top >> i}" for i in range(len(config.resolutions) - 1)
    }


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU: the convolution and one elementwise pass."""

    def __init__(self, config, in_channels: int, out_channels: int, resolution: int, up: int = 1):
        super().__init__()
        self.affine = EqualizedLinear(config.z_dim, in_channels, bias_init=1.0)
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, up=up)
        self.epilogue = NoiseBiasLeakyReLU(out_channels, clamp=config.conv_clamp)
        self.register_buffer("noise_const", torch.randn(1, 1, *config.plane(resolution)))

    def forward(self, x: Tensor, style: Tensor, noise: str, *, scaled: bool = False, post: Tensor | None = None):
        field = noise_field(noise, self.noise_const)
        shape = (x.shape[0], 1, *self.noise_const.shape[2:])
        return self.conv(x, style, scaled=scaled, post=post, **self.epilogue.arguments(shape, x.device, field))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the image, not demodulated: so narrow that a matrix product a sample serves."""

    def __init__(self, config, in_channels: int):
        super().__init__()
        self.affine = EqualizedLinear(config.z_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(config.channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.channels))
        self.clamp = config.conv_clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        n, c, height, width = x.shape
        style = self.affine(w) / math.sqrt(c)
        weight = style[:, :, None] * self.weight.flatten(1).t()  # [N, C, 3]
        y = torch.bmm(x.permute(0, 2, 3, 1).reshape(n, height * width, c), weight.to(x.dtype))  # a view of NHWC
        y = y.reshape(n, height, width, -1).permute(0, 3, 1, 2)
        return noise_bias_act(y, bias=self.bias, act="linear", clamp=self.clamp)


class Synthesis(Recomputing):
    """ws [N, num_ws, w_dim] to the image: one ToRGB a resolution, summed while upsampling ("skip" architecture)."""

    def __init__(self, config):
        super().__init__()
        channels = [config.features(r) for r in config.resolutions]
        self.num_ws = 2 * len(channels)
        self.const = nn.Parameter(torch.randn(channels[0], *config.first))
        self.first = SynthesisLayer(config, channels[0], channels[0], 4)
        self.up = nn.ModuleList()
        self.same = nn.ModuleList()
        for r, before, after in zip(config.resolutions[1:], channels, channels[1:], strict=False):
            self.up.append(SynthesisLayer(config, before, after, r, up=2))
            self.same.append(SynthesisLayer(config, after, after, r))
        self.to_rgb = nn.ModuleList(ToRGB(config, c) for c in channels)
        self.register_buffer("resample_filter", taps(), persistent=False)

    def forward(self, ws: Tensor, noise: str | Sequence[str] = "random") -> Tensor:
        """As `StyleBased.synthesize`."""
        w = ws.unbind(1)
        noise = noise_words(noise, self.num_ws - 1)
        x = self.const.expand(ws.shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.first(x, self.first.affine(w[0]), noise[0])
        image = self.to_rgb[0](x, w[1])
        for i in range(len(self.up)):
            x, image = self.block(self._doubled, x, image, i, w[2 * i + 1 : 2 * i + 4], noise[2 * i + 1 : 2 * i + 3])
        return to_arithmetic(image)

    def _doubled(self, x: Tensor, image: Tensor, i: int, w: Sequence[Tensor], noise: Sequence[str]):
        """Feature maps and image of the next resolution."""
        up, same, to_rgb = self.up[i], self.same[i], self.to_rgb[i + 1]
        style = same.affine(w[1])
        x = up(x, up.affine(w[0]), noise[0], post=style)  # read by `same` alone: it may be scaled here
        x = same(x, style, noise[1], scaled=True)
        return x, self._upsampled(image) + to_rgb(x, w[2])

    def _upsampled(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):  # errors of 16 bits would add up
            return upfirdn2d(to_arithmetic(image), self.resample_filter, up=2, padding=(2, 1, 2, 1), gain=4.0)


class Generator(StyleBased):
    """z [N, z_dim], label [N] to an image [N, channels, H, W] of nominal range [-1, 1], fp32."""

    def __init__(self, config):
        super().__init__()
        self.z_dim = config.z_dim
        self.mapping = Mapping(config)
        self.synthesis = Synthesis(config)
        self.num_ws = self.synthesis.num_ws
        self.noise_resolutions = [4, *(r for r in config.resolutions[1:] for _ in range(2))]

    def synthesize(self, ws: Tensor, *, noise: str | Sequence[str] = "random") -> Tensor:
        return self.synthesis(ws, noise)


class PlainBlock(nn.Sequential):
    """Halves the resolution by two convolutions (StyleGAN2-ADA's CIFAR-10 has these)."""

    def __init__(self, in_channels: int, out_channels: int, clamp: float | None = 256.0):
        super().__init__()
        self.conv = EqualizedConv2d(in_channels, in_channels, 3, act="lrelu", clamp=clamp)
        self.down = EqualizedConv2d(in_channels, out_channels, 3, down=2, act="lrelu", clamp=clamp)


class ResidualBlock(nn.Module):
    """Halves the resolution; both branches are scaled so that the variance of their sum stays 1."""

    def __init__(self, in_channels: int, out_channels: int, clamp: float | None = 256.0):
        super().__init__()
        self.conv = EqualizedConv2d(in_channels, in_channels, 3, act="lrelu", clamp=clamp)
        clamp = None if clamp is None else clamp * math.sqrt(0.5)  # as before the sum's scaling
        self.down = EqualizedConv2d(in_channels, out_channels, 3, down=2, act="lrelu", gain=1.0, clamp=clamp)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, down=2)
        self.skip.weight_gain *= math.sqrt(0.5)  # in the small weight instead of the large activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.conv(x)) + self.skip(x)  # sqrt(2) of lrelu and sqrt(1/2) of the sum make gain 1


class Critic(Recomputing):
    """image [N, channels, H, W], label [N] to logits [N] in fp32; labels by projection (Miyato & Koyama 2018).

    The label's direction is its embedding, or what dense layers behind that make of it (StyleGAN2-ADA).
    """

    def __init__(self, config):
        super().__init__()
        channels = [config.features(r) for r in reversed(config.resolutions)]
        last = channels[-1]
        clamp, maps = config.conv_clamp, config.stddev_features
        self.from_rgb = EqualizedConv2d(config.channels, channels[0], 1, act="lrelu", clamp=clamp)
        block = ResidualBlock if config.residual_critic else PlainBlock
        self.blocks = nn.ModuleList(block(i, o, clamp) for i, o in itertools.pairwise(channels))
        self.stddev = MinibatchStddev(config.stddev_group, maps) if maps else nn.Identity()
        self.conv = EqualizedConv2d(last + maps, last, 3, act="lrelu", clamp=clamp)
        self.dense = EqualizedLinear(last * math.prod(config.first), last, act="lrelu")
        self.embed = EqualizedLinear(config.num_classes, last) if config.num_classes else None
        depth = config.critic_mapping_layers if config.num_classes else 0
        self.directions = dense_layers([last] * (depth + 1), config.mapping_lr)
        self.out = EqualizedLinear(last, last if config.num_classes else 1)

    def layers_from_image(self) -> list[nn.Module]:
        """As the official code counts them for `--freezed`."""
        return [self.from_rgb, *(layer for block in self.blocks for layer in block.children())]

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.from_rgb(channels_last(image))
        for block in self.blocks:
            x = self.block(block, x)
        x = self.out(self.dense(self.conv(self.stddev(x)).flatten(1)))
        return projected(x, self.embed, label, self.directions)
