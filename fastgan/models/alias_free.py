"""Sampling rates, cutoffs and filters of the layers of an alias-free generator.

Karras et al. 2021, "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423), section 3 and appendix C. Rates and
frequencies are in units of the image: a rate of 32 means 32 samples from one side of the image to the other, and a
cutoff of 2 means two waves.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FIRST_CUTOFF, FIRST_STOPBAND = 2.0, 2**2.1
LAST_STOPBAND = 2**0.3  # of the image's bandwidth, R / 2
TAPS = 6  # of a filter, for each factor of its resampling


class Band(NamedTuple):
    """The signal between two layers.

    rate: samples along a side of the image. cutoff: where the filter's passband ends. half_width: of the filter's
    transition. size: samples along a side with the margin. channels: feature maps.
    """

    rate: int
    cutoff: float
    half_width: float
    size: int
    channels: int


def bands(config) -> list[Band]:
    """The signals that the layers make, one each; the first layer reads one like the first of them."""
    resolution, count, critical = config.resolution, config.synthesis_layers, config.critical_layers
    found = []
    for i in range(count + 1):
        exponent = min(i / (count - critical), 1.0)
        cutoff = FIRST_CUTOFF * (resolution / 2 / FIRST_CUTOFF) ** exponent
        stopband = FIRST_STOPBAND * (resolution / 2 * LAST_STOPBAND / FIRST_STOPBAND) ** exponent
        rate = 2 ** math.ceil(math.log2(min(2 * stopband, resolution)) - 1e-9)  # 2^7 may come out a little larger
        size = resolution if i >= count - 1 else rate + 2 * config.margin
        channels = round(min(config.channel_base / 2 / cutoff, config.channel_max))
        found.append(Band(rate, cutoff, max(stopband, rate / 2) - cutoff, size, channels))
    return found


class Resampling(NamedTuple):
    """Arguments of a layer's `filtered_lrelu`. Taps are [k], [k, k] or None for no filter."""

    up: int
    down: int
    up_taps: Tensor | None
    down_taps: Tensor | None
    padding: tuple[int, int, int, int]


def resampling(before: Band, after: Band, kernel: int, *, to_image: bool, radial: bool) -> Resampling:
    """From one signal to the next, after a convolution of `kernel` whose padding is kernel - 1.

    to_image: the last layer, which has no nonlinearity. radial: whether the downsampling filter is rotationally
    symmetric.
    """
    rate = max(before.rate, after.rate) * (1 if to_image else 2)  # of the nonlinearity
    up, down = rate // before.rate, rate // after.rate
    up_taps = None if up == 1 or to_image else low_pass(TAPS * up, before.cutoff, 2 * before.half_width, rate)
    down_taps = None
    if down > 1 and not to_image:
        down_taps = low_pass(TAPS * down, after.cutoff, 2 * after.half_width, rate, radial=radial)
    lengths = sum(1 if taps is None else len(taps) for taps in (up_taps, down_taps))
    total = (after.size - 1) * down + 1 - (before.size + kernel - 1) * up + lengths - 2
    first = (total + up) // 2
    return Resampling(up, down, up_taps, down_taps, (first, total - first, first, total - first))


def low_pass(taps: int, cutoff: float, width: float, rate: float, *, radial: bool = False) -> Tensor:
    """A low-pass filter by a Kaiser window, [taps], or radial [taps, taps]; sums to 1.

    Kaiser's formulas, as `scipy.signal.firwin` has them. The radial one is the ideal filter of a disc, a jinc, times
    the outer product of the window.

    Args:
        cutoff: frequency where the response is one half.
        width: of the transition.
        rate: sampling rate.
    """
    window = np.kaiser(taps, _kaiser_beta(2.285 * (taps - 1) * math.pi * width / (rate / 2) + 7.95))
    position = (np.arange(taps) - (taps - 1) / 2) / rate
    if not radial:
        filter = np.sinc(2 * cutoff * position) * window
        return torch.from_numpy(filter / filter.sum()).float()
    radius = torch.from_numpy(np.hypot(position[:, None], position))
    if not radius.all():
        raise ValueError(f"taps is {taps}, must be even for a radial filter")
    disc = torch.special.bessel_j1(2 * math.pi * cutoff * radius) / radius
    filter = disc * torch.from_numpy(np.outer(window, window))
    return (filter / filter.sum()).float()


def _kaiser_beta(attenuation: float) -> float:
    """Shape of a Kaiser window whose side lobes are so many decibels down."""
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0
