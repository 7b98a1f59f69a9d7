"""Numbers and pictures of a run: averaged on the device between log intervals, written to log.jsonl, TensorBoard and
Weights & Biases."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.files import write_atomically
from fastgan.training.config import Config, to_dict

FILE_NAME = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER, WANDB_ID_FILE_NAME = "wandb", "wandb-id.txt"
LARGEST_PICTURE = 2048  # pixels of a side in TensorBoard, which keeps all of them in one file

# What belongs together, in the order to look at it. All else that is logged is a metric of the samples.
CHARTS = {
    "losses": ("loss_g", "loss_d"),
    "logits": ("logit_real", "logit_fake"),
    "signs of logits": ("sign_real", "sign_fake"),
    "diversity": ("distance_real", "distance_fake"),
    "penalties": ("r1_norm2", "r2_norm2", "gradient_penalty", "path_penalty"),
    "augmentation": ("augment_p",),
    "resolution": ("resolution",),
    "fading in": ("alpha",),
    "speed": ("images_per_second",),
    "memory": ("peak_memory_gib",),
    "steps left out": ("skipped_g", "skipped_d"),
}
METRICS = "metrics"
_CHART_OF = {name: chart for chart, names in CHARTS.items() for name in names}


def read(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; none where there is no log. A last line that is still being written is left out."""
    with contextlib.suppress(FileNotFoundError), open(directory / FILE_NAME, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]
    return []


def chart_of(name: str) -> str:
    """Which of `CHARTS` a number belongs to by its name, or `METRICS`."""
    return _CHART_OF.get(name, METRICS)


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

    def __enter__(self) -> Log:
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


def remove(directory: Path, but: Collection[str] = ()) -> None:
    """Remove all that a `Log` has written in a run's folder, but what has one of these names."""
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


def require_finite_weights(generator: nn.Module, discriminator: nn.Module, saved: str) -> None:
    """Raise UserError if a weight is NaN or infinite: such a state must not take the place of a good one."""
    for name, network in (("generator", generator), ("discriminator", discriminator)):
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
