"""Blur of the images that a discriminator sees at the start of a training.

Karras et al. 2021, "Alias-Free Generative Adversarial Networks", for its variant R, whose generator otherwise learns
high frequencies too early.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastgan.ops import upfirdn2d

SMALLEST = 1e-3  # width in pixels at which nothing but the pixel itself is left


class Blur(nn.Module):
    """Convolves images [N, C, H, W] with exp2(-(x / width)^2), normalised, with zeros around them.

    Attributes:
        width: pixels; a number or a 0-dim tensor on the device of the images. At 0 the images stay as they are.
    """

    def __init__(self, largest: float):
        """largest: the largest width. The filter ends at three times that."""
        super().__init__()
        self.width: float | Tensor = largest
        self.radius = math.ceil(3 * largest)

    def forward(self, images: Tensor) -> Tensor:
        places = torch.arange(-self.radius, self.radius + 1, device=images.device, dtype=torch.float32)
        width = self.width.clamp(min=SMALLEST) if isinstance(self.width, Tensor) else max(self.width, SMALLEST)
        taps = (places / width).square().neg().exp2()
        return upfirdn2d(images, taps / taps.sum(), padding=(self.radius,) * 4)
