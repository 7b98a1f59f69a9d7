"""Where `python -m fastgan.dataset` takes images from: folder, zip, CSV, LMDB, tar, arrays, torchvision, Hugging Face.

Each source is a list of files in a fixed order, with their labels, or for shards a stream of them. What cannot be read
is handed on as `Unusable` in its place, so that numbers stay the same. Imports no torch.
"""

from __future__ import annotations

import csv
import functools
import glob
import inspect
import io
import itertools
import operator
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgan.data import arrays, folder, labels
from fastgan.data.cache import default_cache_dir
from fastgan.data.labels import MOST_CLASSES
from fastgan.data.pictures import MAX_BYTES, SUFFIXES, TOO_LARGE, Unusable, open_regular, read_regular, reason
from fastgan.data.urls import is_url, open_url
from fastgan.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_COLUMNS = ("image", "img", "file", "filename", "file_name", "filepath", "path")  # in the order of preference
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label")
TABLES = (".csv", ".tsv")
MOST_FILES = 1_000_000  # that braces stand for


class Item(NamedTuple):
    """One image of a source.

    data: its file, or a picture decoded already, or why there is none.
    """

    name: str
    label: int | None
    data: bytes | Image.Image | Unusable


class Source:
    """Images that can be asked for by number; a sub-class gives `_read`.

    Attributes:
        names: of all images.
        labels: a class each, None for an image that has none; or None if they are unlabelled, or it shows on reading.
        class_names: one name a class; None if they are called by their numbers.
        state: JSON-able, what changes when the images do.
        shuffled: whether `items` may be asked for in another order.
    """

    names: list[str]
    labels: list[int | None] | None = None
    class_names: list[str] | None = None
    state: object
    shuffled = True

    @property
    def count(self) -> int | None:
        """How many images there are; None if it shows at the end."""
        return len(self.names)

    def items(self, order: Iterable[int]) -> Iterator[Item]:
        """The images of these numbers."""
        for number in order:
            label = self.labels[number] if self.labels is not None else None
            try:
                data = self._read(number)
                data, label = data if isinstance(data, tuple) else (data, label)
            except Unusable as error:
                data = error
            yield Item(self.names[number], label, data)

    def _read(self, number: int):
        """A file's bytes or a decoded picture, also as a tuple with its label. Raises Unusable."""
        raise NotImplementedError


class Columns(NamedTuple):
    """What a person said about a source: None is for what is found out."""

    image: str | None = None
    label: str | None = None
    split: str = "train"


def open_source(spec: str, columns: Columns) -> Source:
    """The source that `spec` names; see docs/data.md. Raises UserError if there is no such thing."""
    kind, _, name = spec.partition(":")
    if kind == "torchvision":
        return TorchvisionSource(name, columns)
    if kind == "hf":
        return HuggingFaceSource(name, columns)
    if spec.startswith("@") or _is_shards(spec):
        return ShardSource(spec)
    if is_url(spec):
        raise UserError(f"{spec}: only tar files are read from URLs; fetch it, and give the file")
    path = Path(spec).expanduser()
    if path.suffix.lower() in TABLES:
        return CsvSource(path, columns)
    if _is_lmdb(path):
        return LmdbSource(path.parent if path.name == "data.mdb" else path)
    if arrays.is_arrays(path):
        return ArraySource(path, columns)
    return FileSource(path)


def is_other(spec: str) -> bool:
    """Whether `spec` names something that only `python -m fastgan.dataset` reads."""
    path = Path(spec)
    special = spec.startswith(("torchvision:", "hf:", "@")) or _is_shards(spec) or _is_lmdb(path)
    return special or path.suffix.lower() in TABLES or arrays.is_arrays(path)


def _is_lmdb(path: Path) -> bool:
    return path.suffix.lower() == ".lmdb" or path.name == "data.mdb" or (path / "data.mdb").is_file()


class FileSource(Source):
    """A folder or a zip; see `folder.Files` and `labels.of_files`."""

    def __init__(self, path: Path):
        if not (path.is_dir() or path.is_file()):
            raise UserError(
                f"{path}: no such folder or file; give a folder, .zip, .csv, .lmdb, .tar or .npz, torchvision:NAME or "
                "hf:NAME"
            )
        self._files = folder.open_files(path, "")
        self.names = self._files.images()
        self.state = self._files.state
        found = labels.of_files(self._files, self.names)
        self.labels, self.class_names = found.values, found.class_names if found.values is not None else None

    def _read(self, number):
        return self._files.read(self.names[number])


class CsvSource(Source):
    """A table with a header: a column of files, seen from the table's folder, and one of labels, numbers or names."""

    def __init__(self, path: Path, columns: Columns):
        try:
            with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
                table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
                rows = list(table)
                header = list(table.fieldnames or [])
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} is not a table in UTF-8 ({reason(error)}); save it as CSV again") from error
        if not rows:
            raise UserError(f"{path} has no rows; it needs a line with the names of columns, and one for each image")
        image = _column(path, "--image-column", columns.image, IMAGE_COLUMNS, header) or header[0]
        label = _column(path, "--label-column", columns.label, LABEL_COLUMNS, header)
        self.names = [row[image] or "" for row in rows]
        self._folder = path.parent
        values = [(row[label] or "").strip() for row in rows] if label is not None else []
        if any(values):
            self.labels, self.class_names = _numbered(values, path)
        sizes = []
        for name in self.names:
            try:
                status = (self._folder / name).stat()
                sizes.append([status.st_size, status.st_mtime_ns])
            except (OSError, ValueError):
                sizes.append(None)
        self.state = [self.names, values, sizes]

    def _read(self, number):
        return read_regular(self._folder / self.names[number])


def _column(where: object, option: str, given: str | None, likely: tuple[str, ...], there: list[str]) -> str | None:
    """The column asked for, else the first likely one, else None. Raises UserError if what is asked for is missing."""
    if given is not None:
        if given not in there:
            raise UserError(f"{option} {given}: {where} has no such column; it has {', '.join(there)}")
        return given
    by_name = {name.strip().lower(): name for name in reversed(there) if name is not None}
    return next((by_name[name] for name in likely if name in by_name), None)


def _numbered(values: list[str], where: object) -> tuple[list[int | None], list[str] | None]:
    """Class numbers of labels in words, None for empty ones, and the names of the classes, sorted. If all are whole
    numbers, they are the classes."""
    if all(re.fullmatch(r"\d{1,9}", value) for value in values if value):
        numbers = [int(value) if value else None for value in values]
        labels.require_dense(max(number for number in numbers if number is not None), len(values), where)
        return numbers, None
    names = sorted({value for value in values if value})
    index = {name: number for number, name in enumerate(names)}
    return [index.get(value) for value in values], [labels.printable(name) for name in names]


class ArraySource(Source):
    """A .npy or .npz file, or IDX files as MNIST has them; see `arrays.read`. A label below 0 is none."""

    def __init__(self, path: Path, columns: Columns):
        found = arrays.read(path, columns.split, columns.image, columns.label)
        self._images = found.images
        self.names = [f"{found.files[0].name}[{number}]" for number in range(len(found.images))]
        status = [file.stat() for file in found.files]
        self.state = [[str(file) for file in found.files], [[each.st_size, each.st_mtime_ns] for each in status]]
        self.state += [columns.split, columns.image, columns.label]
        if found.labels is not None:
            values = ["" if str(value).startswith("-") else str(value) for value in found.labels.tolist()]
            if any(values):
                self.labels, self.class_names = _numbered(values, path)

    def _read(self, number):
        from PIL import Image

        return Image.fromarray(np.ascontiguousarray(self._images[number]))


class LmdbSource(Source):
    """Image files in an LMDB, under any keys, in their order; of sets with several resolutions under keys like
    256-00001, as StyleGAN2 in PyTorch has them, the largest. Needs the package lmdb."""

    NO_IMAGES = frozenset({b"length", b"num-samples", b"__len__", b"__keys__"})

    def __init__(self, path: Path):
        lmdb = _import("lmdb", "lmdb", f"{path} is an LMDB")
        file = path / "data.mdb" if path.is_dir() else path
        try:
            open_regular(file).close()
            self._environment = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, meminit=False
            )
            with self._environment.begin() as transaction:
                keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
        except Exception as error:  # lmdb has an exception for each number of its own
            raise UserError(f"{path} is not a readable LMDB ({reason(error)})") from error
        keys = [key for key in keys if key not in self.NO_IMAGES]
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


class TorchvisionSource(Source):
    """A data set of torchvision, by the name of its class; downloaded into the cache if torchvision can."""

    def __init__(self, name: str, columns: Columns):
        sets = _import("torchvision.datasets", "torchvision", f"torchvision:{name}")
        make = getattr(sets, name, None)
        if not (name in sets.__all__ and inspect.isclass(make)):
            raise UserError(f"torchvision:{name}: there is no such data set; there are CIFAR10, STL10, Flowers102, ...")
        known = inspect.signature(make.__init__).parameters
        options: dict[str, object] = {}
        if "root" in known:
            options["root"] = str(default_cache_dir() / "torchvision" / name)
            Path(options["root"]).mkdir(parents=True, exist_ok=True)
        if "train" in known:
            options["train"] = columns.split == "train"
        for word in ("split", "image_set"):
            if word in known:
                options[word] = columns.split
        if "download" in known:
            options["download"] = True
        try:
            self._set = make(**options)
            self.names = [f"{name}[{i}]" for i in range(len(self._set))]
        except Exception as error:  # of the network, of a split that is not there, of a set that has other arguments
            raise UserError(f"torchvision:{name}: {reason(error)}; see --split, or unpack it as a folder") from error
        names = getattr(self._set, "classes", None)
        if isinstance(names, list | tuple) and names and all(isinstance(each, str) for each in names):
            self.class_names = list(names)
        self.state = [name, columns.split, len(self.names)]

    def _read(self, number):
        from PIL import Image

        try:
            found = self._set[number]
        except Exception as error:
            raise Unusable(f"cannot be read ({reason(error)})") from error
        image, target = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not isinstance(image, Image.Image):
            raise Unusable(f"is a {type(image).__name__}, not an image")
        try:
            return image, operator.index(target)  # of a number of Python, NumPy or torch
        except (TypeError, ValueError):
            return image, None


class HuggingFaceSource(Source):
    """A data set of Hugging Face's `datasets`: a folder that it saved, or a name on its hub."""

    def __init__(self, name: str, columns: Columns):
        datasets = _import("datasets", "huggingface", f"hf:{name}")
        try:
            if Path(name).is_dir() and any(
                (Path(name) / file).exists() for file in ("state.json", "dataset_dict.json")
            ):
                found = datasets.load_from_disk(name)
                found = found[columns.split] if isinstance(found, datasets.DatasetDict) else found
            else:
                found = datasets.load_dataset(name, split=columns.split)
        except Exception as error:
            raise UserError(f"hf:{name} cannot be loaded, split {columns.split}: {reason(error)}") from error
        features = found.features
        images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        where = f"hf:{name}"
        image = _column(where, "--image-column", columns.image, (), list(features)) or next(iter(images), None)
        if image not in images:
            raise UserError(
                f"{where} has no column of images{f' {image}' if image else ''}; it has {', '.join(features)}"
            )
        label = _column(where, "--label-column", columns.label, (), list(features)) or next(iter(classes), None)
        if label in classes:
            self.class_names = list(features[label].names)
            self.labels = [None if each is None or each < 0 else int(each) for each in found[label]]
        elif label is not None:
            self.labels, self.class_names = _numbered(["" if v is None else str(v) for v in found[label]], where)
        self._images = found.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self._column = image
        self.names = [f"{name}[{i}]" for i in range(len(found))]
        self.state = [name, columns.split, found._fingerprint, len(found)]

    def _read(self, number):
        try:
            cell = self._images[number][self._column]
            data = cell["bytes"] if cell["bytes"] is not None else read_regular(cell["path"])
        except Unusable:
            raise
        except Exception as error:
            raise Unusable(f"cannot be read ({reason(error)})") from error
        if len(data) > MAX_BYTES:
            raise Unusable(TOO_LARGE)
        return data


def _import(module: str, extra: str, what: str):
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"huggingface": "datasets"}.get(extra, extra)
        raise UserError(
            f'{what}: needs the extra "{extra}", which is not installed: pip install ".[{extra}]", '
            f"or pip install {package}"
        ) from None


# Shards ------------------------------------------------------------------------------------------------------------


def _is_shards(spec: str) -> bool:
    return re.search(r"\.tar(\.gz|\.bz2|\.xz)?$", spec.lower()) is not None or spec.lower().endswith(".tgz")


def expanded(spec: str) -> list[str]:
    """Paths or URLs that a spec stands for, sorted: a file @LIST with one a line, {000..123} and {a,b} in braces, and
    for paths * and ?. Raises UserError if there are none."""
    if spec.startswith("@"):
        try:
            with open_regular(Path(spec[1:]).expanduser()) as file:
                lines = file.read(MAX_BYTES).decode("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {spec[1:]}: {getattr(error, 'strerror', None) or error}") from error
        names = [line.strip() for line in lines if line.strip()]
        if lists := [name for name in names if name.startswith("@")]:
            raise UserError(f"{spec[1:]} names the list {lists[0]}; put the files of that into it, one a line")
        found = [path for name in names for path in expanded(name)]
    else:
        found = []
        for path in _braces(spec):
            plain = is_url(path) or not glob.has_magic(path)
            found += [path] if plain else sorted(glob.glob(str(Path(path).expanduser())))
    if not found:
        raise UserError(f"{spec}: no such file; give .tar files, with {{000..123}} or *, or URLs of them")
    return found


def _braces(text: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        return [text]
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        low, high = int(bounds[1]), int(bounds[2])
        if high - low >= MOST_FILES:
            raise UserError(f"{text}: more than {MOST_FILES:,} files")
        choices = [f"{number:0{len(bounds[1])}}" for number in range(low, high + 1)]
    else:
        choices = match[1].split(",")
    ends = _braces(text[match.end() :])
    if len(choices) * len(ends) > MOST_FILES:
        raise UserError(f"{text}: more than {MOST_FILES:,} files")
    return [text[: match.start()] + choice + end for choice in choices for end in ends]


class ShardSource(Source):
    """Tar files, also compressed; read one after the other from the front, never unpacked to the disk.

    As WebDataset has them (files or URLs): what is called the same up to the first dot belongs together, an image and
    perhaps a number in .cls. Or a packed folder (files only), with classes as `labels.of_files` finds them.
    """

    shuffled = False

    def __init__(self, spec: str):
        self._shards = expanded(spec)
        self._by_name: dict[str, int | None] | None = None  # the labels of a packed folder
        self.names = []
        state = []
        for shard in self._shards:
            if is_url(shard):
                state.append([shard])
                continue
            try:
                status = Path(shard).expanduser().stat()
            except OSError as error:
                raise UserError(f"cannot read {shard}: {error.strerror}") from error
            state.append([shard, status.st_size, status.st_mtime_ns])
        self.state = state
        if not any(map(is_url, self._shards)) and (packed := _packed_folder(spec, self._shards)) is not None:
            names = packed.images()
            found = labels.of_files(packed, names)
            self._by_name = dict(zip(names, found.values or [None] * len(names), strict=True))
            self.labels, self.class_names = found.values, found.class_names if found.values is not None else None

    @property
    def count(self):
        return None

    def items(self, order):
        first = next(iter(order), None)
        read = samples_of_shard if self._by_name is None else functools.partial(_images_of_tar, by_name=self._by_name)
        yield from itertools.islice(itertools.chain.from_iterable(map(read, self._shards)), first, None)


class _PackedFolder(folder.Files):
    """The names of images in tar files, and the content of their label files."""

    def __init__(self, path: Path, names: set[str], label_files: dict[str, bytes]):
        super().__init__(path, "")
        self.names, self._label_files = sorted(names | label_files.keys()), label_files

    def full_name(self, name: str) -> str:
        return f"{self.path}:{name}"

    def read(self, name: str) -> bytes:
        return self._label_files[name]


def _packed_folder(spec: str, shards: list[str]) -> _PackedFolder | None:
    """What is in tar files that are a packed folder: no image has another file of its name beside it, as shards of
    WebDataset have. None if they are not, or have no images."""
    images, others, label_files = set(), set(), {}
    for shard in shards:
        with _opened(shard) as file:
            try:
                with tarfile.open(fileobj=file) as archive:
                    for member in archive:
                        if member.isfile() and folder.is_wanted(name := _name_of(member)):
                            if PurePosixPath(name).name != labels.LABEL_FILE:
                                images.add(name)
                            elif member.size <= MAX_BYTES:
                                label_files[name] = archive.extractfile(member).read()
                        elif member.isfile():
                            others.add(_key_of(PurePosixPath(_name_of(member))))
                            if member.name.endswith(".cls"):
                                return None
            except Exception:  # tarfile and the decompressors raise half a dozen kinds; reading the images says it
                continue
    if not images or any(_key_of(PurePosixPath(name)) in others for name in images):
        return None
    return _PackedFolder(Path(spec), images, label_files)


def _name_of(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name).as_posix()


def _key_of(path: PurePosixPath) -> str:
    """What the files of a sample share: the name up to the first dot."""
    return str(path.parent / path.name.partition(".")[0])


def _images_of_tar(shard: str, by_name: dict[str, int | None]) -> Iterator[Item]:
    """The images of a packed folder. If it is damaged, the last item says where."""
    last = None
    with _opened(shard) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|*") as archive:
                for member in archive:
                    name = _name_of(member)
                    if member.isfile() and name in by_name and PurePosixPath(name).name != labels.LABEL_FILE:
                        large = member.size > MAX_BYTES
                        data = Unusable(TOO_LARGE) if large else archive.extractfile(member).read()
                        yield Item(f"{shard}:{name}", by_name[name], data)
                        last = name
        except Exception as error:  # tarfile and the decompressors raise half a dozen kinds
            yield _damaged(shard, last, error)


def samples_of_shard(shard: str) -> Iterator[Item]:
    """The images of a tar file, given by path or URL. If it is damaged, the last item says where."""
    key, image, label, problem = None, None, None, None

    def sample() -> list[Item]:
        name = f"{shard}:{key}"
        return [Item(name, label, problem or image)] if problem or image is not None else []

    with _opened(shard) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|*") as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    if not member.isfile() or path.name.startswith("."):
                        continue
                    ending = path.name.partition(".")[2]
                    if _key_of(path) != key:
                        yield from sample()
                        key, image, label, problem = _key_of(path), None, None, None
                    if f".{ending.lower()}" in SUFFIXES and image is None:
                        if member.size > MAX_BYTES:
                            problem = Unusable(TOO_LARGE)
                        else:
                            image = archive.extractfile(member).read()
                    elif ending.lower() == "cls" and member.size < 20:
                        text = archive.extractfile(member).read().strip()
                        if re.fullmatch(rb"\d{1,9}", text) and int(text) < MOST_CLASSES:
                            label = int(text)
            yield from sample()
        except UserError:
            raise
        except Exception as error:  # tarfile and the decompressors raise half a dozen kinds
            yield _damaged(shard, key, error)


def _damaged(shard: str, last: str | None, error: Exception) -> Item:
    return Item(shard, None, Unusable(f"is damaged behind {last or 'its start'} ({reason(error)})"))


def _opened(shard: str):
    """The bytes of a file or URL. What goes wrong on the way is a UserError: it says nothing about the file."""
    try:
        if is_url(shard):
            return open_url(shard)
        return open_regular(Path(shard).expanduser())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {shard}: {reason(error)}") from error
