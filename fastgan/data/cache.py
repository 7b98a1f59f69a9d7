"""Decoded images on disk: each data set becomes one folder of the cache, written once and then memory-mapped.

An entry holds images.npy (uint8 [n, H, W, C]), labels.npy (int64 [n], absent if unlabelled) and meta.json; or
array.npy, something computed from a data set; or a file that `urls` has fetched. It is built under a temporary name and
renamed when it is complete and on the disk, so an entry that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fastgan.data.pictures import open_regular
from fastgan.errors import UserError
from fastgan.files import lock, sync, sync_directory

if TYPE_CHECKING:
    from fastgan.data.shards import ShardedPixels

Content = TypeVar("Content")

SHARD_INDEX = "shards.json"  # names a folder or place that has shards; see `fastgan.data.shards`
WAITING = "waiting for another process that prepares the same data"
FORMAT = 1  # part of every key: raise it when the same parameters would give other bytes


@dataclass(frozen=True)
class ImageDataset:
    """Images of one size with optional class labels.

    images: uint8 memory-map [n, H, W, C], C = 1 (grey), 3 (RGB) or 4 (RGBA); read-only. Of a set in shards
        `shards.ShardedPixels`, which is asked for images in the same way.
    labels: int64 [n] in 0..len(class_names)-1, or None (unlabelled).
    class_names: one name a class; empty if unlabelled.
    source: what the images are, in words.
    digests: SHA-256 of the pixels ("images") and of the labels ("labels"), in order, from when they were decoded.
    """

    images: np.ndarray | ShardedPixels
    labels: np.ndarray | None
    class_names: list[str]
    source: str
    digests: dict[str, str]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.images.shape[2], self.images.shape[1]

    @property
    def resolution(self) -> int | str:
        """As --resolution has it: the side of square images, else "WIDTHxHEIGHT"."""
        width, height = self.size
        return width if width == height else f"{width}x{height}"

    @property
    def channels(self) -> int:
        return self.images.shape[3]

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 if unlabelled."""
        return len(self.class_names)

    @property
    def at_hand(self) -> int:
        """The first so many images cost no more than a look: all of them, or one shard's."""
        return len(self) if isinstance(self.images, np.ndarray) else self.images.counts[0]

    def describe(self) -> str:
        """One line: source, number and size of the images, classes."""
        colour = {1: "grey", 3: "RGB", 4: "RGBA"}[self.channels]
        names = " ".join(self.class_names)
        if len(names) > 70:
            names = f"{self.class_names[0]} .. {self.class_names[-1]}"
        classes = f"{self.num_classes} classes ({names})" if self.num_classes else "unlabelled"
        size = f"{self.size[0]}x{self.size[1]}"
        return f"{self.source}: {len(self):,} images, {size} {colour}, {classes}"


@dataclass(frozen=True)
class Recipe:
    """What `load_or_build` needs to make an entry that is not there yet."""

    shape: tuple[int, int, int, int]  # [n, H, W, C]
    labels: np.ndarray | None  # int64 [n]
    class_names: list[str]
    source: str
    blocks: Iterable[np.ndarray]  # uint8 [any, H, W, C], n rows in all, consumed once
    title: str  # of the progress bar


def default_cache_dir() -> Path:
    """$FASTGAN_CACHE, or `fastgan` in the user's cache directory."""
    if chosen := os.environ.get("FASTGAN_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastgan"


def load_or_build(key: dict, recipe: Callable[[], Recipe], cache_dir: Path | None, progress: bool) -> ImageDataset:
    """The cached data set of this key, built by `recipe` if it is not there.

    key: JSON-able; everything the bytes depend on. Several processes may ask at once: one builds, the others wait.
    Raises UserError where the cache cannot be written; whatever fails, no part of an entry stays behind.
    """
    return load_or_write(key, load_entry, lambda folder: _write(folder, recipe(), progress), cache_dir)


def load_or_compute(key: dict, compute: Callable[[], np.ndarray], cache_dir: Path | None = None) -> np.ndarray:
    """The cached array of this key, made by `compute` if it is not there. As `load_or_build` in everything else."""
    return load_or_write(key, _load_array, lambda folder: _write_array(folder, compute()), cache_dir)


def load_or_write(
    key: dict, load: Callable[[Path], Content | None], write: Callable[[Path], None], cache_dir: Path | None = None
) -> Content:
    """What `load` finds in the entry of this key, after `write` has made the entry's folder if it finds nothing.

    An OSError of `write` is taken for one of the disk. As `load_or_build` in everything else.
    """
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    digest = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()[:20]
    entry = root / f"{key['kind']}-{digest}"
    if (found := load(entry)) is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock(entry.with_name(entry.name + ".lock"), waiting=WAITING):
            if (found := load(entry)) is not None:
                return found
            for left_by_a_kill in root.glob(f"{entry.name}.*.tmp"):
                shutil.rmtree(left_by_a_kill, ignore_errors=True)
            if entry.exists():
                shutil.rmtree(entry)  # damaged from outside: `load` could not read it
            temporary = root / f"{entry.name}.{os.getpid()}.tmp"
            try:
                write(temporary)
                os.rename(temporary, entry)
                sync_directory(root)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(
            f"cannot write the data cache {root}: {error.strerror or error}; "
            "free space there, or set FASTGAN_CACHE to a writable folder"
        ) from error
    if (built := load(entry)) is None:
        raise UserError(f"the data cache {entry} cannot be read back; check the disk, or set FASTGAN_CACHE to another")
    return built


def load_entry(entry: Path) -> ImageDataset | None:
    """The entry memory-mapped; None if it is absent or damaged."""
    try:
        for name in ("meta.json", "images.npy", "labels.npy"):
            if (entry / name).exists():
                open_regular(entry / name).close()  # not a pipe, which would be waited for
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        images = np.load(entry / "images.npy", mmap_mode="r")
        labels = np.load(entry / "labels.npy") if meta["class_names"] else None
        return ImageDataset(images, labels, meta["class_names"], meta["source"], meta["digests"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write(folder: Path, recipe: Recipe, progress: bool) -> None:
    """All files of an entry, synced. Plain writes, not a writable map: on a full disk a map dies of SIGBUS."""
    from fastgan.progress import ProgressBar

    folder.mkdir()
    pixels = hashlib.sha256()
    labels = None if recipe.labels is None else recipe.labels.astype(np.int64)
    with (
        open(folder / "images.npy", "wb") as file,
        ProgressBar(total=recipe.shape[0], desc=recipe.title, unit=" images", disable=not progress, leave=False) as bar,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": recipe.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in recipe.blocks:
            block = np.ascontiguousarray(block, dtype=np.uint8)
            file.write(block.data)
            pixels.update(block.data)
            bar.update(len(block))
        sync(file)
    if labels is not None:
        with open(folder / "labels.npy", "wb") as file:
            np.save(file, labels)
            sync(file)
    digests = {"images": pixels.hexdigest(), "labels": hashlib.sha256(b"" if labels is None else labels).hexdigest()}
    with open(folder / "meta.json", "w", encoding="utf-8") as file:
        json.dump({"class_names": recipe.class_names, "source": recipe.source, "digests": digests}, file)
        sync(file)
    sync_directory(folder)


def _load_array(entry: Path) -> np.ndarray | None:
    """The array, in memory; None if it is absent or damaged."""
    try:
        return np.load(entry / "array.npy")
    except (OSError, ValueError, EOFError):
        return None


def _write_array(folder: Path, array: np.ndarray) -> None:
    folder.mkdir()
    with open(folder / "array.npy", "wb") as file:
        np.save(file, array)
        sync(file)
    sync_directory(folder)
