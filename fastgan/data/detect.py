"""Size, channels and number of training images before they are decoded, for options that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from fastgan.data.images import MODES, UnusableImage, decode, simplify_mode
from fastgan.errors import UserError

SAMPLED = 16  # images of a folder or zip that are decoded
_CHANNELS = {mode: channels for channels, mode in MODES.items()}


class ImageFormat(NamedTuple):
    """size: (width, height). channels: 1 (grey), 3 (RGB) or 4 (RGBA)."""

    size: tuple[int, int]
    channels: int


BUILT_IN = {"glyphs": ImageFormat((32, 32), 1), "emoji": ImageFormat((32, 32), 3)}  # sizes that train in minutes


def detect_format(spec: str) -> ImageFormat:
    """Format of the images that `spec`, as for `open_dataset`, names.

    For a folder or zip: the size of the first image, and channels that hold the colours of images sampled from all of
    it. For a spec that `open_dataset` refuses, that of the glyphs: the error is left to `open_dataset`.
    """
    from fastgan.data import readers, shards, urls
    from fastgan.data.image_dataset import DamagedData, is_prepared, load_folder
    from fastgan.data.image_files import open_files

    if spec in BUILT_IN:
        return BUILT_IN[spec]
    path = Path(spec)
    if shards.is_index(spec):
        try:
            content = json.loads(shards.read_index(spec))
            width, height = content["size"]
            return ImageFormat((int(width), int(height)), int(content["channels"]))
        except (OSError, ValueError, KeyError, TypeError):
            return BUILT_IN["glyphs"]
    if is_prepared(path):
        try:
            found = load_folder(path, check=False)
            return ImageFormat(found.size, found.channels)
        except DamagedData:
            return BUILT_IN["glyphs"]
    if urls.is_url(spec) or readers.needs_preparation(spec) or not path.exists():
        return BUILT_IN["glyphs"]
    with open_files(path) as files:
        names = files.images()
        formats = []
        for name in names[:: -(-len(names) // SAMPLED)]:
            try:
                image = simplify_mode(decode(files.read(name)))
                formats.append(ImageFormat(image.size, _CHANNELS[image.mode]))
            except UnusableImage as error:
                raise UserError(f"{files.full_name(name)} {error}; replace or remove it") from None
    return ImageFormat(formats[0].size, max(each.channels for each in formats))


def count_images(spec: str) -> int:
    """Number of images that `spec`, as for `open_dataset`, names; 0 for one that `open_dataset` refuses."""
    from fastgan.data import emoji, glyphs, readers, shards, urls
    from fastgan.data.image_dataset import DamagedData, is_prepared, load_folder
    from fastgan.data.image_files import open_files

    if spec == "glyphs":
        return glyphs.COUNT
    if spec == "emoji":
        return emoji.COUNT
    if shards.is_index(spec):
        try:
            return sum(int(shard["images"]) for shard in json.loads(shards.read_index(spec))["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
    path = Path(spec)
    if is_prepared(path):
        try:
            return len(load_folder(path, check=False))
        except DamagedData:
            return 0
    if urls.has_scheme(spec) or readers.needs_preparation(spec) or not path.exists():
        return 0
    with open_files(path) as files:
        return len(files.images())
