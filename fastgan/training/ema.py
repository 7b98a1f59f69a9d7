"""EMAs of the generator, which images are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

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


def ema_decays(images_seen: int, batch: int, half_lives: Sequence[float], ramp_up: float) -> list[float]:
    """`ema_decay` of several EMAs. The ramp-up limits the first half-life, the others stay in proportion to it.

    So they always differ, however short the training. Early on they are the power functions of Karras et al. 2024
    (EDM2, arXiv 2312.02696, section 3.1): half-lives in proportion to the images seen.
    """
    first, *others = half_lives
    decay = ema_decay(images_seen, batch, first, ramp_up)
    return [decay, *(decay ** (first / half_life) for half_life in others)]


class EMA:
    """Keeps each of `averages`, copies of `model`, at an EMA of its parameters. Buffers are copied."""

    def __init__(self, averages: Sequence[nn.Module], model: nn.Module):
        self._averages = [list(average.parameters()) for average in averages]
        self._model = list(model.parameters())
        self._buffers = [buffer for average in averages for buffer in average.buffers()]
        self._model_buffers = list(model.buffers()) * len(averages)

    @torch.no_grad()
    def update(self, weights: Sequence[float] | Sequence[Tensor]) -> None:
        """average += weight * (model - average), for each average with its weight, 1 - `ema_decay`.

        Numbers take one pass over all averages. Weights may be 0-dim tensors on the networks' device, which a captured
        graph reads at every replay: a pass for each average.
        """
        if isinstance(weights[0], Tensor):
            for average, weight in zip(self._averages, weights, strict=True):
                # A step of gradient ascent along the model with weight decay 1: average -= weight * (average - model).
                # Of PyTorch's multi-tensor kernels only those of optimizers read a number from the device.
                torch._fused_sgd_(
                    average, self._model, [], weight_decay=1.0, momentum=0.0, lr=weight, dampening=0.0, nesterov=False,
                    maximize=True, is_first_step=False,
                )  # fmt: skip
        else:
            # One parameter after the other: the model's is still in the cache for the next average.
            averages = [average for same in zip(*self._averages, strict=True) for average in same]
            model = [parameter for parameter in self._model for _ in weights]
            torch._foreach_lerp_(averages, model, list(weights) * len(self._model))
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._model_buffers)
