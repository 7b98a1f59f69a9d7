"""`ImageDataset` and its form on disk: a folder with images.npy, checksums.npy, labels.npy and meta.json.

images.npy is uint8 [n, H, W, C], checksums.npy has the CRC-32 of each image, uint32 [n], labels.npy is int64 [n]
(absent if unlabelled), meta.json has class names, source, the SHA-256 of the arrays and its own. The cache and
`fastgan dataset` write this form; training memory-maps it, and compares what it reads.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fastgan.data.images import CHANNELS, open_regular, reason, size_text
from fastgan.files import sync, sync_directory


class Images(Protocol):
    """Images that are indexed like an array uint8 [n, H, W, C], and compared with their digests on the way:
    `MappedImages`, and `ShardedImages` of `fastgan.data.shards`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index) -> np.ndarray: ...


class MappedImages:
    """Memory-mapped images. The first time that an image is read it is compared with its CRC-32.

    Args:
        array: uint8 [n, H, W, C].
        checksums: CRC-32 of each image's pixels, uint32 [n].
        damaged: makes the exception for a damaged image from its number.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, array: np.ndarray, checksums: np.ndarray, damaged: Callable[[int], Exception]):
        self.array, self.shape = array, array.shape
        self._checksums, self._damaged = checksums, damaged
        self._unread = np.ones(len(array), bool)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index) -> np.ndarray:
        first = index[0] if isinstance(index, tuple) else index
        if isinstance(first, int | np.integer) or (isinstance(first, np.ndarray) and first.dtype != bool):
            self.check(np.asarray(first))
        else:  # a slice, a mask, ...
            self.check(None if first is Ellipsis else np.arange(len(self))[first])
        return self.array[index]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self.check()
        return np.array(self.array, dtype, copy=copy)

    def check(self, index: np.ndarray | None = None) -> None:
        """Compare the images of `index`, integers, that were not read yet; by default all. Raises what `damaged` makes
        for the first one that differs."""
        numbers = np.flatnonzero(self._unread) if index is None else np.atleast_1d(index)
        for number in numbers[self._unread[numbers]].tolist():
            if zlib.crc32(self.array[number]) != self._checksums[number]:
                raise self._damaged(number % len(self))
            self._unread[number] = False


@dataclass(frozen=True)
class ImageDataset:
    """Images of one size with optional class labels.

    images: uint8 [n, H, W, C], C = 1 (grey), 3 (RGB) or 4 (RGBA): `Images`, or an array.
    labels: int64 [n] in 0..len(class_names)-1, or None (unlabelled).
    class_names: one for each class; empty if unlabelled.
    source: description of the data set for logs.
    digests: SHA-256 of the pixels ("images") and of the labels ("labels"), taken when they were decoded.
    """

    images: np.ndarray | Images
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
        counts = getattr(self.images, "counts", None)
        return counts[0] if counts else len(self)

    def describe(self) -> str:
        """One line: source, number and size of the images, classes."""
        names = " ".join(self.class_names)
        if len(names) > 70:
            names = f"{self.class_names[0]} .. {self.class_names[-1]}"
        classes = f"{self.num_classes} classes ({names})" if self.num_classes else "unlabelled"
        return f"{self.source}: {len(self):,} images, {size_text(self.size)} {CHANNELS[self.channels]}, {classes}"


class DamagedData(Exception):
    """A folder of a data set is damaged. The message names the file and says how."""


IMAGES, CHECKSUMS, META, LABELS = "images.npy", "checksums.npy", "meta.json", "labels.npy"
CHECKED_AT_ONCE = 2**30  # bytes of images that are compared with their checksums when they are opened


def is_prepared(folder: Path) -> bool:
    """Whether a folder has a data set in this form, perhaps a damaged one."""
    return sum((folder / name).exists() for name in (IMAGES, CHECKSUMS, META)) >= 2


def load_folder(
    folder: Path, damaged_later: Callable[[str], Exception] = DamagedData, check: bool = True
) -> ImageDataset:
    """Memory-map the data set in `folder`.

    Everything is compared with its digest: at once, but for more than CHECKED_AT_ONCE bytes of images, of which each
    one is compared when it is first read.

    damaged_later: makes the exception for an image that is found damaged then, from what DamagedData would say.
    check: False for the description alone, which reads no image.
    Raises DamagedData, or FileNotFoundError if there is no such data set.
    """
    if not is_prepared(folder):
        raise FileNotFoundError(folder)
    meta = _read_meta(folder / META)
    array = _map(folder / IMAGES)
    usable = array.ndim == 4 and array.dtype == np.uint8 and array.flags.c_contiguous and 0 not in array.shape
    if not usable or array.shape[3] not in CHANNELS:
        raise DamagedData(f"{IMAGES} has {list(array.shape)} values of type {array.dtype}")
    checksums = _read(folder / CHECKSUMS, np.uint32, len(array), meta["digests"]["checksums"])
    labels = _read(folder / LABELS, np.int64, len(array), meta["digests"]["labels"]) if meta["class_names"] else None
    if labels is not None and not 0 <= labels.min() <= labels.max() < len(meta["class_names"]):
        raise DamagedData(f"{LABELS} has labels from {labels.min()} to {labels.max()}")
    describe = lambda number: f"{IMAGES} is damaged: image {number} has other pixels than were written"
    at_once = array.nbytes <= CHECKED_AT_ONCE
    make = DamagedData if at_once else damaged_later
    images = MappedImages(array, checksums, lambda number: make(describe(number)))
    if check and at_once:
        images.check()
    return ImageDataset(images, labels, meta["class_names"], meta["source"], meta["digests"])


def _read_meta(path: Path) -> dict:
    """Content of meta.json. Raises DamagedData."""
    try:
        with open_regular(path) as file:
            meta = json.loads(file.read())
        if "digest" not in meta:
            raise DamagedData(f"{META} has no digest, as earlier versions wrote it")
        if meta.pop("digest") != json_digest(meta):
            raise DamagedData(f"{META} has other content than was written")
        meta["digests"] = {name: meta["digests"][name] for name in ("images", "checksums", "labels")}
        if not (isinstance(meta["source"], str) and all(isinstance(name, str) for name in meta["class_names"])):
            raise ValueError("wrong types")
        return meta
    except DamagedData:
        raise
    except Exception as error:  # not JSON, or other fields
        raise DamagedData(f"{META} cannot be read ({reason(error)})") from error


def _map(path: Path) -> np.ndarray:
    try:
        open_regular(path).close()  # raises on a named pipe, which NumPy would wait for
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of NumPy, which parses the header as Python
        raise DamagedData(f"{path.name} cannot be read ({reason(error)})") from error


def _read(path: Path, dtype: type, count: int, digest: str) -> np.ndarray:
    """The one-dimensional array in a file, in memory. Raises DamagedData."""
    array = _map(path)
    if array.shape != (count,) or array.dtype != dtype:
        raise DamagedData(f"{path.name} has {list(array.shape)} values of type {array.dtype}, not {count} of {dtype}")
    array = np.array(array)
    if array_digest(array) != digest:
        raise DamagedData(f"{path.name} has other values than were written")
    return array


def write_images(folder: Path, shape: tuple[int, int, int, int], blocks: Iterable[np.ndarray]) -> tuple[str, list[int]]:
    """Write images.npy and flush it to the disk; returns its SHA-256 and the CRC-32 of each image.

    blocks: uint8 [any, H, W, C], shape[0] images in all. Written plainly, not through a writable memory map: on a full
    disk that would end the process by SIGBUS.
    """
    digest, checksums = hashlib.sha256(), []
    with open(folder / IMAGES, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for block in blocks:
            block = np.ascontiguousarray(block, dtype=np.uint8)
            file.write(block.data)
            digest.update(block.data)
            checksums += [zlib.crc32(image) for image in block]
        sync(file)
    return digest.hexdigest(), checksums


def write_metadata(
    folder: Path,
    images_digest: str,
    checksums: Sequence[int],
    labels: np.ndarray | None,
    class_names: list[str],
    source: str,
    **more: object,
) -> None:
    """Write the other files beside images.npy, and flush all to the disk.

    checksums: CRC-32 of each image. labels: int64 [n]. more: further fields of meta.json.
    """
    arrays = {CHECKSUMS: np.array(checksums, np.uint32)} | ({} if labels is None else {LABELS: labels})
    for name, array in arrays.items():
        with open(folder / name, "wb") as file:
            np.save(file, array)
            sync(file)
    digests = {"images": images_digest, "checksums": array_digest(arrays[CHECKSUMS]), "labels": array_digest(labels)}
    meta = {"class_names": class_names, "source": source, "digests": digests, **more}
    with open(folder / META, "w", encoding="utf-8") as file:
        json.dump(meta | {"digest": json_digest(meta)}, file)
        sync(file)
    sync_directory(folder)


def array_digest(array: np.ndarray | None) -> str:
    """SHA-256 of an array's values, in hex; of nothing for None."""
    return hashlib.sha256(b"" if array is None else np.ascontiguousarray(array).data).hexdigest()


def json_digest(content: dict) -> str:
    """SHA-256 of a JSON object, in hex. It does not depend on the order of fields or on spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
