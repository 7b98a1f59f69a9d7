"""Feature extractors, and the cached features of a data set."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from fastgan.data import ImageDataset
from fastgan.data.cache import load_or_compute
from fastgan.distributed import Ranks
from fastgan.metrics.parallel import compute_in_blocks, load_or_compute_together

FORMAT = 1  # part of the cache's keys; increase it when the same images would get other features


class FeatureExtractor:
    """Maps images, uint8 [N, H, W, 1, 3 or 4], to features, fp32 [N, D]. Sub-classes: `EfficientNet`, `Inception`.

    Grey images are repeated to RGB, RGBA is composited on white. Computes in fp32 (no TF32) and in evaluation mode, so
    the features of an image do not depend on the other images.

    Args:
        network: in evaluation mode, without gradients.
        weights: name of the weights, with their digest.
        device: of the network.
        batch: images that go through the network at once.

    Attributes:
        original: whether the weights are those of published numbers.
    """

    original = True

    def __init__(self, network: nn.Module, weights: str, device: str | torch.device, batch: int):
        self.device, self.batch, self.weights = torch.device(device), batch, weights
        self.network: Any = convert_conv2d_weight_memory_format(network.to(self.device), torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4):
            raise ValueError(f"images must be uint8 [N, H, W, 1, 3 or 4], not {images.dtype} {list(images.shape)}")
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        parts = []
        with exact, torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(images), self.batch):
                part = torch.from_numpy(np.array(images[start : start + self.batch])).to(self.device)
                parts.append(self.features(_rgb(part)).cpu().numpy())
        return np.concatenate(parts)

    def features(self, images: Tensor) -> Tensor:
        """Features fp32 [N, D] of images uint8 [N, H, W, 3] on the network's device."""
        raise NotImplementedError

    def score(self, features: np.ndarray) -> tuple[float, float]:
        """The Inception score of features [N, D]: mean and standard deviation. Only `Inception` has it."""
        raise NotImplementedError


def _rgb(images: Tensor) -> Tensor:
    """Images uint8 [N, H, W, 1, 3 or 4] to [N, H, W, 3]."""
    if images.shape[3] < 4:
        return images.expand(-1, -1, -1, 3)
    colours, alpha = images[..., :3].float(), images[..., 3:].float() / 255
    return (255 + (colours - 255) * alpha).round().to(torch.uint8)


def cache_key(dataset: ImageDataset, index: np.ndarray, extractor: FeatureExtractor) -> dict[str, str | int]:
    """Cache key of the features of dataset.images[index]: everything they depend on."""
    return {
        "kind": "features",
        "format": FORMAT,
        "weights": extractor.weights,
        "images": dataset.digests["images"],
        "index": hashlib.sha256(index.tobytes()).hexdigest(),
    }


def extract_features(
    dataset: ImageDataset,
    index: np.ndarray,
    extractor: FeatureExtractor,
    *,
    ranks: Ranks | None = None,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> np.ndarray | None:
    """Features of dataset.images[index], from the cache or computed now. index: int64 [N].

    The cache key has the digests of pixels, index and weights. Of several processes the first gets the features; the
    others help and get None. Raises UserError if the cache cannot be written.
    """
    index = np.asarray(index, np.int64)
    key = cache_key(dataset, index, extractor)
    compute_block = lambda start, stop: extractor(dataset.images[index[start:stop]])
    title = f"features of {dataset.source}" if progress else ""
    ranks = ranks or Ranks()
    return load_or_compute_together(
        ranks,
        lambda compute: load_or_compute(key, compute, cache_dir),
        lambda: compute_in_blocks(ranks, len(index), compute_block, title),
    )
