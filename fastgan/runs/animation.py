"""Animations, GIF and MP4. Each frame is written when it is made, so that memory does not grow with their number."""

from __future__ import annotations

import contextlib
import io
import queue
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageChops

from fastgan.errors import UserError
from fastgan.files import replacement
from fastgan.runs.grid import enlarged, enlargement

_AHEAD = 16  # frames that wait to be written
SMALLEST_FRAME = 256  # height of a frame in pixels
QUALITY = 8
_LONGEST = 60_000  # hundredths of a second that a frame of a GIF is shown; 16 bits hold them
_BT709 = 1  # colours of HDTV, in FFmpeg's numbers: of the matrix, the primaries and the transfer function


class _Format(NamedTuple):
    """largest: pixels of a side; fps: frames a second at most."""

    largest: int
    fps: int


ANIMATIONS = {  # by suffix
    ".gif": _Format(65_535, 50),  # players show what is faster at a tenth of a second a frame
    ".mp4": _Format(16_384, 120),
}


def save_animation(frames: Iterable[np.ndarray], path: Path, fps: int, quality: int = QUALITY) -> None:
    """Write frames, uint8 [H, W, C] of one size, as an endless GIF or an MP4, by the suffix of `path`; atomically.

    A thread writes them while the next ones are drawn. Small frames are enlarged by a whole factor to at least 256
    pixels. In a GIF, equal consecutive frames become one that is shown longer. quality: of an MP4, from 1, the smallest
    file, to 10. Raises UserError, naming the file, if it cannot be written.
    """
    with replacement(path) as temporary, ThreadPoolExecutor(1, "animation") as thread:
        waiting: queue.Queue[np.ndarray | None] = queue.Queue(_AHEAD)
        pictures = _pictures(waiting)
        if path.suffix.lower() == ".gif":
            writing = thread.submit(_write_gif, pictures, temporary, fps)
        else:
            writing = thread.submit(_write_mp4, pictures, temporary, fps, quality)
        try:
            for frame in frames:
                if not _put(waiting, frame, writing):
                    break
        finally:
            _put(waiting, None, writing)
        writing.result()


def _pictures(waiting: queue.Queue[np.ndarray | None]) -> Iterator[Image.Image]:
    """The frames, enlarged, until there is None."""
    while (frame := waiting.get()) is not None:
        yield enlarged(frame, enlargement(len(frame), SMALLEST_FRAME))


def _put(waiting: queue.Queue, item: np.ndarray | None, writing: Future) -> bool:
    """Wait for a place in the queue. False if nobody reads it any more, because writing failed."""
    while not writing.done():
        with contextlib.suppress(queue.Full):
            waiting.put(item, timeout=0.1)
            return True
    return False


def require_animation(path: Path, fps: int) -> None:
    """Raise UserError if `path` cannot have this speed, or if this installation cannot write it."""
    most = ANIMATIONS[path.suffix.lower()].fps
    if not 1 <= fps <= most:
        raise UserError(f"--fps {fps}: must be from 1 to {most} for {path.suffix.lower()}")
    if path.suffix.lower() != ".mp4":
        return
    try:
        import av  # noqa: F401
    except ImportError:
        raise UserError(
            f'{path}: MP4 needs the extra "video", which is not installed: pip install ".[video]", or pip install av; '
            "or choose a name that ends in .gif"
        ) from None


def _write_gif(pictures: Iterable[Image.Image], path: Path, fps: int) -> None:
    # Pillow holds all frames of a GIF until the last, so each is compressed here as a GIF of its own, whose header and
    # table of colours become those of a frame.
    with open(path, "wb") as file:
        for number, (picture, corner, duration) in enumerate(_changes(pictures, fps)):
            if number == 0:
                endless = b"!\xff\x0bNETSCAPE2.0" + struct.pack("<BBHB", 3, 1, 0, 0)
                file.write(b"GIF89a" + struct.pack("<HHBBB", *picture.size, 0, 0, 0) + endless)
            single = io.BytesIO()
            picture.save(single, "GIF", interlace=0)
            content = single.getvalue()
            colours = content[10] & 7  # the table has 2 ** (colours + 1)
            end = 13 + 3 * 2 ** (colours + 1)
            keep = 1 << 2  # the frame, until the next one is drawn over it
            file.write(b"!\xf9" + struct.pack("<BBHBB", 4, keep, duration, 0, 0))
            file.write(struct.pack("<cHHHHB", b",", *corner, *picture.size, 0x80 | colours))
            file.write(content[13:end] + content[end + 10 : -1])
        file.write(b";")


def _changes(pictures: Iterable[Image.Image], fps: int) -> Iterator[tuple[Image.Image, tuple[int, int], int]]:
    """The changed part of each frame: a picture of 256 colours, its upper left corner, and hundredths of a second to
    show it for. Frames without a change are left out."""
    previous, waiting, since, number = None, None, 0, 0
    for number, picture in enumerate(pictures):
        box = ImageChops.difference(picture, previous).getbbox() if previous else (0, 0, *picture.size)
        now = _hundredths(number, fps)
        if box is None and now - since < _LONGEST:
            continue
        if waiting:
            yield *waiting, now - since
        box = box or (0, 0, 1, 1)
        changed = picture.crop(box)
        waiting = changed if changed.mode == "L" else _in_256_colours(changed), box[:2]
        previous, since = picture, now
    if waiting:
        yield *waiting, _hundredths(number + 1, fps) - since


def _in_256_colours(picture: Image.Image) -> Image.Image:
    """Exact if there are no more, else with the exact background: the most frequent colour.

    The palette is that of 128 x 128 of the pixels: Pillow's for all of 512x512 takes half a second.
    """
    if picture.getcolors(256):
        return picture.quantize(256)
    few = picture.resize((min(picture.width, 128), min(picture.height, 128)), Image.Resampling.NEAREST)
    counts: Any = few.getcolors(few.width * few.height)
    _, background = max(counts)
    palette = few.quantize(255)
    colours = (palette.getpalette() or [])[: 3 * 255]
    palette.putpalette([*colours, *background])
    found = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    found.paste(len(colours) // 3, mask=Image.fromarray((np.asarray(picture) == background).all(2)))
    return found


def _hundredths(frames: int, fps: int) -> int:
    """Time of a number of frames, rounded: so that errors of single frames do not add up."""
    return round(100 * frames / fps)


def _write_mp4(pictures: Iterable[Image.Image], path: Path, fps: int, quality: int) -> None:
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        options = {"crf": str(44 - 4 * quality)}  # 0 would be lossless, which browsers cannot show
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt, stream.thread_type = "yuv420p", "FRAME"  # threads that encode while the next frame is made
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        for number, picture in enumerate(pictures):
            pixels = np.asarray(picture.convert("RGB"))
            pixels = np.pad(pixels, [(0, len(pixels) % 2), (0, pixels.shape[1] % 2), (0, 0)], "edge")  # H.264 is even
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p", dst_colorspace=_BT709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
