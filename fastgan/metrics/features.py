"""What a pretrained network sees in images, and the cache that keeps it for real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastgan.data import ImageDataset
from fastgan.data.cache import load_or_compute
from fastgan.distributed import Ranks
from fastgan.metrics.blocks import gathered, looked_up

FORMAT = 1  # part of the cache's keys: raise it when the same images would get other features


class Extractor:
    """Maps images, uint8 [N, H, W, 1, 3 or 4], to features, fp32 [N, D]. `efficientnet` and `inception` are such.

    Grey is repeated to RGB, and RGBA is put on white.

    Computes in fp32 (no TF32) and in evaluation mode, so that the features of an image are those of this image alone.

    Args:
        network: in evaluation mode, without gradients.
        weights: what they are called, a digest of them in it.
        device: where to compute.
        batch: images that go through the network at once.

    original: whether the weights are those that this network's numbers are known for.
    """

    original = True

    def __init__(self, network: nn.Module, weights: str, device: str | torch.device, batch: int):
        self.device, self.batch, self.weights = torch.device(device), batch, weights
        self.network = network.to(self.device, memory_format=torch.channels_last)

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
        """Of images uint8 [N, H, W, 3] on the network's device: fp32 [N, D]."""
        raise NotImplementedError


def _rgb(images: Tensor) -> Tensor:
    """Images uint8 [N, H, W, 1, 3 or 4] as [N, H, W, 3]."""
    if images.shape[3] < 4:
        return images.expand(-1, -1, -1, 3)
    colours, alpha = images[..., :3].float(), images[..., 3:].float() / 255
    return (255 + (colours - 255) * alpha).round().to(torch.uint8)


def key_of(dataset: ImageDataset, index: np.ndarray, extractor: Extractor) -> dict[str, str | int]:
    """What the features of the images dataset.images[index] depend on: the key of what is kept of them."""
    return {
        "kind": "features",
        "format": FORMAT,
        "weights": extractor.weights,
        "images": dataset.digests["images"],
        "index": hashlib.sha256(index).hexdigest(),
    }


def features_of(
    dataset: ImageDataset,
    index: np.ndarray,
    extractor: Extractor,
    *,
    ranks: Ranks | None = None,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> np.ndarray | None:
    """Features of the images dataset.images[index], from the data cache or computed now; index: int64 [N].

    They are kept by the digests of pixels, of the index and of the network's weights. Of several processes the first
    gets them, the others get None and help. Raises UserError where the cache cannot be written.
    """
    index = np.asarray(index, np.int64)
    key = key_of(dataset, index, extractor)
    of_block = lambda start, stop: extractor(dataset.images[index[start:stop]])
    look_up: Callable[[Callable[[], np.ndarray]], np.ndarray] = lambda compute: load_or_compute(key, compute, cache_dir)
    title = f"looking at {dataset.source}" if progress else ""
    ranks = ranks or Ranks()
    return looked_up(ranks, look_up, lambda: gathered(ranks, len(index), of_block, title))
