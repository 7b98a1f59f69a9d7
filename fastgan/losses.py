"""Objectives of generator and critic, and gradient penalties, in fp32 at least."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastgan import one_pass, piecewise_linear
from fastgan.ops import lerp_samples, squared_norm
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic


class Objective(NamedTuple):
    """What generator and critic minimise, as functions of logits [N]; each returns a scalar, the mean over N."""

    generator: Callable[[Tensor], Tensor]  # (fake logits)
    critic_real: Callable[[Tensor], Tensor]  # (real logits)
    critic_fake: Callable[[Tensor], Tensor]  # (fake logits)


def nonsaturating_real(logits: Tensor) -> Tensor:
    """-log sigmoid(logits), its mean: low if [N] images are called real. Goodfellow et al. 2014, section 3."""
    return softplus(-to_arithmetic(logits)).mean()


def nonsaturating_fake(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(logits)), its mean: low if [N] images are called generated. Same source."""
    return softplus(to_arithmetic(logits)).mean()


# The critic's objective is critic_real + critic_fake. The generator's, "non-saturating", is to have its images
# called real.
OBJECTIVES = {"nonsaturating": Objective(nonsaturating_real, nonsaturating_real, nonsaturating_fake)}


# Gradient penalties -----------------------------------------------------------------------------------------------


def critic_with_grad_norm(
    critic: Callable[..., Tensor], images: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the critic and take its gradient with respect to the images: the ground of every gradient penalty.

        logits, squares = critic_with_grad_norm(critic, real, labels)
        loss = nonsaturating_real(logits) + gamma * zero_centered_penalty(squares)  # R1

    Args:
        critic: called as `critic(images, labels)`, or `critic(images)` without labels; returns [N] or [N, 1]. Call this
            function under the autocast that the critic is to run in.
        images: [N, C, H, W]; not modified. Where they require grad, they get it from both results.
        labels: whatever the critic takes for labels, or None.

    Returns:
        logits [N] and `squares` [N] with squares[n] = |d logit[n] / d images[n]|^2, both fp32 at least and
        differentiable. The gradient of the sum of logits is each sample's own where samples are independent; a critic
        with statistics across the minibatch adds their small cross terms, as every published implementation does.

    There are two forms of it. Critics that are piecewise linear and treat samples independently, as far as
    `why_not_one_pass` can tell, are differentiated in one pass (see `fastgan.one_pass`), once: with
    `create_graph=True` backward raises RuntimeError. Any other callable whose operations are twice differentiable
    goes through double backward.
    """
    try:
        return one_pass.logits_and_squares(critic, images, labels, squared_norm)
    except piecewise_linear.NotPiecewiseLinear:
        return _by_double_backward(critic, images, labels)


def why_not_one_pass(critic: Callable[..., Tensor], *, labels: bool = False) -> str | None:
    """Why `critic_with_grad_norm` goes through double backward with this critic as it is now, or None.

    `labels` says whether the critic is to be called with labels.
    """
    try:
        piecewise_linear.plan(critic, labels)
    except piecewise_linear.NotPiecewiseLinear as reason:
        return str(reason)
    return None


def _by_double_backward(critic, images, labels):
    wants_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        images = images if images.requires_grad and wants_graph else images.detach().requires_grad_()
        logits = critic(images) if labels is None else critic(images, labels)
        if logits.shape not in ((len(images),), (len(images), 1)):
            raise ValueError(f"the critic's logits have shape {list(logits.shape)}, must be [{len(images)}]")
        logits = to_arithmetic(logits.reshape(len(images)))
        # The forward pass has recorded the dtypes already.
        with torch.autocast(images.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=wants_graph)
            squares = squared_norm(gradient)
    return (logits, squares) if wants_graph else (logits.detach(), squares.detach())


def zero_centered_penalty(squares: Tensor) -> Tensor:
    """`mean(|g|^2) / 2`: R1 where `squares` [N] are those of real images, R2 where of generated ones.

    To be multiplied by the weight gamma. Mescheder et al. 2018, equations 9 and 10.
    """
    return squares.mean() / 2


def one_centered_penalty(squares: Tensor, *, one_sided: bool = False) -> Tensor:
    """`mean((|g| - 1)^2)`: the penalty of WGAN-GP for `squares` [N] of interpolated images, to be multiplied by lambda.

    Gulrajani et al. 2017, equation 3; `one_sided` counts norms above 1 only (section 4 there, "two-sided penalty").
    """
    norm = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()  # finite gradient, zero, at a norm of zero
    excess = norm - 1
    return (excess.relu() if one_sided else excess).square().mean()


def wgan_gp(
    critic: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    labels: Tensor | None = None,
    *,
    one_sided: bool = False,
) -> Tensor:
    """The penalty of WGAN-GP for images real and fake [N, C, H, W], a scalar to be multiplied by lambda (10 there).

    Each pair is interpolated at a random place. Arguments as those of `critic_with_grad_norm` and
    `one_centered_penalty`.
    """
    _, squares = critic_with_grad_norm(critic, interpolate(real, fake), labels)
    return one_centered_penalty(squares, one_sided=one_sided)


def interpolate(real: Tensor, fake: Tensor) -> Tensor:
    """A random point between real[n] and fake[n] for each of [N, ...] pairs, of equal shape; without a graph."""
    if real.shape != fake.shape:
        raise ValueError(f"interpolate: fake has shape {list(fake.shape)}, real {list(real.shape)}: must be equal")
    with torch.no_grad():
        share = torch.rand(len(real), device=real.device, dtype=arithmetic_dtype(real.dtype))
        return lerp_samples(real, fake.to(real.dtype), share)
