"""Numbers of a run: averaged on the device between log intervals, written to log.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.training.files import write_atomically

FILE_NAME = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Averages:
    """Means of scalars over the steps since the last `read`. Adding never waits for the device.

    Sums are on the device, and added to in place: a captured graph does so at every replay. How often is counted here.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, **values: Tensor) -> None:
        """Count in one more value of each of these scalars."""
        for name, value in values.items():
            value = value.detach()
            if name in self._sums:
                self._sums[name].add_(value)
            else:
                self._sums[name] = value.clone()
            self._counts[name] += 1

    @contextlib.contextmanager
    def counted_apart(self) -> Iterator[Counter[str]]:
        """What is added within the block goes into the sums only. Gives how often it was, for `count`."""
        before, self._counts = self._counts, Counter()
        try:
            yield self._counts
        finally:
            self._counts = before

    def count(self, times: Counter[str]) -> None:
        """So often have values been added to the sums."""
        self._counts.update(times)

    def read(self) -> dict[str, float]:
        """The means, in one transfer from the device, and start anew."""
        names = [name for name in self._sums if self._counts[name]]
        if not names:
            return {}
        sums = torch.stack([self._sums[name] for name in names]).tolist()
        means = {name: total / self._counts[name] for name, total in zip(names, sums, strict=True)}
        torch._foreach_zero_(list(self._sums.values()))
        self._counts.clear()
        return means


class Log:
    """Writes one line of JSON a call, and the same numbers to TensorBoard.

    Opened at step `step` > 0 of a resumed run, it first drops what a killed process wrote after that step.
    """

    def __init__(self, directory: Path, step: int, tensorboard: bool):
        self.path = directory / FILE_NAME
        if self.path.exists():
            self._truncate(step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._tensorboard = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                print("TensorBoard is not installed: logging to log.jsonl only (pip install tensorboard)")
            else:
                self._tensorboard = SummaryWriter(str(directory / TENSORBOARD_FOLDER), purge_step=step + 1)

    def write(self, step: int, images: int, values: dict[str, float]) -> None:
        """Append the numbers of `step`. Raises UserError, naming the file, if it cannot be written."""
        line = {"step": step, "images": images} | {name: _short(value) for name, value in values.items()}
        with self._named():
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            if self._tensorboard is not None:
                for name, value in values.items():
                    self._tensorboard.add_scalar(name, value, step)

    def sync(self) -> None:
        """Flush to the disk: called before a checkpoint, which must never know more than the log does."""
        with self._named():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with self._named():
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()

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


class NoLog:
    """The log of a process that is not the first one: there is one file."""

    def write(self, step: int, images: int, values: dict[str, float]) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def require_finite(means: dict[str, float], images: int, saved: str) -> None:
    """Raise UserError if a mean is NaN or infinite. `saved` says where the last checkpoint is."""
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"training has diverged: {broken[0]} is {means[broken[0]]} after {images:,} images; {saved}; "
            "try a lower --lr-g and --lr-d or a higher --r1-gamma"
        )


def require_finite_weights(generator: nn.Module, critic: nn.Module, saved: str) -> None:
    """Raise UserError if a weight is NaN or infinite: such a state must not take the place of a good one."""
    for name, network in (("generator", generator), ("critic", critic)):
        norms = torch.stack(torch._foreach_norm(list(network.parameters())))
        if not norms.isfinite().all():
            raise UserError(
                f"training has diverged: weights of the {name} are not finite; {saved}; "
                "try a lower --lr-g and --lr-d or a higher --r1-gamma"
            )


def _is_up_to(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):  # cut off in the middle of a write
        return False


def _short(value: float) -> float:
    return float(f"{value:.6g}")
