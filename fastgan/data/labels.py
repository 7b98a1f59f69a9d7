"""Class labels of image files: from dataset.json, as StyleGAN's tools and relatives write it, or from sub-folders.

Variants in use, besides {"labels": [["file", 3], ...]}: null or no labels; vectors instead of numbers, one-hot or not;
names with or without a leading folder; entries of images that do not exist.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath

from fastgan.data.image_files import ImageFiles, is_label_file
from fastgan.errors import UserError, escaped, program

MAX_LABEL = 999_999  # a larger one is taken for a mistake
FEW_CLASSES = 1_000  # a set may have this many classes even if it has fewer images


@dataclass(frozen=True)
class Labels:
    """Labels of images, in the order of the images.

    values: a class number each, None for an image without one; or None if the set is unlabelled.
    class_names: one for each class.
    problem: error message about the first image without a label; empty if all have one.
    """

    values: list[int | None] | None
    class_names: list[str]
    problem: str = ""

    def require_all(self) -> None:
        """Raises UserError if some images have labels and others do not."""
        if self.problem:
            raise UserError(self.problem)


UNLABELLED = Labels(None, [])


def of_files(files: ImageFiles, names: list[str]) -> Labels:
    """Labels of the images `names`: from dataset.json if there is one, else from sub-folders. Raises UserError."""
    label_files = sorted((name for name in files.names if is_label_file(name)), key=len)
    if len(label_files) > 1:
        others = f"{len(label_files) - 1:,} others like {files.full_name(label_files[1])}"
        _note(f"only {files.full_name(label_files[0])} gives labels, not {others}")
    if label_files:
        return from_json(files, label_files[0], names)
    parts = [PurePosixPath(name).parts for name in names]
    shared = _shared_length(min(parts)[:-1], max(parts)[:-1])
    folders = [p[shared] if len(p) > shared + 1 else None for p in parts]
    if all(folder is None for folder in folders):
        return UNLABELLED
    class_names = sorted({folder for folder in folders if folder is not None})
    number_of = {name: number for number, name in enumerate(class_names)}
    problem = ""
    if None in folders:
        stray = files.full_name(names[folders.index(None)])
        problem = f"{stray} lies beside sub-folders with images; move it into one, or all images into one folder"
    values = [None if folder is None else number_of[folder] for folder in folders]
    return Labels(values, [printable(name) for name in class_names], problem)


def _note(text: str) -> None:
    print(f"note: {escaped(text)}", file=sys.stderr)


def printable(name: str) -> str:
    """The name as valid UTF-8: lone surrogates, Python's form of bytes that are not UTF-8, are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def require_dense(largest: int, images: int, where: object) -> None:
    """Raises UserError if almost all classes up to the label `largest` must be empty: a mistake, and every class costs
    weights."""
    if largest >= max(FEW_CLASSES, images):
        raise UserError(
            f"{where}: a label is {largest}, but there are {images:,} images; number the classes from 0 up without gaps"
        )


def _shared_length(first: tuple[str, ...], last: tuple[str, ...]) -> int:
    """Number of leading parts that two paths share. For the first and last of sorted paths: that all paths share."""
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def from_json(files: ImageFiles, name: str, images: list[str]) -> Labels:
    """Labels of `images` in the label file `name`.

    {"labels": [["file", label], ...]} or {"labels": {"file": label}}. Files are named as in the zip, or relative to the
    folder of the JSON. A label is an integer from 0 up or a one-hot vector; other vectors make the set unlabelled, with
    a note, as do null or no labels. "class_names": one for each class; their numbers if it is missing.
    Raises UserError for anything else.
    """
    where = files.full_name(name)
    try:
        content = json.loads(files.read(name).decode("utf-8-sig"), object_pairs_hook=_unique)
        given = content.get("labels")
        pairs = list(given.items()) if isinstance(given, dict) else given
    except Contradiction as error:
        raise UserError(f"{where} gives {error.args[0]} two values; remove one of them") from None
    except Exception as error:  # bytes that are not UTF-8, not JSON, or not an object
        raise UserError(f'{where} is not JSON like {{"labels": [["file", 0], ...]}}; repair or remove it') from error
    if pairs is None or pairs == []:
        return UNLABELLED
    by_name: dict[str, int | None] = {}
    base, known, vector_length = PurePosixPath(name).parent, set(files.names), 0
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f'{where}: every label must be ["file", integer], not {json.dumps(pair)[:60]}; repair it')
        image = pair[0].replace("\\", "/")
        label = _class_of(pair[1])
        if label == _VECTOR:
            vector_length, label = len(pair[1]), None
        elif label is not None and not 0 <= label <= MAX_LABEL:
            raise UserError(_wrong_label(where, pair))
        below = (base / image).as_posix()
        named = below if below in known or image not in known else image
        if by_name.setdefault(named, label) != label:
            raise UserError(f"{where}: {image} has the labels {by_name[named]} and {label}; remove one of them")
    if vector_length:
        _note(f"labels in {where} are vectors of {vector_length} numbers, not classes; they are ignored")
        return UNLABELLED
    if absent := len(by_name.keys() - known):
        _note(f"{where} has labels of {absent:,} images that do not exist")
    values = [by_name.get(image) for image in images]
    if all(value is None for value in values):
        if absent:
            named = min(by_name.keys() - known)
            raise UserError(f"{where} names {named} and others, none of which exists; repair or remove it")
        return UNLABELLED
    largest = max(value for value in values if value is not None)
    if content.get("class_names") is None:
        require_dense(largest, len(images), where)
    return Labels(values, _class_names(content, largest, where), _missing_label(where, images, values))


class Contradiction(Exception):
    """A JSON object gives one name two values. args: the name."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object with these pairs; without this hook `json` takes the last value of a name in silence."""
    found: dict[str, object] = {}
    for name, value in pairs:
        if (first := found.setdefault(name, value)) is not value and first != value:
            raise Contradiction(name)
    return found


_INVALID, _VECTOR = -1, -2


def _class_of(label: object) -> int | None:
    """Class number of a label in JSON; None for null, _VECTOR for a vector that is not one-hot, else _INVALID."""
    if isinstance(label, list) and label and all(type(x) in (int, float) for x in label):
        if len(label) == 1:
            return _class_of(label[0])
        hot = [i for i, x in enumerate(label) if x != 0]
        return hot[0] if len(hot) == 1 and label[hot[0]] == 1 else _VECTOR
    if isinstance(label, float) and label.is_integer():
        return int(label) if label >= 0 else _INVALID
    return label if label is None or (type(label) is int and label >= 0) else _INVALID


def _wrong_label(where: str, pair) -> str:
    if type(pair[1]) is int and pair[1] > MAX_LABEL:
        return f"{where}: a label is {pair[1]}; number the classes from 0 up without gaps"
    return (
        f"{where}: the label of {pair[0]} must be an integer from 0 up, not {json.dumps(pair[1])[:40]}; "
        'repair it, or set "labels" to null'
    )


def _missing_label(where: str, names: list[str], values: list[int | None]) -> str:
    if None not in values:
        return ""
    name = names[values.index(None)]
    return (
        f'{where} has no label for {name}; add it, or set "labels" to null, '
        f"or let {program('dataset')} leave out such images"
    )


def _class_names(content: dict, largest: int, where: str) -> list[str]:
    given = content.get("class_names")
    if given is None:
        return [str(number) for number in range(largest + 1)]
    if not (isinstance(given, list) and len(given) > largest and all(isinstance(name, str) for name in given)):
        raise UserError(
            f'{where}: "class_names" must be a list of names, one for each class up to {largest}; repair it'
        )
    return [printable(name) for name in given]
