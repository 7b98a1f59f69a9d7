"""Tar files: WebDataset shards, also at URLs, and packed folders."""

from __future__ import annotations

import contextlib
import functools
import glob
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fastgan.data import labels
from fastgan.data.image_files import (
    ImageFiles,
    describe_others,
    is_hidden,
    is_image_or_label_file,
    is_label_file,
)
from fastgan.data.images import MAX_BYTES, OTHER_SUFFIXES, SUFFIXES, TOO_LARGE, UnusableImage, open_regular, reason
from fastgan.data.readers.base import Item, Reader, ReaderOptions
from fastgan.data.tar_stream import DamagedTar, Member, read_members
from fastgan.data.urls import is_url, open_path_or_url
from fastgan.errors import UserError, readable

MAX_FILES = 1_000_000  # that braces may stand for
MAX_JSON = 2**20  # bytes of a sample's .json
LABEL_FIELDS = ("label", "class", "cls", "target")  # of a sample's .json; the first one present is taken


class TarReader(Reader):
    """Tar files, also compressed, streamed one after the other and never extracted to the disk.

    WebDataset shards (files or URLs): members with the same name up to the first dot belong together, an image and
    perhaps a class number, in .cls or in a field of .json (LABEL_FIELDS). Packed folders (files only): classes are
    those of `labels.of_files`.
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
            names, self.notes = packed.images(), describe_others(packed.others)
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
    """Names of the files in tar files, and the content of their label files."""

    def __init__(self, path: Path, names: set[str], label_files: dict[str, bytes], others: list[str]):
        super().__init__(path, "")
        self.names, self._label_files = sorted(names | label_files.keys()), label_files
        self.others = others

    def full_name(self, name: str) -> str:
        return f"{self.path}:{name}"

    def read(self, name: str) -> bytes:
        return self._label_files[name]


def _packed_folder(spec: str, tars: list[str]) -> _PackedFolder | None:
    """The tar files as a packed folder; None if they have no images or are WebDataset shards: without dataset.json, an
    image has another member of its name. Raises UserError if a tar file is cut or damaged."""
    images: set[str] = set()
    label_files: dict[str, bytes] = {}
    others: list[str] = []
    for tar in tars:
        with _members(tar) as members:
            for member in members:
                name = _name_of(member)
                if member.is_folder or is_hidden(name):
                    continue
                if not is_image_or_label_file(name):
                    if name.endswith(".cls"):
                        return None
                    others.append(name)
                elif not is_label_file(name):
                    images.add(name)
                elif not member.is_file or member.size > MAX_BYTES:
                    raise UserError(f"{tar}:{name} is not a file of labels; pack it again")
                elif label_files.setdefault(name, content := member.read()) != content:
                    raise UserError(f"{spec} has several files named {name}; pack it again")
    keys = {_sample_key(PurePosixPath(name)) for name in others}
    if not images or (not label_files and any(_sample_key(PurePosixPath(name)) in keys for name in images)):
        return None
    return _PackedFolder(Path(spec), images, label_files, others)


def _read_packed_folder(tar: str, label_of: dict[str, int | None]) -> Iterator[Item]:
    """The images of one tar file of a packed folder. Raises UserError if it is cut or damaged."""
    with _members(tar) as members:
        for member in members:
            name = _name_of(member)
            if name in label_of and not member.is_folder:
                yield Item(f"{tar}:{name}", label_of[name], _content(member))


# WebDataset shards ---------------------------------------------------------------------------------------------------


def read_shard(shard: str) -> Iterator[Item]:
    """The images of a WebDataset shard, a path or URL. Raises UserError if it is cut or damaged.

    Members that follow each other and have the same name up to the first dot are a sample. Its image is the one without
    another dot in its name, else the first.
    """
    sample = _Sample(shard, "")
    with _members(shard) as members:
        for member in members:
            path = PurePosixPath(member.name)
            if member.is_folder or is_hidden(member.name):
                continue
            if (key := _sample_key(path)) != sample.key:
                yield from sample.items()
                sample = _Sample(shard, key)
            sample.add(member, path.name.partition(".")[2].lower())
    yield from sample.items()


class _Sample:
    """Members of a WebDataset sample."""

    def __init__(self, shard: str, key: str):
        self.key, self._shard = key, shard
        self._images: dict[str, bytes | UnusableImage] = {}  # by suffix
        self._labels: dict[str, int | str] = {}  # by suffix: a class number, or the problem

    def add(self, member: Member, suffix: str) -> None:
        ending = f".{suffix.rpartition('.')[2]}"
        if ending in SUFFIXES or ending in OTHER_SUFFIXES:
            new = self._new(suffix)
            # One of them is taken: the first without a dot, else the first. Others are not held in memory.
            is_better = "." not in new and all("." in each for each in self._images)
            if is_better:
                self._images = dict.fromkeys(self._images, b"")
            self._images[new] = _content(member) if is_better or not self._images else b""
        elif suffix == "cls" and member.is_file:
            self._labels[suffix] = _label_in_cls(member)
        elif suffix == "json" and member.is_file and (found := _label_in_json(member)) is not None:
            self._labels[suffix] = found

    def _new(self, suffix: str) -> str:
        """The suffix, made unique: a sample may have two members of the same name."""
        while suffix in self._images:
            suffix += " (again)"
        return suffix

    def items(self) -> list[Item]:
        """The image, and as unusable what else may have been meant."""
        place = f"{self._shard}:{self.key}"
        if not self._images:
            alone = UnusableImage("is a label without an image beside it")
            return [Item(f"{place}.{suffix}", None, alone) for suffix in self._labels if suffix == "cls"]
        chosen = next((suffix for suffix in self._images if "." not in suffix), next(iter(self._images)))
        problem = next((f"has {found}" for found in self._labels.values() if isinstance(found, str)), "")
        numbers = [found for found in self._labels.values() if isinstance(found, int)]
        if len(set(numbers)) > 1:
            problem = f"has the label {numbers[0]} in one file and {numbers[1]} in another"
        more = UnusableImage(f"is a further image of its sample; the {chosen} is taken")
        label = numbers[0] if numbers and not problem else None
        return [
            Item(place, label, self._images[chosen], problem),
            *(Item(f"{place}.{suffix}", None, more) for suffix in self._images if suffix != chosen),
        ]


def _label_in_cls(member: Member) -> int | str:
    """The class number in a .cls file, or what it has instead."""
    if member.size > 100:
        return _class_number("(long)")
    return _class_number(member.read().decode("utf-8", "backslashreplace").strip() or "(empty)")


def _label_in_json(member: Member) -> int | str | None:
    """The class number that a .json file gives, or what it has instead; None if it has none."""
    if member.size > MAX_JSON:
        return None
    try:
        content = json.loads(member.read())
        given = next((content[name] for name in LABEL_FIELDS if name in content), None)
    except (ValueError, TypeError, RecursionError):
        return "a .json that cannot be read"
    return None if given is None else _class_number(str(given))


def _class_number(text: str) -> int | str:
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text) <= labels.MAX_LABEL:
        return int(text)
    return f"the label {readable(text, 40)}, not a class number from 0 to {labels.MAX_LABEL:,}"


def _sample_key(path: PurePosixPath) -> str:
    """Name that the members of a WebDataset sample share: up to the first dot."""
    return str(path.parent / path.name.partition(".")[0])


# Members -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _members(tar: str) -> Iterator[Iterator[Member]]:
    """The members of a tar file, a path or URL. Raises UserError if it cannot be opened, or is cut or damaged."""
    try:
        file = open_path_or_url(tar)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {tar}: {reason(error)}") from error
    with file:
        try:
            yield read_members(file)
        except DamagedTar as error:
            raise UserError(f"{tar} {error}; get it again, or leave this file out") from error


def _content(member: Member) -> bytes | UnusableImage:
    if not member.is_file:
        return UnusableImage("is a link or another special file in the archive; pack it as a file")
    return UnusableImage(TOO_LARGE) if member.size > MAX_BYTES else member.read()


def _name_of(member: Member) -> str:
    return PurePosixPath(member.name).as_posix()
