"""Classes of images in files: dataset.json, in every form that StyleGAN's tools and their relatives write, or folders.

What is in use besides the plain {"labels": [["file", 3], ...]}: null or no labels at all; vectors instead of numbers,
one-hot or not; names with a folder in front or without; entries of images that are not there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from fastgan.errors import UserError

if TYPE_CHECKING:
    from fastgan.data.folder import Files

LABEL_FILE = "dataset.json"
MOST_CLASSES = 1_000_000  # a label beyond is a slip
FEW_CLASSES = 1_000  # so many may be named by a set with fewer images


@dataclass(frozen=True)
class Labels:
    """Labels of images, in their order.

    values: an int each, None for an image that has none; or None if the set is unlabelled.
    class_names: one name a class.
    problem: what is wrong with the first image that has none, in a line for people; empty if all have one.
    """

    values: list[int | None] | None
    class_names: list[str]
    problem: str = ""

    def require_all(self) -> None:
        """Raises UserError if some images have labels and others have not."""
        if self.problem:
            raise UserError(self.problem)


UNLABELLED = Labels(None, [])


def of_files(source: Files, names: list[str]) -> Labels:
    """Labels of the images `names` of a folder or zip: by dataset.json, else by sub-folders. Raises UserError."""
    label_files = [name for name in source.names if PurePosixPath(name).name == LABEL_FILE]
    if label_files:
        return of_json(source, min(label_files, key=len), names)
    parts = [PurePosixPath(name).parts for name in names]
    shared = _shared_length(min(parts)[:-1], max(parts)[:-1])
    folders = [p[shared] if len(p) > shared + 1 else None for p in parts]
    if all(folder is None for folder in folders):
        return UNLABELLED
    folders_sorted = sorted({folder for folder in folders if folder is not None})
    index = {name: i for i, name in enumerate(folders_sorted)}
    problem = ""
    if None in folders:
        stray = source.full_name(names[folders.index(None)])
        problem = f"{stray} lies beside sub-folders with images; move it into one, or all images into one folder"
    values = [None if folder is None else index[folder] for folder in folders]
    return Labels(values, [printable(folder) for folder in folders_sorted], problem)


def printable(name: str) -> str:
    """A name that can be encoded: of bytes that are no UTF-8, which Python has as lone surrogates, the escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def require_dense(top: int, images: int, where: object) -> None:
    """Raises UserError if so few images have labels up to `top` that almost all classes would be empty: a slip, and
    every class costs weights."""
    if top >= max(FEW_CLASSES, images):
        raise UserError(
            f"{where}: a label is {top}, but there are {images:,} images; number the classes from 0 up without gaps"
        )


def _shared_length(low: tuple[str, ...], high: tuple[str, ...]) -> int:
    """How many leading parts two paths share; of the first and the last in order, how many all paths share."""
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def of_json(source: Files, file: str, names: list[str]) -> Labels:
    """What `file`, a dataset.json, says of the images `names`.

    {"labels": [["file", label], ...]}, files as they are called in the zip or from the folder of the JSON on; also a
    mapping {"file": label}. A label is an integer from 0 up, or a vector with a single 1 among 0s; other vectors are no
    classes, and the set is taken as unlabelled, with a note. Null or no labels: unlabelled. "class_names": one name a
    class; their numbers if it is missing.
    Raises UserError for anything else.
    """
    where = source.full_name(file)
    try:
        content = json.loads(source.read(file).decode("utf-8-sig"))
        given = content.get("labels")
        pairs = list(given.items()) if isinstance(given, dict) else given
    except Exception as error:  # whatever is wrong with bytes that should be {"labels": ...}
        raise UserError(f'{where} is not JSON like {{"labels": [["file", 0], ...]}}; repair or remove it') from error
    if pairs is None or pairs == []:
        return UNLABELLED
    by_name: dict[str, int | None] = {}
    base, known, vectors = PurePosixPath(file).parent, set(source.names), 0
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f'{where}: every label must be ["file", integer], not {json.dumps(pair)[:60]}; repair it')
        image = pair[0].replace("\\", "/")
        label = _class_of(pair[1])
        if label == _VECTOR:
            vectors, label = len(pair[1]), None
        elif label is not None and not 0 <= label < MOST_CLASSES:
            raise UserError(_wrong(where, pair))
        below = (base / image).as_posix()
        by_name[below if below in known or image not in known else image] = label
    if vectors:
        print(
            f"note: labels in {where} are vectors of {vectors} numbers, no classes: taken as unlabelled",
            file=sys.stderr,
        )
        return UNLABELLED
    if absent := len(by_name.keys() - known):
        print(f"note: {where} has labels of {absent:,} images that are not there", file=sys.stderr)
    values = [by_name.get(name) for name in names]
    if all(value is None for value in values):
        if absent:
            named = min(by_name.keys() - known)
            raise UserError(f"{where} names {named} and others, none of which is there; repair or remove it")
        return UNLABELLED
    top = max(value for value in values if value is not None)
    if content.get("class_names") is None:
        require_dense(top, len(names), where)
    return Labels(values, _class_names(content, top, where), _gap(where, names, values))


_NONSENSE, _VECTOR = -1, -2


def _class_of(label: object) -> int | None:
    """The class that a label in JSON means, None if it means that there is none; or one of the above."""
    if isinstance(label, list) and label and all(type(x) in (int, float) for x in label):
        if len(label) == 1:
            return _class_of(label[0])
        hot = [i for i, x in enumerate(label) if x != 0]
        return hot[0] if len(hot) == 1 and label[hot[0]] == 1 else _VECTOR
    if isinstance(label, float) and label.is_integer():
        return int(label) if label >= 0 else _NONSENSE
    return label if label is None or (type(label) is int and label >= 0) else _NONSENSE


def _wrong(where: str, pair) -> str:
    if type(pair[1]) is int and pair[1] >= MOST_CLASSES:
        return f"{where}: a label is {pair[1]}; number the classes from 0 up without gaps"
    return (
        f"{where}: the label of {pair[0]} must be an integer from 0 up, not {json.dumps(pair[1])[:40]}; "
        'repair it, or set "labels" to null'
    )


def _gap(where: str, names: list[str], values: list[int | None]) -> str:
    if None not in values:
        return ""
    name = names[values.index(None)]
    return (
        f'{where} has no label for {name}; add it, or set "labels" to null, '
        "or let python -m fastgan.dataset pass over such images"
    )


def _class_names(content: dict, top: int, where: str) -> list[str]:
    given = content.get("class_names")
    if given is None:
        return [str(i) for i in range(top + 1)]
    if not (isinstance(given, list) and len(given) > top and all(isinstance(name, str) for name in given)):
        raise UserError(f'{where}: "class_names" must be a list of names, one for each class up to {top}; repair it')
    return [printable(name) for name in given]
