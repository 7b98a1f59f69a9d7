"""Metrics of a run's checkpoints, taken while it trains on: `--metrics` of `python -m fastgan.train`.

Each is taken by a process of its own, `python -m fastgan.evaluate` on the file that was just saved, at low priority. So
a number in the log belongs to a file, what the training computes stays what it is without metrics, to the last bit, and
an evaluation that fails or runs out of memory takes nothing with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastgan.distributed import ENVIRONMENT
from fastgan.files import TEMPORARY_SUFFIX, link
from fastgan.metrics import registry
from fastgan.progress import ProgressBar
from fastgan.runs import precision
from fastgan.runs.checkpoint import BEST_FILE_NAME, State
from fastgan.runs.config import Config
from fastgan.runs.log import measured
from fastgan.runs.process import Interrupt
from fastgan.training.log_writer import LogWriter

SNAPSHOT_NAME = f"evaluated.safetensors{TEMPORARY_SUFFIX}"  # one left by a killed run goes when it is resumed

# A signal to the run reached the evaluation as well.
_ASKED_TO_END = (130, -signal.SIGINT, -signal.SIGTERM)


class BackgroundEvaluation:
    """Evaluates one checkpoint at a time in the background; does nothing in a run without `--metrics`.

    Raises UserError for metrics that there are not, or whose packages or weights are missing.
    """

    def __init__(self, config: Config):
        self._config = config
        self._process: subprocess.Popen | None = None
        self._of: tuple[int, int] | None = None  # step and images of the checkpoint that is being evaluated
        self._snapshot: Path | None = None
        self._folder: tempfile.TemporaryDirectory | None = None  # of what the process says and finds
        if config.output.metrics:
            registry.require(registry.parse(config.output.metrics), config.output.inception_weights)

    def start(self, checkpoint: Path, state: State) -> None:
        """Begin to evaluate the file that was just saved of this state. If the last one is not done, only say so."""
        if self._process is not None:
            return self._say(f"not taken after {state.images:,} images: those of {self._of[1]:,} are not ready yet")
        self._of, self._snapshot = (state.step, state.images), checkpoint.with_name(SNAPSHOT_NAME)
        try:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="fastgan-metrics-")
            link(checkpoint, self._snapshot)
            with open(self._said, "wb") as said:
                self._process = subprocess.Popen(
                    command(self._config, self._snapshot, self._found),
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    creationflags=getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),
                )
            if hasattr(os, "setpriority"):
                with contextlib.suppress(OSError):  # it has ended already
                    os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)
        except OSError as error:
            self._say(f"not taken after {state.images:,} images: {error}")
            self._forget()

    def collect(self, log: LogWriter) -> None:
        """If an evaluation has ended since the last call, write what it found to the log, with the step it is of.

        If it failed, say why in one line.
        """
        if self._process is None or self._process.poll() is None:
            return
        step, images = self._of
        try:
            if self._process.returncode in _ASKED_TO_END:
                return
            if self._process.returncode:
                self._say(f"not taken after {images:,} images: {self._last_words()}; the training goes on without")
                return
            found = json.loads(self._found.read_text(encoding="utf-8"))["samples"]
            values = {name: value for name, value in found.items() if name != "images"}
            if self._is_best(values):
                self._keep_as_best(images)
        finally:
            self._forget()
        log.write(step, images, values)
        self._say(f"after {images:,} images: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def _keep_as_best(self, images: int) -> None:
        try:
            self._snapshot.replace(self._snapshot.with_name(BEST_FILE_NAME))
        except OSError as error:
            self._say(f"the checkpoint of {images:,} images is the best so far, but cannot be kept: {error.strerror}")

    def _is_best(self, values: dict[str, float]) -> bool:
        """By the first value of the first metric, among all that the log has of the run."""
        metric = registry.METRICS[registry.parse(self._config.output.metrics)[0]]
        name, run = metric.values[0], self._snapshot.parent
        before = [line[name] for line in measured(run) if name in line]
        if not before or not (run / BEST_FILE_NAME).exists():
            return True
        return values[name] > max(before) if metric.higher else values[name] < min(before)

    def finish(self, checkpoint: Path, state: State, log: LogWriter, interrupt: Interrupt) -> None:
        """Evaluate the last checkpoint, of this state, and wait for it; on Ctrl-C, do without."""
        if not self._config.output.metrics:
            return
        self._wait(log, interrupt)
        if not interrupt:
            self.start(checkpoint, state)
            self._wait(log, interrupt)
        if interrupt:
            names = self._config.output.metrics
            self._say(f"none of the last checkpoint: python -m fastgan.evaluate --metrics {names} takes them")

    def close(self) -> None:
        """End what is being evaluated, and leave nothing behind."""
        self._forget()
        if self._folder is not None:
            self._folder.cleanup()

    def _wait(self, log: LogWriter, interrupt: Interrupt) -> None:
        while self._process is not None and not interrupt:
            self.collect(log)
            time.sleep(0.05)

    def _forget(self) -> None:
        if self._process is not None:
            self._process.kill()  # does nothing to one that has ended
            self._process.wait()
        if self._snapshot is not None:
            self._snapshot.unlink(missing_ok=True)
        self._process = self._snapshot = None

    @property
    def _found(self) -> Path:
        return Path(self._folder.name) / "found.json"

    @property
    def _said(self) -> Path:
        return Path(self._folder.name) / "said.txt"

    def _last_words(self) -> str:
        lines = self._said.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1].removeprefix("error: ") if said else f"it ended with status {self._process.returncode}"

    def _environment(self) -> dict[str, str]:
        """Of a process by itself, which imports what this one imports, is quiet, and leaves a training its CPU."""
        environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TQDM_DISABLE": "1"}
        if precision.choose_device(self._config.machine.device).type == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        return environment

    @staticmethod
    def _say(words: str) -> None:
        ProgressBar.write(f"metrics    {words}")


def command(config: Config, checkpoint: Path, found: Path) -> list[str]:
    """Of the process that evaluates a checkpoint."""
    output = config.output
    weights = [] if output.inception_weights is None else ["--inception-weights", output.inception_weights]
    return [
        *(sys.executable, "-m", "fastgan.evaluate", "--checkpoint", str(checkpoint), "--json", str(found)),
        *("--metrics", output.metrics, "--samples", str(output.metrics_samples), "--no-floor", *weights),
        *("--device", config.machine.device),
    ]
