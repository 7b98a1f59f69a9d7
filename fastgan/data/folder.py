"""Images of a person's own: a folder, or a zip (also StyleGAN's format, with a dataset.json), decoded once.

Nothing is cropped, padded or converted with a loss: an image that does not fit is named, with what to do about it.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from fastgan.data.cache import ImageDataset, Recipe, load_or_build
from fastgan.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
LABEL_FILE = "dataset.json"
BLOCK = 32


def read(path: Path, resolution: int, channels: int, *, cache_dir: Path | None, progress: bool) -> ImageDataset:
    """The images under `path`, a folder (searched recursively) or a zip, in the order of their names.

    All must be square, of one size, and that size `resolution` or `resolution` * 2^k; larger ones are averaged down
    by boxes. Labels come from dataset.json ({"labels": [["file", int], ...]}, or null for none) if there is one, else
    from the first level of sub-folders if there are two or more; else the set is unlabelled. Folders that all images
    share are passed over.
    Raises UserError, naming the file, for everything that is not so.
    """
    if channels not in (1, 3):
        raise UserError(f"--channels {channels} is not possible; choose 1 (grey) or 3 (RGB)")
    if path.is_dir():
        source: _Folder | _Zip = _Folder(path)
    elif path.is_file():
        source = _Zip(path)
    else:
        raise UserError(f"--data {path}: no such folder or zip; give one, or 'glyphs' or 'emoji'")
    with source:
        names = [name for name in source.names if PurePosixPath(name).name != LABEL_FILE]
        if not names:
            raise UserError(f"--data {path}: no images in it; it needs files that end in {', '.join(sorted(SUFFIXES))}")
        key = {
            "kind": "images",
            "path": str(path.resolve()),
            "state": source.state,
            "resolution": resolution,
            "channels": channels,
        }

        def recipe() -> Recipe:
            labels, class_names = _labels(source, names)
            side = _common_side(source, names, resolution, progress)
            return Recipe(
                shape=(len(names), resolution, resolution, channels),
                labels=labels,
                class_names=class_names,
                source=str(path),
                blocks=_decode(source, names, side, resolution, channels),
                title=f"decoding {path.name}",
            )

        return load_or_build(key, recipe, cache_dir, progress)


class _Folder:
    """Wanted files below a folder: names relative to it, with forward slashes, sorted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found: dict[str, list[int]] = {}
        seen = set()
        for here, folders, files in os.walk(path, followlinks=True, onerror=self._refuse):
            if (real := os.path.realpath(here)) in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(real)
            for file in files:
                full = Path(here, file)
                name = full.relative_to(path).as_posix()
                if _wanted(name):
                    try:
                        status = full.stat()
                    except OSError as error:
                        self._refuse(error)
                    found[name] = [status.st_size, status.st_mtime_ns]
        self.names = sorted(found)
        self.state = [[name, *found[name]] for name in self.names]

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_) -> None: ...

    def full_name(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def open(self, name: str):
        return open(self.path / name, "rb")

    @staticmethod
    def _refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; repair or remove it") from error


class _Zip:
    """The same of a zip file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UserError(
                f"--data {path} is not a readable zip ({error}); give a folder of images or an undamaged zip"
            ) from error
        self.names = sorted(name for name in self.zip.namelist() if _wanted(name))
        status = path.stat()
        self.state = [status.st_size, status.st_mtime_ns]

    def __enter__(self) -> _Zip:
        return self

    def __exit__(self, *_) -> None:
        self.zip.close()

    def full_name(self, name: str) -> str:
        return f"{self.path}:{name}"

    def read(self, name: str) -> bytes:
        return self.zip.read(name)

    def open(self, name: str):
        return self.zip.open(name)


def _wanted(name: str) -> bool:
    """Whether a file is an image or a label file, and not a hidden one or one that macOS adds to a zip."""
    path = PurePosixPath(name)
    if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return False
    return path.suffix.lower() in SUFFIXES or path.name == LABEL_FILE


def _labels(source: _Folder | _Zip, names: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """int64 labels in the order of `names` and the names of the classes, or (None, [])."""
    label_files = [name for name in source.names if PurePosixPath(name).name == LABEL_FILE]
    if label_files:
        return _labels_of_json(source, min(label_files, key=len), names)
    parts = [PurePosixPath(name).parts for name in names]
    shared = _shared_length(min(parts)[:-1], max(parts)[:-1])
    folders = [p[shared] if len(p) > shared + 1 else None for p in parts]
    if all(folder is None for folder in folders):
        return None, []
    if None in folders:
        stray = source.full_name(names[folders.index(None)])
        raise UserError(f"{stray} lies beside sub-folders with images; move it into one, or all images into one folder")
    class_names = sorted(set(folders))
    index = {name: i for i, name in enumerate(class_names)}
    return np.array([index[folder] for folder in folders], dtype=np.int64), class_names


def _shared_length(low: tuple[str, ...], high: tuple[str, ...]) -> int:
    """How many leading parts two paths share; of the first and the last in order, how many all paths share."""
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _labels_of_json(source: _Folder | _Zip, file: str, names: list[str]) -> tuple[np.ndarray | None, list[str]]:
    where = source.full_name(file)
    try:
        labels = json.loads(source.read(file).decode("utf-8"))["labels"]
    except Exception as error:  # whatever is wrong with bytes that should be {"labels": ...}
        raise UserError(f'{where} is not JSON like {{"labels": [["file", 0], ...]}}; repair or remove it') from error
    if labels is None:
        return None, []
    base = PurePosixPath(file).parent
    by_name = {}
    for pair in labels if isinstance(labels, list) else [labels]:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f'{where}: every label must be ["file", integer], not {json.dumps(pair)[:60]}; repair it')
        image, label = pair
        if label is not None and (type(label) is not int or label < 0):
            raise UserError(
                f"{where}: the label of {image} must be an integer from 0 up, not {json.dumps(label)[:40]}; "
                'repair it, or set "labels" to null'
            )
        by_name[(base / image.replace("\\", "/")).as_posix()] = label
    if absent := by_name.keys() - set(source.names):
        raise UserError(f"{where} names {min(absent)}, which is not there; repair the list or add the image")
    if unnamed := [name for name in names if name not in by_name]:
        raise UserError(f'{where} has no label for {unnamed[0]}; add it, or set "labels" to null')
    values = [by_name[name] for name in names]
    if all(value is None for value in values):
        return None, []
    if None in values:
        raise UserError(f"{where}: the label of {names[values.index(None)]} is null, others are not; give all or none")
    if (top := max(values)) >= 1_000_000:
        raise UserError(f"{where}: a label is {top}; number the classes from 0 up without gaps")
    return np.array(values, dtype=np.int64), [str(i) for i in range(top + 1)]


def _common_side(source: _Folder | _Zip, names: list[str], resolution: int, progress: bool) -> int:
    """The side that all images have. Reads their headers only, so that a wrong one shows before the long work."""
    from PIL import Image
    from tqdm import tqdm

    first = None
    for name in tqdm(names, desc="checking sizes", unit=" images", disable=not progress, leave=False):
        where = source.full_name(name)
        try:
            with source.open(name) as file, Image.open(file) as image:
                size = image.size
        except Exception as error:  # Pillow and zipfile raise a dozen kinds on damaged files
            raise _damaged(where, error) from error
        if first is None:
            first = size
            factor = size[0] // resolution
            if size[0] != size[1]:
                raise UserError(
                    f"{where} is {size[0]}x{size[1]}, not square; crop all images to {resolution}x{resolution}"
                )
            if factor * resolution != size[0] or factor & (factor - 1):
                raise UserError(
                    f"{where} is {size[0]}x{size[1]}, not {resolution} times 1, 2, 4, ...; "
                    f"resize all images to {resolution}x{resolution}, or choose another --resolution"
                )
        if size != first:
            raise UserError(
                f"{where} is {size[0]}x{size[1]}, but {names[0]} is {first[0]}x{first[1]}; "
                f"all images must have one size: resize them to {resolution}x{resolution}"
            )
    return first[0]


def _decode(
    source: _Folder | _Zip, names: list[str], side: int, resolution: int, channels: int
) -> Iterator[np.ndarray]:
    """Blocks of uint8 [up to BLOCK, resolution, resolution, channels]. Decoders let other threads run."""

    def one(name: str) -> np.ndarray:
        return _pixels(source.full_name(name), source.read, name, side, resolution, channels)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rest = iter(names)
        while block := list(itertools.islice(rest, BLOCK)):
            yield np.stack(list(pool.map(one, block)))


def _pixels(where: str, read, name: str, side: int, resolution: int, channels: int) -> np.ndarray:
    """One image, uint8 [resolution, resolution, channels], or a UserError where that would lose something."""
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(read(name)))
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # as in _common_side
        raise _damaged(where, error) from error
    if image.mode in ("1", "P", "PA"):  # black and white, palettes
        transparent = image.mode == "PA" or "transparency" in image.info
        image = image.convert("L" if image.mode == "1" else "RGBA" if transparent else "RGB")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:  # one colour stands for transparent
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise UserError(f"{where} is partly transparent; put all images on a ground and save them without alpha")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode not in ("L", "RGB"):
        raise UserError(f"{where} has mode {image.mode}; save all images as 8-bit grey or RGB")
    if channels == 1 and image.mode == "RGB":
        red, green, blue = image.split()
        if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
            raise UserError(f"{where} is in colour, but --channels is 1; use --channels 3 or save all images as grey")
        image = red
    if channels == 3 and image.mode == "L":
        image = image.convert("RGB")
    if side != resolution:
        image = image.reduce(side // resolution)
    return np.asarray(image).reshape(resolution, resolution, channels)


def _damaged(where: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:80] or type(error).__name__
    if "cannot identify image file" in reason:
        reason = "not an image"
    return UserError(f"{where} cannot be decoded ({reason}); replace or remove it")
