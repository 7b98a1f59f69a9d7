"""The first GAN: multilayer perceptrons (Goodfellow et al. 2014, arXiv 1406.2661).

Differences from the paper:

- The generator ends in tanh instead of a sigmoid: images are in [-1, 1], not in [0, 1].
- The discriminator uses leaky ReLU instead of maxout with five pieces: a fifth of the weights for as many units, fused
  with the bias, and piecewise linear for the one-pass gradient penalty.
- No dropout: its random masks would differ between the images that losses and penalties compare.

The paper's networks for MNIST are 1200 units wide: `channel_max=150`.
"""

import math

import torch
from torch import Tensor, nn

from fastgan.models.blocks import as_feature_maps, linear_act
from fastgan.models.labels import embed_label
from fastgan.ops.arithmetic import to_arithmetic

ANY_SHAPE = True  # images need not be square


class Generator(nn.Module):
    """z [N, z_dim], label [N] to an image [N, channels, H, W] in [-1, 1], fp32.

    Two hidden layers with 8 * channel_max ReLUs. The label is embedded, [N, z_dim], and concatenated to z.
    """

    supports: frozenset[str] = frozenset()

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

    Two hidden layers with 4 * channel_max leaky ReLUs. The label is embedded and concatenated to the image.
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
