"""Data sets of Hugging Face's `datasets`."""

from __future__ import annotations

from pathlib import Path

from fastgan.data.images import MAX_BYTES, TOO_LARGE, UnusableImage, open_regular, read_regular, reason
from fastgan.data.isolated import Isolated
from fastgan.data.readers.base import (
    Reader,
    ReaderOptions,
    choose_name,
    import_extra,
    number_labels,
    require_extra,
    unread_note,
)
from fastgan.errors import UserError

PREFIX = "hf:"


class HuggingFaceReader(Reader):
    """A data set by its name on the hub, or the folder that `save_to_disk` wrote.

    Without given columns: the first with the feature `Image`, and the first with the feature `ClassLabel`. The set is
    read in a child process, because Arrow ends the process on damaged files.
    """

    accepts = "hf:NAME of Hugging Face"

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.startswith(PREFIX)

    def __init__(self, spec: str, options: ReaderOptions):
        require_extra("datasets", "huggingface", "datasets", spec)
        self._table = Isolated(f"{spec} is damaged", _Table, spec, options)
        self.names, self.labels, self.class_names, self.state, self.notes = self._table.call("describe")

    def _read(self, number):
        return self._table.call("read", number, reading=self.names[number])


class _Table:
    """The data set, in the child process."""

    def __init__(self, spec: str, options: ReaderOptions):
        self._name, self._split = spec.removeprefix(PREFIX), options.split
        datasets = import_extra("datasets", "huggingface", "datasets", spec)
        try:
            found = self._load(datasets)
            self._features = found.features
        except Exception as error:
            raise UserError(f"{spec} cannot be loaded, split {options.split}: {reason(error)}") from error
        try:
            self._choose_columns(datasets, found, spec, options)
        except UserError:
            raise
        except Exception as error:  # of Arrow, on damaged files
            raise UserError(f"{spec} is damaged ({reason(error)})") from error

    def _load(self, datasets):
        folder = Path(self._name)
        if not any((folder / file).exists() for file in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(self._name, split=self._split)
        for path in folder.rglob("*"):
            if not path.is_dir():
                open_regular(path).close()  # raises on a named pipe, which would be waited for
        found = datasets.load_from_disk(self._name)
        return found[self._split] if isinstance(found, datasets.DatasetDict) else found

    def _choose_columns(self, datasets, found, spec: str, options: ReaderOptions) -> None:
        features = found.features
        images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        image = choose_name(spec, "--image-column", options.image_column, images, list(features))
        if image not in images:
            raise UserError(
                f"{spec} has no column of images{f' {image}' if image else ''}; it has {', '.join(features)}"
            )
        label = choose_name(spec, "--label-column", options.label_column, classes, list(features))
        self._labels: list[int | None] | None = None
        self._class_names: list[str] | None = None
        if label in classes:
            self._class_names = list(features[label].names)
            self._labels = [None if each is None or each < 0 else int(each) for each in found[label]]
            largest = max((each for each in self._labels if each is not None), default=-1)
            if largest >= len(self._class_names):
                raise UserError(f"{spec} has a label {largest}, but the names of {len(self._class_names)} classes")
        elif label is not None:
            texts = ["" if each is None else str(each) for each in found[label]]
            if any(texts):
                self._labels, self._class_names = number_labels(texts, spec)
        self._notes = unread_note([column for column in features if column != image]) if label is None else []
        self._rows = found.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self._column, self._fingerprint = image, found._fingerprint

    def describe(self) -> tuple:
        """Names, labels, class names, state and notes of the reader."""
        names = [f"{self._name}[{number}]" for number in range(len(self._rows))]
        state = [self._name, self._split, self._fingerprint, len(names)]
        return names, self._labels, self._class_names, state, self._notes

    def read(self, number: int) -> bytes:
        try:
            cell = self._rows[number][self._column]
            data = cell["bytes"] if cell["bytes"] is not None else read_regular(cell["path"])
        except UnusableImage:
            raise
        except Exception as error:
            raise UnusableImage(f"cannot be read ({reason(error)})") from error
        if len(data) > MAX_BYTES:
            raise UnusableImage(TOO_LARGE)
        return data
