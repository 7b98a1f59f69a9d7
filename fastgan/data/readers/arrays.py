"""Arrays of images: .npy, .npz, and IDX, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fastgan.data.images import open_regular, reason
from fastgan.data.readers.base import Reader, ReaderOptions, choose_name, number_labels, unread_note
from fastgan.errors import UserError

CHUNK = 2**20
_IDX_FILE = r"(?P<split>.*)images[-.]idx[34]-ubyte(\.gz)?"
_IDX_SPLITS = {"test": ("test", "t10k")}  # prefixes of file names for a --split; others are called like the split
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class ArrayReader(Reader):
    """A .npy or .npz file, an IDX file, or a folder of IDX files.

    The labels of a .npy or IDX file are in another file beside it, if there are any: with "labels" for "images" (and
    "idx1" for "idx3") in its name, or NAME-labels.npy. A .npz has both. A label below 0 means none.
    """

    accepts = "an .npy or .npz array or MNIST's IDX files"

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Whether `spec` is a file of one of these formats (IDX by its content), or a folder with IDX files."""
        path = Path(spec).expanduser()
        if path.is_dir():
            return bool(_idx_files(path))
        if not path.is_file():
            return False
        if path.suffix.lower() in (".npy", ".npz"):
            return True
        try:
            with _open_gzipped_or_not(path) as file:
                head = file.read(4)
        except (OSError, EOFError, zlib.error):
            return False
        return head[:2] == b"\0\0" and head[2:3] != b"" and head[2] in _IDX_TYPES and head[3:4] in (b"\3", b"\4")

    def __init__(self, spec: str, options: ReaderOptions):
        path = Path(spec).expanduser()
        found = load_arrays(path, options)
        self._images = found.images
        self.names = [f"{found.files[0].name}[{number}]" for number in range(len(found.images))]
        status = [file.stat() for file in found.files]
        self.state = [[str(file) for file in found.files], [[each.st_size, each.st_mtime_ns] for each in status]]
        self.state += [options.split, options.image_column, options.label_column]
        if found.labels is None:
            self.notes = unread_note(found.others)
        else:
            texts = ["" if re.fullmatch(r"-\d+", str(value)) else str(value) for value in found.labels.tolist()]
            if any(texts):
                self.labels, self.class_names = number_labels(texts, path)

    def _read(self, number):
        from PIL import Image

        return Image.fromarray(np.ascontiguousarray(self._images[number]))


class Arrays(NamedTuple):
    """images: uint8 [N, H, W] or [N, H, W, C] with 3 or 4 channels; may be a memory map.

    labels: [N], whole numbers or text; None if there are none. files: where both were read from. others: names of the
    other arrays there.
    """

    images: np.ndarray
    labels: np.ndarray | None
    files: list[Path]
    others: list[str]


def load_arrays(path: Path, options: ReaderOptions) -> Arrays:
    """Load the images of a file or folder, and their labels.

    `options.split` chooses among the arrays of a .npz and the IDX files of a folder; `image_column` and `label_column`
    name the arrays of a .npz. Raises UserError for a file that cannot be read, is not uint8 or has no images' shape.
    """
    try:
        if path.is_dir():
            path = _idx_file(path, options.split)
        if path.suffix.lower() == ".npz":
            (images, labels, others), files = _load_npz(path, options), [path]
        else:
            load = _load_npy if path.suffix.lower() == ".npy" else _load_idx
            label_file = _label_file(path)
            images, labels, others = load(path), None if label_file is None else load(label_file), []
            files = [path] if label_file is None else [path, label_file]
    except UserError:
        raise
    except Exception as error:  # NumPy, zipfile and gzip raise a dozen kinds on damaged files
        raise UserError(f"{path} cannot be read ({reason(error)})") from error
    if labels is not None:
        labels = _check_labels(labels, len(images), path)
    return Arrays(_check_images(images, path), labels, files, others)


def _check_images(images: np.ndarray, path: Path) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(
            f"{path} has values of type {images.dtype}; images must be uint8, 0 to 255: save values from 0 to 1 as "
            '(x * 255).round().astype("uint8")'
        )
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))) or 0 in images.shape:
        raise UserError(
            f"{path} has the shape {list(images.shape)}; images must be [N, H, W], or [N, H, W, C] or [N, C, H, W] "
            "with 1, 3 or 4 channels"
        )
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


def _check_labels(labels: np.ndarray, count: int, path: Path) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "iuU":
        raise UserError(
            f"{path} has labels of shape {list(labels.shape)} and type {labels.dtype}; they must be [{count}], a "
            "whole number or word for each image"
        )
    return labels


# .npy and .npz -------------------------------------------------------------------------------------------------------


def _load_npy(path: Path) -> np.ndarray:
    open_regular(path).close()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _label_file(path: Path) -> Path | None:
    """The file beside `path` with the labels of its images, if there is one."""
    names = [f"{path.stem}-labels.npy", f"{path.stem}_labels.npy"] if path.suffix.lower() == ".npy" else []
    if "images" in path.name:
        like = re.sub(r"idx[34]", "idx1", path.name.replace("images", "labels"))
        names += [like, like.removesuffix(".gz"), like.removesuffix(".gz") + ".gz"]
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def _load_npz(path: Path, options: ReaderOptions) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Images, labels, and the names of the other arrays."""
    split = options.split
    with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
        likely = [f"{split}_images", f"x_{split}", f"X_{split}", "images", "x", "X", "data", "arr_0"]
        images = choose_name(path, "--image-column", options.image_column, likely, archive.files)
        if images is None:
            raise UserError(
                f"{path} has the arrays {', '.join(archive.files) or '(none)'}; name the images with --image-column"
            )
        likely = [f"{split}_labels", f"y_{split}", f"Y_{split}", "labels", "label", "y", "Y", "targets", "arr_1"]
        labels = choose_name(path, "--label-column", options.label_column, likely, archive.files)
        others = [name for name in archive.files if name not in (images, labels)]
        return archive[images], None if labels is None else archive[labels], others


# IDX: http://yann.lecun.com/exdb/mnist ------------------------------------------------------------------------------


def _idx_files(folder: Path) -> dict[str, Path]:
    """IDX files of images in a folder, by the part of their names before "images"."""
    found: dict[str, Path] = {}
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if "-ubyte" in entry.name)
    except OSError:
        return found
    for name in names:
        if match := re.fullmatch(_IDX_FILE, name):
            found.setdefault(match["split"].strip("-_."), folder / name)
    return found


def _idx_file(folder: Path, split: str) -> Path:
    files = _idx_files(folder)
    matching = [path for name, path in files.items() if name.endswith(_IDX_SPLITS.get(split, (split,)))]
    if len(matching) != 1:
        raise UserError(f"{folder} has images of {', '.join(files)}; give one of these files, or another --split")
    return matching[0]


def _open_gzipped_or_not(path: Path) -> BinaryIO | gzip.GzipFile:
    file = open_regular(path)
    is_gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if is_gzipped else file


def _load_idx(path: Path) -> np.ndarray:
    """The format: two zero bytes, the type, the number of dimensions, their sizes as big-endian uint32, the values."""
    with _open_gzipped_or_not(path) as file:
        head = file.read(4)
        dtype = np.dtype(_IDX_TYPES[head[2]])
        shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(head[3]))
        expected = math.prod(shape) * dtype.itemsize
        content = bytearray()
        while len(content) <= expected and (chunk := file.read(CHUNK)):  # the header may claim more than the file has
            content += chunk
    if len(content) != expected:
        raise ValueError(f"{len(content):,} bytes of values, its header says {expected:,}")
    return np.frombuffer(bytes(content), dtype).reshape(shape)
