"""Tar files read from beginning to end, strictly: a file that is cut or damaged is an error.

Python's `tarfile` takes a header that is cut or damaged for the end of the file, allocates what a header of a long name
claims, and never compares gzip's checksum.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

from fastgan.data.images import reason
from fastgan.data.urls import Response
from fastgan.errors import UserError, readable

MAX_HEADER = 2**20  # bytes of a long name or of pax attributes
CHUNK = 2**20
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class DamagedTar(Exception):
    """The tar file is cut or damaged. The message says where, and why."""


@contextlib.contextmanager
def _damage_after(last: str) -> Iterator[None]:
    """Raises DamagedTar for any exception but those of the network, which `Response` raises as UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tarfile and the decompressors raise half a dozen kinds
        raise DamagedTar(f"is cut or damaged after {readable(last)} ({reason(error)})") from error


class Member:
    """A member of a tar file; its content can be read until the next one is asked for.

    Attributes:
        name; size: in bytes.
        is_file, is_folder: neither is a link, a device or a pipe.
    """

    def __init__(self, archive: tarfile.TarFile, info: tarfile.TarInfo):
        self._archive, self._info = archive, info
        self.name, self.size = info.name, info.size
        self.is_file, self.is_folder = info.isreg(), info.isdir()

    def read(self) -> bytes:
        """The content. Raises DamagedTar."""
        with _damage_after(f"the start of {self.name}"):
            file = self._archive.extractfile(self._info)
            assert file is not None, "not a file"
            return file.read()


def read_members(file: BinaryIO | Response) -> Iterator[Member]:
    """The members of a tar file, also one compressed with gzip, bzip2 or xz, to its end. Raises DamagedTar."""
    last = "its start"
    with _damage_after(last):
        archive = _open(file)
    place = -1
    while True:
        with _damage_after(last):
            info = archive.next()
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise it keeps all of them
            if info is None:
                return _read_rest(archive)
            if info.offset <= place:  # by a negative size in pax attributes
                raise tarfile.ReadError("a header leads back")
            place = info.offset
        yield Member(archive, info)
        last = info.name


def _read_rest(archive: tarfile.TarFile) -> None:
    """Read what follows the end mark: nothing, or zeros. The last bytes verify the checksum of gzip and xz."""
    rest: BinaryIO = archive.fileobj  # type: ignore[assignment]
    while chunk := rest.read(CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("data after the end mark: several tar files in one?")


class _StrictHeader(tarfile.TarInfo):
    """Header whose damage is an error. The base class's errors of this kind end the reading in silence."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        if len(buf) == tarfile.BLOCKSIZE and not buf.strip(b"\0"):
            return super().frombuf(buf, encoding, errors)  # the end mark
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("it ends early" if len(buf) < tarfile.BLOCKSIZE else str(error)) from error
        if header.size < 0 or (header.type in _EXTENSIONS and header.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header claims {header.size:,} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file, which is not read")
        return header


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, file: BinaryIO | Response):
        self._head, self._file = head, file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head:
            part = self._head if size < 0 else self._head[:size]
            self._head = self._head[len(part) :]
            return part if size >= 0 else part + self._file.read()
        return self._file.read(size)


def _open(file: BinaryIO | Response) -> tarfile.TarFile:
    """Open a tar file, compressed or not. Contents that nobody reads are skipped by seeking where that is possible."""
    head = b""
    while len(head) < 6 and (chunk := file.read(6 - len(head))):
        head += chunk
    stream: Any = _Rejoined(head, file)
    mode: Literal["r|", "r:"] = "r|"
    if head.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=stream)
    elif head.startswith(b"BZh"):
        stream = bz2.BZ2File(stream)
    elif head.startswith(b"\xfd7zXZ\0"):
        stream = lzma.LZMAFile(stream)  # noqa: SIM115
    elif not isinstance(file, Response) and file.seekable():
        file.seek(0)
        stream, mode = file, "r:"
    return tarfile.open(fileobj=stream, mode=mode, tarinfo=_StrictHeader)
