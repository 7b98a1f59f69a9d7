"""Objectives of generator and discriminator, and gradient penalties, in fp32 at least."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fastgan.ops import lerp_samples, squared_norm
from fastgan.ops.arithmetic import arithmetic_dtype, average_in, to_arithmetic
from fastgan.ops.transforms import must_use_reference
from fastgan.penalties import one_pass, piecewise_linear


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


# Gradient penalties -----------------------------------------------------------------------------------------------


def discriminator_with_grad_norm(
    discriminator: Callable[..., Tensor], images: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the discriminator and take its gradient with respect to the images: the ground of every gradient penalty.

        logits, squares = discriminator_with_grad_norm(discriminator, real, labels)
        loss = nonsaturating_real(logits) + gamma * zero_centered_penalty(squares)  # R1

    Args:
        discriminator: called as `discriminator(images, labels)`, or `discriminator(images)` without labels; returns [N]
            or [N, 1]. Call this function under the autocast that the discriminator is to run in.
        images: [N, C, H, W]; not modified. Where they require grad, they get it from both results.
        labels: whatever the discriminator takes for labels, or None.

    Returns:
        logits [N] and `squares` [N] with squares[n] = |d logit[n] / d images[n]|^2, both fp32 at least and
        differentiable. The gradient of the sum of logits is each sample's own where samples are independent; a
        discriminator with statistics across the minibatch adds their small cross terms, as every published
        implementation does.

    There are two forms of it. A module whose forward pass is followed to the end, and was piecewise linear and kept
    samples apart, is differentiated in one pass (see `fastgan.penalties.one_pass`), once: with `create_graph=True`
    backward raises RuntimeError. `why_not_one_pass` tells whether it was. Any other callable whose operations are twice
    differentiable goes through double backward. The discriminator runs once in either.

    Raises RuntimeError within torch.func and `torch.inference_mode`, and for images with a tangent of forward-mode AD.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "discriminator_with_grad_norm: torch.inference_mode records nothing that it could "
            "differentiate; use torch.no_grad"
        )
    if must_use_reference([images]):
        raise RuntimeError(
            "discriminator_with_grad_norm: torch.func and forward-mode AD cannot go through it; within them, take "
            "torch.func.grad of the discriminator itself"
        )
    wants_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        images = images if images.requires_grad and wants_graph else _leaf(images)
        follow = (
            wants_graph and isinstance(discriminator, nn.Module) and not must_use_reference(discriminator.parameters())
        )
        recording = one_pass.Recording(images) if follow else None
        with recording or contextlib.nullcontext():
            result = discriminator(images) if labels is None else discriminator(images, labels)
        n = images.shape[0]
        if not isinstance(result, Tensor):
            raise ValueError(
                f"the discriminator's result is a {type(result).__name__}, must be a tensor of logits [{n}]"
            )
        if result.shape not in ((n,), (n, 1)):
            raise ValueError(f"the discriminator's logits have shape {list(result.shape)}, must be [{n}]")
        if recording is not None:
            with contextlib.suppress(piecewise_linear.NotPiecewiseLinear):
                return one_pass.logits_and_squares(recording, result, squared_norm)
        logits = to_arithmetic(result.reshape(n))
        # The forward pass has recorded the dtypes already.
        with torch.autocast(images.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=wants_graph)
            squares = squared_norm(gradient)
    return (logits, squares) if wants_graph else (logits.detach(), squares.detach())


def _leaf(images: Tensor) -> Tensor:
    """The images with a gradient of their own; copied where `torch.inference_mode` made them, which cannot have one."""
    return (images.clone() if images.is_inference() else images.detach()).requires_grad_()


def why_not_one_pass(discriminator: Callable[..., Tensor], images: Tensor, labels: Tensor | None = None) -> str | None:
    """Why `discriminator_with_grad_norm` goes through double backward with these arguments, or None.

    Runs a copy of the discriminator: the discriminator and the state of random numbers stay as they are.

    Raises ValueError for a discriminator that cannot be copied.
    """
    if not isinstance(discriminator, nn.Module):
        return f"{discriminator!r} is not a module: it is asked for double backward"
    # What a forward pass left behind with a graph, as the old `nn.utils.spectral_norm` does, cannot be copied.
    left = [value for module in discriminator.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    try:
        twin = copy.deepcopy(discriminator, {id(value): value for value in left if value.grad_fn is not None})
    except Exception as error:
        raise ValueError(f"why_not_one_pass: the discriminator cannot be copied, to be run aside: {error}") from error
    recording = one_pass.Recording(_leaf(images), twin)
    state = random.getstate(), np.random.get_state()
    try:
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), torch.enable_grad(), recording:
            result = twin(recording.images) if labels is None else twin(recording.images, labels)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
    return recording.why_not(result)


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
    discriminator: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    labels: Tensor | None = None,
    *,
    one_sided: bool = False,
) -> Tensor:
    """The penalty of WGAN-GP for images real and fake [N, C, H, W], a scalar to be multiplied by lambda (10 there).

    Each pair is interpolated at a random place. Arguments as those of `discriminator_with_grad_norm` and
    `one_centered_penalty`.
    """
    _, squares = discriminator_with_grad_norm(discriminator, interpolate(real, fake), labels)
    return one_centered_penalty(squares, one_sided=one_sided)


def interpolate(real: Tensor, fake: Tensor) -> Tensor:
    """A random point between real[n] and fake[n] for each of [N, ...] pairs, of equal shape; without a graph."""
    if real.shape != fake.shape:
        raise ValueError(f"interpolate: fake has shape {list(fake.shape)}, real {list(real.shape)}: must be equal")
    with torch.no_grad():
        share = torch.rand(len(real), device=real.device, dtype=arithmetic_dtype(real.dtype))
        return lerp_samples(real, fake.to(real.dtype), share)


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
