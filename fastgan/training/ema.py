"""The running average of the generator, from which images are drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def decay(images_seen: int, batch: int, half_life: float, ramp_up: float) -> float:
    """Share of the old average that one step of `batch` images keeps.

    half_life: in images; 0 for no averaging. ramp_up: the half-life is at most this share of `images_seen`, so that the
    poor first networks are forgotten soon; 0 for no limit. Karras et al. 2020 (ADA), appendix.
    """
    if ramp_up:
        half_life = min(half_life, images_seen * ramp_up)
    return 0.5 ** (batch / half_life) if half_life else 0.0


class Average:
    """Keeps `average`, a copy of `model`, a running average of its parameters. Buffers are copied as they are."""

    def __init__(self, average: nn.Module, model: nn.Module):
        self._average = list(average.parameters()), list(average.buffers())
        self._model = list(model.parameters()), list(model.buffers())

    @torch.no_grad()
    def update(self, share: float | Tensor) -> None:
        """average += share * (model - average), in few multi-tensor calls: share is 1 - `decay`.

        It may be a 0-dim tensor on the device of the networks, as a captured graph needs it.
        """
        average, model = self._average[0], self._model[0]
        if isinstance(share, Tensor):
            change = torch._foreach_sub(model, average)
            torch._foreach_mul_(change, share)
            torch._foreach_add_(average, change)
        else:
            torch._foreach_lerp_(average, model, share)
        if self._model[1]:
            torch._foreach_copy_(self._average[1], self._model[1])
