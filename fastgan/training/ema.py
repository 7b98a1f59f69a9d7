"""EMA of the generator, which images are drawn from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def ema_decay(images_seen: int, batch: int, half_life: float, ramp_up: float) -> float:
    """Weight of the old average in one update, after `batch` more images.

    half_life: in images; 0 for no averaging. ramp_up: limits the half-life to this share of `images_seen`, so that the
    poor first generators are soon forgotten; 0 for no limit. Karras et al. 2020 (ADA), appendix.
    """
    if ramp_up:
        half_life = min(half_life, images_seen * ramp_up)
    return 0.5 ** (batch / half_life) if half_life else 0.0


class EMA:
    """Keeps `average`, a copy of `model`, at the EMA of its parameters. Buffers are copied."""

    def __init__(self, average: nn.Module, model: nn.Module):
        self._average = list(average.parameters()), list(average.buffers())
        self._model = list(model.parameters()), list(model.buffers())

    @torch.no_grad()
    def update(self, weight: float | Tensor) -> None:
        """average += weight * (model - average), in one pass; weight is 1 - `ema_decay`.

        `weight` may be a 0-dim tensor on the networks' device, which a captured graph reads at every replay.
        """
        average, model = self._average[0], self._model[0]
        if isinstance(weight, Tensor):
            # A step of gradient ascent along the model with weight decay 1: average -= weight * (average - model). Of
            # PyTorch's multi-tensor kernels only those of optimizers read a number from the device in the same pass.
            torch._fused_sgd_(
                average, model, [], weight_decay=1.0, momentum=0.0, lr=weight, dampening=0.0, nesterov=False,
                maximize=True, is_first_step=False,
            )  # fmt: skip
        else:
            torch._foreach_lerp_(average, model, weight)
        if self._model[1]:
            torch._foreach_copy_(self._average[1], self._model[1])
