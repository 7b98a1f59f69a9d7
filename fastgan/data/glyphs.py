"""Built-in data set: labelled characters drawn from the fonts that matplotlib and Pillow ship.

A character is drawn once for each face and weight, large; each image is a random affine transform of such a master,
sampled at a multiple of the resolution and averaged down. Nothing is downloaded. The same seed gives the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastgan.data.cache import Recipe, load_or_build
from fastgan.data.image_dataset import ImageDataset
from fastgan.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

ALPHABETS = {
    10: string.digits,
    26: string.ascii_uppercase,
    62: string.digits + string.ascii_uppercase + string.ascii_lowercase,
}
# Families that are never in the training split, one with serifs and one without, by other designers than the rest.
HELD_OUT_FAMILIES = ("STIXGeneral", "Aileron")
# Families that have every character but are not used, with the reason.
LEFT_OUT = {
    "cmti10": "its 4 and 7 descend below the baseline like old-style numerals, which makes all its digits small"
}

# Lengths are fractions of the image, before the affine transform.
FILL = 0.70  # height of the alphabet
MAX_WIDTH = 0.78  # of a character
ROTATION = math.radians(10)
SHEAR = 0.15
SCALE = (0.80, 1.12)
ASPECT = 0.08  # largest |log(x scale / y scale)|
SHIFT = 0.07  # less where the character would come closer to the edge than MARGIN
MARGIN = 0.03
WEIGHTS = (0.0, 0.02, 0.04)  # stroke added on each side, as a fraction of the alphabet's height
MASTER_SIDE = 96  # smallest side of a master in pixels
BLOCK = 256
COUNT = 20_000  # images, of up to 20 classes


@dataclass(frozen=True)
class Font:
    """One face of a font family. data: bytes of the TrueType file."""

    family: str
    style: str
    data: bytes

    @property
    def name(self) -> str:
        return f"{self.family} {self.style}"


def fonts(split: str) -> list[Font]:
    """The faces of a split, "train" or "heldout", in a fixed order. All faces of a family are in the same split.

    A face qualifies if its character map gives each of the 62 characters the glyph with that character's PostScript
    name (Adobe Glyph List: "zero", "A", "a"). This rules out fonts without letters (STIX sizes, DejaVu Display), with
    other symbols in place of characters (cmsy10, cmex10), with old-style numerals (cmmi10), or with one box for all
    characters (Last Resort). LEFT_OUT names families that qualify but are not used.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', not {split!r}")
    held_out = split == "heldout"
    return [font for font in _qualified_fonts() if (font.family in HELD_OUT_FAMILIES) == held_out]


def render(
    resolution: int,
    channels: int = 1,
    *,
    classes: int = 10,
    seed: int = 0,
    split: str = "train",
    count: int | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> ImageDataset:
    """The glyph data set, from the cache or drawn now.

    resolution: side in pixels, 8 or more. channels: 1, white on black, or 3, random contrasting colours.
    classes: 10 (0-9), 26 (A-Z) or 62 (0-9A-Za-z). count: number of images; by default 20,000, or 1,000 a class if
    that is more; a tenth of it for split="heldout". Labels are balanced and cycle through the classes.
    Raises UserError for other values.
    """
    if resolution < 8:
        raise UserError(f"--resolution {resolution} is too small for glyphs; choose 8 or more")
    if channels not in (1, 3):
        raise UserError(f"--channels {channels} is not possible with glyphs; choose 1 (grey) or 3 (RGB)")
    if classes not in ALPHABETS:
        raise UserError(f"--classes {classes} is not possible with glyphs; choose 10 (0-9), 26 (A-Z) or 62 (0-9A-Za-z)")
    if seed < 0:
        raise UserError(f"the seed of the glyphs must be 0 or more, not {seed}")
    if count is None:
        count = max(COUNT, 1_000 * classes) // (10 if split == "heldout" else 1)
    if count < 1:
        raise ValueError(f"count must be 1 or more, not {count}")
    faces = fonts(split)
    from PIL import __version__, features

    key = {
        "kind": "glyphs",
        "resolution": resolution,
        "channels": channels,
        "classes": classes,
        "seed": seed,
        "count": count,
        "fonts": [[font.name, hashlib.sha256(font.data).hexdigest()] for font in faces],
        "renderer": [__version__, features.version("freetype2")],
        "geometry": [FILL, MAX_WIDTH, ROTATION, SHEAR, SCALE, ASPECT, SHIFT, MARGIN, WEIGHTS, MASTER_SIDE],
    }

    def recipe() -> Recipe:
        alphabet = ALPHABETS[classes]
        labels = np.arange(count, dtype=np.int64) % classes
        rng = np.random.default_rng([seed, split == "heldout"])
        words = "glyphs" if split == "train" else "glyphs in held-out fonts"
        return Recipe(
            shape=(count, resolution, resolution, channels),
            labels=labels,
            class_names=list(alphabet),
            source=f"{words} ({len(faces)} faces)",
            blocks=_draw(faces, alphabet, labels, resolution, channels, rng),
            title=f"drawing {words}",
        )

    return load_or_build(key, recipe, cache_dir, progress)


@functools.cache
def _qualified_fonts() -> list[Font]:
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [path.read_bytes() for path in sorted(folder.glob("*.ttf"))]
    own = ImageFont.load_default(size=16)  # Pillow's, Aileron
    assert isinstance(own, ImageFont.FreeTypeFont)
    files.append(own.font_bytes)
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    wanted = dict(zip(map(ord, string.digits), digits, strict=True)) | {ord(c): c for c in string.ascii_letters}
    qualified = []
    for data in files:
        font = FT2Font(io.BytesIO(data))
        if font.family_name in LEFT_OUT:
            continue
        glyphs = font.get_charmap()
        if all(code in glyphs and font.get_glyph_name(glyphs[code]) == name for code, name in wanted.items()):
            qualified.append(Font(font.family_name, font.style_name, data))
    return qualified


class _Masters:
    """Large anti-aliased images of the characters, mode L, `side` x `side`, drawn on first use and cached."""

    def __init__(self, faces: list[Font], alphabet: str, side: int) -> None:
        self._alphabet, self._side = alphabet, side
        cached = max(64, (256 << 20) // side**2)  # 256 MiB
        self.get = functools.lru_cache(maxsize=cached)(self._draw)
        self._fitted = [self._fit(font.data) for font in faces]

    def _fit(self, data: bytes):
        """The face at the size where the alphabet's height is FILL of the side; its top and bottom in pixels."""
        from PIL import ImageFont

        def at(size: float):  # BASIC: RAQM is not always installed
            font = ImageFont.truetype(io.BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)
            boxes = [font.getbbox(character, anchor="ls") for character in self._alphabet]
            return font, min(box[1] for box in boxes), max(box[3] for box in boxes)

        _, top, bottom = at(256)
        return at(256 * FILL * self._side / (bottom - top))

    def _draw(self, face: int, character: int, weight: int):
        """The master, and half the width and half the height of the character around its centre."""
        from PIL import Image, ImageDraw

        side, text = self._side, self._alphabet[character]
        font, top, bottom = self._fitted[face]
        stroke = round(WEIGHTS[weight] * (bottom - top))
        sheet = Image.new("L", (4 * side, 2 * side))
        baseline = side - (top + bottom) / 2  # centres the alphabet vertically
        ImageDraw.Draw(sheet).text((side, baseline), text, fill=255, font=font, anchor="ls", stroke_width=stroke)
        # Size and baseline are those of the alphabet: they distinguish c from C. Horizontally a character is centred.
        left, _, right, _ = _ink(sheet)
        x, y = (left + right) / 2, side
        reach = max(side, (right - left) / MAX_WIDTH) / 2  # half of the side that is shown: more for a wide character
        picture = sheet.resize(
            (side, side), Image.Resampling.BILINEAR, box=(x - reach, y - reach, x + reach, y + reach)
        )
        box = _ink(picture)
        half = max(side / 2 - box[0], box[2] - side / 2), max(side / 2 - box[1], box[3] - side / 2)
        return picture, *half


def _ink(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is drawn."""
    box = image.getbbox()
    assert box is not None, "an empty image"
    return box


def _draw(
    faces: list[Font], alphabet: str, labels: np.ndarray, resolution: int, channels: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Blocks of images, uint8 [up to BLOCK, resolution, resolution, channels]. All random numbers are drawn first."""
    from PIL import Image

    n = len(labels)
    oversample = max(2, math.ceil(MASTER_SIDE / resolution))
    side = resolution * oversample
    masters = _Masters(faces, alphabet, side)
    face = rng.integers(len(faces), size=n)
    weight = rng.integers(len(WEIGHTS), size=n)
    angle = rng.uniform(-ROTATION, ROTATION, n)
    shear = rng.uniform(-SHEAR, SHEAR, n)
    scale = rng.uniform(*SCALE, n)
    aspect = np.exp(rng.uniform(-ASPECT, ASPECT, n) / 2)
    shift = rng.uniform(-1, 1, (n, 2))
    colours = _contrasting_colours(n, rng) if channels == 3 else None

    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([cos, -sin, sin, cos], -1).reshape(n, 2, 2)
    slant = np.tile(np.eye(2), (n, 1, 1))
    slant[:, 0, 1] = shear
    stretch = np.stack([scale * aspect, scale / aspect], -1)
    maps = rotation @ slant * stretch[:, None, :]  # [n, 2, 2], character to image
    inverses = np.linalg.inv(maps)

    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        block = np.empty((stop - start, resolution, resolution), np.uint8)
        for i in range(start, stop):
            picture, half_x, half_y = masters.get(int(face[i]), int(labels[i]), int(weight[i]))
            reach = np.abs(maps[i]) @ (half_x, half_y)  # half the size of the mapped bounding box
            limit = (0.5 - MARGIN) * side
            shrink = max(1.0, reach.max() / limit)  # nothing is cut off
            room = np.minimum(limit - reach / shrink, SHIFT * side)
            (a, b), (d, e) = (inverses[i] * shrink).tolist()
            x, y = (side / 2 + shift[i] * room).tolist()  # where the centre goes
            back = (a, b, side / 2 - a * x - b * y, d, e, side / 2 - d * x - e * y)
            view = picture.transform((side, side), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
            block[i - start] = view.reduce(oversample)
        if colours is None:
            yield block[..., None]
        else:
            ground, ink = colours[start:stop, :, None, None].swapaxes(0, 1)  # [block, 1, 1, 3] each
            yield np.rint(ground + (ink - ground) * (block[..., None] / 255.0)).astype(np.uint8)


def _contrasting_colours(n: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs of RGB colours, float64 [n, 2, 3] in 0..255, whose luma (Rec. 601) differs by at least 90."""
    colours = rng.integers(0, 256, (n, 2, 3)).astype(np.float64)
    while True:
        luma = colours @ (0.299, 0.587, 0.114)
        dull = np.abs(luma[:, 0] - luma[:, 1]) < 90
        if not dull.any():
            return colours
        colours[dull] = rng.integers(0, 256, (int(dull.sum()), 2, 3))
