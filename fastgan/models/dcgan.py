"""DCGAN: convolutions and batch norm (Radford et al. 2016, arXiv 1511.06434), in two variants.

Both have batch norm after every layer but the generator's last and the discriminator's first, and initial
weights from N(0, 0.02).

- "transposed": the paper's. Transposed convolutions of stride 2 from 4x4 to the image, strided convolutions back.
  Kernels are 4x4 as in most later implementations, so that every pixel is covered equally often; the paper's are 5x5.
  The paper's widths for 64x64 are `channel_base=4096, channel_max=1024`.
- "upsample": starts at a quarter of the resolution and upsamples before each convolution: three convolutions at any
  resolution, with `channel_max` feature maps or fewer (published: 128). Two differences from implementations under this
  name: batch norm has its usual epsilon (the 0.8 found there was meant as momentum), and the discriminator has no
  dropout, whose random masks would differ between the images that losses and gradient penalties compare.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from fastgan.layers import Conv2d, ConvTranspose2d, UpsampleConv2d
from fastgan.models.blocks import Block, ProjectAndReshape, dcgan_init
from fastgan.models.labels import embed_label, one_hot
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last

VARIANTS = ("transposed", "upsample")


def resolution_independent_names(config) -> tuple[dict[str, str], dict[str, str]]:
    """See `fastgan.models.resolution_independent_names`."""
    if config.variant == "upsample":  # the number of layers is fixed
        return {}, {}
    *lower, top = config.resolutions
    generator = {f"layers.{i}": f"layers.{r}" for i, r in enumerate(lower)} | {f"layers.{len(lower)}": f"image.{top}"}
    discriminator = {"layers.0": f"image.{top}"} | {f"layers.{i}": f"layers.{top >> i}" for i in range(1, len(lower))}
    return generator, discriminator


ANY_SHAPE = True  # images need not be square


class Generator(nn.Module):
    """z [N, z_dim], label [N] to an image [N, channels, H, W] in [-1, 1], fp32.

    - transposed: project and reshape to `base_size`, transposed convolutions of stride 2; ReLU, tanh at the end.
    - upsample: linear to R/4, three 3x3 convolutions, two of them after upsampling; leaky ReLU, tanh at the end.

    The label is concatenated to z as a one-hot vector. An embedding as long as z would collapse each class to one
    image: batch norm only asks that the images of a batch differ, and such labels differ enough.
    """

    supports: frozenset[str] = frozenset()

    def __init__(self, config):
        super().__init__()
        self.z_dim = config.z_dim
        self.num_classes = config.num_classes
        inputs = config.z_dim + config.num_classes
        layers = _upsample_generator if config.variant == "upsample" else _transposed_generator
        self.layers = nn.Sequential(*layers(config, inputs))
        self.apply(dcgan_init)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.num_classes:
            z = torch.cat([z, one_hot(label, self.num_classes, z.dtype)], 1)
        return to_arithmetic(self.layers(z))


def _transposed_generator(config, inputs: int) -> list[nn.Module]:
    channels = [config.features(r) for r in config.resolutions[:-1]]
    up = lambda i, o: ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False)
    return [
        Block(ProjectAndReshape(inputs, channels[0], config.base_size), channels[0], norm=True, act="relu"),
        *(Block(up(i, o), o, norm=True, act="relu") for i, o in itertools.pairwise(channels)),
        Block(up(channels[-1], config.channels), config.channels, norm=False, act="tanh"),
    ]


def _upsample_generator(config, inputs: int) -> list[nn.Module]:
    wide, narrow = config.channel_max, max(config.channel_max // 2, 1)
    size = config.feature_size(config.resolution // 4)
    last = Conv2d(narrow, config.channels, 3, padding=1, bias=False)
    return [
        Block(ProjectAndReshape(inputs, wide, size), wide, norm=True, act="linear"),
        Block(UpsampleConv2d(wide, wide, bias=False), wide, norm=True, act="lrelu"),
        Block(UpsampleConv2d(wide, narrow, bias=False), narrow, norm=True, act="lrelu"),
        Block(last, config.channels, norm=False, act="tanh"),
    ]


class Discriminator(nn.Module):
    """image [N, channels, H, W], label [N] to logits [N] in fp32.

    Convolutions of stride 2 with leaky ReLU: 4x4 down to a resolution of 4 (transposed), or four 3x3 (upsample). Batch
    norm on all but the first; with `discriminator_norm=False` on none, for penalties that need independent samples
    (WGAN-GP). Labels by projection.
    """

    def __init__(self, config):
        super().__init__()
        if config.variant == "upsample":
            channels = [max(config.channel_max // share, 1) for share in (8, 4, 2, 1)]
            kernel_size, size = 3, [-(-side // 16) for side in config.feature_size(config.resolution)]
        else:
            channels = [config.features(r) for r in reversed(config.resolutions[:-1])]
            kernel_size, size = 4, config.base_size
        self.layers = nn.Sequential()
        for i, o in itertools.pairwise([config.channels, *channels]):
            conv = Conv2d(i, o, kernel_size, stride=2, padding=1, bias=False)
            self.layers.append(Block(conv, o, norm=config.discriminator_norm and len(self.layers) > 0, act="lrelu"))
        features = channels[-1] * math.prod(size)
        self.out = nn.Linear(features, 1)
        self.embed = nn.Embedding(config.num_classes, features) if config.num_classes else None
        self.apply(dcgan_init)

    def layers_from_image(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = to_arithmetic(self.layers(channels_last(image)).flatten(1))
        logits = to_arithmetic(self.out(x)).squeeze(1)
        return logits if self.embed is None else logits + (x * embed_label(self.embed, label)).sum(1)
