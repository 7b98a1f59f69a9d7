"""Training images: glyphs, emoji, a folder or a zip, as one memory-mapped array; their order; their way into a step."""

from __future__ import annotations

from pathlib import Path

from fastgan.data.cache import ImageDataset
from fastgan.data.loading import ImageLoader, pixels_of
from fastgan.data.sampling import ShuffledStream
from fastgan.errors import UserError

__all__ = ["ImageDataset", "ImageLoader", "ShuffledStream", "open_dataset", "pixels_of"]


def open_dataset(
    spec: str,
    resolution: int,
    channels: int = 1,
    *,
    classes: int = 10,
    seed: int = 0,
    split: str = "train",
    cache_dir: Path | None = None,
    progress: bool = True,
) -> ImageDataset:
    """The data set that `spec` names, decoded once into a cache and memory-mapped from there.

    spec: "glyphs", "emoji" (needs the extra of that name), or the path of a folder of images or of a zip (see
        `folder.read`).
    resolution: side in pixels. channels: 1 (grey) or 3 (RGB).
    classes, seed: of the glyphs (see `glyphs.render`); all others bring their classes with them.
    split: "train", or "heldout": glyphs in fonts that "train" does not have.
    cache_dir: where to keep it; by default $FASTGAN_CACHE or `fastgan` in the user's cache directory.
    Raises UserError for data that cannot be used.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', not {split!r}")
    if resolution < 1:
        raise UserError(f"--resolution must be a positive number of pixels, not {resolution}")
    if spec == "glyphs":
        from fastgan.data import glyphs

        return glyphs.render(
            resolution, channels, classes=classes, seed=seed, split=split, cache_dir=cache_dir, progress=progress
        )
    if split == "heldout":
        raise UserError(f"--data {spec} has no held-out part; keep test images in a folder of their own")
    if spec == "emoji":
        from fastgan.data import emoji

        return emoji.render(resolution, channels, cache_dir=cache_dir, progress=progress)
    from fastgan.data import folder

    return folder.read(Path(spec).expanduser(), resolution, channels, cache_dir=cache_dir, progress=progress)
