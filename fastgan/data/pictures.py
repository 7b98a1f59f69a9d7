"""One picture: from the bytes of a file, which may be anything at all, to pixels of a wanted size.

Resizing is Pillow's LANCZOS (a = 3), whose support grows with the factor that it shrinks by: antialiased, and the same
bytes on every machine. It works on the values as they are stored, sRGB-encoded, as the preparation of StyleGAN's
data sets does; colours behind transparency are weighted by it. Imports no torch: processes that do this start quickly.
"""

from __future__ import annotations

import io
import os
import re
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

import numpy as np

from fastgan.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")  # of Pillow, by content: it has others that start programs
MAX_PIXELS = 2 * 89_478_485  # from here on Pillow, too, takes an image for a decompression bomb
MAX_BYTES = 2**29  # of a file
TOO_LARGE = f"is larger than {MAX_BYTES / 2**20:,.0f} MiB"
CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}

Crop = Literal["center", "pad", "none"]
Ground = Literal["white", "black"]


class Unusable(Exception):
    """Why an image cannot be used, in a few words."""


class Wanted(NamedTuple):
    """What pixels are to be like.

    size: width and height. channels: 1 (grey), 3 (RGB) or 4 (RGBA).
    crop: "center" cuts the largest part of the wanted shape out of the middle, "pad" shows all of the image on a
        ground, "none" takes images of the wanted shape only.
    ground: what is behind transparency and beside a padded image; with 4 channels that is transparent.
    enlarge: whether smaller images are taken as well.
    """

    size: tuple[int, int]
    channels: int
    crop: Crop = "center"
    ground: Ground = "white"
    enlarge: bool = False


def parse_size(resolution: int | str) -> tuple[int, int]:
    """Width and height of a resolution: a number of pixels, or a text "WIDTHxHEIGHT". Raises UserError."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(resolution))
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(size) < 1:
        raise UserError(f"--resolution {resolution}: must be a number of pixels, or WIDTHxHEIGHT like 64x32")
    return size


def size_text(size: tuple[int, int]) -> str:
    """(width, height) as people write it."""
    return f"{size[0]}x{size[1]}"


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, opened for reading. Raises OSError, also for a named pipe (which would wait for a writer), a
    device (which may never end) and a folder."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_regular(path: str | Path) -> bytes:
    """The bytes of a regular file. Raises Unusable if it cannot be read or has more than MAX_BYTES."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)  # its size may be wrong: that of /proc/... is 0
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise Unusable(f"cannot be read ({reason(error)})") from error
    if len(content) > MAX_BYTES:
        raise Unusable(TOO_LARGE)
    return content


def decode(data: bytes) -> Image.Image:
    """The picture in a file's bytes, upright. Raises Unusable for whatever is wrong with them."""
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        require_sane_size(image.size)
        image.load()
        return ImageOps.exif_transpose(image)
    except Unusable:
        raise
    except Exception as error:  # Pillow raises two dozen kinds on damaged files
        raise Unusable(f"cannot be decoded ({reason(error)})") from error


def require_sane_size(size: tuple[int, int]) -> None:
    """Raises Unusable for an image that would fill the memory, or is none."""
    if min(size) < 1:
        raise Unusable(f"is {size_text(size)}")
    if size[0] * size[1] > MAX_PIXELS:
        raise Unusable(f"is {size_text(size)}, more than {MAX_PIXELS / 1e6:.0f} million pixels")


def reason(error: Exception) -> str:
    """What an exception says, short and in one line."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())[:80] or type(error).__name__
    return "not an image" if "cannot identify image file" in text else text


def plain(image: Image.Image) -> Image.Image:
    """The same picture as grey (L), RGB or RGBA; RGBA only if something is transparent. Raises Unusable."""
    from PIL import Image

    if image.mode in ("1", "P", "PA"):  # black and white, palettes
        transparent = image.mode == "PA" or "transparency" in image.info
        image = image.convert("L" if image.mode == "1" else "RGBA" if transparent else "RGB")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:  # one colour stands for transparent
        image = image.convert("RGBA")
    elif image.mode.startswith("I;16") or (image.mode == "I" and 0 <= min(e := image.getextrema()) <= max(e) < 65536):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
    if image.mode in ("LA", "RGBA"):
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("L" if image.mode == "LA" else "RGB")
        return image.convert("RGBA")
    if image.mode not in ("L", "RGB"):
        raise Unusable(f"has pixels of mode {image.mode}; only 8 or 16 bits a channel are known")
    return image


def fitted(image: Image.Image, wanted: Wanted) -> np.ndarray:
    """The picture as `wanted`: uint8 [height, width, channels]. Raises Unusable where that cannot be."""
    from PIL import Image

    width, height = wanted.size
    if image.size[0] * height != image.size[1] * width and wanted.crop == "none":
        raise Unusable(f"is {size_text(image.size)}, not of the shape {size_text(wanted.size)}")
    x, y = image.size[0] / width, image.size[1] / height
    factor = min(x, y) if wanted.crop == "center" else max(x, y)  # pixels of the image for one of the result
    if factor < 1 and not wanted.enlarge:
        raise Unusable(f"is {size_text(image.size)}, smaller than {size_text(wanted.size)}; --enlarge takes it")
    image = plain(image)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[wanted.channels]
    if image.mode == "RGBA" and mode != "RGBA":
        ground = Image.new("RGBA", image.size, wanted.ground)
        image = Image.alpha_composite(ground, image).convert("RGB")
    if mode == "L" or image.mode != "L":
        image = image.convert(mode)  # Rec. 601 luma for grey
    if wanted.crop == "center":
        cut = (
            max(1, min(round(width * factor), image.size[0])),
            max(1, min(round(height * factor), image.size[1])),
        )
        left, top = (image.size[0] - cut[0]) // 2, (image.size[1] - cut[1]) // 2
        image = image.crop((left, top, left + cut[0], top + cut[1]))
        image = image.resize(wanted.size, Image.Resampling.LANCZOS).convert(mode)
    else:
        part = max(1, min(round(image.size[0] / factor), width)), max(1, min(round(image.size[1] / factor), height))
        image = image.resize(part, Image.Resampling.LANCZOS).convert(mode)
        if part != wanted.size:
            ground = Image.new(mode, wanted.size, (0, 0, 0, 0) if mode == "RGBA" else wanted.ground)
            ground.paste(image, ((width - part[0]) // 2, (height - part[1]) // 2))
            image = ground
    return np.asarray(image).reshape(height, width, wanted.channels)


def prepare(data: bytes | Image.Image | Unusable, wanted: Wanted, as_png: bool) -> tuple[bytes, int] | str:
    """The pixels of a file as `wanted`, raw or as PNG, and their CRC-32; or why there are none. For other processes."""
    try:
        if isinstance(data, Unusable):
            raise data
        pixels = fitted(decode(data) if isinstance(data, bytes) else data, wanted)
    except Unusable as error:
        return str(error)
    except MemoryError:
        return "needs more memory than there is"
    except Exception as error:  # of Pillow, for kinds of pixels that it has no way to convert
        return f"cannot be converted ({reason(error)})"
    content = encode_png(pixels) if as_png else pixels.tobytes()
    return content, zlib.crc32(content)


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [height, width, channels] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
