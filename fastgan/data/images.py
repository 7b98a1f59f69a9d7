"""One image: from the bytes of an untrusted file to uint8 pixels of a given size.

Resizing is Pillow's LANCZOS filter (a = 3), antialiased and bitwise the same on every machine. It works on sRGB-encoded
values, like the preparation of StyleGAN's data sets; colours are weighted by their alpha. Imports no torch, so worker
processes start quickly.
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

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
OTHER_SUFFIXES = frozenset(  # of images in formats that are not read: they are counted, not overlooked
    {".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".apng", ".tga", ".exr", ".hdr", ".dds", ".psd", ".ico"}
    | {".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")  # detected by content; some of Pillow's others start programs
NOT_READ = "is not an image in PNG, JPEG, WebP, BMP, TIFF or PPM"
PNG = b"\x89PNG\r\n\x1a\n"
BITS_LOST = "has 16 bits a channel; the upper 8 are kept"
DEEP = ("PNG", "TIFF", "PPM")  # formats that may have 16 bits a channel
MAX_PIXELS = 2 * 89_478_485  # Pillow's own limit for decompression bombs
MAX_BYTES = 2**29  # of a file
TOO_LARGE = f"is larger than {MAX_BYTES / 2**20:,.0f} MiB"
CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by channels

Crop = Literal["center", "pad", "none"]
Ground = Literal["white", "black"]


class UnusableImage(Exception):
    """The image cannot be used; the message says why in a few words, starting with a verb ("is 4x4, smaller ...")."""


class Target(NamedTuple):
    """Format that images are converted to.

    size: (width, height). channels: 1 (grey), 3 (RGB) or 4 (RGBA).
    crop: "center" keeps the largest centred part of the target's shape, "pad" keeps the whole image on a background,
        "none" accepts images of the target's shape only.
    ground: the background behind transparency and around a padded image; with 4 channels it is transparent.
    enlarge: whether smaller images are accepted.
    """

    size: tuple[int, int]
    channels: int
    crop: Crop = "center"
    ground: Ground = "white"
    enlarge: bool = False


def parse_size(resolution: int | str) -> tuple[int, int]:
    """(width, height) from a number of pixels or "WIDTHxHEIGHT". Raises UserError."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(resolution))
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(size) < 1:
        raise UserError(f"--resolution {resolution}: must be a number of pixels, or WIDTHxHEIGHT like 64x32")
    return size


def size_text(size: tuple[int, int]) -> str:
    """(width, height) as "WIDTHxHEIGHT"."""
    return f"{size[0]}x{size[1]}"


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for a folder, a named pipe (which would wait for a writer) and a
    device (which may never end)."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | Path) -> bytes:
    """Bytes of a regular file. Raises UnusableImage if it cannot be read or is larger than MAX_BYTES."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)  # the reported size may be wrong: 0 for /proc/...
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UnusableImage(f"cannot be read ({reason(error)})") from error
    if len(content) > MAX_BYTES:
        raise UnusableImage(TOO_LARGE)
    return content


def decode(data: bytes) -> Image.Image:
    """The image in a file's bytes, rotated upright by its EXIF data. Raises UnusableImage for any damage.

    Of several pictures in a file it is the first; 16-bit colours become 8-bit. `losses` says so.
    """
    from PIL import Image, ImageOps

    try:
        require_png_checksums(data)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(image.size)
        image.load()
        return ImageOps.exif_transpose(image)
    except UnusableImage:
        raise
    except Exception as error:  # Pillow raises two dozen kinds on damaged files
        raise cannot_be_decoded(error) from error


def cannot_be_decoded(error: Exception) -> UnusableImage:
    """The error for a file that Pillow refused with `error`."""
    text = reason(error)
    return UnusableImage(NOT_READ if "cannot identify image file" in text else f"cannot be decoded ({text})")


def require_png_checksums(data: bytes) -> None:
    """Raises UnusableImage if a PNG has a critical chunk whose CRC-32 is wrong. Pillow does not compare those of the
    pixels."""
    if not data.startswith(PNG):
        return
    view, start = memoryview(data), len(PNG)
    while start + 12 <= len(data):
        length = int.from_bytes(view[start : start + 4], "big")
        kind, end = bytes(view[start + 4 : start + 8]), start + 8 + length
        if end + 4 > len(data):
            return  # cut: Pillow reports it
        if kind[:1].isupper() and zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise UnusableImage(f"is damaged (wrong checksum of {kind.decode('ascii', 'backslashreplace')})")
        if kind == b"IEND":
            return
        start = end + 4


def losses(data: bytes) -> list[str]:
    """Parts of an image that `decode` leaves out: further pictures, bits."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        found = [BITS_LOST] if image.format in DEEP and any(_is_deep(tile.args) for tile in image.tile) else []
        if getattr(image, "is_animated", False):  # `n_frames` would follow all pages of a TIFF, damaged ones too
            found.append("has several pictures in one file; the first one is taken")
    return found


def _is_deep(args: object) -> bool:
    """Whether the arguments of Pillow's decoder name 16 bits a channel."""
    if isinstance(args, tuple):
        return any(map(_is_deep, args))
    return args == 65535 if isinstance(args, int) else ";16" in str(args)


def check_size(size: tuple[int, int]) -> None:
    """Raises UnusableImage for an empty image, or one so large that decoding it would fill the memory."""
    if min(size) < 1:
        raise UnusableImage(f"is {size_text(size)}")
    if size[0] * size[1] > MAX_PIXELS:
        raise UnusableImage(f"is {size_text(size)}, more than {MAX_PIXELS / 1e6:.0f} million pixels")


def reason(error: Exception) -> str:
    """Message of an exception, cut to 80 characters in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split())[:80] or type(error).__name__


def simplify_mode(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or RGBA; RGBA only if a pixel is transparent. Raises UnusableImage for other depths."""
    from PIL import Image

    if image.mode in ("1", "P", "PA"):  # black and white, palettes
        transparent = image.mode == "PA" or "transparency" in image.info
        image = image.convert("L" if image.mode == "1" else "RGBA" if transparent else "RGB")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:  # one colour marks transparent pixels
        image = image.convert("RGBA")
    elif image.mode.startswith("I") and (pixels := np.asarray(image)).min() >= 0 and pixels.max() < 65536:  # 16 bits
        image = Image.fromarray((pixels.astype(np.uint32) // 257).astype(np.uint8))
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
    if image.mode in ("LA", "RGBA"):
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("L" if image.mode == "LA" else "RGB")
        return image.convert("RGBA")
    if image.mode not in ("L", "RGB"):
        raise UnusableImage(f"has pixels of mode {image.mode}; only 8 or 16 bits a channel are supported")
    return image


def fit(image: Image.Image, target: Target) -> np.ndarray:
    """Crop or pad, resize and convert an image: uint8 [height, width, channels]. Raises UnusableImage if `target` does
    not accept it."""
    from PIL import Image

    width, height = target.size
    if image.size[0] * height != image.size[1] * width and target.crop == "none":
        raise UnusableImage(f"is {size_text(image.size)}, not of the shape {size_text(target.size)}")
    x, y = image.size[0] / width, image.size[1] / height
    factor = min(x, y) if target.crop == "center" else max(x, y)  # input pixels per output pixel
    if factor < 1 and not target.enlarge:
        raise UnusableImage(
            f"is {size_text(image.size)}, smaller than {size_text(target.size)}; --enlarge accepts smaller images"
        )
    image = simplify_mode(image)
    mode = MODES[target.channels]
    if image.mode == "RGBA" and mode != "RGBA":
        ground = Image.new("RGBA", image.size, target.ground)
        image = Image.alpha_composite(ground, image).convert("RGB")
    if mode == "L" or image.mode != "L":
        image = image.convert(mode)  # Rec. 601 luma for grey
    if target.crop == "center":
        cut = (
            max(1, min(round(width * factor), image.size[0])),
            max(1, min(round(height * factor), image.size[1])),
        )
        left, top = (image.size[0] - cut[0]) // 2, (image.size[1] - cut[1]) // 2
        image = image.crop((left, top, left + cut[0], top + cut[1]))
        image = image.resize(target.size, Image.Resampling.LANCZOS).convert(mode)
    else:
        part = max(1, min(round(image.size[0] / factor), width)), max(1, min(round(image.size[1] / factor), height))
        image = image.resize(part, Image.Resampling.LANCZOS).convert(mode)
        if part != target.size:
            ground = Image.new(mode, target.size, (0, 0, 0, 0) if mode == "RGBA" else target.ground)
            ground.paste(image, ((width - part[0]) // 2, (height - part[1]) // 2))
            image = ground
    return np.asarray(image).reshape(height, width, target.channels)


class Converted(NamedTuple):
    """content: the pixels, raw or as PNG. crc: CRC-32 of the content. losses: see `losses`."""

    content: bytes
    crc: int
    losses: list[str]


def convert(data: bytes | Image.Image | UnusableImage, target: Target, as_png: bool) -> Converted | str:
    """Decode and fit one image; or the reason why it cannot be used.

    Runs in worker processes, so it returns the reason instead of raising it.
    """
    try:
        if isinstance(data, UnusableImage):
            raise data
        pixels = fit(decode(data) if isinstance(data, bytes) else data, target)
        lost = losses(data) if isinstance(data, bytes) else []
    except UnusableImage as error:
        return str(error)
    except MemoryError:
        return "needs more memory than there is"
    except Exception as error:  # Pillow, for modes that it cannot convert
        return f"cannot be converted ({reason(error)})"
    content = encode_png(pixels) if as_png else pixels.tobytes()
    return Converted(content, zlib.crc32(content), lost)


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [height, width, channels] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
