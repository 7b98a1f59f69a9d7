"""`Reader`, the interface of all formats, and what their readers share."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fastgan.data import labels
from fastgan.data.images import UnusableImage
from fastgan.errors import UserError, readable

if TYPE_CHECKING:
    from PIL import Image


class ReaderOptions(NamedTuple):
    """Options of `fastgan dataset` for readers.

    image_column, label_column: columns of a table or data set, or arrays of an .npz; None to find them by name.
    split: part of a data set, like "train" or "test".
    """

    image_column: str | None = None
    label_column: str | None = None
    split: str = "train"


class Item(NamedTuple):
    """One image of a source.

    data: the bytes of its file, a decoded image, or the reason why there is none.
    label_problem: the reason why its label cannot be used, starting with a verb; empty if it can, or there is none.
    """

    name: str
    label: int | None
    data: bytes | Image.Image | UnusableImage
    label_problem: str = ""


class Reader:
    """Images of one source. A format is a sub-class that sets `accepts`, implements `claims`, `__init__` and `_read`,
    and fills the attributes.

    `__init__` raises UserError if the source cannot be read; a single image that cannot be read is an item instead.

    Attributes:
        accepts: the sources of this format, as a phrase for help texts and errors.
        names: of all images, in a fixed order.
        labels: a class number each, None for an image without one. None as a whole if the set is unlabelled, or if
            labels are only known when an image is read.
        class_names: one for each class; None if classes are named by their numbers.
        state: JSON-able; changes when the images do.
        notes: lines about what is in the source and is not read, for the report.
        random_access: whether `items` takes any order. Otherwise images are read from the first on.
    """

    accepts: ClassVar[str]
    names: list[str]
    labels: list[int | None] | None = None
    class_names: list[str] | None = None
    state: object
    notes: tuple[str, ...] | list[str] = ()
    random_access = True

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Whether `spec` is written like a source of this format, or names one."""
        raise NotImplementedError

    def __init__(self, spec: str, options: ReaderOptions) -> None:
        raise NotImplementedError

    @property
    def count(self) -> int | None:
        """Number of images; None if it is only known after reading."""
        return len(self.names)

    def items(self, order: Iterable[int]) -> Iterator[Item]:
        """The images with these numbers."""
        for number in order:
            label = self.labels[number] if self.labels is not None else None
            try:
                data = self._read(number)
                data, label = data if isinstance(data, tuple) else (data, label)
            except UnusableImage as error:
                data = error
            yield Item(self.names[number], label, data)

    def _read(self, number: int):
        """The bytes of an image file or a decoded image; with its label in a tuple if labels are only known now.

        Raises UnusableImage.
        """
        raise NotImplementedError


def choose_name(
    where: object, option: str, given: str | None, likely: Iterable[str], available: list[str]
) -> str | None:
    """Name of a column or array: `given` if the user gave one, else the first of `likely` that is available, else None.

    Raises UserError, naming `option` and `where`, if `given` is not available.
    """
    if given is not None:
        if given not in available:
            raise UserError(f"{option} {given}: not in {where}, which has {', '.join(available) or 'none'}")
        return given
    return next((name for name in likely if name in available), None)


def unread_note(names: list[str]) -> list[str]:
    """A note about columns or arrays that might have been the classes of a set without any."""
    if not names:
        return []
    shown = ", ".join([*map(readable, names[:8]), *(["..."] if len(names) > 8 else [])])
    return [f"no classes, as these were not read: {shown}; --label-column takes one of them"]


def number_labels(texts: list[str], where: object) -> tuple[list[int | None], list[str] | None]:
    """Class numbers of labels given as texts, None for an empty one, and the class names in sorted order.

    If all texts are whole numbers, these are the class numbers and the names are None.
    """
    if all(re.fullmatch(r"\d{1,9}", text) for text in texts if text):
        numbers = [int(text) if text else None for text in texts]
        labels.require_dense(max(number for number in numbers if number is not None), len(texts), where)
        return numbers, None
    names = sorted({text for text in texts if text})
    number_of = {name: number for number, name in enumerate(names)}
    return [number_of.get(text) for text in texts], [labels.printable(name) for name in names]


def import_extra(module: str, extra: str, package: str, what: str):
    """Import a module of an optional package. Raises UserError, saying how to install it, if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise _missing(extra, package, what) from None


def require_extra(module: str, extra: str, package: str, what: str) -> None:
    """Raises the error of `import_extra`, without importing, if the package is not installed."""
    if importlib.util.find_spec(module) is None:
        raise _missing(extra, package, what)


def _missing(extra: str, package: str, what: str) -> UserError:
    return UserError(
        f'{what}: needs the extra "{extra}", which is not installed: pip install ".[{extra}]", or pip install {package}'
    )
