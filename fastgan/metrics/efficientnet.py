"""Feature extractors EfficientNet-Lite0 and EfficientNet-Lite2 (see `fastgan.models.efficientnet`).

Images are prepared as for the training of these networks: resized to 224x224 or 260x260 (bicubic, antialiased when
shrinking, clamped to 0..255), then (pixel - 127) / 128.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.metrics.features import FeatureExtractor
from fastgan.metrics.registry import EFFICIENTNETS, LITE0, require_packages
from fastgan.models.efficientnet import MEAN, SCALE, SIZES, EfficientNetLite


class EfficientNet(FeatureExtractor):
    """Features are the spatial means of the last feature maps, [N, 1280].

    name: "EfficientNet-Lite0" or "EfficientNet-Lite2". Raises UserError if its package (extra "metrics") is missing.
    """

    def __init__(self, device: str | torch.device = "cpu", *, name: str = LITE0, batch: int = 32):
        require_packages(name)
        network = EfficientNetLite(EFFICIENTNETS[name])
        weights = network.load_pretrained()
        network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.side = SIZES[network.name].side
        super().__init__(network, weights, device, batch)

    def features(self, images: Tensor) -> Tensor:
        return self.network(prepare(images, self.side)).mean((2, 3))


def prepare(images: Tensor, side: int) -> Tensor:
    """Network input from images uint8 [N, H, W, 3]: fp32 [N, 3, side, side] in [-0.99, 1]."""
    pixels = images.movedim(3, 1).float()
    pixels = F.interpolate(pixels, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
    return pixels.sub(MEAN).div(SCALE).contiguous(memory_format=torch.channels_last)
