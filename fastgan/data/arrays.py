"""Images in arrays, with their labels: .npy, .npz, and IDX, the format of MNIST. Imports no torch."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fastgan.data.pictures import open_regular, reason
from fastgan.errors import UserError

CHUNK = 2**20
_IDX_FILE = r"(?P<split>.*)images[-.]idx[34]-ubyte(\.gz)?"
_SPLITS = {"test": ("test", "t10k")}  # what files are called that hold this part
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class Arrays(NamedTuple):
    """images: uint8 [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels, perhaps in a file that is mapped into memory.

    labels: [N], whole numbers or text; None if there are none. files: where both come from.
    """

    images: np.ndarray
    labels: np.ndarray | None
    files: list[Path]


def is_arrays(path: Path) -> bool:
    """Whether `path` is a file of one of these formats, by its content, or a folder with IDX files."""
    if path.is_dir():
        return bool(_idx_files(path))
    if not path.is_file():
        return False
    if path.suffix.lower() in (".npy", ".npz"):
        return True
    try:
        with _unzipped(path) as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return head[:2] == b"\0\0" and head[2:3] != b"" and head[2] in _IDX_TYPES and head[3:4] in (b"\3", b"\4")


def read(path: Path, split: str, image: str | None = None, label: str | None = None) -> Arrays:
    """The images of a file, and its labels.

    A .npy or IDX file has its labels in another file beside it, if there are any: named alike with "labels" for
    "images" (and "idx1" for "idx3"), or NAME-labels.npy. A .npz has both; `image` and `label` name its arrays. `split`
    ("train", "test") chooses among the arrays of a .npz and the IDX files of a folder.

    Raises UserError for what cannot be read, or is neither uint8 nor an array of images.
    """
    try:
        if path.is_dir():
            path = _idx_file(path, split)
        if path.suffix.lower() == ".npz":
            images, labels, files = *_read_npz(path, split, image, label), [path]
        else:
            load = _load_npy if path.suffix.lower() == ".npy" else _load_idx
            beside = _labels_beside(path)
            images, labels = load(path), None if beside is None else load(beside)
            files = [path] if beside is None else [path, beside]
    except UserError:
        raise
    except Exception as error:  # of NumPy, zipfile and gzip, a dozen kinds for damaged files
        raise UserError(f"{path} cannot be read ({reason(error)})") from error
    return Arrays(_images(images, path), None if labels is None else _labels(labels, len(images), path), files)


def _images(images: np.ndarray, path: Path) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(
            f"{path} has values of type {images.dtype}; images must be uint8, 0 to 255: of values from 0 to 1 save "
            '(x * 255).round().astype("uint8")'
        )
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))) or 0 in images.shape:
        raise UserError(
            f"{path} has the shape {list(images.shape)}; images are [N, H, W], or with 1, 3 or 4 channels [N, H, W, C] "
            "or [N, C, H, W]"
        )
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


def _labels(labels: np.ndarray, count: int, path: Path) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "iuU":
        raise UserError(
            f"{path} has labels of shape {list(labels.shape)} and type {labels.dtype}; must be [{count}], one whole "
            "number or word for each image"
        )
    return labels


# .npy and .npz -------------------------------------------------------------------------------------------------------


def _load_npy(path: Path) -> np.ndarray:
    open_regular(path).close()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _labels_beside(path: Path) -> Path | None:
    """The file with the labels of the images in `path`, if there is one."""
    names = [f"{path.stem}-labels.npy", f"{path.stem}_labels.npy"] if path.suffix.lower() == ".npy" else []
    if "images" in path.name:
        like = re.sub(r"idx[34]", "idx1", path.name.replace("images", "labels"))
        names += [like, like.removesuffix(".gz"), like.removesuffix(".gz") + ".gz"]
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def _read_npz(path: Path, split: str, image: str | None, label: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
        likely = (f"{split}_images", f"x_{split}", f"X_{split}", "images", "x", "X", "data", "arr_0")
        name = _array(path, "--image-column", image, likely, archive.files)
        if name is None:
            raise UserError(
                f"{path} has the arrays {', '.join(archive.files) or '(none)'}; name the images with --image-column"
            )
        likely = (f"{split}_labels", f"y_{split}", f"Y_{split}", "labels", "label", "y", "Y", "targets", "arr_1")
        labels = _array(path, "--label-column", label, likely, archive.files)
        return archive[name], None if labels is None else archive[labels]


def _array(path: Path, option: str, given: str | None, likely: Sequence[str], there: list[str]) -> str | None:
    if given is not None and given not in there:
        raise UserError(f"{option} {given}: {path} has no such array; it has {', '.join(there) or 'none'}")
    return given if given is not None else next((name for name in likely if name in there), None)


# IDX: http://yann.lecun.com/exdb/mnist ------------------------------------------------------------------------------


def _idx_files(folder: Path) -> dict[str, Path]:
    """IDX files of images in a folder, by what their names have in front of "images"."""
    found = {}
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
    fitting = [path for name, path in files.items() if name.endswith(_SPLITS.get(split, (split,)))]
    if len(fitting) != 1:
        raise UserError(f"{folder} has images of {', '.join(files)}; give one of these files, or another --split")
    return fitting[0]


def _unzipped(path: Path) -> BinaryIO:
    file = open_regular(path)
    is_zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if is_zipped else file


def _load_idx(path: Path) -> np.ndarray:
    """Two zeros, the type, the number of dimensions, their sizes as big-endian uint32, and the values."""
    with _unzipped(path) as file:
        head = file.read(4)
        dtype = np.dtype(_IDX_TYPES[head[2]])
        shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(head[3]))
        wanted = math.prod(shape) * dtype.itemsize
        content = bytearray()
        while len(content) <= wanted and (chunk := file.read(CHUNK)):  # never more than there is, whatever it says
            content += chunk
    if len(content) != wanted:
        raise ValueError(f"{len(content):,} bytes of values, its header says {wanted:,}")
    return np.frombuffer(bytes(content), dtype).reshape(shape)
