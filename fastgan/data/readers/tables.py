"""Tables of image files: .csv and .tsv."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

from fastgan.data.images import UnusableImage, open_regular, read_regular, reason
from fastgan.data.readers.base import Reader, ReaderOptions, choose_name, number_labels, unread_note
from fastgan.errors import UserError

IMAGE_COLUMNS = ("image", "img", "file", "filename", "file_name", "filepath", "path")  # the first one present is taken
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label")


class TableReader(Reader):
    """A table with a header: a column of files, relative to the table's folder, and perhaps one of labels, numbers or
    words. Without a column of a likely name, the first one has the files."""

    accepts = "a .csv or .tsv table with a column of files"

    @classmethod
    def claims(cls, spec: str) -> bool:
        return Path(spec).suffix.lower() in (".csv", ".tsv")

    def __init__(self, spec: str, options: ReaderOptions):
        path = Path(spec).expanduser()
        try:
            with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
                table = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
                header, *rows = [row for row in table if any(cell.strip() for cell in row)] or [[]]
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} is not a table in UTF-8 ({reason(error)}); save it as CSV again") from error
        if not rows:
            raise UserError(f"{path} has no rows; it needs a header and a line for each image")
        if repeated := [name for name, count in Counter(header).items() if name and count > 1]:
            raise UserError(f"{path} has several columns named {repeated[0]}; rename them")
        by_likely_name = {name.strip().lower(): name for name in reversed(header)}
        likely = lambda names: [by_likely_name[name] for name in names if name in by_likely_name]
        image = choose_name(path, "--image-column", options.image_column, likely(IMAGE_COLUMNS), header) or header[0]
        label = choose_name(path, "--label-column", options.label_column, likely(LABEL_COLUMNS), header)
        self._columns = len(header)
        self._too_long = [len(row) if any(row[len(header) :]) else 0 for row in rows]
        cell = lambda row, name: row[header.index(name)] if header.index(name) < len(row) else ""
        self.names = [cell(row, image) for row in rows]
        self._folder = path.parent
        texts: list[str] = []
        if label is None:
            self.notes = unread_note([name for name in header if name not in ("", image)])
        else:
            texts = [
                "" if too_long else cell(row, label).strip() for row, too_long in zip(rows, self._too_long, strict=True)
            ]
        if any(texts):
            self.labels, self.class_names = number_labels(texts, path)
            self._require_one_label(path, texts)
        status: list[list[int] | None] = []
        for name in self.names:
            try:
                found = (self._folder / name).stat()
                status.append([found.st_size, found.st_mtime_ns])
            except (OSError, ValueError):
                status.append(None)
        self.state = [self.names, texts, status]

    def _require_one_label(self, path: Path, texts: list[str]) -> None:
        """Raises UserError if an image is listed with two labels."""
        label_of: dict[str, str] = {}
        for name, text in zip(self.names, texts, strict=True):
            if text and label_of.setdefault(name, text) != text:
                raise UserError(
                    f"{path} gives {name} the labels {label_of[name]} and {text}; remove one of them, "
                    "or choose another column with --label-column"
                )

    def _read(self, number):
        if cells := self._too_long[number]:  # a comma in a name that is not in quotes
            raise UnusableImage(f"is in a row of {cells} cells, but the header has {self._columns}")
        return read_regular(self._folder / self.names[number])
