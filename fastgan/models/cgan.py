"""Conditional GAN: both networks are given the label (Mirza and Osindero 2014, arXiv 1411.1784).

Variants:

- "mlp": the paper's networks for MNIST (section 4.1). z and label pass a hidden layer each, as do image and label;
  another layer sees both. Leaky ReLU, tanh and no dropout for the reasons given in `fastgan.models.mlp`. The paper's
  widths are `channel_max=150`.
- "conv": the convolutional form that is common today. The label is a one-hot vector, concatenated to z, and to the
  image as constant feature maps. Widths follow from `channel_max` (published: 128).
"""

import math

import torch
from torch import Tensor, nn

from fastgan.layers import Conv2d, ConvTranspose2d
from fastgan.models.blocks import Block, ProjectAndReshape, as_feature_maps, dcgan_init, linear_act
from fastgan.models.labels import one_hot
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last

VARIANTS = ("conv", "mlp")

ANY_SHAPE = True  # images need not be square


class Generator(nn.Module):
    """z [N, z_dim], label [N] to an image [N, channels, H, W] in [-1, 1], fp32.

    Raises ValueError without classes.
    """

    supports: frozenset[str] = frozenset()

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
        z_width = max(width // 6, 1)
        self.z = linear_act(config.z_dim, z_width, "relu")
        self.label = linear_act(config.num_classes, width - z_width, "relu")
        self.joined = linear_act(width, width, "relu")
        self.out = linear_act(width, config.channels * math.prod(self.size), "tanh")

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([self.z(z), self.label(label)], 1)
        return as_feature_maps(self.out(self.joined(x)), self.size)


class _MLPDiscriminator(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, label_width = 4 * config.channel_max, config.channel_max
        self.image = linear_act(config.channels * math.prod(config.feature_size(config.resolution)), width, "lrelu")
        self.label = linear_act(config.num_classes, label_width, "lrelu")
        self.joined = linear_act(width + label_width, width, "lrelu")
        self.out = nn.Linear(width, 1)

    def layers_from_image(self) -> list[nn.Module]:
        return [self.image, self.joined]

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([self.image(image.flatten(1)), self.label(label)], 1)
        return self.out(self.joined(x))


class _ConvGenerator(nn.Module):
    """Two linear layers to R/4, two transposed 4x4 convolutions of stride 2; batch norm, ReLU, tanh at the end."""

    def __init__(self, config):
        super().__init__()
        width = config.channel_max
        half, hidden, inputs = max(width // 2, 1), 8 * width, config.z_dim + config.num_classes
        up = lambda i, o: ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False)
        size = config.feature_size(config.resolution // 4)
        self.layers = nn.Sequential(
            Block(nn.Linear(inputs, hidden, bias=False), hidden, norm=True, act="relu"),
            Block(ProjectAndReshape(hidden, width, size), width, norm=True, act="relu"),
            Block(up(width, half), half, norm=True, act="relu"),
            Block(up(half, config.channels), config.channels, norm=False, act="tanh"),
        )
        self.apply(dcgan_init)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.layers(torch.cat([z, label], 1))


class _ConvDiscriminator(nn.Module):
    """Two 4x4 convolutions of stride 2, two linear layers; leaky ReLU, batch norm on all but the first and last."""

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
        maps = label[:, :, None, None].expand(-1, -1, h, w)
        return self.layers(channels_last(torch.cat([image, maps], 1)))
