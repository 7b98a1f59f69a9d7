"""The first GAN: multilayer perceptrons (Goodfellow et al. 2014, arXiv 1406.2661).

Three things are not the paper's. The generator ends in tanh, not in a sigmoid: images are in [-1, 1] here, not in
[0, 1]. The discriminator has leaky ReLU where the paper has maxout of five pieces: a fifth of the weights for as many
units, fused with the bias, and known to the one-pass gradient penalty. And there is no dropout: what a discriminator
looks at should not change between the images that losses and penalties compare. The paper's networks for MNIST are 1200
units wide: `channel_max=150`.
"""

import math

import torch
from torch import Tensor, nn

from fastgan.models.blocks import as_feature_maps, embed_label, linear_act
from fastgan.ops.arithmetic import to_arithmetic

ANY_SHAPE = True  # also of images that are not square


class Generator(nn.Module):
    """z [N, z_dim], label [N] to an image [N, channels, H, W] in [-1, 1], fp32.

    Two hidden layers of 8 * channel_max ReLUs. A label is joined to z as an embedding of the same size.
    """

    supports = frozenset()

    def __init__(self, config):
        super().__init__()
        self.z_dim = config.z_dim
        self.size = config.feature_size(config.resolution)
        self.embed = nn.Embedding(config.num_classes, config.z_dim) if config.num_classes else None
        inputs, width = config.z_dim * (2 if config.num_classes else 1), 8 * config.channel_max
        self.layers = nn.Sequential(
            linear_act(inputs, width, "relu"),
            linear_act(width, width, "relu"),
            linear_act(width, config.channels * math.prod(self.size), "tanh"),
        )

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.embed is not None:
            z = torch.cat([z, embed_label(self.embed, label)], 1)
        return as_feature_maps(to_arithmetic(self.layers(z)), self.size)


class Discriminator(nn.Module):
    """image [N, channels, H, W], label [N] to logits [N] in fp32.

    Two hidden layers of 4 * channel_max, LeakyReLU 0.2. A label is joined to the image as an embedding.
    """

    def __init__(self, config):
        super().__init__()
        pixels, width = config.channels * math.prod(config.feature_size(config.resolution)), 4 * config.channel_max
        self.embed = nn.Embedding(config.num_classes, width) if config.num_classes else None
        inputs = pixels + (width if config.num_classes else 0)
        self.layers = nn.Sequential(
            linear_act(inputs, width, "lrelu"), linear_act(width, width, "lrelu"), nn.Linear(width, 1)
        )

    def layers_from_image(self) -> list[nn.Module]:
        return list(self.layers[:-1])

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = image.flatten(1)
        if self.embed is not None:
            x = torch.cat([x, embed_label(self.embed, label)], 1)
        return to_arithmetic(self.layers(x)).squeeze(1)
