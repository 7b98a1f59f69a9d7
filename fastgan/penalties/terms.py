"""Gradient penalties of the papers: R1, R2 and WGAN-GP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.ops import lerp_samples
from fastgan.ops.arithmetic import arithmetic_dtype
from fastgan.penalties.gradient import logits_and_squared_grad


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

    Each pair is interpolated at a random place. Arguments as those of `logits_and_squared_grad` and
    `one_centered_penalty`.
    """
    _, squares = logits_and_squared_grad(discriminator, interpolate(real, fake), labels)
    return one_centered_penalty(squares, one_sided=one_sided)


def interpolate(real: Tensor, fake: Tensor) -> Tensor:
    """A random point between real[n] and fake[n] for each of [N, ...] pairs, of equal shape; without a graph."""
    if real.shape != fake.shape:
        raise ValueError(f"interpolate: fake has shape {list(fake.shape)}, real {list(real.shape)}: must be equal")
    with torch.no_grad():
        share = torch.rand(len(real), device=real.device, dtype=arithmetic_dtype(real.dtype))
        return lerp_samples(real, fake.to(real.dtype), share)
