"""Readers: the formats that `fastgan dataset` takes images from, one module each.

A format is a sub-class of `Reader` in a module of this package. The list of formats is the list of those modules, so
a new format is a new file. `fastgan.data.readers.files` (folders and zips) reads what no other format claims; a file
or folder that two others claim is an error.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from fastgan.data.readers.base import Item, Reader, ReaderOptions
from fastgan.data.readers.files import FilesReader
from fastgan.data.urls import is_url
from fastgan.errors import UserError

__all__ = ["READERS", "Item", "Reader", "ReaderOptions", "accepted_sources", "needs_preparation", "open_reader"]

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

READERS: tuple[type[Reader], ...] = tuple(sorted(Reader.__subclasses__(), key=lambda reader: reader.__module__))


def open_reader(spec: str, options: ReaderOptions | None = None) -> Reader:
    """Reader of the source that `spec` names. Raises UserError if there is no such source, or it cannot be read."""
    if (found := _format_of(spec)) is not None:
        return found(spec, options or ReaderOptions())
    if is_url(spec):
        raise UserError(f"{spec}: only tar files are read from URLs; download it, and give the file")
    if not FilesReader.claims(spec):
        raise UserError(f"{spec}: no such folder or file; give {accepted_sources()}")
    return FilesReader(spec, options or ReaderOptions())


def needs_preparation(spec: str) -> bool:
    """Whether training cannot read `spec` directly, only `fastgan dataset` can."""
    return _format_of(spec) is not None


def accepted_sources() -> str:
    """The sources of all formats, as one phrase for help texts and errors."""
    *first, last = [FilesReader.accepts, *(reader.accepts for reader in READERS if reader is not FilesReader)]
    return f"{', '.join(first)}, or {last}"


def _format_of(spec: str) -> type[Reader] | None:
    found = [reader for reader in READERS if reader is not FilesReader and reader.claims(spec)]
    if len(found) > 1 and Path(spec).expanduser().exists():  # else a name such as hf:NAME.csv
        raise UserError(f"{spec} may be {' or '.join(reader.accepts for reader in found)}; keep one of them there")
    return found[0] if found else None
