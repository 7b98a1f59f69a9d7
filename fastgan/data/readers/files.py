"""Folders and zips of image files."""

from __future__ import annotations

from pathlib import Path

from fastgan.data import labels
from fastgan.data.image_files import describe_others, open_files
from fastgan.data.readers.base import Reader, ReaderOptions


class FilesReader(Reader):
    """A folder, searched recursively, or a zip. Classes are those of `labels.of_files`."""

    accepts = "a folder or .zip of images (sub-folders or dataset.json give the classes)"

    @classmethod
    def claims(cls, spec: str) -> bool:
        path = Path(spec).expanduser()
        return path.is_dir() or path.is_file()

    def __init__(self, spec: str, options: ReaderOptions):
        self._files = open_files(Path(spec).expanduser(), "")
        self.names = self._files.images()
        self.state, self.notes = self._files.state, describe_others(self._files.others)
        found = labels.of_files(self._files, self.names)
        self.labels, self.class_names = found.values, found.class_names if found.values is not None else None

    def _read(self, number):
        return self._files.read(self.names[number])
