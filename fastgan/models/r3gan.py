"""R3GAN: residual networks without normalization or style tricks (Huang et al. 2024, arXiv 2501.05441).

The paper's networks ("Config E") have `z_dim=64` and these widths:

- CIFAR-10, FFHQ at 64x64 and 256x256: `channel_base=24576, channel_max=768`. At 256x256 generator and discriminator
  have 23.058 M and 23.010 M parameters, as in its table 2.
- ImageNet: `channel_base=98304, channel_max=1536`. The generator at 64x64 has 99 M parameters here, 104 M in the paper,
  which fits groups of 32 channels, not of 16 as its text says.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from fastgan.effective import shares_kernels
from fastgan.layers import Conv2d, Downsample2d, Upsample2d
from fastgan.models.blocks import finished_image
from fastgan.models.gradient_checkpointing import GradientCheckpointing
from fastgan.models.labels import embed_label
from fastgan.ops import noise_bias_act
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last

ANY_SHAPE = True  # images need not be square
EXPANSION = 2  # channels of the 3x3 convolution / width of the block
GROUP_SIZE = 16  # channels a group of the 3x3 convolution
BLOCKS = 2  # a resolution
FILTER = (1.0, 2.0, 1.0)  # bilinear interpolation
LRELU_GAIN = math.sqrt(2 / (1 + 0.2**2))  # keeps the variance; applied to initial weights, not at run time


def _conv(in_channels: int, out_channels: int, kernel_size: int = 1, *, groups: int = 1, gain: float = 1.0):
    """A convolution without bias, with initial weights from N(0, gain / sqrt(fan_in))."""
    conv = Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
    nn.init.normal_(conv.weight, std=gain / math.sqrt(conv.weight[0].numel()))
    return conv


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=1 / math.sqrt(inputs))
    return linear


class ResidualBlock(nn.Module):
    """Inverted bottleneck: 1x1 to twice the width, grouped 3x3, 1x1 back, added to the input (section 3).

    Initial weights follow Fixup (Zhang et al. 2019): the last convolution starts at zero, the others are scaled by
    blocks^(-1/4). All blocks start as the identity, so no normalization is needed.

    Args:
        width: channels of input and output [N, width, H, W], a multiple of 8.
        blocks: number of blocks in the network.
    """

    def __init__(self, width: int, blocks: int):
        super().__init__()
        inner, gain = EXPANSION * width, LRELU_GAIN * blocks**-0.25
        self.expand = _conv(width, inner, gain=gain)
        self.expand_bias = nn.Parameter(torch.zeros(inner))
        self.group = _conv(inner, inner, 3, groups=inner // GROUP_SIZE, gain=gain)
        self.group_bias = nn.Parameter(torch.zeros(inner))
        self.contract = _conv(inner, width, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = noise_bias_act(self.expand(x), bias=self.expand_bias)
        y = noise_bias_act(self.group(y), bias=self.group_bias)
        return x + self.contract(y)


def resolution_independent_names(config) -> tuple[dict[str, str], dict[str, str]]:
    """See `fastgan.models.resolution_independent_names`."""
    widths = _widths(config)
    generator: list[str] = []
    discriminator: list[str] = []
    for i, r in enumerate(config.resolutions):
        blocks = [f"trunk.{r}.{number}" for number in range(BLOCKS)]
        change = [f"change.{r}"] if i and widths[i] != widths[i - 1] else []  # between r / 2 and r
        generator += [*change, "upsample", *blocks] if i else blocks
        discriminator = [*blocks, "downsample", *change, *discriminator] if i else blocks
    top = config.resolution
    return (
        {f"trunk.{i}": name for i, name in enumerate(generator)} | {"to_rgb": f"to_rgb.{top}"},
        {f"trunk.{i}": name for i, name in enumerate(discriminator)} | {"from_rgb": f"from_rgb.{top}"},
    )


class Generator(GradientCheckpointing):
    """z [N, z_dim], label [N] to an image [N, channels, H, W], nominally in [-1, 1], fp32.

    Learned 4x4 feature maps, scaled by a linear layer of z; then two residual blocks a resolution, and between
    resolutions a 1x1 convolution if the width changes, and bilinear upsampling. The label is embedded and concatenated
    to z.
    """

    supports: frozenset[str] = frozenset()

    def __init__(self, config):
        super().__init__()
        self.z_dim = config.z_dim
        self.embed = nn.Embedding(config.num_classes, config.z_dim) if config.num_classes else None
        widths = _widths(config)
        self.project = _linear(config.z_dim * (2 if config.num_classes else 1), widths[0])
        self.basis = nn.Parameter(torch.randn(widths[0], *config.base_size))
        self.trunk = _stage(widths[0], len(widths))
        for i, o in itertools.pairwise(widths):
            self.trunk.extend([*_change(i, o), Upsample2d(FILTER), *_stage(o, len(widths))])
        self.to_rgb = _conv(widths[-1], config.channels)
        self.tanh = config.tanh

    @shares_kernels
    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.embed is not None:
            z = torch.cat([z, embed_label(self.embed, label)], 1)
        x = self.project(z)
        x = channels_last(self.basis.to(x.dtype) * x[:, :, None, None])
        for part in self.trunk:
            x = self.block(part, x)
        return finished_image(self.to_rgb(x), self.tanh)


class Discriminator(GradientCheckpointing):
    """image [N, channels, H, W], label [N] to logits [N] in fp32.

    The generator mirrored: two residual blocks a resolution, bilinear downsampling, a 1x1 convolution if the width
    changes; at the end a depthwise 4x4 convolution and a linear layer. Labels by projection.
    """

    def __init__(self, config):
        super().__init__()
        widths = _widths(config)[::-1]
        self.from_rgb = _conv(config.channels, widths[0])
        self.trunk = _stage(widths[0], len(widths))
        for i, o in itertools.pairwise(widths):
            self.trunk.extend([Downsample2d(FILTER), *_change(i, o), *_stage(o, len(widths))])
        last = widths[-1]
        self.head = Conv2d(last, last, config.base_size, groups=last, bias=False)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(math.prod(config.base_size)))
        self.out = _linear(last, config.z_dim if config.num_classes else 1)
        self.embed = nn.Embedding(config.num_classes, config.z_dim) if config.num_classes else None
        if self.embed is not None:
            nn.init.normal_(
                self.embed.weight, std=1 / math.sqrt(config.z_dim)
            )  # keeps the variance of the inner product

    def layers_from_image(self) -> list[nn.Module]:
        """The blocks of a resolution count as one layer."""
        return [self.from_rgb, *(part for part in self.trunk if not isinstance(part, Downsample2d))]

    @shares_kernels
    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.from_rgb(channels_last(image))
        for part in self.trunk:
            x = self.block(part, x)
        x = to_arithmetic(self.out(self.head(x).flatten(1)))
        return x.squeeze(1) if self.embed is None else (x * embed_label(self.embed, label)).sum(1)


def _stage(width: int, resolutions: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width, BLOCKS * resolutions) for _ in range(BLOCKS)))


def _change(before: int, after: int) -> list[nn.Module]:
    return [_conv(before, after)] if before != after else []


def _widths(config) -> list[int]:
    """Widths from the lowest resolution up. Raises ValueError if one cannot be split into groups of `GROUP_SIZE`."""
    multiple = GROUP_SIZE // EXPANSION
    widths = [config.features(resolution) for resolution in config.resolutions]
    for resolution, width in zip(config.resolutions, widths, strict=True):
        if width % multiple:
            raise ValueError(
                f"channel_base {config.channel_base} and channel_max {config.channel_max} make {width} feature maps at "
                f"resolution {resolution}, must be a multiple of {multiple} for r3gan: give a channel_max that is one, "
                f"and a channel_base that is a multiple of {multiple * config.resolution}"
            )
    return widths
