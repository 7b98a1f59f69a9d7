"""A perceptual distance of images: differences between feature maps of EfficientNet-Lite0, differentiable.

As LPIPS (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924,
section 3), without its learned weights of channels: each position's features are scaled to length 1, squared
differences are averaged over positions, and summed over stages. Its numbers are not those of LPIPS.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.models.efficientnet import MEAN, SCALE, EfficientNetLite
from fastgan.transparency import premultiplied

STAGES = (0, 1, 2, 4)  # of the network, of strides 2, 4, 8 and 16
SMALLEST = 128  # pixels of the shorter side; smaller images are enlarged by a whole factor
EPSILON = 1e-8  # of squared lengths


class PerceptualDistance(nn.Module):
    """Distances between images [N, C, H, W] of range [-1, 1] with 1, 3 or 4 channels: [N], in fp32.

    Transparent images are seen on black. Raises UserError if the package of the weights is missing.
    """

    def __init__(self, device: str | torch.device = "cpu"):
        super().__init__()
        self.network = EfficientNetLite("lite0").eval().requires_grad_(False)
        self.weights = self.network.load_pretrained()
        self.to(device)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return self.between(self.features(images), self.features(others))

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of unit length at each position."""
        if images.shape[1] == 4:
            images = premultiplied(images)[:, :3]
        x = images.float().expand(-1, 3, -1, -1)
        factor = -(-SMALLEST // min(x.shape[2:]))
        if factor > 1:
            x = F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
        x = (127.5 * (x + 1) - MEAN) / SCALE
        maps = self.network.pyramid(x.contiguous(memory_format=torch.channels_last))
        return [_normalized(maps[stage]) for stage in STAGES]

    @staticmethod
    def between(features: list[Tensor], others: list[Tensor]) -> Tensor:
        """Distances of images whose `features` these are."""
        distances = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(features, others, strict=True)]
        return torch.stack(distances).sum(0)


def _normalized(x: Tensor) -> Tensor:
    return x * (x.square().sum(1, keepdim=True) + EPSILON).rsqrt()
