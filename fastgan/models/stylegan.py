"""StyleGAN: mapping network, AdaIN, noise, progressive growing (Karras et al. 2019, arXiv 1812.04948)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.effective import shares_kernels
from fastgan.layers import SQRT2, Blur2d, EqualizedConv2d, StyleEpilogue, UpsampleConv2d
from fastgan.models import pggan
from fastgan.models.blocks import finished_image
from fastgan.models.progressive import ProgressiveGrowing, upsample_nearest
from fastgan.models.style_based import MappingNetwork, StyleBasedGenerator, fixed_noise, noise_modes
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last


class SynthesisLayer(nn.Module):
    """A convolution, and one fused operation with noise, bias, leaky ReLU and AdaIN (figure 1b)."""

    noise_const: Tensor

    def __init__(self, config, conv: nn.Module, channels: int, resolution: int):
        super().__init__()
        self.conv = conv
        self.epilogue = StyleEpilogue(channels, config.style_dim)
        self.register_buffer("noise_const", torch.randn(1, 1, resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        return self.epilogue(self.conv(x), w, fixed_noise(noise, self.noise_const))


def _same(channels: int) -> nn.Module:
    conv = EqualizedConv2d(channels, channels, 3, bias=False)
    conv.weight_gain *= SQRT2  # gain of the leaky ReLU, in the weight because noise and bias come in between
    return conv


def _up(in_channels: int, out_channels: int) -> nn.Module:
    conv = UpsampleConv2d(in_channels, out_channels, bias=False, equalized=True)
    conv.weight_gain *= SQRT2
    return nn.Sequential(conv, Blur2d((1, 2, 1)))


class Generator(StyleBasedGenerator, ProgressiveGrowing):
    """z [N, z_dim], label [N] to an image [N, channels, R, R], nominally in [-1, 1], fp32; R as the stage."""

    supports = StyleBasedGenerator.supports | ProgressiveGrowing.supports
    truncated_layers = 8  # up to 32x32

    def __init__(self, config):
        super().__init__(config.resolutions)
        self.z_dim = config.z_dim
        self.num_ws = 2 * len(config.resolutions)
        self.noise_resolutions = [r for r in config.resolutions for _ in range(2)]
        self.mapping = MappingNetwork(config)
        channels = [config.features(r) for r in config.resolutions]
        self.const = nn.Parameter(torch.ones(1, channels[0], 4, 4))
        self.layers = nn.ModuleList()  # two a resolution
        for i, (r, c) in enumerate(zip(config.resolutions, channels, strict=True)):
            first = _up(channels[i - 1], c) if i else nn.Identity()
            self.layers.append(SynthesisLayer(config, first, c, r))
            self.layers.append(SynthesisLayer(config, _same(c), c, r))
        self.to_rgb = nn.ModuleList(EqualizedConv2d(c, config.channels, 1) for c in channels)
        self.tanh = config.tanh

    @property
    def ws_in_use(self) -> int:
        return 2 * (self.level + 1)

    @property
    def noisy_layers(self) -> list[SynthesisLayer]:
        return list(self.layers[: self.ws_in_use])  # type: ignore[arg-type]

    @shares_kernels
    def synthesize(self, ws: Tensor, *, noise: str | Sequence[str] = "random") -> Tensor:
        w, noise = ws.unbind(1), noise_modes(noise, self.num_ws)
        x = channels_last(self.const.expand(ws.shape[0], -1, -1, -1))
        for i in range(0, self.ws_in_use, 2):
            before = x
            x = self.block(self._pair, x, i, w, noise)
        image = to_arithmetic(self.to_rgb[self.level](x))
        if self.fading:
            image = self.fade(upsample_nearest(to_arithmetic(self.to_rgb[self.level - 1](before))), image)
        return finished_image(image, self.tanh)

    def _pair(self, x: Tensor, i: int, w: Sequence[Tensor], noise: Sequence[str]) -> Tensor:
        """The layers of one resolution."""
        return self.layers[i + 1](self.layers[i](x, w[i], noise[i]), w[i + 1], noise[i + 1])


class Discriminator(pggan.Discriminator):
    """PGGAN's discriminator with a low-pass filter before each downsampling (section 2)."""

    blur = True
