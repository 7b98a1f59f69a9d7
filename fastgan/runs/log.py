"""Reading a run's log: its numbers by step, and the charts they belong to."""

from __future__ import annotations

import contextlib
import json
import sys
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
    """Lines of a run's log: step, images, and finite numbers by name. Empty without a log.

    Skips what is no such line: an unfinished last one, or what something else has written.
    """
    with contextlib.suppress(FileNotFoundError), open(directory / FILE_NAME, "rb") as file:
        return [content for line in file if (content := _parse(line)) is not None]
    return []


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not all(_is_finite(value) for value in content.values()):
        return None
    counts = (content.get("step"), content.get("images"))
    return content if all(isinstance(each, int) and each >= 0 for each in counts) else None


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def chart_of(name: str) -> str:
    """Chart of a logged value, by its name: one of `CHARTS`, or `METRICS`."""
    return _CHART_OF.get(name, METRICS)


def measured(run: Path) -> list[dict[str, Any]]:
    """Results of `--metrics` in a run's log: {"step": int, "images": int, "kid": float, ...} for each evaluated
    checkpoint, ordered by step."""
    values = {value for metric in registry.METRICS.values() for value in metric.values}
    return sorted((line for line in read(run) if values & line.keys()), key=lambda line: line["step"])
