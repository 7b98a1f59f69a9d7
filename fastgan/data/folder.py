"""Images of a person's own: a folder, or a zip (also StyleGAN's format, with a dataset.json), decoded once.

Nothing is cropped, padded or converted with a loss: an image that does not fit is named, with what to do about it.
`python -m fastgan.dataset` makes any images fit.
"""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from fastgan.cores import usable_cpus
from fastgan.data import labels
from fastgan.data.cache import ImageDataset, Recipe, load_or_build
from fastgan.data.labels import LABEL_FILE
from fastgan.data.pictures import (
    CHANNELS,
    FORMATS,
    MAX_BYTES,
    SUFFIXES,
    Unusable,
    decode,
    open_regular,
    plain,
    reason,
    require_sane_size,
    size_text,
)
from fastgan.errors import UserError

BLOCK = 32


def read(path: Path, size: tuple[int, int], channels: int, *, cache_dir: Path | None, progress: bool) -> ImageDataset:
    """The images under `path`, a folder (searched recursively) or a zip, in the order of their names.

    All must be of one size, and that be `size` (width, height) or 2^k times it; larger ones are averaged down by boxes.
    Labels come from dataset.json if there is one, see `labels.of_json`, else from the first level of sub-folders if
    there are two or more; else the set is unlabelled. Folders that all images share are passed over.
    Raises UserError, naming the file, for everything that is not so.
    """
    if channels not in CHANNELS:
        raise UserError(f"--channels {channels} is not possible; choose 1 (grey), 3 (RGB) or 4 (RGBA)")
    with open_files(path) as source:
        names = source.images()
        key = {
            "kind": "images",
            "path": str(path.resolve()),
            "state": source.state,
            "resolution": size[0] if size[0] == size[1] else size_text(size),
            "channels": channels,
        }

        def recipe() -> Recipe:
            found = labels.of_files(source, names)
            found.require_all()
            factor = _common_factor(source, names, size, progress)
            return Recipe(
                shape=(len(names), size[1], size[0], channels),
                labels=None if found.values is None else np.array(found.values, dtype=np.int64),
                class_names=found.class_names,
                source=str(path),
                blocks=_decode(source, names, factor, size, channels),
                title=f"decoding {path.name}",
            )

        return load_or_build(key, recipe, cache_dir, progress)


def open_files(path: Path, option: str = "--data ") -> Folder | Zip:
    """The files of a folder or a zip. Raises UserError if `path` is neither."""
    if path.is_dir():
        return Folder(path, option)
    if path.is_file():
        return Zip(path, option)
    raise UserError(f"{option}{path}: no such folder or zip; give one, or 'glyphs' or 'emoji'")


class Files:
    """Images and label files below a folder or in a zip: names relative to it, with forward slashes, sorted.

    Attributes:
        names: of all of them.
        state: JSON-able, what changes if they do.
    """

    names: list[str]
    state: list

    def __init__(self, path: Path, option: str) -> None:
        self.path, self._option = path, option

    def images(self) -> list[str]:
        """The names of images. Raises UserError if there are none."""
        names = [name for name in self.names if PurePosixPath(name).name != LABEL_FILE]
        if not names:
            needed = f"it needs files that end in {', '.join(sorted(SUFFIXES))}"
            raise UserError(f"{self._option}{self.path}: no images in it; {needed}")
        return names

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None: ...

    def full_name(self, name: str) -> str:
        raise NotImplementedError

    def size(self, name: str) -> int:
        """In bytes, as it says itself."""
        raise NotImplementedError

    def open(self, name: str):
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """The whole file. Raises Unusable for one that would fill the memory, or cannot be read."""
        if self.size(name) > MAX_BYTES:
            raise Unusable(f"has {self.size(name) / 2**20:,.0f} MiB, more than {MAX_BYTES / 2**20:,.0f}")
        try:
            with self.open(name) as file:
                return file.read()
        except Exception as error:  # zipfile raises a dozen kinds on damaged files
            raise Unusable(f"cannot be decoded ({reason(error)})") from error


class Folder(Files):
    """Those below a folder."""

    def __init__(self, path: Path, option: str = "--data ") -> None:
        super().__init__(path, option)
        self._found: dict[str, list[int]] = {}
        seen = set()
        for here, folders, files in os.walk(path, followlinks=True, onerror=self._refuse):
            if (real := os.path.realpath(here)) in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(real)
            for file in files:
                full = Path(here, file)
                name = full.relative_to(path).as_posix()
                if is_wanted(name):
                    try:
                        status = full.stat()
                    except OSError as error:
                        self._refuse(error)
                    self._found[name] = [status.st_size, status.st_mtime_ns]
        self.names = sorted(self._found)
        self.state = [[name, *self._found[name]] for name in self.names]

    def full_name(self, name: str) -> str:
        return str(self.path / name)

    def size(self, name: str) -> int:
        return self._found[name][0]

    def open(self, name: str):
        return open_regular(self.path / name)

    @staticmethod
    def _refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; repair or remove it") from error


class Zip(Files):
    """Those in a zip file. Nothing is unpacked to the disk, so what names there look like does no harm."""

    def __init__(self, path: Path, option: str = "--data ") -> None:
        super().__init__(path, option)
        try:
            self.zip = zipfile.ZipFile(path)
        except Exception as error:  # BadZipFile, and struct.error, NotImplementedError, ... on damaged ones
            raise UserError(
                f"{option}{path} is not a readable zip ({reason(error)}); give a folder of images or an undamaged zip"
            ) from error
        self.names = sorted({name for name in self.zip.namelist() if is_wanted(name)})
        status = path.stat()
        self.state = [status.st_size, status.st_mtime_ns]

    def __exit__(self, *_) -> None:
        self.zip.close()

    def full_name(self, name: str) -> str:
        return f"{self.path}:{name}"

    def size(self, name: str) -> int:
        return self.zip.getinfo(name).file_size

    def open(self, name: str):
        return self.zip.open(name)


def is_wanted(name: str) -> bool:
    """Whether a file is an image or a label file, and not a hidden one or one that macOS adds to a zip."""
    path = PurePosixPath(name)
    if any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in path.parts):
        return False
    return path.suffix.lower() in SUFFIXES or path.name == LABEL_FILE


def _common_factor(source: Files, names: list[str], size: tuple[int, int], progress: bool) -> int:
    """How many times larger than `size` all images are. Reads their headers only, so that a wrong one shows before the
    long work."""
    from PIL import Image

    from fastgan.progress import ProgressBar

    first, factor, text = None, 1, size_text(size)
    for name in ProgressBar(names, desc="checking sizes", unit=" images", disable=not progress, leave=False):
        where = source.full_name(name)
        try:
            with source.open(name) as file, Image.open(file, formats=FORMATS) as image:
                found = image.size
                require_sane_size(found)
        except Unusable as error:
            raise _refused(where, error) from error
        except Exception as error:  # Pillow and zipfile raise a dozen kinds on damaged files
            raise _refused(where, f"cannot be decoded ({reason(error)})") from error
        if first is None:
            first = found
            factor = found[0] // size[0]
            if found[0] * size[1] != found[1] * size[0]:
                shape = "square" if size[0] == size[1] else f"of the shape {text}"
                raise UserError(
                    f"{where} is {size_text(found)}, not {shape}; crop all images to {text}, "
                    "as python -m fastgan.dataset does"
                )
            if factor * size[0] != found[0] or factor < 1 or factor & (factor - 1):
                wanted = size[0] if size[0] == size[1] else text
                enlarged = " --enlarge" if factor < 1 else ""
                raise UserError(
                    f"{where} is {size_text(found)}, not {wanted} times 1, 2, 4, ...; resize all images to {text}, "
                    f"as python -m fastgan.dataset{enlarged} does, or choose another --resolution"
                )
        if found != first:
            raise UserError(
                f"{where} is {size_text(found)}, but {names[0]} is {size_text(first)}; "
                f"all images must have one size: resize them to {text}, as python -m fastgan.dataset does"
            )
    return factor


def _decode(source: Files, names: list[str], factor: int, size: tuple[int, int], channels: int) -> Iterator[np.ndarray]:
    """Blocks of uint8 [up to BLOCK, height, width, channels]. Decoders let other threads run."""

    def one(name: str) -> np.ndarray:
        where = source.full_name(name)
        try:
            return _pixels(where, decode(source.read(name)), factor, size, channels)
        except Unusable as error:
            raise _refused(where, error) from error

    with ThreadPoolExecutor(min(8, usable_cpus())) as pool:
        rest = iter(names)
        while block := list(itertools.islice(rest, BLOCK)):
            yield np.stack(list(pool.map(one, block)))


def _pixels(where: str, image, factor: int, size: tuple[int, int], channels: int) -> np.ndarray:
    """One image, uint8 [height, width, channels], or a UserError where that would lose something."""
    if image.mode.startswith("I") or image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        raise UserError(
            f"{where} has mode {image.mode}; save all images as 8-bit grey or RGB, as python -m fastgan.dataset does"
        )
    image = plain(image)
    if image.mode == "RGBA" and channels != 4:
        raise UserError(
            f"{where} is partly transparent; put all images on a ground and save them without alpha, "
            "as python -m fastgan.dataset does, or give --channels 4"
        )
    if channels == 1 and image.mode == "RGB":
        red, green, blue = image.split()
        if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
            raise UserError(f"{where} is in colour, but --channels is 1; use --channels 3 or save all images as grey")
        image = red
    if channels >= 3:
        image = image.convert("RGB" if channels == 3 else "RGBA")
    if factor != 1:
        image = image.reduce(factor)
    if image.size != size:  # turned by what EXIF says, after its header was looked at
        raise Unusable(f"is {size_text(image.size)} once upright, not {size_text(size)}")
    return np.asarray(image).reshape(size[1], size[0], channels)


def _refused(where: str, why: object) -> UserError:
    return UserError(f"{where} {why}; replace or remove it, or let python -m fastgan.dataset pass over such files")
