"""Logits of a discriminator and the squared norm of their gradient: the basis of every gradient penalty."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.ops import squared_norm
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.transforms import must_use_reference
from fastgan.penalties import one_pass
from fastgan.penalties.recording import Recording
from fastgan.penalties.rules import NotPiecewiseLinear


def logits_and_squared_grad(
    discriminator: Callable[..., Tensor], images: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the discriminator and take its gradient with respect to the images: the ground of every gradient penalty.

        logits, squares = logits_and_squared_grad(discriminator, real, labels)
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
            "logits_and_squared_grad: torch.inference_mode records nothing that it could "
            "differentiate; use torch.no_grad"
        )
    if must_use_reference([images]):
        raise RuntimeError(
            "logits_and_squared_grad: torch.func and forward-mode AD cannot go through it; within them, take "
            "torch.func.grad of the discriminator itself"
        )
    wants_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        images = images if images.requires_grad and wants_graph else _leaf(images)
        follow = (
            wants_graph and isinstance(discriminator, nn.Module) and not must_use_reference(discriminator.parameters())
        )
        recording = Recording(images) if follow else None
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
            with contextlib.suppress(NotPiecewiseLinear):
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
    """Why `logits_and_squared_grad` goes through double backward with these arguments, or None.

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
    recording = Recording(_leaf(images), twin)
    state = random.getstate(), np.random.get_state()
    try:
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), torch.enable_grad(), recording:
            result = twin(recording.images) if labels is None else twin(recording.images, labels)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
    return recording.why_not(result)
