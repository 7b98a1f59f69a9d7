"""A run's folder, read again and again while a training writes to it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastgan import examples
from fastgan.data.images import reason
from fastgan.errors import UserError
from fastgan.runs.log import FILE_NAME as LOG_FILE_NAME
from fastgan.runs.networks import open_networks

Stamp = tuple[int, int, int]  # modification time, size and inode of a file: changes with its content


class Grid(NamedTuple):
    """A picture of samples, written by the training after `images` images."""

    images: int
    path: Path


class Run:
    """The current generator, log and pictures of a run.

    path, ema: as for `fastgan.runs.networks.open_networks`. A file of another program has no log and no pictures, and
    its `header` is None. Raises UserError, naming the file, if there are no networks.
    """

    def __init__(self, path: str | Path, device: torch.device, ema: float | None = None):
        self._device, self._ema = device, ema
        self._lock = threading.Lock()  # Gradio calls from many threads
        self._log: tuple[Stamp | None, list[dict[str, Any]]] = (None, [])
        self.damaged_lines = 0  # in the log
        self.path = open_networks(path).path
        self.folder = self.path.parent
        self.problem: str | None = None  # why the present checkpoint file cannot be shown
        self._read()

    @property
    def name(self) -> str:
        return self.folder.resolve().name if self.is_run else self.path.name

    @property
    def is_run(self) -> bool:
        """Whether the checkpoint is in a run's folder; not so for an example and for a file of another program."""
        return self.header is not None and self.folder != examples.FOLDER

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty for a network without classes."""
        return self.trained.class_names

    @property
    def header(self):
        """Header of a checkpoint of fastgan; None for a file of another program."""
        return self.trained.header

    def reread(self) -> bool:
        """Load the checkpoint again if its file has changed. Returns whether the generator is a new one.

        If that fails, for example because the folder is gone, the old generator stays, and `problem` says why.
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
            except Exception as error:  # damaged or half-written files raise many kinds; the page goes on
                self.problem = f"{self.path} cannot be read: {reason(error)}"
            return self.trained is not before

    def _read(self) -> None:
        """Read the checkpoint. The stamp is taken first, so that a file written meanwhile is read the next time."""
        self.stamp = _stamp(self.path)
        found = open_networks(self.path, self._ema)
        if hasattr(self, "trained") and found.model != self.trained.model:
            raise UserError(f"{self.path} holds another network now; restart the view to show it")
        self.generator = found.load(self._device)
        self.trained = found

    def log(self) -> list[dict[str, Any]]:
        """Lines of the log, each with "step", "images" and numbers by name. The same list while the file is unchanged.

        Damaged lines are skipped; `damaged_lines` counts them.
        """
        path = self.folder / LOG_FILE_NAME
        stamp = _stamp(path) if self.header else None
        if stamp != self._log[0]:
            try:
                lines = path.read_bytes().splitlines(keepends=True) if stamp else []
            except OSError:  # removed meanwhile
                stamp, lines = None, []
            lines = [line for line in lines if line.endswith(b"\n")]  # the last may be half written
            parsed = [line for line in map(_parsed, lines) if line is not None]
            self._log, self.damaged_lines = (stamp, parsed), len(lines) - len(parsed)
        return self._log[1]

    def grids(self) -> list[Grid]:
        """Pictures of samples, the oldest first."""
        pictures = self.folder.glob("grid-*.png") if self.header else []
        found = [(path.stem.removeprefix("grid-"), path) for path in pictures]
        return sorted(Grid(int(images), path) for images, path in found if images.isdecimal())


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Numbers of a line of the log; None if the line is damaged."""
    try:
        content = json.loads(line)
        found = {name: value for name, value in content.items() if type(value) in (int, float) and abs(value) < 2**63}
        return found if all(type(found[name]) is int and found[name] >= 0 for name in ("step", "images")) else None
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None


def _stamp(path: Path) -> Stamp | None:
    """Stamp of a file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:  # the folder may be gone, or replaced by a file
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
