"""`--metrics`: evaluates a run's checkpoints in the background, while it trains on.

Each evaluation is a process of low priority that runs the command `evaluate` on the checkpoint just saved. So every
number in the log belongs to a file, training stays bit-identical to training without metrics, and an evaluation that
fails or runs out of memory does not end it.
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
from typing import BinaryIO

from fastgan.data.images import parse_size
from fastgan.data.urls import has_scheme
from fastgan.distributed import ENVIRONMENT
from fastgan.errors import program
from fastgan.files import TEMPORARY_SUFFIX, copy
from fastgan.metrics import registry
from fastgan.progress import ProgressBar
from fastgan.runs import precision
from fastgan.runs.checkpoint import BEST_FILE_NAME, State
from fastgan.runs.config import Config
from fastgan.runs.log import measured
from fastgan.runs.process import ENDS_WITH_STDIN, Interrupt
from fastgan.training.log_writer import LogWriter

# In the run's folder, and removed on resume if a killed run left them.
SNAPSHOT_NAME = f"evaluated.safetensors{TEMPORARY_SUFFIX}"
RESULTS_NAME = f"evaluated.json{TEMPORARY_SUFFIX}"

# Exit status of an evaluation that got the signal meant for the run.
_SIGNALLED = (130, -signal.SIGINT, -signal.SIGTERM)


class BackgroundEvaluation:
    """Evaluates one checkpoint at a time; does nothing in a run without `--metrics`.

    Raises UserError for an unknown metric, or one whose packages or weights are missing.
    """

    def __init__(self, config: Config):
        self._config = config
        self._process: subprocess.Popen | None = None
        self._evaluated: tuple[int, int] | None = None  # step and images of the checkpoint under evaluation
        self._snapshot: Path | None = None
        self._output: BinaryIO | None = None  # a file without a name
        if config.output.metrics:
            weights = {registry.INCEPTION: config.output.inception_weights}
            registry.require_needed(self._metrics(), weights)
            registry.require(self._metrics(), weights)
            if any(registry.of_kind(self._metrics(), kind) for kind in registry.AMONG_SAMPLES):
                side = min(parse_size(config.data.resolution))
                registry.require_possible(self._metrics(), config.network.arch, side)

    def start(self, checkpoint: Path, state: State) -> None:
        """Start evaluating the checkpoint just saved of `state`. If an evaluation still runs, print that instead."""
        if self._process is not None:
            return self._print(
                f"not taken after {state.images:,} images: those of {self._evaluated[1]:,} are not ready yet"
            )
        self._evaluated, self._snapshot = (state.step, state.images), checkpoint.with_name(SNAPSHOT_NAME)
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115
            copy(checkpoint, self._snapshot)
            self._process = subprocess.Popen(
                command(self._config, self._snapshot, self._results),
                env=self._environment(),
                stdin=subprocess.PIPE,  # ends with this process, and so does the evaluation
                stdout=self._output,
                stderr=self._output,
                creationflags=getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),
            )
            if hasattr(os, "setpriority"):
                with contextlib.suppress(OSError):  # it has ended already
                    os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)
        except OSError as error:
            self._print(f"not taken after {state.images:,} images: {error}")
            self._stop()

    def collect(self, log: LogWriter) -> None:
        """If an evaluation has ended, log its results under the step of its checkpoint; if it failed, print why."""
        if self._process is None or self._process.poll() is None:
            return
        step, images = self._evaluated
        try:
            if self._process.returncode in _SIGNALLED:
                return
            if self._process.returncode:
                self._print(f"not taken after {images:,} images: {self._last_line()}; the training goes on without")
                return
            found = json.loads(self._results.read_text(encoding="utf-8"))["samples"]
            values = {name: value for name, value in found.items() if name != "images"}
            if self._is_best(values):
                self._keep_best(images)
        finally:
            self._stop()
        log.write(step, images, values)
        self._print(f"after {images:,} images: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def _keep_best(self, images: int) -> None:
        try:
            self._snapshot.replace(self._snapshot.with_name(BEST_FILE_NAME))
        except OSError as error:
            self._print(f"the checkpoint of {images:,} images is the best so far, but cannot be kept: {error.strerror}")

    def _is_best(self, values: dict[str, float]) -> bool:
        """Whether the first value of the first metric is the best in the log."""
        metric = registry.METRICS[self._metrics()[0]]
        run = self._snapshot.parent
        before = [line for line in measured(run) if metric.values[0] in line]
        return not (run / BEST_FILE_NAME).exists() or metric.is_better(values, before)

    def _metrics(self) -> tuple[str, ...]:
        return registry.judged(registry.parse(self._config.output.metrics), self._config.network.discriminator)

    def finish(self, checkpoint: Path, state: State, log: LogWriter, interrupt: Interrupt) -> None:
        """Evaluate the last checkpoint, of `state`, and wait for the result. Ctrl-C ends the waiting."""
        if not self._config.output.metrics:
            return
        self._wait(log, interrupt)
        if not interrupt:
            self.start(checkpoint, state)
            self._wait(log, interrupt)
        if interrupt:
            names = self._config.output.metrics
            self._print(f"none of the last checkpoint: {program('evaluate')} --metrics {names} takes them")

    def close(self) -> None:
        """Kill a running evaluation and remove its files."""
        self._stop()

    def _wait(self, log: LogWriter, interrupt: Interrupt) -> None:
        while self._process is not None and not interrupt:
            self.collect(log)
            time.sleep(0.05)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # does nothing to one that has ended
            self._process.wait()
            self._process.stdin.close()
        if self._output is not None:
            self._output.close()
        if self._snapshot is not None:
            for path in (self._snapshot, self._results):
                path.unlink(missing_ok=True)
        self._process = self._output = self._snapshot = None

    @property
    def _results(self) -> Path:
        return self._snapshot.with_name(RESULTS_NAME)

    def _last_line(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode("utf-8", "replace").split("\n")
        written = [line.strip() for line in lines if line.strip()]
        return written[-1].removeprefix("error: ") if written else f"it ended with status {self._process.returncode}"

    def _environment(self) -> dict[str, str]:
        """Environment of the evaluation: not distributed, same import path, no progress bar, one thread on a CPU."""
        environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TQDM_DISABLE": "1", ENDS_WITH_STDIN: "1"}
        if precision.choose_device(self._config.machine.device).type == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        return environment

    @staticmethod
    def _print(text: str) -> None:
        ProgressBar.write(f"metrics    {text}")


def command(config: Config, checkpoint: Path, results: Path) -> list[str]:
    """Command that evaluates a checkpoint and writes the results to `results`."""
    output = config.output
    weights = [] if output.inception_weights is None else ["--inception-weights", output.inception_weights]
    source = config.data.source  # for a URL, the command wants to be told
    return [
        *(sys.executable, "-m", __package__.partition(".")[0], "evaluate"),
        *("--checkpoint", str(checkpoint), "--json", str(results)),
        *("--metrics", output.metrics, "--samples", str(output.metrics_samples)),
        *("--no-floor", "--no-memorisation", *weights, *(["--data", source] if has_scheme(source) else [])),
        *("--device", config.machine.device),
    ]
