"""Tar files: WebDataset shards, also at URLs, and packed folders."""

from __future__ import annotations

import functools
import glob
import itertools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fastgan.data import labels
from fastgan.data.image_files import ImageFiles, is_image_or_label_file, is_label_file
from fastgan.data.images import MAX_BYTES, SUFFIXES, TOO_LARGE, UnusableImage, open_regular, reason
from fastgan.data.readers.base import Item, Reader, ReaderOptions
from fastgan.data.urls import is_url, open_path_or_url
from fastgan.errors import UserError

MAX_FILES = 1_000_000  # that braces may stand for


class TarReader(Reader):
    """Tar files, also compressed, streamed one after the other and never extracted to the disk.

    WebDataset shards (files or URLs): members with the same name up to the first dot belong together, an image and
    perhaps a class number in .cls. Packed folders (files only): classes are those of `labels.of_files`.
    """

    accepts = "tar files (a packed folder, or shards like 'set-{000..099}.tar', also at URLs) or an @LIST of them"
    random_access = False

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.startswith("@") or re.search(r"\.(tar(\.gz|\.bz2|\.xz)?|tgz)$", spec.lower()) is not None

    def __init__(self, spec: str, options: ReaderOptions):
        self._tars = expand(spec)
        self._label_of: dict[str, int | None] | None = None  # labels by name; for a packed folder only
        self.names = []
        state: list[list[str | int]] = []
        for tar in self._tars:
            if is_url(tar):
                state.append([tar])
                continue
            try:
                status = Path(tar).expanduser().stat()
            except OSError as error:
                raise UserError(f"cannot read {tar}: {error.strerror}") from error
            state.append([tar, status.st_size, status.st_mtime_ns])
        self.state = state
        if not any(map(is_url, self._tars)) and (packed := _packed_folder(spec, self._tars)) is not None:
            names = packed.images()
            found = labels.of_files(packed, names)
            self._label_of = dict(zip(names, found.values or [None] * len(names), strict=True))
            self.labels, self.class_names = found.values, found.class_names if found.values is not None else None

    @property
    def count(self):
        return None

    def items(self, order):
        first = next(iter(order), None)
        read = read_shard if self._label_of is None else functools.partial(_read_packed_folder, label_of=self._label_of)
        yield from itertools.islice(itertools.chain.from_iterable(map(read, self._tars)), first, None)


def expand(spec: str) -> list[str]:
    """Paths or URLs that `spec` stands for: a file @LIST with one a line, {000..123} and {a,b} in braces, and for paths
    * and ?, sorted. Raises UserError if there are none."""
    if spec.startswith("@"):
        try:
            with open_regular(Path(spec[1:]).expanduser()) as file:
                lines = file.read(MAX_BYTES).decode("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {spec[1:]}: {getattr(error, 'strerror', None) or error}") from error
        names = [line.strip() for line in lines if line.strip()]
        if lists := [name for name in names if name.startswith("@")]:
            raise UserError(f"{spec[1:]} names the list {lists[0]}; put the files of that into it, one a line")
        found = [path for name in names for path in expand(name)]
    else:
        found = []
        for path in _expand_braces(spec):
            plain = is_url(path) or not glob.has_magic(path)
            found += [path] if plain else sorted(glob.glob(str(Path(path).expanduser())))
    if not found:
        raise UserError(f"{spec}: no such file; give .tar files, with {{000..123}} or *, or URLs of them")
    return found


def _expand_braces(text: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        return [text]
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        low, high = int(bounds[1]), int(bounds[2])
        if high - low >= MAX_FILES:
            raise UserError(f"{text}: more than {MAX_FILES:,} files")
        choices = [f"{number:0{len(bounds[1])}}" for number in range(low, high + 1)]
    else:
        choices = match[1].split(",")
    ends = _expand_braces(text[match.end() :])
    if len(choices) * len(ends) > MAX_FILES:
        raise UserError(f"{text}: more than {MAX_FILES:,} files")
    return [text[: match.start()] + choice + end for choice in choices for end in ends]


# Packed folders ------------------------------------------------------------------------------------------------------


class _PackedFolder(ImageFiles):
    """Names of the images in tar files, and the content of their label files."""

    def __init__(self, path: Path, names: set[str], label_files: dict[str, bytes]):
        super().__init__(path, "")
        self.names, self._label_files = sorted(names | label_files.keys()), label_files

    def full_name(self, name: str) -> str:
        return f"{self.path}:{name}"

    def read(self, name: str) -> bytes:
        return self._label_files[name]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "a member that is no file"
    return file.read()


def _packed_folder(spec: str, tars: list[str]) -> _PackedFolder | None:
    """The tar files as a packed folder; None if they have no images or are WebDataset shards: an image has another
    member of its name."""
    images, others, label_files = set(), set(), {}
    for tar in tars:
        with _open(tar) as file:
            try:
                with tarfile.open(fileobj=file) as archive:
                    for member in archive:
                        if member.isfile() and is_image_or_label_file(name := _name_of(member)):
                            if not is_label_file(name):
                                images.add(name)
                            elif member.size <= MAX_BYTES:
                                label_files[name] = _content(archive, member)
                        elif member.isfile():
                            others.add(_sample_key(PurePosixPath(_name_of(member))))
                            if member.name.endswith(".cls"):
                                return None
            except Exception:  # tarfile and the decompressors raise half a dozen kinds; `items` reports the damage
                continue
    if not images or any(_sample_key(PurePosixPath(name)) in others for name in images):
        return None
    return _PackedFolder(Path(spec), images, label_files)


def _read_packed_folder(tar: str, label_of: dict[str, int | None]) -> Iterator[Item]:
    """The images of one tar file of a packed folder. If it is damaged, the last item says where."""
    last = None
    with _open(tar) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|*") as archive:
                for member in archive:
                    name = _name_of(member)
                    if member.isfile() and name in label_of and not is_label_file(name):
                        large = member.size > MAX_BYTES
                        data = UnusableImage(TOO_LARGE) if large else _content(archive, member)
                        yield Item(f"{tar}:{name}", label_of[name], data)
                        last = name
        except Exception as error:  # tarfile and the decompressors raise half a dozen kinds
            yield _damaged(tar, last, error)


# WebDataset shards ---------------------------------------------------------------------------------------------------


def read_shard(shard: str) -> Iterator[Item]:
    """The images of a WebDataset shard, a path or URL. If it is damaged, the last item says where."""
    key, image, label, problem = None, None, None, None

    def sample() -> list[Item]:
        name = f"{shard}:{key}"
        return [Item(name, label, problem or image)] if problem or image is not None else []

    with _open(shard) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|*") as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    if not member.isfile() or path.name.startswith("."):
                        continue
                    suffix = path.name.partition(".")[2].lower()
                    if _sample_key(path) != key:
                        yield from sample()
                        key, image, label, problem = _sample_key(path), None, None, None
                    if f".{suffix}" in SUFFIXES and image is None:
                        if member.size > MAX_BYTES:
                            problem = UnusableImage(TOO_LARGE)
                        else:
                            image = _content(archive, member)
                    elif suffix == "cls" and member.size < 20:
                        text = _content(archive, member).strip()
                        if re.fullmatch(rb"\d{1,9}", text) and int(text) <= labels.MAX_LABEL:
                            label = int(text)
            yield from sample()
        except UserError:
            raise
        except Exception as error:  # tarfile and the decompressors raise half a dozen kinds
            yield _damaged(shard, key, error)


def _name_of(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name).as_posix()


def _sample_key(path: PurePosixPath) -> str:
    """Name that the members of a WebDataset sample share: up to the first dot."""
    return str(path.parent / path.name.partition(".")[0])


def _damaged(tar: str, last: str | None, error: Exception) -> Item:
    return Item(tar, None, UnusableImage(f"is damaged after {last or 'its start'} ({reason(error)})"))


def _open(tar: str):
    """Open a path or URL. Raises UserError: a failure here does not mean that the file is damaged."""
    try:
        return open_path_or_url(tar)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {tar}: {reason(error)}") from error
