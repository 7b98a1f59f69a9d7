"""Conditional GAN: both networks are given the label (Mirza and Osindero 2014, arXiv 1411.1784).

"mlp" is the paper's for MNIST (section 4.1): z and label each have a hidden layer, and so have image and label; one
more sees the two joined. It has leaky ReLU where the paper's discriminator has maxout, tanh where its generator has a
sigmoid, and no dropout, for the reasons given in `fastgan.models.mlp`. The paper's widths are `channel_max=150`.

"conv" is how the idea is mostly met since: the label is joined to z as a one-hot vector, and to the image as planes of
ones and zeros. Its widths follow from channel_max (published: 128).
"""

import math

import torch
from torch import Tensor, nn

from fastgan.layers import Conv2d, ConvTranspose2d
from fastgan.models.blocks import Block, ProjectAndReshape, as_feature_maps, dcgan_init, linear_act, one_hot
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last

VARIANTS = ("conv", "mlp")

ANY_SHAPE = True  # also of images that are not square


class Generator(nn.Module):
    """z [N, z_dim], label [N] to an image [N, channels, H, W] in [-1, 1], fp32.

    Raises ValueError without classes.
    """

    supports = frozenset()

    def __init__(self, config):
        super().__init__()
        self.z_dim, self.num_classes = config.z_dim, _num_classes(config)
        self.network = (_MLPGenerator if config.variant == "mlp" else _ConvGenerator)(config)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return to_arithmetic(self.network(z, one_hot(label, self.num_classes, z.dtype)))


class Discriminator(nn.Module):
    """image [N, channels, H, W], label [N] to logits [N] in fp32.

    Raises ValueError without classes.
    """

    def __init__(self, config):
        super().__init__()
        self.num_classes = _num_classes(config)
        self.network = (_MLPDiscriminator if config.variant == "mlp" else _ConvDiscriminator)(config)

    def layers_from_image(self) -> list[nn.Module]:
        return self.network.layers_from_image()

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        return to_arithmetic(self.network(image, one_hot(label, self.num_classes, image.dtype))).squeeze(1)


def _num_classes(config) -> int:
    if not config.num_classes:
        raise ValueError("num_classes is 0, must be at least 1: a conditional GAN needs labels")
    return config.num_classes


class _MLPGenerator(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.size = config.feature_size(config.resolution)
        width = 8 * config.channel_max
        of_z = max(width // 6, 1)
        self.z = linear_act(config.z_dim, of_z, "relu")
        self.label = linear_act(config.num_classes, width - of_z, "relu")
        self.joined = linear_act(width, width, "relu")
        self.out = linear_act(width, config.channels * math.prod(self.size), "tanh")

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([self.z(z), self.label(label)], 1)
        return as_feature_maps(self.out(self.joined(x)), self.size)


class _MLPDiscriminator(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, of_label = 4 * config.channel_max, config.channel_max
        self.image = linear_act(config.channels * math.prod(config.feature_size(config.resolution)), width, "lrelu")
        self.label = linear_act(config.num_classes, of_label, "lrelu")
        self.joined = linear_act(width + of_label, width, "lrelu")
        self.out = nn.Linear(width, 1)

    def layers_from_image(self) -> list[nn.Module]:
        return [self.image, self.joined]

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([self.image(image.flatten(1)), self.label(label)], 1)
        return self.out(self.joined(x))


class _ConvGenerator(nn.Module):
    """Two dense layers to R/4, then two stride-2 transposed 4x4 convolutions; batch norm, ReLU, tanh at the end."""

    def __init__(self, config):
        super().__init__()
        width = config.channel_max
        half, hidden, inputs = max(width // 2, 1), 8 * width, config.z_dim + config.num_classes
        up = lambda i, o: ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False)
        size = config.feature_size(config.resolution // 4)
        self.layers = nn.Sequential(
            Block(nn.Linear(inputs, hidden, bias=False), hidden, norm=True, act="relu"),
            Block(
                ProjectAndReshape(hidden, width, size),
                width,
                norm=True,
                act="relu",
            ),
            Block(up(width, half), half, norm=True, act="relu"),
            Block(up(half, config.channels), config.channels, norm=False, act="tanh"),
        )
        self.apply(dcgan_init)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.layers(torch.cat([z, label], 1))


class _ConvDiscriminator(nn.Module):
    """Two stride-2 4x4 convolutions, two dense layers; LeakyReLU 0.2, and batch norm on what is not first or last."""

    def __init__(self, config):
        super().__init__()
        width, norm = config.channel_max, config.discriminator_norm
        half, hidden, inputs = max(width // 2, 1), 8 * width, config.channels + config.num_classes
        down = lambda i, o: Conv2d(i, o, 4, stride=2, padding=1, bias=False)
        features = width * math.prod(config.feature_size(config.resolution // 4))
        self.layers = nn.Sequential(
            Block(down(inputs, half), half, norm=False, act="lrelu"),
            Block(down(half, width), width, norm=norm, act="lrelu"),
            nn.Flatten(),
            Block(nn.Linear(features, hidden, bias=False), hidden, norm=norm, act="lrelu"),
            nn.Linear(hidden, 1),
        )
        self.apply(dcgan_init)

    def layers_from_image(self) -> list[nn.Module]:
        return [layer for layer in self.layers[:-1] if not isinstance(layer, nn.Flatten)]

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        n, c, h, w = image.shape
        planes = label[:, :, None, None].expand(-1, -1, h, w)
        return self.layers(channels_last(torch.cat([image, planes], 1)))
