"""Discriminators that qualify for the one-pass penalty, losses on them, and comparison with double backward."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from fastgan import layers, losses, penalties
from fastgan.models import ModelConfig
from fastgan.models.stylegan2 import ResidualBlock
from fastgan.ops import noise_bias_act
from fastgan.ops.layout import channels_last
from fastgan.ops.upfirdn2d import upfirdn2d
from fastgan.penalties import logits_and_squared_grad, zero_centered_penalty

SIZE, CLASSES = 16, 3


class Residual(nn.Module):
    """StyleGAN2's without minibatch stddev. A low `clamp` is reached."""

    def __init__(self, clamp=256.0):
        super().__init__()
        widths = (6, 8, 10)
        self.from_rgb = layers.EqualizedConv2d(3, widths[0], 1, act="lrelu", clamp=clamp)
        self.blocks = nn.ModuleList(ResidualBlock(ModelConfig(), i, o) for i, o in itertools.pairwise(widths))
        self.conv = layers.EqualizedConv2d(widths[-1], 8, 3, act="lrelu", clamp=clamp)
        self.dense = layers.EqualizedLinear(8 * (SIZE // 4) ** 2, 12, act="lrelu", lr_multiplier=0.5)
        self.out = layers.EqualizedLinear(12, 1, gain=0.5)
        for block in self.blocks:
            block.conv.clamp = block.down.clamp = clamp

    def forward(self, images):
        x = self.from_rgb(channels_last(images))
        for block in self.blocks:
            x = block(x)
        return self.out(self.dense(self.conv(x).flatten(1))).squeeze(1)


class Bottleneck(nn.Module):
    """Pre-activation, a grouped convolution, a sum, pooling over all positions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.narrow, self.wide = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1, bias=False)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.act = nn.ReLU()
        self.out = nn.Linear(8, 1)

    def forward(self, images, labels=None):
        x = self.first(images)
        y = self.wide(self.act(self.grouped(self.act(self.narrow(self.act(x))))))
        y += x  # overwrites what nothing else reads
        return self.out(self.act(y).mean((2, 3)))[:, 0]


class Projection(nn.Module):
    """A projection discriminator: features times the normalized label embedding (Miyato & Koyama 2018)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten())
        self.out = layers.EqualizedLinear(24, 24)
        self.embed = nn.Embedding(CLASSES, 24)

    def forward(self, images, labels):
        x = self.out(self.features(images))
        direction = self.embed(labels)
        direction = direction * torch.rsqrt(direction.square().mean(1, keepdim=True) + 1e-8)
        return (x * direction).sum(1) / math.sqrt(x.shape[1])


class LabelMaps(nn.Module):
    """A conditional discriminator: a label map beside the image's channels, a learned factor and offset."""

    def __init__(self):
        super().__init__()
        self.label_maps = nn.Embedding(CLASSES, SIZE * SIZE)
        self.conv = layers.EqualizedConv2d(4, 8, 3, act="lrelu", down=2)
        self.factor = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.offset = nn.Parameter(torch.randn(8, 1, 1))
        self.out = nn.Linear(8 * (SIZE // 2) ** 2, 1)
        self.register_buffer("mean", torch.tensor(0.3))

    def forward(self, images, labels):
        n, _, h, w = images.shape
        x = torch.cat([images - self.mean, self.label_maps(labels).view(n, 1, h, w)], dim=1)
        x = self.conv(x) * self.factor + self.offset
        return self.out(
            noise_bias_act(x, bias=self.offset.flatten(), act="relu").view(n, 8 * (h // 2) * (w // 2))
        ).view(n)


class Filtered(nn.Module):
    """FIR resampling as layers and as a function."""

    def __init__(self):
        super().__init__()
        self.blur, self.up, self.down = layers.Blur2d(), layers.Upsample2d(), layers.Downsample2d()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.2)
        self.out = nn.Linear(4 * (SIZE // 4) ** 2, 1)

    def forward(self, images):
        x = self.act(self.conv(self.up(self.down(self.blur(images)))))
        return self.out(upfirdn2d(x, self.blur.filter, down=4, padding=(1, 0, 1, 0), gain=2.0).flatten(1))


class Growing(nn.Module):
    """PGGAN's: resampled convolutions, and a blend of two resolutions."""

    def __init__(self):
        super().__init__()
        self.alpha = 0.3
        self.wide = layers.EqualizedConv2d(3, 6, 1, act="lrelu")
        self.narrow = layers.EqualizedConv2d(3, 8, 1, act="lrelu")
        self.down = layers.ConvDownsample2d(6, 8, equalized=True, act="lrelu")
        self.up = layers.UpsampleConv2d(8, 4, act="lrelu")
        self.out = nn.Linear(4 * SIZE * SIZE, 1)

    def forward(self, images):
        fine = self.down(self.wide(images))
        coarse = self.narrow(F.avg_pool2d(images, 2))
        x = self.up(self.alpha * fine + (1 - self.alpha) * coarse)
        return self.out(torch.flatten(1 - F.pad(x, (0, 0)) / 2, 1)).squeeze(-1)


def dcgan():
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(6, 8, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True),
        nn.Identity(), nn.Conv2d(8, 1, SIZE // 4),
        nn.Flatten(),
    )  # fmt: skip


DISCRIMINATORS = {
    "residual": Residual,
    "limited": lambda: Residual(clamp=0.7),
    "dcgan": dcgan,
    "bottleneck": Bottleneck,
    "projection": Projection,
    "label maps": LabelMaps,
    "growing": Growing,
    "filtered": Filtered,
}
CONDITIONAL = ("projection", "label maps")


def build(name):
    torch.manual_seed(0)
    discriminator = DISCRIMINATORS[name]().double()
    for parameter in discriminator.parameters():
        if parameter.dim() == 1:  # biases of zero would hide errors
            nn.init.normal_(parameter, std=0.3)
    return discriminator


def batch(name=None, n=3, dtype=torch.float64):
    """Real and fake images, and labels or None."""
    generator = torch.Generator().manual_seed(1)
    real, fake = (
        torch.randn(n, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        .to(dtype, memory_format=torch.channels_last)
        .requires_grad_()
        for _ in range(2)
    )
    return real, fake, torch.arange(n) % CLASSES if name in CONDITIONAL else None


def by_double_backward(discriminator):
    """The discriminator in a function, which takes double backward."""
    return lambda *arguments: discriminator(*arguments)


def relativistic_average(real, fake):
    return (F.softplus(-(real - fake.mean())) + F.softplus(fake - real.mean())).mean()


LOSSES = {
    "nonsaturating": lambda real, fake: losses.nonsaturating_real(real) + losses.nonsaturating_fake(fake),
    "hinge": lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    "wasserstein": lambda real, fake: fake.mean() - real.mean(),
    "least squares": lambda real, fake: (real - 1).square().mean() + fake.square().mean(),
    "relativistic": lambda real, fake: F.softplus(fake - real).mean(),
    "relativistic average": relativistic_average,
}


def r1_and_r2(discriminator, loss, real, fake, labels):
    real_logits, real_squares = logits_and_squared_grad(discriminator, real, labels)
    fake_logits, fake_squares = logits_and_squared_grad(discriminator, fake, labels)
    return loss(real_logits, fake_logits) + 3 * zero_centered_penalty(real_squares) + fake_squares.mean()


def concatenated(discriminator, loss, real, fake, labels):
    labels = None if labels is None else torch.cat([labels, labels])
    logits, squares = logits_and_squared_grad(discriminator, torch.cat([real, fake]), labels)
    return loss(*logits.chunk(2)) + 3 * zero_centered_penalty(squares)


def interpolated(discriminator, loss, real, fake, labels):
    torch.manual_seed(2)
    plain = [discriminator(images) if labels is None else discriminator(images, labels) for images in (real, fake)]
    penalty = penalties.wgan_gp(discriminator, real, fake, labels) + penalties.wgan_gp(
        discriminator, real, fake, labels, one_sided=True
    )
    return loss(*(logits.flatten() for logits in plain)) + penalty


def assert_equal_gradients(got, expected, tolerance=1e-9):
    largest = max(g.norm() for g in expected if g is not None)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            # Where terms cancel (the last bias with the Wasserstein loss), only rounding is left.
            assert (a - b).norm() <= tolerance * b.norm() + tolerance * 1e-3 * largest


class SavedTensor:
    def __init__(self, tensor):
        self.tensor = tensor
