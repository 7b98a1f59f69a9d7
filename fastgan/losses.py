"""Objectives of generator and discriminator, and gradient penalties, in fp32 at least."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fastgan.ops.arithmetic import average_in, to_arithmetic


class Objective(NamedTuple):
    """What generator and discriminator minimise, as functions of logits [N]; each returns a scalar, the mean over N."""

    generator: Callable[[Tensor], Tensor]  # (fake logits)
    discriminator_real: Callable[[Tensor], Tensor]  # (real logits)
    discriminator_fake: Callable[[Tensor], Tensor]  # (fake logits), to be added to the other

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Both halves, of real and fake logits [N]."""
        return self.discriminator_real(real) + self.discriminator_fake(fake)


class PairedObjective(NamedTuple):
    """The same for objectives that judge an image beside one of the other kind: functions of two times [N] logits."""

    generator: Callable[[Tensor, Tensor], Tensor]  # (fake logits, real logits)
    discriminator: Callable[[Tensor, Tensor], Tensor]  # (real logits, fake logits)


def nonsaturating_real(logits: Tensor) -> Tensor:
    """-log sigmoid(logits), its mean: low if [N] images are called real. Goodfellow et al. 2014, section 3."""
    return softplus(-to_arithmetic(logits)).mean()


def nonsaturating_fake(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(logits)), its mean: low if [N] images are called generated. Same source."""
    return softplus(to_arithmetic(logits)).mean()


def minimax_generator(logits: Tensor) -> Tensor:
    """log(1 - sigmoid(logits)), its mean, of generated images: equation 1 there, flat where the discriminator is
    sure."""
    return -nonsaturating_fake(logits)


def mean_logit(logits: Tensor) -> Tensor:
    """The mean of [N] logits, which the discriminator of a Wasserstein GAN wants low of generated images."""
    return to_arithmetic(logits).mean()


def minus_mean_logit(logits: Tensor) -> Tensor:
    """Its negative: of real images, and what the generator minimises. Arjovsky et al. 2017, equation 2."""
    return -mean_logit(logits)


def hinge_real(logits: Tensor) -> Tensor:
    """max(0, 1 - logit), its mean. Miyato et al. 2018, equation 16; the generator's is `minus_mean_logit`."""
    return (1 - to_arithmetic(logits)).relu().mean()


def hinge_fake(logits: Tensor) -> Tensor:
    """max(0, 1 + logit), its mean. Same source."""
    return (1 + to_arithmetic(logits)).relu().mean()


def squared_distance_to_one(logits: Tensor) -> Tensor:
    """(logit - 1)^2 / 2, its mean: low if [N] images are called real. Mao et al. 2017, equation 9."""
    return (to_arithmetic(logits) - 1).square().mean() / 2


def squared_distance_to_zero(logits: Tensor) -> Tensor:
    """logit^2 / 2, its mean: low if [N] images are called generated. Same source."""
    return to_arithmetic(logits).square().mean() / 2


def relativistic(higher: Tensor, lower: Tensor) -> Tensor:
    """-log sigmoid(higher - lower), its mean: low if each of [N] logits lies above its partner, the one of equal index.

    The relativistic pairing loss (Jolicoeur-Martineau 2018; Huang et al. 2024, equation 2).
    """
    if higher.shape != lower.shape:
        raise ValueError(
            f"relativistic: logits have shapes {list(higher.shape)} and {list(lower.shape)}: must be pairs"
        )
    return softplus(to_arithmetic(lower) - to_arithmetic(higher)).mean()


OBJECTIVES: dict[str, Objective | PairedObjective] = {
    "minimax": Objective(minimax_generator, nonsaturating_real, nonsaturating_fake),
    "nonsaturating": Objective(nonsaturating_real, nonsaturating_real, nonsaturating_fake),
    "least-squares": Objective(squared_distance_to_one, squared_distance_to_one, squared_distance_to_zero),
    "hinge": Objective(minus_mean_logit, hinge_real, hinge_fake),
    "wasserstein": Objective(minus_mean_logit, minus_mean_logit, mean_logit),
    "relativistic": PairedObjective(relativistic, relativistic),
}


# Regularisation of the generator ----------------------------------------------------------------------------------


class PathLength(nn.Module):
    """The path length penalty: a step in w should change the image by the same amount, wherever it is taken.

        (|J_w^T y| - a)^2,   y ~ N(0, 1) / sqrt(H * W),   a a running mean of that length

    Karras et al. 2020 ("Analyzing and Improving the Image Quality of StyleGAN"), equation 4 and appendix B. The mean is
    a buffer, and so part of the state of a training.

    Args:
        decay: share that a call's lengths have in the running mean.
    """

    def __init__(self, decay: float = 0.01):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: Tensor, ws: Tensor) -> Tensor:
        """Images [N, C, H, W], and the styles ws [N, num_ws, w_dim] that they were made of with a graph, to a scalar.

        The length is that over w, averaged over its num_ws copies (root mean square). The papers' weight is 2.
        """
        penalty, length = self.of(images, ws)
        self.update(length)
        return penalty

    def of(self, images: Tensor, ws: Tensor) -> tuple[Tensor, Tensor]:
        """The penalty, and the mean length, which `update` is to be told: where parts of a batch go through one by one,
        their mean, once a step."""
        noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
        with torch.autocast(images.device.type, enabled=False):
            (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
            lengths = to_arithmetic(gradient).square().sum(2).mean(1).sqrt()
            length = lengths.detach().mean().to(self.mean.dtype)
            return (lengths - self.mean.lerp(length, self.decay)).square().mean(), length

    @torch.no_grad()
    def update(self, length: Tensor) -> None:
        """Counts a length, 0-dim, into the running mean, if it is finite."""
        average_in(self.mean, length, self.decay)
