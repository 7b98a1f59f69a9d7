"""Runs' folders, read again and again while trainings write to them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastgan import editing, examples
from fastgan.data.images import reason
from fastgan.data.urls import has_scheme
from fastgan.editing import Direction
from fastgan.errors import UserError
from fastgan.models.style_based import StyleBasedGenerator
from fastgan.runs import checkpoint, log
from fastgan.runs.health import Watch
from fastgan.runs.networks import open_networks

MAX_OPEN = 4  # runs in memory
DEPTH = 3  # of folders that runs are looked for in

Stamp = tuple[int, int, int]  # modification time, size and inode of a file: changes with its content


class Grid(NamedTuple):
    """A picture of samples, written by the training after `images` images."""

    images: int
    path: Path


class Run:
    """The current generator, log and pictures of a run.

    path, ema: as for `fastgan.runs.networks.open_networks`. A file of another program has no log and no pictures, and
    its `header` is None. Raises UserError, naming the file, if there are no networks.

    directions: file of `fastgan.editing`; None for the one beside the checkpoint, if there is one.

    Attributes:
        directions: those that the generator can be edited with.
        problem: why the present checkpoint file cannot be shown; else None. `directions_problem`: that file's.
    """

    def __init__(
        self, path: str | Path, device: torch.device, ema: float | None = None, directions: Path | None = None
    ):
        self._device, self._ema = device, ema
        self._lock = threading.Lock()  # Gradio calls from many threads
        self._log: tuple[Stamp | None, list[dict[str, Any]]] = (None, [])
        self._watched: tuple[list[dict[str, Any]], list[str]] = ([], [])  # the last log, and its warnings
        self._directions_file = directions
        self._directions_stamp: Stamp | str | None = ""  # "": not read yet
        self.directions: list[Direction] = []
        self.directions_problem: str | None = None
        self.damaged_lines = 0  # in the log
        self.path = open_networks(path).path
        self.folder = self.path.parent
        self.problem: str | None = None
        self._read()
        self._read_directions()

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

    def label_of(self, class_name: str | None) -> int | None:
        """Number of a class, the first one if there is none of this name; None for a network without classes."""
        if not self.classes:
            return None
        return self.classes.index(class_name) if class_name in self.classes else 0

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
                self._read_directions()
                return False
            before = self.trained
            try:
                self._read()
                self.problem = None
                self._directions_stamp = ""
                self._read_directions()
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

    def _read_directions(self) -> None:
        """Read the file of directions if it has changed. Those of another network are a problem, which is reported."""
        if self._directions_file is None and not isinstance(self.generator, StyleBasedGenerator):
            return
        path = self._directions_file or self.folder / editing.FILE_NAME
        stamp = _stamp(path)
        if stamp == self._directions_stamp:
            return
        self._directions_stamp, self.directions, self.directions_problem = stamp, [], None
        try:
            found = editing.load(path) if stamp else []
            editing.style_offset(editing.require_styles(self.generator), found, {each.name: 0.0 for each in found})
            self.directions = found
        except (UserError, ValueError) as error:
            self.directions_problem = f"{path}: {error}" if isinstance(error, ValueError) else str(error)

    def find_directions(self) -> None:
        """Find directions by factorization, if the generator has styles and there are none."""
        with self._lock:
            if isinstance(self.generator, StyleBasedGenerator) and not self.directions:
                self.directions = editing.factorized(self.generator)

    def warnings(self) -> list[str]:
        """Warnings on the training from its log."""
        lines = self.log()
        if lines is not self._watched[0]:
            header = self.header
            self._watched = lines, Watch(header.config, header.dataset).read_all(lines).warnings if header else []
        return self._watched[1]

    def log(self) -> list[dict[str, Any]]:
        """Lines of the log, as `fastgan.runs.log.read` gives them. The same list while the file is unchanged.

        `damaged_lines` counts those that are skipped.
        """
        stamp = _stamp(self.folder / log.FILE_NAME) if self.header else None
        if stamp != self._log[0]:
            try:
                lines, self.damaged_lines = log.read_and_count(self.folder) if stamp else ([], 0)
            except OSError:  # it cannot be read, or the folder was replaced meanwhile
                stamp, lines, self.damaged_lines = None, [], 0
            self._log = stamp, lines
        return self._log[1]

    def grids(self) -> list[Grid]:
        """Pictures of samples, the oldest first."""
        pictures = self.folder.glob("grid-*.png") if self.header else []
        found = [(path.stem.removeprefix("grid-"), path) for path in pictures]
        return sorted(Grid(int(images), path) for images, path in found if images.isdecimal())


class Runs:
    """Runs by name, opened when they are shown. At most MAX_OPEN are kept open.

    Args:
        sources: each a run, as `Run` takes it, or a folder of runs, at any depth up to DEPTH.
        device, ema, directions: of all runs, as for `Run`.

    Raises UserError if there is no run in a source, or if the first one shown cannot be opened.

    Attributes:
        names: of all runs.
        first: the one that was saved last.
    """

    def __init__(
        self,
        sources: Sequence[str],
        device: torch.device,
        ema: float | None = None,
        directions: Path | None = None,
    ):
        self._sources, self._options = list(sources), {"device": device, "ema": ema, "directions": directions}
        self._lock = threading.Lock()
        self._loading: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # one a run: loading takes long
        self._open: OrderedDict[str, Run] = OrderedDict()
        self._paths: dict[str, str | Path] = {}
        self.find()
        self.first = max(self.names, key=lambda name: _stamp(_file(self._paths[name])) or (0, 0, 0))
        self[self.first]

    @property
    def names(self) -> list[str]:
        return list(self._paths)

    def __getitem__(self, name: str) -> Run:
        """Raises UserError if there is no such run, or it cannot be opened."""
        if name not in self._paths:
            raise UserError(f"there is no run {name}")
        with self._lock:
            loading = self._loading[name]
        with loading:
            run = self._open.get(name) or Run(self._paths[name], **self._options)
            with self._lock:
                self._open[name] = run
                self._open.move_to_end(name)
                while len(self._open) > MAX_OPEN:
                    self._open.popitem(last=False)
        return run

    def find(self) -> None:
        """Look for runs; new ones are added."""
        for source in self._sources:
            found = {} if has_scheme(source) or examples.is_example(source) else _runs_below(Path(source))
            if not found:
                found = {_short(source): source}
            elif len(self._sources) > 1:
                found = {f"{_short(source)}/{name}": path for name, path in found.items()}
            with self._lock:
                for name, path in found.items():
                    if str(path) not in map(str, self._paths.values()):
                        self._paths[name if name not in self._paths else str(path)] = path


def _runs_below(folder: Path) -> dict[str, str | Path]:
    """Runs' folders by their names within `folder`; none if it is a run itself."""
    found: dict[str, str | Path] = {}
    for where in _folders(folder, DEPTH):
        if where != folder and (where / checkpoint.FILE_NAME).is_file():
            found[where.relative_to(folder).as_posix()] = where
    return found


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """`folder` and the folders below it; not those within runs, links and hidden ones."""
    yield folder
    if depth == 0 or (folder / checkpoint.FILE_NAME).exists():
        return
    try:
        below = sorted(each.name for each in os.scandir(folder) if each.is_dir(follow_symlinks=False))
    except OSError:  # no folder, or it cannot be read
        return
    for name in below:
        if not name.startswith("."):
            yield from _folders(folder / name, depth - 1)


def _short(source: str) -> str:
    """Name of a source."""
    return source if has_scheme(source) or examples.is_example(source) else Path(source).resolve().name


def _file(path: str | Path) -> Path:
    return Path(path) / checkpoint.FILE_NAME if Path(path).is_dir() else Path(path)


def _stamp(path: Path) -> Stamp | None:
    """Stamp of a file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:  # the folder may be gone, or replaced by a file
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
