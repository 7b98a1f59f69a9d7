"""A training on the page: its state in one line, its curves, and its pictures of samples."""

from __future__ import annotations

import html
from datetime import datetime

import gradio as gr
import pandas as pd

from fastgan.runs.config import flag
from fastgan.view import rendering
from fastgan.view.watching import Run

# Names of charts and curves on the page.
TITLES = {
    "losses": "Losses",
    "logits": "Logits of the discriminator",
    "signs of logits": "Mean sign of logits",
    "diversity": "Distance between two images",
    "penalties": "Penalties, unweighted",
    "augmentation": "Augmentation: probability p",
    "resolution": "Resolution",
    "fading in": "Fading in: alpha",
    "speed": "Images per second",
    "time": "Minutes",
    "memory": "Peak memory, GiB",
    "skipped steps": "Skipped steps",
}
SERIES = {
    "loss_g": "generator", "loss_d": "discriminator", "logit_real": "real", "logit_fake": "generated",
    "sign_real": "real", "sign_fake": "generated", "distance_real": "real", "distance_fake": "generated",
    "r1_norm2": "R1", "r2_norm2": "R2", "gradient_penalty": "WGAN-GP", "path_penalty": "path length",
    "skipped_g": "generator", "skipped_d": "discriminator",
}  # fmt: skip
INDIGO, AMBER, GREEN, RED = "#6366f1", "#f59e0b", "#10b981", "#ef4444"
COLORS = {"generator": INDIGO, "generated": INDIGO, "discriminator": AMBER, "real": GREEN}
OTHER_COLORS = [INDIGO, AMBER, GREEN, RED]


def head(run: Run) -> str:
    """The head of the page: what the network is, how far its training, and what is wrong."""
    header, log = run.header, run.log()
    model = run.trained.model
    side = header.stage[0] if header and header.stage else model.resolution
    facts, progress = [model.arch, f"{side}×{side}"], ""
    if header:
        options = header.config.training
        done = max([header.images, *(line["images"] for line in log[-1:])])
        share = done / options.images if options.images else 0.0
        if options.minutes:
            minutes = max([header.seconds / 60, *(line.get("minutes", 0.0) for line in log[-1:])])
            share = minutes / options.minutes
            facts.append(f"{done:,} images, {minutes:.1f} of {options.minutes:g} minutes")
        else:
            facts.append(f"{done:,} of {options.images:,} images")
        facts += [f"{line['images_per_second']:.3g} images/s" for line in log[-1:] if "images_per_second" in line]
        saved = datetime.fromtimestamp(run.stamp[0] / 1e9) if run.stamp else None
        facts += [f"generator saved at {saved:%H:%M:%S}, after {header.images:,}"] if saved else []
        progress = rendering.progress_bar(share)
    else:
        facts.append("file of another program")
    problems = [each for each in (run.problem, run.directions_problem) if each]
    problems += [f"Warning: {warning}" for warning in run.warnings()]
    if run.damaged_lines:
        problems.append(f"{run.damaged_lines:,} damaged lines of the log are skipped")
    problem = "".join(f'<span class="problem">{html.escape(each)}</span>' for each in problems)
    return (
        f'<div class="run-head"><h1>{html.escape(run.name)}</h1>'
        f'<span class="facts">{" · ".join(facts)}</span>{problem}</div>{progress}'
    )


def curves(run: Run, places: int) -> list[gr.HTML | gr.LinePlot]:
    """A note, if there are no curves yet, and plots for `places`."""
    charts = rendering.charts(run.log())
    note = "" if charts else _none_yet(run, "numbers", "come", "log_interval")
    plots = [_plot(title, chart) for title, chart in charts.items()][:places]
    return [gr.HTML(note, visible=bool(note)), *plots, *[gr.LinePlot(visible=False)] * (places - len(plots))]


def history(run: Run, moment: int) -> str:
    """The picture of samples number `moment`, counted from 1. Raises UserError if it is damaged."""
    grids = run.grids()
    if not grids:
        return _none_yet(run, "pictures", "comes", "grid_interval")
    images, path = grids[max(0, min(int(moment), len(grids)) - 1)]
    return rendering.grid(path, images)


def _none_yet(run: Run, what: str, come: str, name: str) -> str:
    """Why there are no numbers or pictures, and after how many images the first come, by option `name`."""
    header = run.header
    if header is None:
        return f"No {what}: this file holds networks only, without a training run."
    return f"No {what} yet: the first {come} after {getattr(header.config.output, name):,} images ({flag(name)})."


def _plot(title: str, chart: dict[str, list[tuple[float, float]]]) -> gr.LinePlot:
    names = [SERIES.get(name, name) for name in chart]
    rows = [(*point, name) for name, points in zip(names, chart.values(), strict=True) for point in points]
    colors = {name: COLORS.get(name, other) for name, other in zip(names, OTHER_COLORS, strict=False)}
    return gr.LinePlot(
        pd.DataFrame(rows, columns=["images", "value", "name"]), title=TITLES.get(title, title), visible=True,
        color="name", color_title=" ", color_map=colors, colors_in_legend=None if len(names) > 1 else [],
    )  # fmt: skip
