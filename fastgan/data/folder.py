"""User-supplied images for training: a folder or a zip (also StyleGAN's, with a dataset.json), decoded into the cache.

Images are never cropped, padded or converted with a loss. An image that does not fit is an error that names it and says
what to do; `fastgan dataset` makes any images fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastgan.cores import usable_cpus
from fastgan.data import labels
from fastgan.data.cache import Recipe, load_or_build
from fastgan.data.image_dataset import ImageDataset
from fastgan.data.image_files import ImageFiles, open_files
from fastgan.data.images import (
    CHANNELS,
    FORMATS,
    UnusableImage,
    cannot_be_decoded,
    check_size,
    decode,
    losses,
    simplify_mode,
    size_text,
)
from fastgan.errors import UserError, program

BLOCK = 32


def load(path: Path, size: tuple[int, int], channels: int, *, cache_dir: Path | None, progress: bool) -> ImageDataset:
    """The images in `path`, a folder (searched recursively) or zip, sorted by name.

    All images must have one size, `size` (width, height) or 2^k times it; larger ones are averaged down by boxes.
    Labels come from dataset.json (see `labels.from_json`); else from the first level of sub-folders if there are two or
    more, below the folders that all images share; else the set is unlabelled.
    Raises UserError, naming the file, for anything else.
    """
    if channels not in CHANNELS:
        raise UserError(f"--channels {channels} is not possible; choose 1 (grey), 3 (RGB) or 4 (RGBA)")
    with open_files(path) as files:
        names = files.images()
        key = {
            "kind": "images",
            "path": str(path.resolve()),
            "state": files.state,
            "resolution": size[0] if size[0] == size[1] else size_text(size),
            "channels": channels,
        }

        def recipe() -> Recipe:
            found = labels.of_files(files, names)
            found.require_all()
            factor = _common_factor(files, names, size, progress)
            return Recipe(
                shape=(len(names), size[1], size[0], channels),
                labels=None if found.values is None else np.array(found.values, dtype=np.int64),
                class_names=found.class_names,
                source=str(path),
                blocks=_decode(files, names, factor, size, channels),
                title=f"decoding {path.name}",
            )

        return load_or_build(key, recipe, cache_dir, progress)


def _common_factor(files: ImageFiles, names: list[str], size: tuple[int, int], progress: bool) -> int:
    """Factor by which all images are larger than `size`. Reads headers only, so a wrong size is found before the long
    work."""
    from PIL import Image

    from fastgan.progress import ProgressBar

    first, factor, text = None, 1, size_text(size)
    for name in ProgressBar(names, desc="checking sizes", unit=" images", disable=not progress, leave=False):
        where = files.full_name(name)
        try:
            with files.open(name) as file, Image.open(file, formats=FORMATS) as image:
                found = image.size
                check_size(found)
        except UnusableImage as error:
            raise _unusable(where, error) from error
        except Exception as error:  # Pillow and zipfile raise a dozen kinds on damaged files
            raise _unusable(where, cannot_be_decoded(error)) from error
        if first is None:
            first = found
            factor = found[0] // size[0]
            if found[0] * size[1] != found[1] * size[0]:
                shape = "square" if size[0] == size[1] else f"of the shape {text}"
                raise UserError(
                    f"{where} is {size_text(found)}, not {shape}; crop all images to {text}, "
                    f"as {program('dataset')} does"
                )
            if factor * size[0] != found[0] or factor < 1 or factor & (factor - 1):
                side = size[0] if size[0] == size[1] else text
                enlarge = " --enlarge" if factor < 1 else ""
                raise UserError(
                    f"{where} is {size_text(found)}, not {side} times 1, 2, 4, ...; resize all images to {text}, "
                    f"as {program('dataset')}{enlarge} does, or choose another --resolution"
                )
        if found != first:
            raise UserError(
                f"{where} is {size_text(found)}, but {names[0]} is {size_text(first)}; "
                f"all images must have one size: resize them to {text}, as {program('dataset')} does"
            )
    return factor


def _decode(
    files: ImageFiles, names: list[str], factor: int, size: tuple[int, int], channels: int
) -> Iterator[np.ndarray]:
    """Blocks of images, uint8 [up to BLOCK, height, width, channels]. Threads: decoders release the GIL."""

    def decode_one(name: str) -> np.ndarray:
        where = files.full_name(name)
        try:
            data = files.read(name)
            image = decode(data)
            if lost := losses(data):
                raise UserError(f"{where} {lost[0].partition(';')[0]}; prepare such images with {program('dataset')}")
            return _pixels(where, image, factor, size, channels)
        except UnusableImage as error:
            raise _unusable(where, error) from error

    with ThreadPoolExecutor(min(8, usable_cpus())) as pool:
        remaining = iter(names)
        while block := list(itertools.islice(remaining, BLOCK)):
            yield np.stack(list(pool.map(decode_one, block)))


def _pixels(where: str, image, factor: int, size: tuple[int, int], channels: int) -> np.ndarray:
    """One image, uint8 [height, width, channels]. Raises UserError if the conversion would lose something."""
    if image.mode.startswith("I") or image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        raise UserError(
            f"{where} has mode {image.mode}; save all images as 8-bit grey or RGB, as {program('dataset')} does"
        )
    image = simplify_mode(image)
    if image.mode == "RGBA" and channels != 4:
        raise UserError(
            f"{where} is partly transparent; put all images on a background and save them without alpha, "
            f"as {program('dataset')} does, or give --channels 4"
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
    if image.size != size:  # EXIF data rotated it after its header was checked
        raise UnusableImage(f"is {size_text(image.size)} once upright, not {size_text(size)}")
    return np.asarray(image).reshape(size[1], size[0], channels)


def _unusable(where: str, error: object) -> UserError:
    return UserError(f"{where} {error}; replace or remove it, or let {program('dataset')} leave out such files")
