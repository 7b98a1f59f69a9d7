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
from fastgan.penalties.one_pass import logits_and_squares
from fastgan.penalties.recording import Recording
from fastgan.penalties.rules import NotPiecewiseLinear


def logits_and_squared_grad(
    discriminator: Callable[..., Tensor], images: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits of the images, and the squared norm of each logit's gradient with respect to its image.

        logits, squares = logits_and_squared_grad(discriminator, real, labels)
        loss = nonsaturating_real(logits) + gamma * zero_centered_penalty(squares)  # R1

    Takes one of two forms; the discriminator runs once in either. A module that is piecewise linear and treats samples
    independently takes the one-pass form (`fastgan.penalties.one_pass`), which can be differentiated once: backward
    with `create_graph=True` raises RuntimeError. Everything else takes double backward. `why_not_one_pass` tells which.

    Args:
        discriminator: called as `discriminator(images, labels)`, or `discriminator(images)` without labels; returns
            [N], or [N, P] with P logits an image, for parts of it. For double backward its operations must be twice
            differentiable. It runs under the caller's autocast.
        images: [N, C, H, W]; not modified. If they require grad, both results lead to them.
        labels: passed on to the discriminator, or None.

    Returns:
        logits [N], or [N, P] for P > 1, and `squares` [N], squares[n] = |d logit[n] / d images[n]|^2, of the mean logit
        if there are several; both in fp32 (fp64 for fp64) and differentiable. The gradient is that of the sum over n.
        With statistics across the minibatch it has the small cross terms between samples, as in every published
        implementation.

    Raises:
        RuntimeError: within torch.func or `torch.inference_mode`, or for images with a forward-mode tangent.
        ValueError: the discriminator's result is not [N] or [N, P].
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "logits_and_squared_grad: torch.inference_mode records no graph to differentiate; use torch.no_grad"
        )
    if must_use_reference([images]):
        raise RuntimeError(
            "logits_and_squared_grad: does not work within torch.func or forward-mode AD; use torch.func.grad of the "
            "discriminator there"
        )
    wants_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        images = images if images.requires_grad and wants_graph else _leaf(images)
        may_qualify = (
            wants_graph
            and isinstance(discriminator, nn.Module)
            and not any(getattr(module, "mixes_samples", False) for module in discriminator.modules())
            and not must_use_reference(discriminator.parameters())
        )
        recording = Recording(images) if may_qualify else None
        with recording or contextlib.nullcontext():
            result = discriminator(images) if labels is None else discriminator(images, labels)
        n = images.shape[0]
        if not isinstance(result, Tensor):
            raise ValueError(
                f"the discriminator's result is a {type(result).__name__}, must be a tensor of logits [{n}]"
            )
        if result.dim() not in (1, 2) or len(result) != n or result.shape[1:] == (0,):
            raise ValueError(f"the discriminator's logits have shape {list(result.shape)}, must be [{n}] or [{n}, P]")
        if recording is not None:
            with contextlib.suppress(NotPiecewiseLinear):
                return logits_and_squares(recording, result)
        logits = to_arithmetic(result.reshape(n) if result.shape == (n, 1) else result)
        each = logits if logits.dim() == 1 else logits.mean(1)
        with torch.autocast(images.device.type, enabled=False):  # the graph has recorded the dtypes
            (gradient,) = torch.autograd.grad(each.sum(), images, create_graph=wants_graph)
            squares = squared_norm(gradient)
    return (logits, squares) if wants_graph else (logits.detach(), squares.detach())


def _leaf(images: Tensor) -> Tensor:
    """The images as a leaf that requires grad; copied if made in `torch.inference_mode`, since those cannot."""
    return (images.clone() if images.is_inference() else images.detach()).requires_grad_()


def why_not_one_pass(discriminator: Callable[..., Tensor], images: Tensor, labels: Tensor | None = None) -> str | None:
    """Why `logits_and_squared_grad` takes double backward with these arguments; None if it takes the one-pass form.

    Runs a copy of the discriminator and restores the RNG states, so nothing is changed.

    Raises ValueError if the discriminator cannot be copied.
    """
    if not isinstance(discriminator, nn.Module):
        return f"{discriminator!r} is not a module, so double backward is used"
    # Attributes with a graph, such as those of the old `nn.utils.spectral_norm`, cannot be copied, and are shared.
    tensors = [x for module in discriminator.modules() for x in vars(module).values() if isinstance(x, Tensor)]
    try:
        twin = copy.deepcopy(discriminator, {id(x): x for x in tensors if x.grad_fn is not None})
    except Exception as error:
        raise ValueError(f"why_not_one_pass: the discriminator cannot be copied, to be run aside: {error}") from error
    recording = Recording(_leaf(images), module_names=twin)
    states = random.getstate(), np.random.get_state()
    try:
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), torch.enable_grad(), recording:
            result = twin(recording.images) if labels is None else twin(recording.images, labels)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return recording.why_not(result)
