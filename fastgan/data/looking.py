"""Size and channels of training images, found out before they are opened: what --resolution and --channels are then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from fastgan.data.pictures import Unusable, decode, plain
from fastgan.errors import UserError

LOOKED_AT = 16  # images of a folder or zip
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


class Look(NamedTuple):
    """size: width and height. channels: 1 (grey), 3 (RGB) or 4 (RGBA)."""

    size: tuple[int, int]
    channels: int


DRAWN = {"glyphs": Look((32, 32), 1), "emoji": Look((32, 32), 3)}  # in any size: this one is learnt in minutes


def look(spec: str) -> Look:
    """The size of the images that `spec` names, as `open_dataset` takes it, and the channels that hold their colours.

    Of a folder or zip the size is the first image's, the channels are those of some images in all parts of it. What
    `open_dataset` refuses is not looked at: it says why.
    """
    from fastgan.data import folder, shards, sources
    from fastgan.data.cache import load_entry

    if spec in DRAWN:
        return DRAWN[spec]
    path = Path(spec)
    if shards.is_index(spec):
        try:
            with shards._open(spec if spec.endswith(shards.SHARD_INDEX) else f"{spec}/{shards.SHARD_INDEX}") as file:
                content = json.loads(file.read(shards.MOST_INDEX_BYTES))
            width, height = content["size"]
            return Look((int(width), int(height)), int(content["channels"]))
        except (OSError, ValueError, KeyError, TypeError):
            return DRAWN["glyphs"]
    if (found := load_entry(path)) is not None and found.images.ndim == 4:
        return Look(found.size, found.channels)
    if sources.is_url(spec) or sources.is_other(spec) or not path.exists():
        return DRAWN["glyphs"]
    with folder.open_files(path) as files:
        names = files.images()
        looks = []
        for name in names[:: -(-len(names) // LOOKED_AT)]:
            try:
                image = plain(decode(files.read(name)))
                looks.append(Look(image.size, _CHANNELS[image.mode]))
            except Unusable as error:
                raise UserError(f"{files.full_name(name)} {error}; replace or remove it") from None
    return Look(looks[0].size, max(each.channels for each in looks))
