"""Cache on disk: decoded data sets, arrays computed from them, and downloads.

An entry is a folder named by a digest of its key. It is written under a temporary name, flushed to the disk and renamed
at the end, so an entry that exists is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from fastgan.data.image_dataset import DamagedData, ImageDataset, load_folder, write_images, write_metadata
from fastgan.data.images import open_regular, reason
from fastgan.errors import UserError
from fastgan.files import copy_and_digest, file_digest, is_unlocked, lock, remove, sync, sync_directory

Content = TypeVar("Content")

WAITING = "waiting for another process that prepares the same data"
ARRAY, ARRAY_DIGEST = "array.npy", "array.npy.sha256"
FORMAT = 1  # part of every key; increase it when the same parameters would give other bytes


@dataclass(frozen=True)
class Recipe:
    """Everything `load_or_build` needs to write a data set into the cache."""

    shape: tuple[int, int, int, int]  # [n, H, W, C]
    labels: np.ndarray | None  # int64 [n]
    class_names: list[str]
    source: str
    blocks: Iterable[np.ndarray]  # uint8 [any, H, W, C], n images in all; consumed once
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
    """The cached data set of this key; builds it with `recipe` if it is absent.

    key: JSON-able; everything the bytes depend on. Several processes may ask at once: one builds, the others wait.
    Raises UserError if the cache cannot be written. A failed build leaves nothing behind.
    """
    return load_or_write(key, _load_dataset, lambda folder: _write_dataset(folder, recipe(), progress), cache_dir)


def load_or_compute(key: dict, compute: Callable[[], np.ndarray], cache_dir: Path | None = None) -> np.ndarray:
    """The cached array of this key; calls `compute` if it is absent. Otherwise like `load_or_build`."""
    return load_or_write(key, _load_array, lambda folder: _write_array(folder, compute()), cache_dir)


def load_or_write(
    key: dict, load: Callable[[Path], Content | None], write: Callable[[Path], None], cache_dir: Path | None = None
) -> Content:
    """`load(entry)` of the entry with this key; calls `write(folder)` first if it is absent or damaged.

    `load` returns None or raises FileNotFoundError for an absent entry, and raises DamagedData for a damaged one.
    `write` creates the folder. An OSError of `write` is reported as a problem of the cache's disk. Otherwise like
    `load_or_build`.
    """
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    digest = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()[:20]
    entry = root / f"{key['kind']}-{digest}"
    if (found := _load(load, entry)) is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock(entry.with_name(entry.name + ".lock"), waiting=WAITING):
            if (found := _load(load, entry, say=True)) is not None:
                return found
            _remove_abandoned(root)
            for left_by_a_kill in root.glob(f"{entry.name}.*.tmp"):
                remove(left_by_a_kill)
            remove(entry)  # damaged from outside: `load` could not read it
            temporary = root / f"{entry.name}.{os.getpid()}.tmp"
            try:
                write(temporary)
                os.rename(temporary, entry)
                sync_directory(root)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        raise cannot_write(root, error) from error
    if (built := _load(load, entry)) is None:
        raise unreadable(entry)
    return built


def _load(load: Callable[[Path], Content | None], entry: Path, say: bool = False) -> Content | None:
    """The content of an entry; None if it is absent or damaged. say: print what is damaged."""
    try:
        return load(entry)
    except FileNotFoundError:
        return None
    except (DamagedData, OSError) as error:
        if say:
            print(f"note: the data cache {entry} is damaged ({reason(error)}); it is built again", file=sys.stderr)
        return None


def _remove_abandoned(root: Path) -> None:
    """Remove what killed processes were writing."""
    for temporary in root.glob("*.tmp"):
        with contextlib.suppress(OSError):  # another user's
            if is_unlocked(root / f"{temporary.name.rsplit('.', 2)[0]}.lock"):
                remove(temporary)


def cannot_write(root: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write the data cache {root}: {error.strerror or error}; "
        "free space there, or set FASTGAN_CACHE to a writable folder"
    )


def unreadable(entry: Path) -> UserError:
    return UserError(
        f"the data cache {entry} cannot be read back; check the disk, or set FASTGAN_CACHE to another folder"
    )


def _load_dataset(entry: Path) -> ImageDataset:
    def damaged_later(what: str) -> UserError:
        remove(entry)
        return UserError(
            f"the data cache {entry}: {what}; it has been removed: run the same command again, and it is built anew"
        )

    return load_folder(entry, damaged_later)


def _write_dataset(folder: Path, recipe: Recipe, progress: bool) -> None:
    from fastgan.progress import ProgressBar

    def counted() -> Iterator[np.ndarray]:
        for block in recipe.blocks:
            yield block
            bar.update(len(block))

    folder.mkdir()
    with ProgressBar(
        total=recipe.shape[0], desc=recipe.title, unit=" images", disable=not progress, leave=False
    ) as bar:
        digest, checksums = write_images(folder, recipe.shape, counted())
    labels = None if recipe.labels is None else recipe.labels.astype(np.int64)
    write_metadata(folder, digest, checksums, labels, recipe.class_names, recipe.source)


def _load_array(entry: Path) -> np.ndarray:
    """The array, in memory. Raises FileNotFoundError or DamagedData."""
    with open_regular(entry / ARRAY) as file, open_regular(entry / ARRAY_DIGEST) as written:
        if copy_and_digest(file) != written.read(100).decode("ascii", "replace"):
            raise DamagedData(f"{ARRAY} has other values than were written")
        file.seek(0)
        return np.load(file, allow_pickle=False)


def _write_array(folder: Path, array: np.ndarray) -> None:
    folder.mkdir()
    with open(folder / ARRAY, "wb") as file:
        np.save(file, array)
        sync(file)
    with open(folder / ARRAY_DIGEST, "w", encoding="ascii") as written:
        written.write(file_digest(folder / ARRAY))
        sync(written)
    sync_directory(folder)
