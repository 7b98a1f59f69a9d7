"""Gradient penalties of the papers: R1, R2 and WGAN-GP, from squared gradient norms [N]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.ops import lerp_samples
from fastgan.ops.arithmetic import arithmetic_dtype
from fastgan.penalties.gradient import logits_and_squared_grad


def zero_centered_penalty(squares: Tensor) -> Tensor:
    """`mean(|g|^2) / 2`, to be multiplied by gamma: R1 for squares [N] of real images, R2 for those of fake images.

    Mescheder et al. 2018, equations 9 and 10.
    """
    return squares.mean() / 2


def one_centered_penalty(squares: Tensor, *, one_sided: bool = False) -> Tensor:
    """`mean((|g| - 1)^2)`, to be multiplied by lambda: WGAN-GP for squares [N] of interpolated images.

    Gulrajani et al. 2017, equation 3. `one_sided` penalizes only norms above 1 (section 4, "Two-sided penalty").
    """
    norm = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()  # gradient zero instead of infinite at norm 0
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
    """The gradient penalty of WGAN-GP, a scalar to be multiplied by lambda (10 in the paper).

    Args:
        discriminator: called as in `logits_and_squared_grad`.
        real, fake: images [N, C, H, W]. Each pair is interpolated at a random point.
        labels: passed on to the discriminator, or None.
        one_sided: see `one_centered_penalty`.
    """
    _, squares = logits_and_squared_grad(discriminator, interpolate(real, fake), labels)
    return one_centered_penalty(squares, one_sided=one_sided)


def interpolate(real: Tensor, fake: Tensor) -> Tensor:
    """A random point between real[n] and fake[n], for tensors of equal shape [N, ...]; detached.

    Gulrajani et al. 2017, algorithm 1, line 6. Raises ValueError if the shapes differ.
    """
    if real.shape != fake.shape:
        raise ValueError(f"interpolate: fake has shape {list(fake.shape)}, real {list(real.shape)}: must be equal")
    with torch.no_grad():
        share = torch.rand(len(real), device=real.device, dtype=arithmetic_dtype(real.dtype))
        return lerp_samples(real, fake.to(real.dtype), share)
