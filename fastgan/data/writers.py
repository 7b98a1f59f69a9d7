"""Output formats of `fastgan dataset`: a memory-mapped array, a zip in StyleGAN's format, tar shards.

Outputs grow by appending, and their bytes depend only on the images written so far. So an interrupted output is
truncated to the images that are known to be complete and continued, to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastgan.data.image_dataset import json_digest, write_metadata
from fastgan.data.image_files import LABEL_FILE
from fastgan.data.images import Target
from fastgan.data.shards import SHARD_INDEX
from fastgan.files import file_digest, sync, sync_directory

NPY_HEADER = 128  # bytes before the pixels, for any number of images


class Written(NamedTuple):
    """An image in the output: length and CRC-32 of its content, its class, and what was left out of it."""

    size: int
    crc: int
    label: int | None
    losses: tuple[str, ...] = ()


class Damaged(Exception):
    """The unfinished output is shorter than its journal says, or has other bytes."""


class Writer:
    """Interface of all formats. Opens the file or folder `path`, which is absent or has at least the images `written`.

    png: whether `append` takes PNG files or raw pixels.
    Raises Damaged if `path` has less, or other images.
    """

    png = True

    def append(self, content: bytes, entry: Written) -> None:
        """Write one more image."""
        raise NotImplementedError

    def sync(self) -> None:
        """Flush all images to the disk."""
        raise NotImplementedError

    def finish(self, class_names: list[str], source: str, left_out: dict[str, int]) -> None:
        """Write what comes after the images, and close. No class names: the set is unlabelled. left_out: reasons and
        numbers, for the record."""
        raise NotImplementedError

    def close(self) -> None:
        """Close without finishing."""
        raise NotImplementedError


def _open_truncated(path: Path, size: int):
    """Open a file, truncated to `size` bytes, for appending. Raises Damaged if it is shorter."""
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
    if file.seek(0, os.SEEK_END) < size:
        file.close()
        raise Damaged
    file.truncate(size)
    file.seek(size)
    return file


class ArrayWriter(Writer):
    """A folder that training memory-maps in place; see `fastgan.data.image_dataset`."""

    png = False

    def __init__(self, path: Path, target: Target, written: list[Written]):
        self.path, self._labels = path, [each.label for each in written]
        self._checksums = [each.crc for each in written]
        self._shape = target.size[1], target.size[0], target.channels
        path.mkdir(parents=True, exist_ok=True)
        each = int(np.prod(self._shape))
        self._file = _open_truncated(path / "images.npy", NPY_HEADER + len(written) * each if written else 0)
        self._digest = hashlib.sha256()
        if written:
            self._file.seek(NPY_HEADER)
            for image in written:
                content = self._file.read(each)
                if zlib.crc32(content) != image.crc:
                    self._file.close()
                    raise Damaged
                self._digest.update(content)
        else:
            self._file.write(self._header(0))

    def _header(self, count: int) -> bytes:
        """.npy header, version 1.0, padded to NPY_HEADER bytes so that the count can be written last."""
        text = repr({"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)})
        return (
            b"\x93NUMPY\x01\x00"
            + (NPY_HEADER - 10).to_bytes(2, "little")
            + text.ljust(NPY_HEADER - 11).encode()
            + b"\n"
        )

    def append(self, content: bytes, entry: Written) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._labels.append(entry.label)
        self._checksums.append(entry.crc)

    def sync(self) -> None:
        sync(self._file)

    def finish(self, class_names: list[str], source: str, left_out: dict[str, int]) -> None:
        self._file.seek(0)
        self._file.write(self._header(len(self._labels)))
        sync(self._file)
        self._file.close()
        labels = np.array(self._labels, dtype=np.int64) if class_names else None
        digest = self._digest.hexdigest()
        write_metadata(self.path, digest, self._checksums, labels, class_names, source, left_out=left_out)

    def close(self) -> None:
        self._file.close()


class ZipWriter(Writer):
    """StyleGAN's format: 00000/img00000000.png and so on, a thousand a folder, uncompressed, and dataset.json."""

    def __init__(self, path: Path, target: Target, written: list[Written]):
        self._labels = [each.label for each in written]
        infos, offset = [], 0
        for number, each in enumerate(written):
            info = self._info(self._name(number))
            info.CRC, info.file_size, info.compress_size, info.header_offset = each.crc, each.size, each.size, offset
            infos.append(info)
            offset += 30 + len(info.filename) + each.size  # a local header has 30 bytes
        self._file = _open_truncated(path, offset)
        self._zip = zipfile.ZipFile(self._file, "w")
        self._zip.infolist().extend(infos)

    @staticmethod
    def _name(number: int) -> str:
        return f"{number // 1000:05d}/img{number:08d}.png"

    @staticmethod
    def _info(name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)  # dated 1980: the bytes do not depend on the time
        info.create_system, info.external_attr = 3, 0o644 << 16
        return info

    def append(self, content: bytes, entry: Written) -> None:
        self._zip.writestr(self._info(self._name(len(self._labels))), content)
        self._labels.append(entry.label)

    def sync(self) -> None:
        sync(self._file)

    def finish(self, class_names: list[str], source: str, left_out: dict[str, int]) -> None:
        content: dict = {"labels": None, "left_out": left_out}
        if class_names:
            content["labels"] = [[self._name(number), label] for number, label in enumerate(self._labels)]
            content["class_names"] = class_names
        self._zip.writestr(self._info(LABEL_FILE), json.dumps(content))
        self._zip.close()
        sync(self._file)
        self._file.close()

    def close(self) -> None:
        self._zip.fp = None  # otherwise it writes a central directory, now or when it is garbage-collected
        self._file.close()


class ShardWriter(Writer):
    """A folder of WebDataset shards, 000000.tar and so on, of at most `limit` bytes, and their index, shards.json.

    Sample n is 000000000.png and, with a class, 000000000.cls. The index has the number of images in each shard and all
    labels, which training needs before it reads the first image.
    """

    def __init__(self, path: Path, target: Target, written: list[Written], limit: int):
        self.path, self._target, self._limit = path, target, limit
        self._labels: list[int | None] = []
        self._counts, self._sizes = [0], [0]
        path.mkdir(parents=True, exist_ok=True)
        for each in written:
            self._count(each)
        for number, size in enumerate(self._sizes[:-1]):
            self._end(_open_truncated(self._name(number), size))
        self._file = _open_truncated(self._name(len(self._sizes) - 1), self._sizes[-1])
        for stale in path.glob("*.tar"):
            if int(stale.stem) >= len(self._sizes):
                stale.unlink()

    def _name(self, number: int) -> Path:
        return self.path / f"{number:06d}.tar"

    def _count(self, entry: Written) -> bool:
        """Count one image; returns whether it starts a new shard."""
        label = b"" if entry.label is None else str(entry.label).encode()
        size = 512 + _padded(entry.size) + (512 + _padded(len(label)) if label else 0)
        new = self._counts[-1] > 0 and self._sizes[-1] + size + 1024 > self._limit
        if new:
            self._counts.append(0)
            self._sizes.append(0)
        self._counts[-1] += 1
        self._sizes[-1] += size
        self._labels.append(entry.label)
        return new

    def append(self, content: bytes, entry: Written) -> None:
        key = f"{len(self._labels):09d}"
        if self._count(entry):
            following = _open_truncated(self._name(len(self._sizes) - 1), 0)  # first: after an error `sync` needs one
            try:
                self._end(self._file)
            except OSError:
                following.close()
                raise
            self._file = following
        self._add(f"{key}.png", content)
        if entry.label is not None:
            self._add(f"{key}.cls", str(entry.label).encode())

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # dated 1970, no owner: the bytes depend on neither time nor user
        member.size = len(content)
        self._file.write(member.tobuf(tarfile.USTAR_FORMAT))
        self._file.write(content.ljust(_padded(len(content)), b"\0"))

    @staticmethod
    def _end(file) -> None:
        file.write(bytes(1024))
        sync(file)
        file.close()

    def sync(self) -> None:
        sync(self._file)

    def finish(self, class_names: list[str], source: str, left_out: dict[str, int]) -> None:
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
            "size": list(self._target.size),
            "channels": self._target.channels,
            "class_names": class_names,
            "shards": shards,
            "labels": self._labels if class_names else None,
            "left_out": left_out,
        }
        with open(self.path / SHARD_INDEX, "w", encoding="utf-8") as file:
            json.dump(content | {"digest": json_digest(content)}, file)
            sync(file)
        sync_directory(self.path)

    def close(self) -> None:
        self._file.close()


def _padded(size: int) -> int:
    """`size` rounded up to whole blocks of a tar file."""
    return -(-size // 512) * 512
