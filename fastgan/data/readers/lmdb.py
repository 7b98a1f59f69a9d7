"""LMDB databases of image files."""

from __future__ import annotations

import re
from pathlib import Path

from fastgan.data.images import open_regular, reason
from fastgan.data.readers.base import Reader, ReaderOptions, import_extra
from fastgan.errors import UserError


class LmdbReader(Reader):
    """Image files under any keys, in the order of the keys, unlabelled.

    Under keys like 256-00001, which StyleGAN2's PyTorch ports write for several resolutions, only the largest is read.
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
        lmdb = import_extra("lmdb", "lmdb", "lmdb", f"{path} is an LMDB")
        file = path / "data.mdb" if path.is_dir() else path
        try:
            open_regular(file).close()
            self._environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, meminit=False
            )
            with self._environment.begin() as transaction:
                keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
        except Exception as error:  # lmdb has an exception class for every error number
            raise UserError(f"{path} is not a readable LMDB ({reason(error)})") from error
        keys = [key for key in keys if key not in self.NOT_IMAGES]
        if matches := [match for key in keys if (match := re.fullmatch(rb"(\d+)-\d+", key))]:
            largest = max(int(match[1]) for match in matches)
            keys = [match[0] for match in matches if int(match[1]) == largest]
        if not keys:
            raise UserError(f"{path}: no images in it")
        self._keys = keys
        self.names = [key.decode("utf-8", "backslashreplace") for key in keys]
        self.state = [file.stat().st_size, file.stat().st_mtime_ns]

    def _read(self, number):
        with self._environment.begin() as transaction:
            return transaction.get(self._keys[number])
