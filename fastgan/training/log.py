"""Numbers of a run: averaged on the device between log intervals, written to log.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
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

    Values that are not finite are left out. What is counted is on the device, and added to in place: a captured graph
    does so at every replay.
    """

    def __init__(self):
        self._added: list[tuple[str, Tensor]] = []
        self._counted: dict[tuple[str, ...], Tensor] = {}  # names to fp64 [3, names]: sum, finite values, all values

    def add(self, **values: Tensor) -> None:
        """One more value of each of these 0-dim tensors."""
        self._added += [(name, value.detach()) for name, value in values.items()]

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """What is added within the block is counted at its end, unless it fails."""
        self._added.clear()
        try:
            yield
            self._count()
        finally:
            self._added.clear()

    def _count(self) -> None:
        if not self._added:
            return
        names, values = zip(*self._added, strict=True)
        self._added.clear()
        values = torch.stack([value.to(torch.float64) for value in values])
        finite = values.isfinite()
        counted = torch.stack([values.where(finite, 0.0), finite.to(values.dtype), torch.ones_like(values)])
        if names in self._counted:
            self._counted[names].add_(counted)
        else:
            self._counted[names] = counted

    def read(self) -> dict[str, float]:
        """The means, in one transfer from the device, and start anew. NaN where no value was finite."""
        self._count()
        if not self._counted:
            return {}
        sums, finite, seen = torch.cat(list(self._counted.values()), 1).tolist()
        torch._foreach_zero_(list(self._counted.values()))
        totals: dict[str, list[float]] = {}
        for name, *column in zip(itertools.chain(*self._counted), sums, finite, seen, strict=True):
            totals[name] = [a + b for a, b in zip(totals.get(name, (0.0, 0.0, 0.0)), column, strict=True)]
        return {name: total / count if count else math.nan for name, (total, count, all_) in totals.items() if all_}


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
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON knows no others
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


def require_progress(left_out: dict[str, int], limit: int, means: dict[str, float], images: int, saved: str) -> None:
    """Raise UserError if updates of a network have been left out in the last `limit` steps, or more.

    left_out: steps in a row whose gradients were not finite, by network. means: of what is logged; those that are not
    finite tell why. saved: where the last checkpoint is.
    """
    for network, steps in left_out.items():
        if steps >= limit:
            broken = ", ".join(name for name, value in means.items() if not math.isfinite(value))
            raise UserError(
                f"training has diverged: gradients of the {network} were not finite in {steps} steps in a row, up to "
                f"{images:,} images{f' (nor was {broken})' * bool(broken)}; these steps were left out, and {saved}; "
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
