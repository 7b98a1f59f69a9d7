"""Image and label files in a folder or a zip, by name.

Nothing is extracted to the disk, so the names in an archive can do no harm.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fastgan.data.images import MAX_BYTES, OTHER_SUFFIXES, SUFFIXES, UnusableImage, open_regular, reason
from fastgan.errors import UserError

LABEL_FILE = "dataset.json"


class ImageFiles:
    """Files with relative names, forward slashes, sorted; `FolderFiles` and `ZipFiles` are the two kinds.

    Attributes:
        path: of the folder or zip.
        names: of all image and label files, also of images in formats that are not read: reading them says so.
        others: names of the other files, without hidden ones.
        state: JSON-able; changes when the files do.
    """

    names: list[str]
    others: list[str]
    state: list

    def __init__(self, path: Path, option: str) -> None:
        self.path, self._option = path, option

    def images(self) -> list[str]:
        """Names of the images. Raises UserError if there are none."""
        names = [name for name in self.names if not is_label_file(name)]
        if not names:
            needed = f"it needs files that end in {', '.join(sorted(SUFFIXES))}"
            raise UserError(f"{self._option}{self.path}: no images in it; {needed}")
        return names

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None: ...

    def full_name(self, name: str) -> str:
        """Name for messages, with the folder or zip."""
        raise NotImplementedError

    def size(self, name: str) -> int:
        """Size in bytes that the folder or zip reports."""
        raise NotImplementedError

    def open(self, name: str):
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """Bytes of a file. Raises UnusableImage if it cannot be read or is larger than MAX_BYTES."""
        if self.size(name) > MAX_BYTES:
            raise UnusableImage(f"has {self.size(name) / 2**20:,.0f} MiB, more than {MAX_BYTES / 2**20:,.0f}")
        try:
            with self.open(name) as file:
                return file.read()
        except Exception as error:  # zipfile raises a dozen kinds on damaged files
            raise UnusableImage(f"cannot be read ({reason(error)})") from error


class FolderFiles(ImageFiles):
    """Files in a folder and its sub-folders."""

    def __init__(self, path: Path, option: str = "--data ") -> None:
        super().__init__(path, option)
        self._status: dict[str, list[int]] = {}  # size and modification time
        self.others = []
        seen = set()
        for here, folders, files in os.walk(path, followlinks=True, onerror=self._refuse):
            if (real := os.path.realpath(here)) in seen:  # a symbolic link to a folder above
                folders.clear()
                continue
            seen.add(real)
            for file in files:
                full = Path(here, file)
                name = full.relative_to(path).as_posix()
                if is_image_or_label_file(name):
                    try:
                        status = full.stat()
                    except OSError as error:
                        self._refuse(error)
                    self._status[name] = [status.st_size, status.st_mtime_ns]
                elif not is_hidden(name):
                    self.others.append(name)
        self.names = sorted(self._status)
        self.state = [[name, *self._status[name]] for name in self.names]

    def full_name(self, name: str) -> str:
        return str(self.path / name)

    def size(self, name: str) -> int:
        return self._status[name][0]

    def open(self, name: str):
        return open_regular(self.path / name)

    @staticmethod
    def _refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; repair or remove it") from error


class ZipFiles(ImageFiles):
    """Files in a zip."""

    def __init__(self, path: Path, option: str = "--data ") -> None:
        super().__init__(path, option)
        try:
            self.zip = zipfile.ZipFile(path)
        except Exception as error:  # BadZipFile; struct.error, NotImplementedError, ... on damaged ones
            raise UserError(
                f"{option}{path} is not a readable zip ({reason(error)}); give a folder of images or an undamaged zip"
            ) from error
        if not _has_all_entries(self.zip):
            raise UserError(f"{option}{path} is damaged: its directory has fewer or more files than it claims")
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self.others = []
        for info in self.zip.infolist():
            name = info.filename.replace("\\", "/")  # some programs for Windows write backslashes
            if name.endswith("/") or is_hidden(name):
                continue
            if not is_image_or_label_file(name):
                self.others.append(name)
            elif self._infos.setdefault(name, info) is not info:
                raise UserError(f"{option}{path} has several files named {name}; pack it again")
        self.names = sorted(self._infos)
        status = path.stat()
        self.state = [status.st_size, status.st_mtime_ns]

    def __exit__(self, *_) -> None:
        self.zip.close()

    def full_name(self, name: str) -> str:
        return f"{self.path}:{name}"

    def size(self, name: str) -> int:
        return self._infos[name].file_size

    def open(self, name: str):
        return self.zip.open(self._infos[name])


def _has_all_entries(archive: zipfile.ZipFile) -> bool:
    """Whether the directory of a zip has as many entries as the record after it says; `zipfile` does not compare."""
    file = archive.fp
    assert file is not None, "closed"
    file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16 - 200))  # the record, its comment, and what zip64 adds
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    large = tail.rfind(b"PK\6\6", 0, end)
    claimed = int.from_bytes(tail[end + 10 : end + 12], "little")
    if claimed == 0xFFFF and large >= 0:
        return int.from_bytes(tail[large + 32 : large + 40], "little") == len(archive.infolist())
    return claimed == len(archive.infolist()) & 0xFFFF  # some programs write more entries without zip64


def open_files(path: Path, option: str = "--data ") -> FolderFiles | ZipFiles:
    """The files of a folder or zip. Raises UserError, starting with `option`, if `path` is neither."""
    if path.is_dir():
        return FolderFiles(path, option)
    if path.is_file():
        return ZipFiles(path, option)
    raise UserError(f"{option}{path}: no such folder or zip; give one, or 'glyphs' or 'emoji'")


def is_image_or_label_file(name: str) -> bool:
    """Whether a name is of an image, in any format, or dataset.json; and not hidden."""
    suffix = PurePosixPath(name).suffix.lower()
    return (suffix in SUFFIXES or suffix in OTHER_SUFFIXES or is_label_file(name)) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or one that macOS adds to archives."""
    parts = PurePosixPath(name).parts
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)


def is_label_file(name: str) -> bool:
    return PurePosixPath(name).name == LABEL_FILE


def describe_others(names: Iterable[str]) -> list[str]:
    """A line about files that are not images by their names, or none."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    if not kinds:
        return []
    shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
    more = ", ..." if len(kinds) > 5 else ""
    return [f"{sum(kinds.values()):,} other files were not read, no images by their names: {shown}{more}"]
