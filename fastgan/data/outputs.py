"""What `python -m fastgan.dataset` writes: a memory-mapped array, a zip in StyleGAN's format, or tar shards.

An output grows by appending, and what its files look like follows from the images kept so far alone. So one that was
cut off is cut back to the images that are known to be whole, and goes on as if it had never stopped, to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastgan.data.cache import SHARD_INDEX
from fastgan.data.labels import LABEL_FILE
from fastgan.data.pictures import Wanted
from fastgan.files import file_digest, sync

NPY_HEADER = 128  # bytes in front of the pixels, however many images there will be


class Kept(NamedTuple):
    """An image that has been written: bytes and CRC-32 of its content, and its class."""

    size: int
    crc: int
    label: int | None


class Damaged(Exception):
    """An unfinished output has less than it should, or something else."""


class Output:
    """The file or folder `path`, which is at the beginning absent or holds at least the images `kept`.

    png: whether `append` takes PNG files or raw pixels.
    Raises Damaged if what is there is not what it should be.
    """

    png = True

    def append(self, content: bytes, kept: Kept) -> None:
        """One more image."""
        raise NotImplementedError

    def sync(self) -> None:
        """All images appended are on the disk when this returns."""
        raise NotImplementedError

    def finish(self, class_names: list[str], source: str) -> None:
        """Make it whole and close it. No class names: it is unlabelled."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it as it is."""
        raise NotImplementedError


def _reopened(path: Path, size: int):
    """The file, cut to `size` bytes, at its end. Raises Damaged if it has less."""
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
    if file.seek(0, os.SEEK_END) < size:
        file.close()
        raise Damaged
    file.truncate(size)
    file.seek(size)
    return file


class ArrayOutput(Output):
    """A folder as the cache has them: images.npy, labels.npy, meta.json. What training maps into memory as it is."""

    png = False

    def __init__(self, path: Path, wanted: Wanted, kept: list[Kept]):
        self.path, self._labels = path, [each.label for each in kept]
        self._shape = wanted.size[1], wanted.size[0], wanted.channels
        path.mkdir(parents=True, exist_ok=True)
        each = int(np.prod(self._shape))
        self._file = _reopened(path / "images.npy", NPY_HEADER + len(kept) * each if kept else 0)
        self._digest = hashlib.sha256()
        if kept:
            self._file.seek(NPY_HEADER)
            for _ in kept:
                self._digest.update(self._file.read(each))
        else:
            self._file.write(self._header(0))

    def _header(self, count: int) -> bytes:
        """Of version 1.0 of the format, padded to the same length for any count."""
        text = repr({"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)})
        return (
            b"\x93NUMPY\x01\x00"
            + (NPY_HEADER - 10).to_bytes(2, "little")
            + text.ljust(NPY_HEADER - 11).encode()
            + b"\n"
        )

    def append(self, content, kept):
        self._file.write(content)
        self._digest.update(content)
        self._labels.append(kept.label)

    def sync(self):
        sync(self._file)

    def finish(self, class_names, source):
        self._file.seek(0)
        self._file.write(self._header(len(self._labels)))
        sync(self._file)
        self._file.close()
        labels = np.array(self._labels, dtype=np.int64) if class_names else None
        if labels is not None:
            with open(self.path / "labels.npy", "wb") as file:
                np.save(file, labels)
                sync(file)
        digests = {
            "images": self._digest.hexdigest(),
            "labels": hashlib.sha256(b"" if labels is None else labels).hexdigest(),
        }
        with open(self.path / "meta.json", "w", encoding="utf-8") as file:
            json.dump({"class_names": class_names, "source": source, "digests": digests}, file)
            sync(file)

    def close(self):
        self._file.close()


class ZipOutput(Output):
    """StyleGAN's format: 00000/img00000000.png and so on, a thousand in a folder, stored, and dataset.json."""

    def __init__(self, path: Path, wanted: Wanted, kept: list[Kept]):
        self._labels = [each.label for each in kept]
        infos, offset = [], 0
        for number, each in enumerate(kept):
            info = self._info(self._name(number))
            info.CRC, info.file_size, info.compress_size, info.header_offset = each.crc, each.size, each.size, offset
            infos.append(info)
            offset += 30 + len(info.filename) + each.size  # a local header has 30 bytes
        self._file = _reopened(path, offset)
        self._zip = zipfile.ZipFile(self._file, "w")
        self._zip.infolist().extend(infos)

    @staticmethod
    def _name(number: int) -> str:
        return f"{number // 1000:05d}/img{number:08d}.png"

    @staticmethod
    def _info(name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)  # of 1980: the same bytes whenever it is written
        info.create_system, info.external_attr = 3, 0o644 << 16
        return info

    def append(self, content, kept):
        self._zip.writestr(self._info(self._name(len(self._labels))), content)
        self._labels.append(kept.label)

    def sync(self):
        sync(self._file)

    def finish(self, class_names, source):
        content: dict = {"labels": None}
        if class_names:
            content["labels"] = [[self._name(number), label] for number, label in enumerate(self._labels)]
            content["class_names"] = class_names
        self._zip.writestr(self._info(LABEL_FILE), json.dumps(content))
        self._zip.close()
        sync(self._file)
        self._file.close()

    def close(self):
        self._zip.fp = None  # or it would write its end, now or when it is collected
        self._file.close()


class ShardOutput(Output):
    """A folder of tar files as WebDataset has them, 000000.tar and on, of at most so many bytes; and shards.json.

    Samples are called by their numbers, 000000000.png and, with a class, 000000000.cls. The index says of each shard
    how many images it has, and of all images their classes: what training has to know before it reads the first.
    """

    def __init__(self, path: Path, wanted: Wanted, kept: list[Kept], limit: int):
        self.path, self._wanted, self._limit = path, wanted, limit
        self._labels: list[int | None] = []
        self._counts, self._sizes = [0], [0]
        path.mkdir(parents=True, exist_ok=True)
        for each in kept:
            self._place(each)
        for number, size in enumerate(self._sizes[:-1]):
            self._end(_reopened(self._name(number), size))
        self._file = _reopened(self._name(len(self._sizes) - 1), self._sizes[-1])
        for stale in path.glob("*.tar"):
            if int(stale.stem) >= len(self._sizes):
                stale.unlink()

    def _name(self, number: int) -> Path:
        return self.path / f"{number:06d}.tar"

    def _place(self, kept: Kept) -> bool:
        """Count in one image; whether it goes into a new shard."""
        label = b"" if kept.label is None else str(kept.label).encode()
        size = 512 + _padded(kept.size) + (512 + _padded(len(label)) if label else 0)
        new = self._counts[-1] > 0 and self._sizes[-1] + size + 1024 > self._limit
        if new:
            self._counts.append(0)
            self._sizes.append(0)
        self._counts[-1] += 1
        self._sizes[-1] += size
        self._labels.append(kept.label)
        return new

    def append(self, content, kept):
        key = f"{len(self._labels):09d}"
        if self._place(kept):
            self._end(self._file)
            self._file = _reopened(self._name(len(self._sizes) - 1), 0)
        self._add(f"{key}.png", content)
        if kept.label is not None:
            self._add(f"{key}.cls", str(kept.label).encode())

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # of 1970, of nobody: the same bytes whenever and by whomever it is written
        member.size = len(content)
        self._file.write(member.tobuf(tarfile.USTAR_FORMAT))
        self._file.write(content.ljust(_padded(len(content)), b"\0"))

    @staticmethod
    def _end(file) -> None:
        file.write(bytes(1024))
        sync(file)
        file.close()

    def sync(self):
        sync(self._file)

    def finish(self, class_names, source):
        self._end(self._file)
        shards = []
        for number, count in enumerate(self._counts):
            name = self._name(number)
            shards.append(
                {"file": name.name, "images": count, "bytes": name.stat().st_size, "sha256": file_digest(name)}
            )
        content = {
            "format": 1,
            "source": source,
            "size": list(self._wanted.size),
            "channels": self._wanted.channels,
            "class_names": class_names,
            "shards": shards,
            "labels": self._labels if class_names else None,
        }
        with open(self.path / SHARD_INDEX, "w", encoding="utf-8") as file:
            json.dump(content, file)
            sync(file)

    def close(self):
        self._file.close()


def _padded(size: int) -> int:
    """To whole blocks of a tar file."""
    return -(-size // 512) * 512
