"""Tables of image files: .csv and .tsv."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from fastgan.data.images import open_regular, read_regular, reason
from fastgan.data.readers.base import Reader, ReaderOptions, choose_name, number_labels
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
                table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
                rows = list(table)
                header = list(table.fieldnames or [])
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} is not a table in UTF-8 ({reason(error)}); save it as CSV again") from error
        if not rows:
            raise UserError(f"{path} has no rows; it needs a header and a line for each image")
        by_likely_name = {name.strip().lower(): name for name in reversed(header) if name is not None}
        likely = lambda names: [by_likely_name[name] for name in names if name in by_likely_name]
        image = choose_name(path, "--image-column", options.image_column, likely(IMAGE_COLUMNS), header) or header[0]
        label = choose_name(path, "--label-column", options.label_column, likely(LABEL_COLUMNS), header)
        self.names = [row[image] or "" for row in rows]
        self._folder = path.parent
        texts = [(row[label] or "").strip() for row in rows] if label is not None else []
        if any(texts):
            self.labels, self.class_names = number_labels(texts, path)
        status: list[list[int] | None] = []
        for name in self.names:
            try:
                found = (self._folder / name).stat()
                status.append([found.st_size, found.st_mtime_ns])
            except (OSError, ValueError):
                status.append(None)
        self.state = [self.names, texts, status]

    def _read(self, number):
        return read_regular(self._folder / self.names[number])
