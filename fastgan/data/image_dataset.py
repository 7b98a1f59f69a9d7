"""`ImageDataset` and its form on disk: a folder with images.npy, labels.npy and meta.json.

images.npy is uint8 [n, H, W, C], labels.npy is int64 [n] (absent if unlabelled), meta.json has class names, source and
digests. The cache and `fastgan dataset` write this form; training memory-maps it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fastgan.data.images import CHANNELS, open_regular, size_text
from fastgan.files import sync, sync_directory


class ShardedImages(Protocol):
    """Images that arrive shard by shard and are indexed like an array uint8 [n, H, W, C]; see `fastgan.data.shards`.

    counts: number of images in each shard.
    """

    counts: list[int]

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index) -> np.ndarray: ...


@dataclass(frozen=True)
class ImageDataset:
    """Images of one size with optional class labels.

    images: uint8 [n, H, W, C], C = 1 (grey), 3 (RGB) or 4 (RGBA); a read-only memory map, or `ShardedImages`.
    labels: int64 [n] in 0..len(class_names)-1, or None (unlabelled).
    class_names: one for each class; empty if unlabelled.
    source: description of the data set for logs.
    digests: SHA-256 of the pixels ("images") and of the labels ("labels"), taken when they were decoded.
    """

    images: np.ndarray | ShardedImages
    labels: np.ndarray | None
    class_names: list[str]
    source: str
    digests: dict[str, str]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.images.shape[2], self.images.shape[1]

    @property
    def resolution(self) -> int | str:
        """Value of --resolution: the side of square images, else "WIDTHxHEIGHT"."""
        width, height = self.size
        return width if width == height else size_text(self.size)

    @property
    def channels(self) -> int:
        return self.images.shape[3]

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 if unlabelled."""
        return len(self.class_names)

    @property
    def at_hand(self) -> int:
        """Number of images from the first on that are quick to read: all, or those of the first shard."""
        return len(self) if isinstance(self.images, np.ndarray) else self.images.counts[0]

    def describe(self) -> str:
        """One line: source, number and size of the images, classes."""
        names = " ".join(self.class_names)
        if len(names) > 70:
            names = f"{self.class_names[0]} .. {self.class_names[-1]}"
        classes = f"{self.num_classes} classes ({names})" if self.num_classes else "unlabelled"
        return f"{self.source}: {len(self):,} images, {size_text(self.size)} {CHANNELS[self.channels]}, {classes}"


def load_folder(folder: Path) -> ImageDataset | None:
    """Memory-map the data set in `folder`; None if it is absent or damaged."""
    try:
        for name in ("meta.json", "images.npy", "labels.npy"):
            if (folder / name).exists():
                open_regular(folder / name).close()  # raises on a named pipe, which the reads below would wait for
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy") if meta["class_names"] else None
        dataset = ImageDataset(images, labels, meta["class_names"], meta["source"], meta["digests"])
        return dataset if images.ndim == 4 else None
    except (OSError, ValueError, KeyError, EOFError):
        return None


def write_images(folder: Path, shape: tuple[int, int, int, int], blocks: Iterable[np.ndarray]) -> str:
    """Write images.npy and flush it to the disk; returns its SHA-256.

    blocks: uint8 [any, H, W, C], shape[0] images in all. Written plainly, not through a writable memory map: on a full
    disk that would end the process by SIGBUS.
    """
    digest = hashlib.sha256()
    with open(folder / "images.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for block in blocks:
            block = np.ascontiguousarray(block, dtype=np.uint8)
            file.write(block.data)
            digest.update(block.data)
        sync(file)
    return digest.hexdigest()


def write_metadata(
    folder: Path, images_digest: str, labels: np.ndarray | None, class_names: list[str], source: str
) -> None:
    """Write labels.npy and meta.json beside images.npy, and flush all to the disk. labels: int64 [n]."""
    if labels is not None:
        with open(folder / "labels.npy", "wb") as file:
            np.save(file, labels)
            sync(file)
    digests = {"images": images_digest, "labels": labels_digest(labels)}
    with open(folder / "meta.json", "w", encoding="utf-8") as file:
        json.dump({"class_names": class_names, "source": source, "digests": digests}, file)
        sync(file)
    sync_directory(folder)


def labels_digest(labels: np.ndarray | None) -> str:
    """SHA-256 of labels int64 [n], in hex."""
    return hashlib.sha256(b"" if labels is None else labels.tobytes()).hexdigest()
