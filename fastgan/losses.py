"""Objectives of generator and discriminator, and path length regularization, in fp32 (fp64 for fp64).

Functions of logits, [N] or [N, P] for P parts of each image, return the mean over all of them. Gradient penalties are
in `fastgan.penalties`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fastgan.ops.arithmetic import to_arithmetic, update_average


class Objective(NamedTuple):
    """Losses that generator and discriminator minimize: functions of logits [N] that return a scalar."""

    generator: Callable[[Tensor], Tensor]  # (fake logits)
    discriminator_real: Callable[[Tensor], Tensor]  # (real logits)
    discriminator_fake: Callable[[Tensor], Tensor]  # (fake logits)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Sum of the terms for real and fake logits [N]."""
        return self.discriminator_real(real) + self.discriminator_fake(fake)


class PairedObjective(NamedTuple):
    """An objective that compares real with fake images: functions of two sets of logits [N] that return a scalar."""

    generator: Callable[[Tensor, Tensor], Tensor]  # (fake logits, real logits)
    discriminator: Callable[[Tensor, Tensor], Tensor]  # (real logits, fake logits)


def nonsaturating_real(logits: Tensor) -> Tensor:
    """-log sigmoid(logits): small when the logits [N] call the images real. Goodfellow et al. 2014, section 3."""
    return softplus(-to_arithmetic(logits)).mean()


def nonsaturating_fake(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(logits)): small when the logits [N] call the images fake. Goodfellow et al. 2014, section 3."""
    return softplus(to_arithmetic(logits)).mean()


def minimax_generator(logits: Tensor) -> Tensor:
    """log(1 - sigmoid(logits)) of fake images; saturates when the discriminator is sure.

    Goodfellow et al. 2014, equation 1.
    """
    return -nonsaturating_fake(logits)


def mean_logit(logits: Tensor) -> Tensor:
    """Mean of logits [N], which the critic of a Wasserstein GAN minimizes on fake images."""
    return to_arithmetic(logits).mean()


def minus_mean_logit(logits: Tensor) -> Tensor:
    """Minus the mean of logits [N]: the critic's term for real images, and the generator's.

    Arjovsky et al. 2017, equation 2.
    """
    return -mean_logit(logits)


def hinge_real(logits: Tensor) -> Tensor:
    """max(0, 1 - logit) of real images. Miyato et al. 2018, equation 16; the generator's is `minus_mean_logit`."""
    return (1 - to_arithmetic(logits)).relu().mean()


def hinge_fake(logits: Tensor) -> Tensor:
    """max(0, 1 + logit) of fake images. Miyato et al. 2018, equation 16."""
    return (1 + to_arithmetic(logits)).relu().mean()


def noisy_hinge_real(logits: Tensor) -> Tensor:
    """`hinge_real` with a random margin from 0.8 to 1 for each logit, as a label smoothing (Liu et al. 2021, code)."""
    logits = to_arithmetic(logits)
    return (0.8 + 0.2 * torch.rand_like(logits) - logits).relu().mean()


def noisy_hinge_fake(logits: Tensor) -> Tensor:
    """`hinge_fake` with a random margin; see `noisy_hinge_real`."""
    return noisy_hinge_real(-logits)


def squared_distance_to_one(logits: Tensor) -> Tensor:
    """(logit - 1)^2 / 2: small when the logits [N] call the images real. Mao et al. 2017, equation 9."""
    return (to_arithmetic(logits) - 1).square().mean() / 2


def squared_distance_to_zero(logits: Tensor) -> Tensor:
    """logit^2 / 2: small when the logits [N] call the images fake. Mao et al. 2017, equation 9."""
    return to_arithmetic(logits).square().mean() / 2


def relativistic(higher: Tensor, lower: Tensor) -> Tensor:
    """-log sigmoid(higher - lower): small when higher[n] is above lower[n]; logits [N] each.

    Relativistic pairing loss (Jolicoeur-Martineau 2018; Huang et al. 2024, equation 2). Raises ValueError if the shapes
    differ.
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
    "noisy-hinge": Objective(minus_mean_logit, noisy_hinge_real, noisy_hinge_fake),
    "wasserstein": Objective(minus_mean_logit, minus_mean_logit, mean_logit),
    "relativistic": PairedObjective(relativistic, relativistic),
}


# Regularization of the generator ----------------------------------------------------------------------------------


class PathLength(nn.Module):
    """Path length regularization: a step in w of a given length should change every image by the same amount.

        (|J_w^T y| - a)^2,   y ~ N(0, 1) / sqrt(H * W),   a = running mean of |J_w^T y|, a buffer

    Karras et al. 2020 ("Analyzing and Improving the Image Quality of StyleGAN"), equation 4 and appendix B.

    Args:
        decay: weight of a call's lengths in the running mean.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: Tensor, ws: Tensor) -> Tensor:
        """The penalty, a scalar, which the papers multiply by 2; updates the running mean.

        Args:
            images: [N, C, H, W], computed from `ws` with a graph.
            ws: styles [N, num_ws, w_dim]. The length is the root mean square over the num_ws copies.
        """
        penalty, length = self.penalty_and_length(images, ws)
        self.update(length)
        return penalty

    def penalty_and_length(self, images: Tensor, ws: Tensor) -> tuple[Tensor, Tensor]:
        """The penalty and the mean length, both scalars. The running mean is not updated.

        With micro-batches, call `update` once a step with the mean of their lengths.
        """
        noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
        with torch.autocast(images.device.type, enabled=False):
            (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
            lengths = to_arithmetic(gradient).square().sum(2).mean(1).sqrt()
            length = lengths.detach().mean().to(self.mean.dtype)
            return (lengths - self.mean.lerp(length, self.decay)).square().mean(), length

    @torch.no_grad()
    def update(self, length: Tensor) -> None:
        """Updates the running mean with a mean length, 0-dim, if it is finite."""
        update_average(self.mean, length, self.decay)
