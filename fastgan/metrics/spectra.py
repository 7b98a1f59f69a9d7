"""Average power spectra of images, which show periodic patterns and missing detail (Karras et al. 2021, figure 6)."""

from collections.abc import Iterable

import torch
from torch import Tensor

WINDOW_BETA = 8.0  # of Kaiser's window: the sides of an image would show as a cross otherwise


def average_power(batches: Iterable[Tensor], mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Mean power of `(images - mean) / std`, over images and channels: fp64 [H, W], frequency 0 in the middle.

    Scaled so that white noise of variance 1 has power 1 at every frequency.

    Args:
        batches: of images [N, C, H, W].
        mean, std: of the values of all training images, for every set that is compared with them.
    """
    total, count = torch.zeros(()), 0
    for images in batches:
        height, width = images.shape[2:]
        down, across = (
            torch.kaiser_window(size, periodic=False, beta=WINDOW_BETA, dtype=torch.float64, device=images.device)
            for size in (height, width)
        )
        window = down[:, None] * across
        window = window / window.square().sum().sqrt()
        power = torch.fft.fft2((images.double() - mean) / std * window).abs().square()
        total = total + power.sum((0, 1)).cpu()
        count += images.shape[0] * images.shape[1]
    if not count:
        raise ValueError("batches is empty, must have an image at least")
    return torch.fft.fftshift(total / count)


def slices(power: Tensor) -> tuple[Tensor, Tensor]:
    """Power of a square [S, S] along the horizontal axis and the diagonal, from frequency 0 on: [S // 2] each."""
    middle = len(power) // 2
    step = torch.arange(len(power) - middle)
    return power[middle, middle:], power[middle + step, middle + step]
