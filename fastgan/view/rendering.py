"""Images as HTML that shows single pixels, and logged numbers as curves."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastgan.data.images import reason
from fastgan.errors import UserError
from fastgan.runs.grid import to_picture
from fastgan.runs.log import CHARTS, METRICS, chart_of

LARGE, HALF, SMALL = 512, 320, 128  # width of an image on the page in pixels: alone, one of two, and among others
MAX_GRID_WIDTH = 1600
MAX_POINTS = 500  # of a curve; longer logs are averaged
FRAME_MILLISECONDS = 60


def figure(image: np.ndarray, caption: str, file_name: str, width: int = LARGE) -> str:
    """A large image, uint8 [H, W, C]. A click saves it as `file_name`."""
    return _figure(_png(to_picture(image)), image.shape[1], caption, max(width, image.shape[1]), file_name=file_name)


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def progress_bar(share: float) -> str:
    """A bar, `share` of which, from 0 to 1, is filled."""
    percent = round(100 * min(1.0, share))
    bar = f'role="progressbar" aria-label="Progress" aria-valuenow="{percent}"'
    return f'<div class="progress" {bar}><div style="width: {percent}%"></div></div>'


def animation(frames: Sequence[np.ndarray], caption: str, file_name: str) -> str:
    """An endless animation of frames, uint8 [H, W, C], back and forth."""
    first, *others = (to_picture(frame) for frame in [*frames, *frames[-2:0:-1]])
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": others, "duration": FRAME_MILLISECONDS, "loop": 0}
    first.save(buffer, "WEBP", lossless=first.width <= SMALL, quality=90, **options)
    return _figure(_data("webp", buffer.getvalue()), first.width, caption, max(LARGE, first.width), file_name=file_name)


def sheet(images: np.ndarray, captions: Sequence[str], choices: Sequence[int] | None = None, width: int = SMALL) -> str:
    """Small images, uint8 [n, H, W, C]. A click on one selects its entry of `choices`."""
    figures = []
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        picture = to_picture(image)
        picture.thumbnail((2 * width, 2 * width))  # twice the width, for high-density screens
        choice = None if choices is None else choices[number]
        figures.append(_figure(_png(picture), picture.width, caption, width, choice=choice))
    return f'<div class="sheet">{"".join(figures)}</div>'


def grid(path: Path, images: int) -> str:
    """A picture of samples written by a training. Raises UserError if it is missing or damaged."""
    try:
        return _grid(path, images)
    except Exception as error:  # Pillow raises two dozen kinds on damaged files
        raise UserError(f"{path} cannot be shown: {reason(error)}") from error


def _grid(path: Path, images: int) -> str:
    with Image.open(path) as picture:
        caption = f"after {images:,} images"
        if picture.width <= MAX_GRID_WIDTH:
            data = _data("png", path.read_bytes())
        else:
            picture.thumbnail((MAX_GRID_WIDTH, MAX_GRID_WIDTH * picture.height))
            data = _png(picture)
        return _figure(data, picture.width, caption, picture.width, file_name=path.name)


def charts(log: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Curves of a log: chart title to curve name to points (images, value). Charts are in the order of the page.

    Each metric has a chart of its own, since units differ.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in log:
        for name, value in line.items():
            if name not in ("step", "images") and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((line["images"], value))
    found = {
        title: {name: _thinned(curves[name]) for name in names if name in curves} for title, names in CHARTS.items()
    }
    found |= {name: {name: _thinned(points)} for name, points in curves.items() if chart_of(name) == METRICS}
    return {title: chart for title, chart in found.items() if chart}


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points, each the mean of neighbours."""
    step = -(-len(points) // MAX_POINTS)
    parts = (np.mean(points[start : start + step], axis=0) for start in range(0, len(points), step))
    return [(float(x), float(y)) for x, y in parts] if step > 1 else points


def _figure(
    data: str, image_width: int, caption: str, width: int, *, file_name: str | None = None, choice: int | None = None
) -> str:
    """An image, `image_width` pixels wide, enlarged by an integer factor to at most `width`, or reduced to `width`."""
    factor = max(1, width // image_width)
    crisp = " crisp" if factor > 1 else ""
    text = html.escape(caption)
    image = f'<img src="{data}" alt="{text}" class="pixels{crisp}" style="width: {min(image_width * factor, width)}px">'
    if file_name is not None:
        name = html.escape(file_name)
        image = f'<a href="{data}" download="{name}" title="Save as {name}">{image}</a>'
    if choice is not None:
        image = f'<button type="button" data-choice="{choice}" title="Show {text}">{image}</button>'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return _data("png", buffer.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
