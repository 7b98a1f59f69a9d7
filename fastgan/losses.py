"""Objectives of generator and critic, and gradient penalties, in fp32 at least."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastgan.ops import squared_norm


class Objective(NamedTuple):
    """What generator and critic minimise, as functions of logits [N]; each returns a scalar, the mean over N."""

    generator: Callable[[Tensor], Tensor]  # (fake logits)
    critic_real: Callable[[Tensor], Tensor]  # (real logits)
    critic_fake: Callable[[Tensor], Tensor]  # (fake logits)


def nonsaturating_real(logits: Tensor) -> Tensor:
    """-log sigmoid(logits), its mean: low if [N] images are called real. Goodfellow et al. 2014, section 3."""
    return softplus(-_fp32_at_least(logits)).mean()


def nonsaturating_fake(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(logits)), its mean: low if [N] images are called generated. Same source."""
    return softplus(_fp32_at_least(logits)).mean()


# The critic's objective is critic_real + critic_fake. The generator's, "non-saturating", is to have its images
# called real.
OBJECTIVES = {"nonsaturating": Objective(nonsaturating_real, nonsaturating_real, nonsaturating_fake)}


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of the critic's gradient at each image: [N], fp32 at least, differentiable.

    Mescheder et al. 2018, equation 9, before the mean.

    `logits` [N] was computed from `images` [N, C, H, W], which requires grad, by a critic whose operations are twice
    differentiable. The gradient of the sum is each sample's own gradient where samples are independent; a critic with
    statistics across the minibatch adds their small cross terms, as every published implementation does.

    It may be called under autocast, which it switches off: the forward pass has recorded the dtypes already.
    """
    with torch.autocast(images.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(_fp32_at_least(logits).sum(), images, create_graph=True)
        return squared_norm(gradient)


def critic_with_grad_norm(
    critic: Callable[[Tensor, Tensor | None], Tensor], images: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the critic and take its gradient with respect to the images: the ground of every gradient penalty.

    Returns logits [N] and `sq` [N], both fp32, with sq[n] = |d logit[n] / d images[n]|^2. Both are differentiable with
    respect to the critic's parameters, so that a penalty is ordinary code: `loss(logits) + gamma / 2 * sq.mean()` is R1
    on real images, `(sq.sqrt() - 1).square().mean()` WGAN-GP on interpolated ones. `images` [N, C, H, W] is not
    modified; `labels` is [N] int64 or None.
    """
    images = images.detach().requires_grad_()
    logits = critic(images, labels)
    return _fp32_at_least(logits), r1_penalty(logits, images)


def _fp32_at_least(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
