"""Reading a run's log: its numbers by step, and the charts they belong to."""

from __future__ import annotations

import json
import math
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
    """Lines of a run's log, as `parse_line` gives them; damaged ones are skipped. Empty without a log."""
    return read_and_count(directory)[0]


def read_and_count(directory: Path) -> tuple[list[dict[str, Any]], int]:
    """Lines of a run's log, as `read` gives them, and the number of damaged ones. An unfinished last one is neither."""
    try:
        with open(directory / FILE_NAME, "rb") as file:
            lines = [parse_line(line) for line in file if line.endswith(b"\n")]
    except FileNotFoundError:
        return [], 0
    found = [line for line in lines if line is not None]
    return found, len(lines) - len(found)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Step, images, and the finite numbers of a line, by name; other values are left out. None if it is damaged."""
    try:
        content = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    found = {name: value for name, value in content.items() if _is_finite_number(value)}
    counts = (found.get("step"), found.get("images"))
    return found if all(isinstance(each, int) and each >= 0 for each in counts) else None


def _is_finite_number(value: Any) -> bool:
    """Integers are those of 64 bits: browsers and orjson read no larger ones."""
    return abs(value) < 2**63 if type(value) is int else isinstance(value, float) and math.isfinite(value)


def chart_of(name: str) -> str:
    """Chart of a logged value, by its name: one of `CHARTS`, or `METRICS`."""
    return _CHART_OF.get(name, METRICS)


def measured(run: Path) -> list[dict[str, Any]]:
    """Results of `--metrics` in a run's log: {"step": int, "images": int, "kid": float, ...} for each evaluated
    checkpoint, ordered by step."""
    values = {value for metric in registry.METRICS.values() for value in metric.values}
    return sorted((line for line in read(run) if values & line.keys()), key=lambda line: line["step"])
