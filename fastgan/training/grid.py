"""Pictures of many images in labelled rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastgan.training.files import write_atomically

_PAPER, _INK = "white", "black"
_GAP = 2  # pixels between images
_SMALLEST_CELL = 48  # images are shown enlarged, by a whole factor, to at least so many pixels


class Section(NamedTuple):
    """A heading and, below it, rows of images: (label at the left, uint8 [n, H, W, C]), all of one size."""

    heading: str
    rows: Sequence[tuple[str, np.ndarray]]


def draw_grid(sections: Sequence[Section]) -> Image.Image:
    """One RGB picture of all sections, one below the other."""
    font = ImageFont.load_default(16)
    rows = [row for section in sections for row in section.rows]
    _, height, width, _ = rows[0][1].shape
    factor = max(1, -(-_SMALLEST_CELL // width))
    cell_width, cell_height = width * factor + _GAP, height * factor + _GAP
    left = 12 + int(max(font.getlength(label) for label, _ in rows))
    columns = max(len(images) for _, images in rows)
    total_width = max(
        left + columns * cell_width, 12 + int(max(font.getlength(section.heading) for section in sections))
    )
    total_height = len(sections) * 28 + len(rows) * cell_height + 4

    picture = Image.new("RGB", (total_width, total_height), _PAPER)
    pen = ImageDraw.Draw(picture)
    y = 0
    for section in sections:
        pen.text((6, y + 6), section.heading, fill=_INK, font=font)
        y += 28
        for label, images in section.rows:
            pen.text((6, y + cell_height // 2), label, fill=_INK, font=font, anchor="lm")
            for column, image in enumerate(images):
                picture.paste(
                    to_picture(image).resize((width * factor, height * factor), Image.Resampling.NEAREST),
                    (left + column * cell_width, y),
                )
            y += cell_height
    return picture


def to_picture(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, C], C 1 or 3, as a Pillow image."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write it atomically; raises UserError, naming the file, if that fails."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
