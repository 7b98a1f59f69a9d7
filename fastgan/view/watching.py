"""A run's folder, looked at while a training writes to it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastgan.data.pictures import reason
from fastgan.errors import UserError
from fastgan.runs.log import FILE_NAME as LOG_FILE_NAME
from fastgan.runs.networks import open_networks

Stamp = tuple[int, int, int]  # of a file: changes with its content


class Grid(NamedTuple):
    """A picture of samples that the training has written after so many images."""

    images: int
    path: Path


class Run:
    """The generator, the log and the pictures of a run, as they are by now.

    `path` is what `trained.find` takes; a file of another program has no log and no pictures, and `header` is None.
    Raises UserError, naming the file, if there are no networks.
    """

    def __init__(self, path: str | Path, device: torch.device):
        self._device = device
        self._lock = threading.Lock()  # a page asks from many threads
        self._log: tuple[Stamp | None, list[dict[str, Any]]] = (None, [])
        self.damaged_lines = 0  # of the log
        self.path = open_networks(path).path
        self.folder = self.path.parent
        self.problem: str | None = None  # why the checkpoint that lies there now is not shown
        self._read()

    @property
    def name(self) -> str:
        return self.folder.resolve().name if self.header else self.path.name

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none for a network without."""
        return self.trained.class_names

    @property
    def header(self):
        """That of a checkpoint of fastgan."""
        return self.trained.header

    def reread(self) -> bool:
        """Load the checkpoint again if its file has changed; returns whether there is another generator now.

        Where that fails, also because the folder is gone, the old generator stays, and `problem` says why.
        """
        with self._lock:
            if _stamp(self.path) == self.stamp:
                return False
            before = self.trained
            try:
                self._read()
                self.problem = None
            except UserError as error:
                self.problem = str(error)
            except Exception as error:  # of files that are damaged or half written: no reason to end
                self.problem = f"{self.path} cannot be read: {reason(error)}"
            return self.trained is not before

    def _read(self) -> None:
        """The stamp is taken first: what is written meanwhile is another one, and read the next time."""
        self.stamp = _stamp(self.path)
        found = open_networks(self.path)
        if hasattr(self, "trained") and found.model != self.trained.model:
            raise UserError(f"{self.path} is of another network now; start the view again to see it")
        self.generator = found.load(self._device)
        self.trained = found

    def log(self) -> list[dict[str, Any]]:
        """Its lines, each with "step", "images" and numbers by name; the same list while the file is the same.

        Damaged lines are left out; `damaged_lines` counts them.
        """
        path = self.folder / LOG_FILE_NAME
        stamp = _stamp(path) if self.header else None
        if stamp != self._log[0]:
            try:
                lines = path.read_bytes().splitlines(keepends=True) if stamp else []
            except OSError:  # gone since
                stamp, lines = None, []
            lines = [line for line in lines if line.endswith(b"\n")]  # the last may be half written
            parsed = [line for line in map(_parsed, lines) if line is not None]
            self._log, self.damaged_lines = (stamp, parsed), len(lines) - len(parsed)
        return self._log[1]

    def grids(self) -> list[Grid]:
        """The pictures of samples, the oldest first."""
        pictures = self.folder.glob("grid-*.png") if self.header else []
        found = [(path.stem.removeprefix("grid-"), path) for path in pictures]
        return sorted(Grid(int(images), path) for images, path in found if images.isdecimal())


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The numbers of a line of the log; None if it is damaged."""
    try:
        content = json.loads(line)
        found = {name: value for name, value in content.items() if type(value) in (int, float) and abs(value) < 2**63}
        return found if all(type(found[name]) is int and found[name] >= 0 for name in ("step", "images")) else None
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None


def _stamp(path: Path) -> Stamp | None:
    """None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:  # the folder may be gone, or a file by now
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
