"""LMDB databases of image files."""

from __future__ import annotations

import re
from pathlib import Path

from fastgan.data.images import MAX_BYTES, TOO_LARGE, UnusableImage, open_regular, reason
from fastgan.data.isolated import Isolated
from fastgan.data.readers.base import Reader, ReaderOptions, import_extra, require_extra
from fastgan.errors import UserError


class LmdbReader(Reader):
    """Image files under any keys, in the order of the keys, unlabelled.

    Of keys like 256-00001, which StyleGAN2's PyTorch ports write for several resolutions, only those of the largest are
    read. The database is read in a child process, because LMDB ends the process on a damaged one.
    """

    accepts = "an LMDB"
    NOT_IMAGES = frozenset({b"length", b"num-samples", b"__len__", b"__keys__"})

    @classmethod
    def claims(cls, spec: str) -> bool:
        path = Path(spec).expanduser()
        return path.suffix.lower() == ".lmdb" or path.name == "data.mdb" or (path / "data.mdb").is_file()

    def __init__(self, spec: str, options: ReaderOptions):
        path = Path(spec).expanduser()
        path = path.parent if path.name == "data.mdb" else path
        require_extra("lmdb", "lmdb", "lmdb", f"{path} is an LMDB")
        file = path / "data.mdb" if path.is_dir() else path
        try:
            open_regular(file).close()
        except OSError as error:
            raise UserError(f"{path} is not a readable LMDB ({reason(error)})") from error
        self._database = Isolated(f"{path} is a damaged LMDB", _Database, path, file)
        found: list[bytes] = self._database.call("keys", reading="its keys")
        keys = [key for key in found if key not in self.NOT_IMAGES]
        sizes = [int(match[1]) if (match := re.fullmatch(rb"(\d+)-\d+", key)) else None for key in keys]
        largest = max((size for size in sizes if size is not None), default=None)
        self._keys = [key for key, size in zip(keys, sizes, strict=True) if size in (None, largest)]
        if not self._keys:
            raise UserError(f"{path}: no images in it")
        if smaller := len(keys) - len(self._keys):
            self.notes = [f"{smaller:,} images of smaller resolutions than {largest} were not read"]
        self.names = [key.decode("utf-8", "backslashreplace") for key in self._keys]
        self.state = [file.stat().st_size, file.stat().st_mtime_ns]

    def _read(self, number):
        return self._database.call("read", self._keys[number], reading=self.names[number])


class _Database:
    """The database, in the child process."""

    def __init__(self, path: Path, file: Path):
        lmdb = import_extra("lmdb", "lmdb", "lmdb", f"{path} is an LMDB")
        self._path = path
        try:
            self._environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, meminit=False
            )
            self._begin = self._environment.begin
            page = self._environment.stat()["psize"]
        except Exception as error:  # lmdb has an exception class for every error number
            raise UserError(f"{path} is not a readable LMDB ({reason(error)})") from error
        if file.stat().st_size % page:  # the rest of the last page would be read as zeros
            raise UserError(f"{path} is cut: it has {file.stat().st_size:,} bytes, no whole pages of {page:,}")

    def keys(self) -> list[bytes]:
        found: list[bytes] = []
        try:
            with self._begin() as transaction:
                for key in transaction.cursor().iternext(keys=True, values=False):
                    if found and bytes(key) <= found[-1]:  # also when damaged pages refer to each other in a circle
                        raise ValueError(f"keys are out of order after {len(found):,}")
                    found.append(bytes(key))
                if len(found) != (entries := transaction.stat()["entries"]):
                    raise ValueError(f"it has {len(found):,} keys and claims {entries:,}")
        except Exception as error:
            raise UserError(f"{self._path} is a damaged LMDB ({reason(error)})") from error
        return found

    def read(self, key: bytes) -> bytes:
        try:
            with self._begin(buffers=True) as transaction:
                found = transaction.get(key)
                if found is None:
                    raise UnusableImage("is not found under its key: the database is damaged")
                if len(found) > MAX_BYTES:
                    raise UnusableImage(TOO_LARGE)
                return bytes(found)
        except UnusableImage:
            raise
        except Exception as error:
            raise UnusableImage(f"cannot be read ({reason(error)})") from error
