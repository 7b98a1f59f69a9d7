"""Pictures of many images in labelled rows and columns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastgan.errors import UserError
from fastgan.files import write_atomically

_PAPER, _INK = "white", "black"
_CHECKS = (255, 204)  # greys of the checkerboard behind transparent images
_CHECK = 8  # side of its squares in pixels
_GAP = 2  # pixels between images
_MARGIN = 6  # around text
_APART = 10  # extra pixels between the sources of a table and the rest
_LINE = 20  # height of a line of text
SMALLEST_CELL = 48  # side of an image in a picture, in pixels


class _Picture(NamedTuple):
    """File format. name: Pillow's; options: of `save`; largest: pixels of a side; transparent: whether it has alpha."""

    name: str
    options: dict[str, Any]
    largest: int
    transparent: bool


_JPEG = _Picture("JPEG", {"quality": 95, "subsampling": 0}, 65_500, transparent=False)
PICTURES = {  # by suffix
    ".png": _Picture("PNG", {}, 2**31 - 1, transparent=True),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _Picture("WEBP", {"lossless": True}, 16_383, transparent=True),
}


class Section(NamedTuple):
    """A heading above rows of images, all of one size.

    Attributes:
        heading: one or more lines of text.
        rows: pairs of a label at the left and images, uint8 [n, H, W, C].
        columns: labels above the columns, or none.
        sources: whether the first row and column are sources of the others, and so set apart from them.
    """

    heading: str
    rows: Sequence[tuple[str, np.ndarray]]
    columns: Sequence[str] = ()
    sources: bool = False


def draw_grid(sections: Sequence[Section], smallest_cell: int = SMALLEST_CELL) -> Image.Image:
    """RGB picture of all sections, one below the other.

    Images are enlarged by a whole factor to at least `smallest_cell` pixels; columns are as wide as their labels.
    """
    font = ImageFont.load_default(16)
    width_of = lambda text: max((int(font.getlength(line)) for line in text.splitlines()), default=0)
    rows = [row for section in sections for row in section.rows]
    _, height, width, _ = rows[0][1].shape
    factor = enlargement(width, smallest_cell)
    labels = [width_of(label) + _MARGIN for section in sections for label in section.columns]
    cell_width, cell_height = max([width * factor, *labels]) + _GAP, height * factor + _GAP
    left = 2 * _MARGIN + max(width_of(label) for label, _ in rows)
    apart = [_APART if section.sources else 0 for section in sections]
    total_width = max(
        left + max(len(images) for _, images in rows) * cell_width + max(apart),
        2 * _MARGIN + max(width_of(section.heading) for section in sections),
    )
    heading_heights = [_LINE * (1 + section.heading.count("\n")) + 8 for section in sections]
    label_heights = [_LINE + 2 if section.columns else 0 for section in sections]
    total_height = sum(heading_heights) + sum(label_heights) + sum(apart) + len(rows) * cell_height + 4

    picture = Image.new("RGB", (total_width, total_height), _PAPER)
    pen = ImageDraw.Draw(picture)
    y = 0
    for section, heading_height, label_height, gap in zip(sections, heading_heights, label_heights, apart, strict=True):
        for number, line in enumerate(section.heading.splitlines()):
            pen.text((_MARGIN, y + 6 + number * _LINE), line, fill=_INK, font=font)
        y += heading_height
        at = lambda column, gap=gap: left + column * cell_width + (gap if column else 0)
        for column, label in enumerate(section.columns):
            pen.text((at(column) + (cell_width - _GAP) // 2, y), label, fill=_INK, font=font, anchor="ma")
        y += label_height
        for number, (label, images) in enumerate(section.rows):
            y += gap if number == 1 else 0
            pen.text((_MARGIN, y + cell_height // 2), label, fill=_INK, font=font, anchor="lm")
            for column, image in enumerate(images):
                x = at(column) + (cell_width - _GAP - width * factor) // 2
                picture.paste(enlarged(image, factor), (x, y))
            y += cell_height
    return picture


def enlargement(side: int, smallest: int) -> int:
    """Whole factor that enlarges a side of `side` pixels to at least `smallest`."""
    return max(1, -(-smallest // side))


def enlarged(image: np.ndarray, factor: int) -> Image.Image:
    """uint8 [H, W, C] as a Pillow image of `factor` times the size; a transparent one on a checkerboard."""
    picture = to_picture(image)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return _on_checks(picture) if picture.mode == "RGBA" else picture


def _on_checks(picture: Image.Image) -> Image.Image:
    """A transparent picture on a checkerboard."""
    rows, columns = np.ogrid[: picture.height, : picture.width]
    checks = np.where((rows // _CHECK + columns // _CHECK) % 2, *_CHECKS[::-1]).astype(np.uint8)
    return Image.alpha_composite(Image.fromarray(checks).convert("RGBA"), picture).convert("RGB")


def to_picture(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, C], C 1, 3 or 4 (RGBA), as a Pillow image."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def require_fits(size: tuple[int, int], path: Path) -> None:
    """Raise UserError if a picture of `size` (width, height) is too large for the format of `path`."""
    largest = PICTURES[path.suffix.lower()].largest
    if max(size) > largest:
        raise UserError(
            f"{path}: a picture of {size[0]}x{size[1]} is larger than the {largest} pixels that a side of "
            f"{path.suffix} may have; give fewer --seeds or --classes, or choose .png"
        )


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture atomically, in the format of the suffix. Raises UserError, naming the file, if that fails."""
    require_fits(picture.size, path)
    kind = PICTURES[path.suffix.lower()]
    if picture.mode == "RGBA" and not kind.transparent:
        picture = _on_checks(picture)
    buffer = io.BytesIO()
    picture.save(buffer, kind.name, **kind.options)
    write_atomically(path, buffer.getvalue())
