"""DCGAN: transposed convolutions and batch norm (Radford et al. 2016, arXiv 1511.06434)."""

import torch
from torch import Tensor, nn

from fastgan.ops import noise_bias_act
from fastgan.ops.layout import channels_last


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class Generator(nn.Module):
    """z [N, z_dim], label [N] to an image [N, channels, R, R] in [-1, 1].

    Project and reshape to 4x4, then stride-2 transposed 4x4 convolutions; batch norm and ReLU after all but the last,
    tanh at the end. A label is joined to z as an embedding.
    """

    supports = frozenset()

    def __init__(self, config):
        super().__init__()
        self.z_dim = config.z_dim
        self.embed = nn.Embedding(config.num_classes, config.z_dim) if config.num_classes else None
        width = config.z_dim * (2 if config.num_classes else 1)
        channels = [config.features(r) for r in config.resolutions]
        self.project = nn.ConvTranspose2d(width, channels[0], 4, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels[:-1])
        outputs = [*channels[1:-1], config.channels]
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False)
            for i, o in zip(channels[:-1], outputs, strict=True)
        )
        self.bias = nn.Parameter(torch.zeros(config.channels))
        self.apply(_initialize)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.embed is not None:
            # Of small initial weights, scaled to the size of z.
            z = torch.cat([z, self.embed(label) / 0.02], 1)
        x = self.project(z[:, :, None, None])
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(noise_bias_act(norm(x), act="relu"))
        return noise_bias_act(x, bias=self.bias, act="tanh").float()


class Critic(nn.Module):
    """image [N, channels, R, R], label [N] to logits [N] in fp32.

    Stride-2 4x4 convolutions with LeakyReLU 0.2 and batch norm, none on the first; a label by projection.
    """

    def __init__(self, config):
        super().__init__()
        channels = [config.features(r) for r in reversed(config.resolutions)][1:]  # after each halving
        inputs = [config.channels, *channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 4, stride=2, padding=1, bias=False) for i, o in zip(inputs, channels, strict=False)
        )
        self.first_bias = nn.Parameter(torch.zeros(channels[0]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels[1:])
        self.out = nn.Linear(channels[-1] * 16, 1)
        self.embed = nn.Embedding(config.num_classes, channels[-1] * 16) if config.num_classes else None
        self.apply(_initialize)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.convs[0](channels_last(image))
        x = noise_bias_act(x, bias=self.first_bias)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = noise_bias_act(norm(conv(x)))
        x = x.flatten(1).float()
        logits = self.out(x).squeeze(1).float()
        return logits if self.embed is None else logits + (x * self.embed(label)).sum(1)
