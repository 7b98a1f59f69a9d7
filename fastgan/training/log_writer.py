"""Writing a run's log: log.jsonl, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastgan.errors import UserError
from fastgan.files import sync, write_atomically
from fastgan.runs.config import Config, to_dict
from fastgan.runs.log import FILE_NAME, chart_of, parse_line

TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER, WANDB_ID_FILE_NAME = "wandb", "wandb-id.txt"
LARGEST_PICTURE = 2048  # pixels of a side in TensorBoard, which keeps all pictures in one file


class LogWriter:
    """Writes values to log.jsonl, one line a call, and to TensorBoard and Weights & Biases if `config` asks for them.

    TensorBoard and Weights & Biases have the number of images shown as their x axis. For a resumed run, lines after
    `step`, which a killed process wrote, are dropped first. An exception within the `with` block marks the run as
    failed in Weights & Biases. Raises UserError if Weights & Biases is asked for but not available.
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
        """Append the values of `step`, finite ones only; returns the line. Raises UserError if it cannot be written."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        line = {"step": step, "images": images} | {name: _short(value) for name, value in values.items()}
        tagged = {f"{chart_of(name)}/{name}": value for name, value in values.items()}
        with self._naming_folder():
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            if self._tensorboard is not None:
                for tag, value in tagged.items():
                    self._tensorboard.add_scalar(tag, value, images)
            if self._wandb is not None:
                self._wandb.write(images, tagged)
        return line

    def write_grid(self, step: int, images: int, path: Path) -> None:
        """Log the picture of samples in the file `path`."""
        if self._tensorboard is None and self._wandb is None:
            return
        with self._naming_folder(), Image.open(path) as picture:
            if self._wandb is not None:
                self._wandb.write_grid(images, picture)
            if self._tensorboard is not None:
                picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
                self._tensorboard.add_image("samples", np.asarray(picture), images, dataformats="HWC")

    def sync(self) -> None:
        """Flush to the disk. Called before each checkpoint, which must not be ahead of the log."""
        with self._naming_folder():
            sync(self._file)

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        with self._naming_folder():
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
            if self._wandb is not None:
                self._wandb.close(failed=kind is not None)

    @contextlib.contextmanager
    def _naming_folder(self) -> Iterator[None]:
        """Turn an OSError into a UserError that names the folder."""
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
    """A Weights & Biases run for this run. Its id is kept in a file of the folder, so a resumed run continues it.

    Values have images shown as x axis, not W&B's step count, which cannot go back to a checkpoint.
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
    """Import `wandb`. Raises UserError, naming the option and the remedy, if it is not installed."""
    try:
        import wandb
        from wandb import init  # noqa: F401  W&B leaves folders called wandb, which can be imported too
    except ImportError:
        raise UserError(
            f'--wandb {project}: Weights & Biases is not installed: pip install ".[wandb]", or leave the option out'
        ) from None
    return wandb


def remove_logs(directory: Path, but: Collection[str] = ()) -> None:
    """Remove everything that a `LogWriter` has written in a run's folder, except files and folders named in `but`."""
    for name in {FILE_NAME, WANDB_ID_FILE_NAME}.difference(but):
        (directory / name).unlink(missing_ok=True)
    for name in {TENSORBOARD_FOLDER, WANDB_FOLDER}.difference(but):
        shutil.rmtree(directory / name, ignore_errors=True)


class NoLog:
    """Log of all processes but the first, which writes for all."""

    def write(self, step: int, images: int, values: dict[str, float]) -> dict[str, float]:
        return {}

    def write_grid(self, step: int, images: int, path: Path) -> None: ...

    def sync(self) -> None: ...

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_) -> None: ...


def _is_up_to(line: bytes, step: int) -> bool:
    found = parse_line(line)  # None if it was cut off in the middle of a write
    return found is not None and found["step"] <= step


def _short(value: float) -> float:
    return float(f"{value:.6g}")
