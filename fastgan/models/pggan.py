"""PGGAN: progressive growing, pixel norm, minibatch stddev (Karras et al. 2018, arXiv 1710.10196)."""

import itertools

import torch
from torch import Tensor, nn

from fastgan.effective import shares_kernels
from fastgan.layers import (
    SQRT2,
    Blur2d,
    ConvDownsample2d,
    EqualizedConv2d,
    EqualizedLinear,
    MinibatchStddev,
    UpsampleConv2d,
)
from fastgan.models.blocks import finished_image
from fastgan.models.labels import concat_label, projection_logits
from fastgan.models.progressive import ProgressiveGrowing, average_pool, upsample_nearest
from fastgan.ops import noise_bias_act, pixel_norm
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last


class UpBlock(nn.Module):
    """Upsampling by 2 and two 3x3 convolutions, each with leaky ReLU and pixel norm (table 2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = UpsampleConv2d(in_channels, out_channels, equalized=True, act="lrelu")
        self.conv = EqualizedConv2d(out_channels, out_channels, 3, act="lrelu")

    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(self.conv(pixel_norm(self.up(x))))


class Generator(ProgressiveGrowing):
    """z [N, z_dim], label [N] to an image [N, channels, R, R], nominally in [-1, 1], fp32; R as the stage."""

    def __init__(self, config):
        super().__init__(config.resolutions)
        self.z_dim = config.z_dim
        self.embed = EqualizedLinear(config.num_classes, config.z_dim) if config.num_classes else None
        channels = [config.features(r) for r in config.resolutions]
        width = config.z_dim * (2 if config.num_classes else 1)
        self.dense = EqualizedLinear(width, 4 * 4 * channels[0], bias=False)
        self.dense.weight_gain *= SQRT2 / 4  # the published fan-in is that of a 4x4 convolution
        self.bias = nn.Parameter(torch.zeros(channels[0]))
        self.conv = EqualizedConv2d(channels[0], channels[0], 3, act="lrelu")
        self.blocks = nn.ModuleList(UpBlock(i, o) for i, o in itertools.pairwise(channels))
        self.to_rgb = nn.ModuleList(EqualizedConv2d(c, config.channels, 1) for c in channels)
        self.tanh = config.tanh

    @shares_kernels
    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.dense(concat_label(z, self.embed, label))
        x = x.reshape(z.shape[0], 4, 4, len(self.bias)).permute(0, 3, 1, 2)  # channels_last
        x = before = pixel_norm(self.conv(pixel_norm(noise_bias_act(x, bias=self.bias))))
        for block in self.blocks[: self.level]:
            before, x = x, self.block(block, x)
        image = to_arithmetic(self.to_rgb[self.level](x))
        if self.fading:
            image = self.fade(upsample_nearest(to_arithmetic(self.to_rgb[self.level - 1](before))), image)
        return finished_image(image, self.tanh)


class DownBlock(nn.Module):
    """Two 3x3 convolutions with leaky ReLU, the second followed by average pooling (table 2)."""

    def __init__(self, in_channels: int, out_channels: int, blur: bool):
        super().__init__()
        self.conv = EqualizedConv2d(in_channels, in_channels, 3, act="lrelu")
        self.blur = Blur2d((1, 2, 1)) if blur else None
        self.down = ConvDownsample2d(in_channels, out_channels, equalized=True, act="lrelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.conv(x) if self.blur is None else self.blur.after(self.conv, x))


class Discriminator(ProgressiveGrowing):
    """image [N, channels, R, R], label [N] to logits [N] in fp32; R is the stage's resolution. Labels by projection.

    Raises ValueError for images of another resolution.
    """

    blur = False  # a low-pass filter before each downsampling

    def __init__(self, config):
        super().__init__(config.resolutions)
        channels = [config.features(r) for r in config.resolutions]
        last = channels[0]
        self.from_rgb = nn.ModuleList(EqualizedConv2d(config.channels, c, 1, act="lrelu") for c in channels)
        self.blocks = nn.ModuleList(DownBlock(i, o, self.blur) for o, i in itertools.pairwise(channels))
        self.stddev = MinibatchStddev()
        self.conv = EqualizedConv2d(last + 1, last, 3, act="lrelu")
        self.dense = EqualizedLinear(last * 16, last, act="lrelu")
        self.embed = EqualizedLinear(config.num_classes, last) if config.num_classes else None
        self.out = EqualizedLinear(last, last if config.num_classes else 1)

    def layers_from_image(self) -> list[nn.Module]:
        """Layers of the highest stage."""
        return [self.from_rgb[-1], *(layer for block in reversed(self.blocks) for layer in (block.conv, block.down))]

    @shares_kernels
    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        if image.shape[-1] != self.stage_resolution:
            raise ValueError(
                f"image has shape {list(image.shape)}, must be of the stage's resolution {self.stage_resolution}"
            )
        image = channels_last(image)
        top = self.level
        x = self.from_rgb[top](image)
        for level in range(top, 0, -1):
            x = self.block(self.blocks[level - 1], x)
            if level == top and self.fading:
                x = self.fade(self.from_rgb[top - 1](average_pool(image)), x)
        x = self.out(self.dense(self.conv(self.stddev(x)).flatten(1)))
        return projection_logits(x, self.embed, label)
