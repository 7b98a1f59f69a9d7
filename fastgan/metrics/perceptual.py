"""Perceptual distances of images: differences between feature maps of a network, differentiable.

Each position's features are scaled to length 1, squared differences are averaged over positions, and summed over
stages (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924,
section 3).

- `LPIPS`: the paper's metric, with VGG and its learned weights of channels.
- `PerceptualDistance`: with EfficientNet-Lite0 and all channels alike. Its numbers are not those of LPIPS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.files import file_digest
from fastgan.metrics.registry import VGG_SHA256
from fastgan.models.efficientnet import MEAN, SCALE, EfficientNetLite
from fastgan.transparency import premultiplied

STAGES = (0, 1, 2, 4)  # of the network, of strides 2, 4, 8 and 16
SMALLEST = 128  # pixels of the shorter side; smaller images are enlarged by a whole factor
SMALLEST_OF_VGG = 16  # the same for LPIPS, which halves them four times
LARGEST = 256  # pixels of the shorter side, for LPIPS; larger images are reduced by a whole factor, as in StyleGAN2
VGG_TENSORS = 26  # weights and biases of VGG-16's convolutions
EPSILON = 1e-8  # of squared lengths


class FeatureDistance(nn.Module):
    """Distances between images [N, C, H, W] of range [-1, 1] with 1, 3 or 4 channels: [N], in fp32.

    Transparent images are seen on black.

    Attributes:
        weights: name of the network's weights, with their digest.
        original: whether these are the published ones.
    """

    weights: str
    original = True

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return self.between(self.features(images), self.features(others))

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps whose squared differences are those of the distance."""
        raise NotImplementedError

    @staticmethod
    def between(features: list[Tensor], others: list[Tensor]) -> Tensor:
        """Distances of images whose `features` these are."""
        distances = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(features, others, strict=True)]
        return torch.stack(distances).sum(0)


class PerceptualDistance(FeatureDistance):
    """By EfficientNet-Lite0. Raises UserError if the package of the weights is missing."""

    def __init__(self, device: str | torch.device = "cpu"):
        super().__init__()
        self.network = EfficientNetLite("lite0").eval().requires_grad_(False)
        self.weights = self.network.load_pretrained()
        self.to(device)

    def features(self, images: Tensor) -> list[Tensor]:
        x = _enlarged(_rgb(images), SMALLEST)
        x = (127.5 * (x + 1) - MEAN) / SCALE
        maps = self.network.pyramid(x.contiguous(memory_format=torch.channels_last))
        return [_normalized(maps[stage]) for stage in STAGES]


class LPIPS(FeatureDistance):
    """LPIPS of version 0.1 with VGG, by torchmetrics, the extra "lpips", which has the learned weights of channels.

    vgg: the file of VGG-16 that torchvision trains, `registry.VGG_URL`. `original` is true only if its bytes are those.
    Raises UserError if it is none.
    """

    network: Any

    def __init__(self, vgg: Path, device: str | torch.device = "cpu"):
        super().__init__()
        from torchmetrics.functional.image.lpips import _LPIPS

        try:
            given = torch.load(vgg, map_location="cpu", weights_only=True)
            given = {name: value for name, value in given.items() if name.startswith("features.")}
            if len(given) != VGG_TENSORS:
                raise ValueError
            self.network = _LPIPS(net="vgg", pnet_rand=True)
            own = self.network.net.state_dict()  # slice2.5.weight is features.5.weight
            self.network.net.load_state_dict({name: given[f"features.{name.partition('.')[2]}"] for name in own})
        except Exception:  # whatever a file of something else raises
            raise UserError(f"{vgg} has no weights of VGG-16 as torchvision's file has") from None
        digest = file_digest(vgg)
        self.weights, self.original = f"vgg16-{digest[:16]}", digest.startswith(VGG_SHA256)
        self.eval().requires_grad_(False).to(device)

    def features(self, images: Tensor) -> list[Tensor]:
        x = _enlarged(_rgb(images), SMALLEST_OF_VGG)
        factor = min(x.shape[2:]) // LARGEST
        if factor > 1:
            x = F.avg_pool2d(x, factor)
        maps = self.network.net(self.network.scaling_layer(x))
        weights = [linear.model[-1].weight for linear in self.network.lins]  # [1, C, 1, 1], none below zero
        return [_normalized(each) * weight.sqrt() for each, weight in zip(maps, weights, strict=True)]


def _enlarged(images: Tensor, side: int) -> Tensor:
    """Images by a whole factor larger, so that they have `side` pixels a side at least."""
    factor = -(-side // min(images.shape[2:]))
    if factor <= 1:
        return images
    return F.interpolate(images, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _rgb(images: Tensor) -> Tensor:
    if images.shape[1] == 4:
        images = premultiplied(images)[:, :3]
    return images.float().expand(-1, 3, -1, -1)


def _normalized(x: Tensor) -> Tensor:
    return x * (x.square().sum(1, keepdim=True) + EPSILON).rsqrt()
