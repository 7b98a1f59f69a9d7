"""Training images: built-in sets (glyphs, emoji), user-supplied ones, their shuffled order, and the data loader.

A data set is one memory-mapped array, or a sequence of tar shards. `ImageLoader` is imported on first use, so that
`import fastgan.data` does not load torch: worker processes that prepare images start quickly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastgan.data.image_dataset import DamagedData, ImageDataset, is_prepared, load_folder
from fastgan.data.images import CHANNELS, parse_size, size_text
from fastgan.data.shuffle import ShuffledStream
from fastgan.errors import UserError, program

if TYPE_CHECKING:
    from fastgan.data.loader import ImageLoader, pixels_of

__all__ = ["ImageDataset", "ImageLoader", "ShuffledStream", "open_dataset", "pixels_of"]


def __getattr__(name: str):
    if name in ("ImageLoader", "pixels_of"):
        from fastgan.data import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_dataset(
    spec: str,
    resolution: int | str,
    channels: int = 1,
    *,
    classes: int = 10,
    seed: int = 0,
    split: str = "train",
    cache_dir: Path | None = None,
    progress: bool = True,
) -> ImageDataset:
    """Open the data set that `spec` names, decoded once into the cache and memory-mapped from there.

    spec: "glyphs"; "emoji" (needs the extra of that name); a folder or zip of images (see `folder.load`); or the output
        of `fastgan dataset`: a folder with an array, which is mapped in place, or shards (see
        `shards.open_shards`), by path or URL.
    resolution: side in pixels, or "WIDTHxHEIGHT". channels: 1 (grey), 3 (RGB) or 4 (RGBA).
    classes, seed: of the glyphs (see `glyphs.render`); other sets have their own classes.
    split: "train", or "heldout": glyphs in fonts that "train" does not have.
    cache_dir: by default $FASTGAN_CACHE, or `fastgan` in the user's cache directory.
    Raises UserError for data that cannot be used.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', not {split!r}")
    size = parse_size(resolution)
    if spec in ("glyphs", "emoji") and size[0] != size[1]:
        raise UserError(f"--resolution {resolution}: {spec} are square; give one number")
    if spec == "glyphs":
        from fastgan.data import glyphs

        return glyphs.render(
            size[0], channels, classes=classes, seed=seed, split=split, cache_dir=cache_dir, progress=progress
        )
    if split == "heldout":
        raise UserError(f"--data {spec} has no held-out part; keep test images in a folder of their own")
    if spec == "emoji":
        from fastgan.data import emoji

        return emoji.render(size[0], channels, cache_dir=cache_dir, progress=progress)
    from fastgan.data import folder, readers, shards, urls

    spec = spec if urls.has_scheme(spec) else str(Path(spec).expanduser())
    if shards.is_index(spec):
        return shards.open_shards(spec, size, channels, cache_dir)
    if urls.has_scheme(spec):
        raise UserError(f"--data {spec}: only shards are read from a URL, by shards.json; download other files first")
    path = Path(spec)
    if is_prepared(path):
        return _open_prepared(path, size, channels)
    if readers.needs_preparation(spec):
        raise UserError(f"--data {spec}: prepare it first, with {program('dataset')}; see docs/data.md")
    return folder.load(path, size, channels, cache_dir=cache_dir, progress=progress)


def _open_prepared(path: Path, size: tuple[int, int], channels: int) -> ImageDataset:
    """The array in a folder that `fastgan dataset` wrote."""
    damaged = lambda what: UserError(f"--data {path}: {what}; prepare it again with {program('dataset')}")
    try:
        found = load_folder(path, damaged)
    except DamagedData as error:
        raise damaged(str(error)) from error
    if (found.size, found.channels) != (size, channels):
        raise UserError(
            f"--data {path} has {CHANNELS[found.channels]} images of {size_text(found.size)}; "
            f"give --resolution {found.resolution} --channels {found.channels}"
        )
    return found
