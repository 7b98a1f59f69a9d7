"""Writing a run's log: log.jsonl, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastgan.errors import UserError
from fastgan.files import write_atomically
from fastgan.runs.config import Config, to_dict
from fastgan.runs.log import FILE_NAME, chart_of

TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER, WANDB_ID_FILE_NAME = "wandb", "wandb-id.txt"
LARGEST_PICTURE = 2048  # pixels of a side in TensorBoard, which keeps all pictures in one file


class LogWriter:
    """Writes one line of JSON a call, and the same numbers to TensorBoard and Weights & Biases, as `config` says.

    The axis of TensorBoard and Weights & Biases is the number of images shown, as on the page. Opened at step `step`
    > 0 of a resumed run, after so many images, it first drops what a killed process wrote after that step. Left by an
    exception, it says so to Weights & Biases. Raises UserError where that is asked for and cannot be had.
    """

    def __init__(self, directory: Path, step: int, images: int, config: Config):
        options = config.output
        self.path = directory / FILE_NAME
        self._wandb = None if options.wandb is None else _WeightsAndBiases(directory, options.wandb, config)
        if self.path.exists():
            self._truncate(step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._tensorboard = None
        if options.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                print("TensorBoard is not installed: logging to log.jsonl only (pip install tensorboard)")
            else:
                self._tensorboard = SummaryWriter(str(directory / TENSORBOARD_FOLDER), purge_step=images + 1)

    def write(self, step: int, images: int, values: dict[str, float]) -> dict[str, float]:
        """Append the numbers of `step`; returns the line. Raises UserError, naming the file, if that fails."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON knows no others
        line = {"step": step, "images": images} | {name: _short(value) for name, value in values.items()}
        tagged = {f"{chart_of(name)}/{name}": value for name, value in values.items()}
        with self._named():
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            if self._tensorboard is not None:
                for tag, value in tagged.items():
                    self._tensorboard.add_scalar(tag, value, images)
            if self._wandb is not None:
                self._wandb.write(images, tagged)
        return line

    def write_grid(self, step: int, images: int, path: Path) -> None:
        """Show the picture of samples in the file `path`, which `step` has made."""
        if self._tensorboard is None and self._wandb is None:
            return
        with self._named(), Image.open(path) as picture:
            if self._wandb is not None:
                self._wandb.write_grid(images, picture)
            if self._tensorboard is not None:
                picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
                self._tensorboard.add_image("samples", np.asarray(picture), images, dataformats="HWC")

    def sync(self) -> None:
        """Flush to the disk: called before a checkpoint, which must never know more than the log does."""
        with self._named():
            os.fsync(self._file.fileno())

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        with self._named():
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
            if self._wandb is not None:
                self._wandb.close(failed=kind is not None)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """What the system refuses becomes one line that names the place."""
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write the logs in {self.path.parent}: {error.strerror or error}") from error

    def _truncate(self, step: int) -> None:
        content = self.path.read_bytes()
        kept = b"".join(line for line in content.splitlines(keepends=True) if _is_up_to(line, step))
        if kept != content:
            write_atomically(self.path, kept)


class _WeightsAndBiases:
    """One run there for one run here, also after it was stopped and resumed: its id stands in a file of the folder.

    Values are drawn over images shown, not over W&B's own count of steps, which cannot go back to a checkpoint.
    """

    def __init__(self, directory: Path, project: str, config: Config):
        self._module = require_wandb(project)
        known = directory / WANDB_ID_FILE_NAME
        if not known.exists():
            write_atomically(known, secrets.token_hex(4).encode())
        try:
            self._run = self._module.init(
                project=project,
                name=directory.name,
                id=known.read_text().strip(),
                resume="allow",
                dir=str(directory),
                config=to_dict(config),
            )
        except self._module.Error as error:  # no account, no network, no such project
            line = str(error).strip().partition("\n")[0]
            raise UserError(
                f"--wandb {project}: {line or type(error).__name__}; "
                "run `wandb login`, or set WANDB_MODE=offline, or leave the option out"
            ) from None
        self._run.define_metric("*", step_metric="images")

    def write(self, images: int, tagged: dict[str, Any]) -> None:
        self._run.log({"images": images} | tagged)

    def write_grid(self, images: int, picture: Image.Image) -> None:
        self.write(images, {"samples": self._module.Image(picture)})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def require_wandb(project: str):
    """The package of Weights & Biases. Raises UserError, naming the option and the remedy, if there is none."""
    try:
        import wandb
        from wandb import init  # noqa: F401  a folder of that name, which W&B leaves behind, can be imported as well
    except ImportError:
        raise UserError(
            f'--wandb {project}: Weights & Biases is not installed: pip install ".[wandb]", or leave the option out'
        ) from None
    return wandb


def remove_logs(directory: Path, but: Collection[str] = ()) -> None:
    """Remove all that a `LogWriter` has written in a run's folder, but what has one of these names."""
    for name in {FILE_NAME, WANDB_ID_FILE_NAME}.difference(but):
        (directory / name).unlink(missing_ok=True)
    for name in {TENSORBOARD_FOLDER, WANDB_FOLDER}.difference(but):
        shutil.rmtree(directory / name, ignore_errors=True)


class NoLog:
    """The log of a process that is not the first one: there is one file."""

    def write(self, step: int, images: int, values: dict[str, float]) -> dict[str, float]:
        return {}

    def write_grid(self, step: int, images: int, path: Path) -> None: ...

    def sync(self) -> None: ...

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_) -> None: ...


def _is_up_to(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):  # cut off in the middle of a write
        return False


def _short(value: float) -> float:
    return float(f"{value:.6g}")
