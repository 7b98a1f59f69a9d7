"""Damaged files: bytes as a failing disk, a cut transfer or somebody's editor leaves them."""

from __future__ import annotations

import os
import random
from pathlib import Path

_TEXTS = (b"[]", b" ", b"\xff\xff", b"-1", b"9" * 30, b"\n", b'"', b"{}", b"()", b"'")


def mutate(content: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """`content`, not empty, with bits or bytes changed, a part zeroed, removed, repeated, or replaced by text or random
    bytes, or its end cut off.

    head: bytes at the beginning that every second change is within; None for no preference. In tests of Hypothesis,
    `rng` is one of `st.randoms()`.
    """
    changed = bytearray(content)
    place = lambda: rng.randrange(min(rng.choice((len(changed), head or len(changed))), len(changed)))
    start = place()
    end = min(len(changed), start + rng.choice((1, 4, 64, 512)))
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.randrange(1, 5)):
            changed[place()] ^= rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
    elif kind == 1:
        changed[start:end] = bytes(end - start)
    elif kind == 2:
        del changed[start:end]
    elif kind == 3:
        changed[start:start] = changed[start:end]
    elif kind == 4:
        changed[start:end] = rng.choice(_TEXTS)
    elif kind == 5:
        changed[start : rng.choice((start, end))] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 13)))
    else:
        del changed[start:]
    return bytes(changed)


def damage_one(root: Path, whole: dict[str, bytes], rng: random.Random) -> None:
    """Write the files of `whole` to the folder `root`, one of them damaged or missing."""
    chosen = rng.choice(sorted(whole))
    for name, content in whole.items():
        (root / name).write_bytes(mutate(content, rng) if name == chosen else content)
    if rng.random() < 0.03:
        (root / chosen).unlink()


def overwrite(path: Path, place: int, content: bytes) -> None:
    """Overwrite bytes of a file; a negative place counts from its end."""
    with open(path, "r+b") as file:
        file.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        file.write(content)
