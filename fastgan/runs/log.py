"""Reading a run's log: its numbers by step, and the charts they belong to."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from fastgan.metrics import registry

FILE_NAME = "log.jsonl"

# Values that share a chart, most important first. Everything else that is logged is a metric of the samples.
CHARTS = {
    "losses": ("loss_g", "loss_d", "reconstruction"),
    "logits": ("logit_real", "logit_fake"),
    "signs of logits": ("sign_real", "sign_fake"),
    "diversity": ("distance_real", "distance_fake"),
    "penalties": ("r1_norm2", "r2_norm2", "gradient_penalty", "path_penalty"),
    "augmentation": ("augment_p",),
    "resolution": ("resolution",),
    "fading in": ("alpha",),
    "speed": ("images_per_second",),
    "time": ("minutes",),
    "memory": ("peak_memory_gib",),
    "skipped steps": ("skipped_g", "skipped_d"),
}
METRICS = "metrics"
_CHART_OF = {name: chart for chart, names in CHARTS.items() for name in names}


def read(directory: Path) -> list[dict[str, Any]]:
    """Lines of a run's log; empty without a log. An unfinished last line is skipped."""
    with contextlib.suppress(FileNotFoundError), open(directory / FILE_NAME, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]
    return []


def chart_of(name: str) -> str:
    """Chart of a logged value, by its name: one of `CHARTS`, or `METRICS`."""
    return _CHART_OF.get(name, METRICS)


def measured(run: Path) -> list[dict[str, Any]]:
    """Results of `--metrics` in a run's log: {"step": int, "images": int, "kid": float, ...} for each evaluated
    checkpoint, ordered by step."""
    values = {value for metric in registry.METRICS.values() for value in metric.values}
    return sorted((line for line in read(run) if values & line.keys()), key=lambda line: line["step"])
