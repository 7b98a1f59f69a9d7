"""The page of `fastgan view`, made with Gradio.

Controls on the left, tabs on the right. A timer polls the run's folder; if something has changed there, the tab in view
is drawn again.
"""

from __future__ import annotations

import functools
import html
import math
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from gradio.components import Component

from fastgan import studies
from fastgan.errors import UserError
from fastgan.runs.config import flag
from fastgan.runs.health import Watch
from fastgan.runs.log import CHARTS
from fastgan.runs.memory import out_of_memory_is_user_error
from fastgan.studies import to_uint8
from fastgan.view import rendering
from fastgan.view.watching import Run

POLL_SECONDS = 2.0
LARGEST_SEED = 2**31 - 1
MORE_SEEDS = 12
MAX_CLASSES = 64
FRAMES, POSITIONS = 24, 9  # of an interpolation: in the animation, and in the row beside it
METRIC_CHARTS = 6  # most charts of metrics
IMAGES, MIXING, INTERPOLATION, TRAINING = "Images", "Style mixing", "Interpolation", "Training"
SEEDS, CLASSES = "more seeds", "every class"
# always_last: while a function is busy, only the latest call is kept.
QUIETLY = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
SPACES = {"slerp": "arc in z", "z": "line in z", "w": "line in w"}

CSS = """
html { scrollbar-gutter: stable; }
.gradio-container { width: 100%; max-width: 1500px !important; margin: 0 auto !important; }
.head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 20px; padding-top: 4px; }
.head h1 { font-size: 21px; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
.head .facts { color: var(--body-text-color-subdued); font-size: 14px; }
.head .problem { color: var(--error-text-color); flex-basis: 100%; }
.progress { height: 3px; border-radius: 2px; background: var(--border-color-primary); margin-top: 8px; }
.progress div { height: 100%; border-radius: 2px; background: var(--color-accent); }
#follow { align-self: center; border: none !important; background: none; box-shadow: none; padding: 0; }
#refresh { align-self: center; }
.three .sheet { max-width: 410px; }
figure { margin: 0; display: inline-block; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 3px; background: #8883; }
figure img.crisp { image-rendering: pixelated; }
figcaption { color: var(--body-text-color-subdued); font-size: 13px; padding: 6px 1px 0; }
.sheet { display: flex; flex-wrap: wrap; gap: 6px; align-content: flex-start; }
.sheet figcaption { font-size: 12px; padding-top: 1px; text-align: center; }
.sheet button { all: unset; display: block; cursor: pointer; border-radius: 3px; }
.sheet button:hover, .sheet button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 1px; }
.mixing { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; }
.mixing .sheet { flex-direction: column; }
footer { display: none !important; }
@media (max-width: 700px) {
    #top, #body, #views .row { flex-direction: column; align-items: stretch; }
    #views { order: -1; }
    #top > *, #body > *, #views .row > * { width: 100% !important; min-width: 0 !important; }
    #image figure, #between figure, #history figure, .mixing > figure { width: 100%; }
    #image img, #between img, #history img, .mixing > figure img { width: 100% !important; }
    .sheet figure { width: calc(33.3% - 4px); }
    .sheet button, .sheet img { width: 100% !important; }
    .three .sheet { max-width: none; }
}
"""
CHOOSE = """
element.addEventListener('click', event => {
    const button = event.target.closest('[data-choice]');
    if (button) trigger('select', {choice: Number(button.dataset.choice)});
});
"""

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


def theme() -> gr.themes.Base:
    """A plain theme with the browser's own fonts, so that no other server is contacted."""
    return gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="sm",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(block_title_text_weight="600", body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950")


class Page:
    """The page of a run, `blocks`, before it is served. It has the controls that the generator supports.

    The `draw_...` methods return HTML.
    """

    def __init__(self, run: Run):
        self.run = run
        self._watched: tuple[list[dict[str, Any]], list[str]] = ([], [])  # the last log, and its warnings
        supports = run.generator.supports
        self.truncates, self.mixes, self.noisy = (x in supports for x in ("truncation", "style_mixing", "noise"))
        with gr.Blocks(title=f"{run.name} - fastgan", analytics_enabled=False, fill_width=True) as self.blocks:
            self._lay_out()
            self._connect()

    # Layout ---------------------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        with gr.Row(elem_id="top"):
            self.head = gr.HTML(self._head(), elem_id="head", scale=1, apply_default_css=False)
            with gr.Column(scale=0, min_width=200), gr.Row():
                self.follow = gr.Checkbox(True, label="Follow", elem_id="follow", container=False, min_width=80)
                self.refresh = gr.Button("Refresh", size="sm", elem_id="refresh", min_width=80)
        with gr.Row(elem_id="body"):
            with gr.Column(scale=0, min_width=240, elem_id="controls") as self.controls:
                self._lay_out_controls()
            with gr.Column(scale=1, elem_id="views"), gr.Tabs(elem_id="tabs") as self.tabs:
                self._lay_out_tabs()
        self.timer = gr.Timer(POLL_SECONDS)
        # State of a page: the tab in view, and the versions of checkpoint, log and pictures that it shows.
        self.tab, self.checkpoint, self.log = gr.State(IMAGES), gr.State(None), gr.State(None)
        self.grids, self.known = gr.State(0), gr.State(0)

    def _lay_out_controls(self) -> None:
        run = self.run
        with gr.Group():
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, elem_id="seed")
            self.random = gr.Button("Random seed", size="sm", elem_id="random")
        self.label, self.psi = gr.State(None), gr.State(1.0)
        if run.classes:
            choices = [(name, number) for number, name in enumerate(run.classes)]
            self.label = gr.Dropdown(choices, value=0, label="Class", elem_id="class")
        if self.truncates:
            self.psi = gr.Slider(
                -1, 1.5, 1, step=0.05, label="Truncation", info="psi; 0 gives the mean image", elem_id="psi"
            )
        with gr.Column(visible=False) as self.two:
            self.second = gr.Number(
                1, label="Second seed", precision=0, minimum=0, maximum=LARGEST_SEED, elem_id="second"
            )
        with gr.Column() as self.of_images:
            self.noise, self.sheet_shows = gr.State([]), gr.State(SEEDS)
            if self.noisy:
                sides = sorted(set(run.generator.noise_resolutions))
                self.noise = gr.CheckboxGroup(
                    _resolution_choices(sides), value=sides, label="Noise in layers", elem_id="noise"
                )
            if run.classes:
                self.sheet_shows = gr.Radio([SEEDS, CLASSES], value=SEEDS, label="Also show", elem_id="sheet-shows")
        with gr.Column(visible=False) as self.of_mixing:
            self.layers = gr.State([])
            if self.mixes:
                sides = [4 * 2**i for i in range(-(-run.generator.num_ws // 2))]
                self.layers = gr.CheckboxGroup(
                    [(self._layers_of(side), side) for side in sides],
                    value=sides[:2],
                    label="Layers from the second seed",
                    elem_id="layers",
                )
        with gr.Column(visible=False) as self.of_interpolation:
            spaces = [(text, name) for name, text in SPACES.items() if name != "w" or self.mixes]
            self.space = gr.Radio(spaces, value="slerp", label="Path", elem_id="space")
            self.position = gr.Slider(0, 1, 0.5, step=0.02, label="Position", elem_id="position")
            self.animate = gr.Checkbox(False, label="Animate", info="back and forth", elem_id="animate")

    def _lay_out_tabs(self) -> None:
        picture = functools.partial(gr.HTML, apply_default_css=False, js_on_load=CHOOSE)
        with gr.Tab(IMAGES), gr.Row():
            self.image = picture(elem_id="image", scale=0, min_width=rendering.LARGE + 16)
            self.sheet = picture(elem_id="sheet", scale=1, min_width=280)
        if self.mixes:
            with gr.Tab(MIXING):
                self.mixed = picture(elem_id="mixed")
        with gr.Tab(INTERPOLATION), gr.Row():
            self.between = picture(elem_id="between", scale=0, min_width=rendering.LARGE + 16)
            self.row = picture(elem_id="row", elem_classes="three", scale=1, min_width=280)
        with gr.Tab(TRAINING), gr.Row():
            with gr.Column(scale=4, min_width=400):
                self.moment = gr.Slider(1, 2, 1, step=1, label="History of samples", visible=False, elem_id="moment")
                self.history = picture(elem_id="history")
            with gr.Column(scale=6, min_width=400):
                self.note = gr.HTML(elem_id="note", apply_default_css=False, visible=False)
                with gr.Row():
                    self.plots = [
                        gr.LinePlot(
                            x="images",
                            y="value",
                            x_title=" ",
                            y_title=" ",
                            x_axis_format="~s",
                            height=210,
                            min_width=320,
                            visible=False,
                            elem_classes="curve",
                        )
                        for _ in range(len(CHARTS) + METRIC_CHARTS)
                    ]

    # Events ---------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        common = [self.seed, self.label, self.psi]
        two = [*common, self.second]
        large = {IMAGES: (self.draw_image, [*common, self.noise], self.image)}
        if self.mixes:
            large[MIXING] = self.draw_mixed, [*two, self.layers], self.mixed
        large[INTERPOLATION] = self.draw_between, [*two, self.space, self.position, self.animate], self.between
        small = {
            IMAGES: (self.draw_sheet, [*common, self.sheet_shows], self.sheet),
            INTERPOLATION: (self.draw_row, [*two, self.space], self.row),
        }
        # Gradio 6 repeats an event for all its listeners if one of them was busy: two listeners of one control would
        # trigger each other for ever. So only the first listens, and the second is chained to it by `then`.
        controls = dict.fromkeys(each for _, inputs, _ in (*large.values(), *small.values()) for each in inputs)
        for control in [*controls, self.moment]:
            _check_values(control)
        changes = [component.change for component in (self.tab, self.checkpoint, *controls)]
        gr.on(changes, *self._drawing(large), **QUIETLY).then(*self._drawing(small), **QUIETLY)

        self._on(self.random.click, lambda: random.randrange(10_000), None, self.seed)
        self._on(self.sheet.select, self._choose, self.sheet_shows, [self.seed, self.label])
        self._on(self.row.select, _chosen_position, None, [self.position, self.animate])
        self._on(self.position.input, lambda: False, None, self.animate)

        self._on([self.tab.change, self.log.change], self.draw_curves, self.tab, [self.note, *self.plots])
        self._on(self.grids.change, _extend_history, [self.moment, self.known, self.grids], [self.moment, self.known])
        moved = [self.tab.change, self.moment.change, self.grids.change]
        self._on(moved, self.draw_history, [self.tab, self.moment], self.history)

        groups = [self.controls, self.two, self.of_images, self.of_mixing, self.of_interpolation]
        self._on(self.tabs.select, _select, None, [self.tab, *groups])
        self._on(self.follow.change, lambda on: gr.Timer(active=on), self.follow, self.timer)
        shown = [self.head, self.checkpoint, self.log, self.grids]
        self._on([self.blocks.load, self.refresh.click, self.timer.tick], self._poll, shown, shown)

    def _drawing(self, views: dict[str, tuple[Callable[..., str], list[Component], gr.HTML]]):
        """A function that draws the tab in view, its inputs and its outputs.

        views: for each tab the function that draws it, its inputs and its output. An output that already shows these
        values and this generator is left as it is.
        """
        inputs = list(dict.fromkeys(each for _, own, _ in views.values() for each in own))
        last = gr.State(None)  # tab, checkpoint and values of the image in view

        def draw_in_view(before: Any, tab: str, checkpoint: str | None, *values: Any):
            if tab not in views:
                return gr.skip()
            draw, own, output = views[tab]
            value_of = dict(zip(inputs, values, strict=True))
            emptied = any(value_of[each] is None for each in own if isinstance(each, gr.Number))  # being typed
            now = [tab, checkpoint, *(value_of[each] for each in own)]
            return gr.skip() if emptied or now == before else {output: draw(*now[2:]), last: now}

        outputs = [output for _, _, output in views.values()]
        return _with_errors_shown(draw_in_view), [last, self.tab, self.checkpoint, *inputs], [*outputs, last]

    @staticmethod
    def _on(triggers: Any, function: Callable, inputs: Any, outputs: Any) -> None:
        triggers = triggers if isinstance(triggers, list) else [triggers]
        gr.on(triggers, _with_errors_shown(function), inputs, outputs, **QUIETLY)

    # Images ---------------------------------------------------------------------------------------------------------

    def draw_image(self, seed: int, label: int | None, psi: float, sides: list[int]) -> str:
        generator, options = self.run.generator, {"label": label, "truncation": psi}
        if self.noisy:
            options["noise"] = ["const" if side in sides else "none" for side in generator.noise_resolutions]
        image = to_uint8(studies.samples(generator, [seed], **options)[0, 0])
        return rendering.figure(image, self._caption(f"seed {seed}", label, psi), f"seed{seed:04d}.png")

    def draw_sheet(self, seed: int, label: int | None, psi: float, shows: str) -> str:
        generator = self.run.generator
        if shows == CLASSES:
            labels = range(min(len(self.run.classes), MAX_CLASSES))
            images = studies.classes(generator, [seed], labels, truncation=psi)[:, 0]
            return rendering.sheet(to_uint8(images), [self.run.classes[number] for number in labels], labels)
        seeds = range(seed + 1, seed + 1 + MORE_SEEDS)
        images = studies.samples(generator, seeds, label=label, truncation=psi)[0]
        return rendering.sheet(to_uint8(images), [f"seed {number}" for number in seeds], seeds)

    def _choose(self, shows: str, event: gr.EventData):
        """Seed and class of a clicked image of the sheet."""
        return (gr.skip(), event.choice) if shows == CLASSES else (event.choice, gr.skip())

    def _layers_of(self, side: int) -> str:
        """Name of the two layers at a resolution; their numbers, if layers do not belong to one, as in stylegan3."""
        first = 2 * (side.bit_length() - 3)
        return f"{side}×{side}" if self.run.generator.noise_resolutions else f"{first}–{first + 1}"

    def draw_mixed(self, seed: int, label: int | None, psi: float, second: int, sides: list[int]) -> str:
        generator, options = self.run.generator, {"label": label, "truncation": psi}
        layers = [layer for layer in range(generator.num_ws) if 4 << layer // 2 in sides]
        mixed = studies.mix(generator, [seed], [second], layers, **options)[0, 0]
        names = [f"seed {seed}", f"seed {second}"]
        sources = rendering.sheet(to_uint8(studies.samples(generator, [seed, second], **options)[0]), names, width=248)
        part = ", ".join(map(self._layers_of, sorted(sides))) or "no layer"
        caption = self._caption(f"seed {seed}, with {part} of seed {second}", label, psi)
        result = rendering.figure(to_uint8(mixed), caption, f"seed{seed:04d}-seed{second:04d}.png")
        return f'<div class="mixing">{result}{sources}</div>'

    def draw_between(
        self,
        seed: int,
        label: int | None,
        psi: float,
        second: int,
        space: studies.Space,
        position: float,
        animated: bool = False,
    ) -> str:
        """The image at `position` of the interpolation, or all of it as an animation."""
        positions = [step / (FRAMES - 1) for step in range(FRAMES)] if animated else [position]
        images = self._interpolated(seed, label, psi, second, space, positions)
        name = f"seed{seed:04d}-seed{second:04d}"
        if animated:
            caption = self._caption(f"from seed {seed} to seed {second} and back", label, psi)
            return rendering.animation(images, caption, f"{name}.webp")
        caption = self._caption(f"{position:.0%} of the way from seed {seed} to seed {second}", label, psi)
        return rendering.figure(images[0], caption, f"{name}-{position:.2f}.png")

    def draw_row(self, seed: int, label: int | None, psi: float, second: int, space: studies.Space) -> str:
        percents = [100 * step // (POSITIONS - 1) // 2 * 2 for step in range(POSITIONS)]  # steps of the slider
        images = self._interpolated(seed, label, psi, second, space, [percent / 100 for percent in percents])
        return rendering.sheet(images, [f"{percent} %" for percent in percents], percents)

    def _interpolated(self, seed, label, psi, second, space, positions) -> np.ndarray:
        options = {"space": space, "label": label, "truncation": psi}
        return to_uint8(studies.interpolate_at(self.run.generator, [seed, second], positions, **options)[0])

    def _caption(self, what: str, label: int | None, psi: float) -> str:
        what += f", class {self.run.classes[label]}" if label is not None else ""
        return what + (f", psi {psi:g}" if psi != 1 else "")

    # Training -------------------------------------------------------------------------------------------------------

    def _poll(self, head: str, *versions: Any) -> list[Any]:
        """Read the run's folder: the head of the page, and the versions of checkpoint, log and pictures."""
        self.run.reread()
        log = self.run.log()
        now = [self._head(), str(self.run.stamp), f"{len(log)} {log[-1:]}", len(self.run.grids())]
        return [gr.skip() if before == after else after for before, after in zip((head, *versions), now, strict=True)]

    def _head(self) -> str:
        run, header, log = self.run, self.run.header, self.run.log()
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
            progress = f'<div class="progress"><div style="width: {min(1, share):.1%}"></div></div>'
        else:
            facts.append("file of another program")
        problems = [run.problem] * bool(run.problem) + [f"Warning: {warning}" for warning in self._warnings(log)]
        if run.damaged_lines:
            problems.append(f"{run.damaged_lines:,} damaged lines of the log are skipped")
        problem = "".join(f'<span class="problem">{html.escape(each)}</span>' for each in problems)
        return (
            f'<div class="head"><h1>{html.escape(run.name)}</h1>'
            f'<span class="facts">{" · ".join(facts)}</span>{problem}</div>{progress}'
        )

    def _warnings(self, log: list[dict[str, Any]]) -> list[str]:
        """Warnings on the training from its log."""
        if log is not self._watched[0]:
            header = self.run.header
            self._watched = log, Watch(header.config, header.dataset).read_all(log).warnings if header else []
        return self._watched[1]

    def draw_curves(self, tab: str):
        if tab != TRAINING:
            return gr.skip()
        charts = rendering.charts(self.run.log())
        note = "" if charts else self._none_yet("numbers", "come", "log_interval")
        plots = [_plot(title, chart) for title, chart in charts.items()][: len(self.plots)]
        return [
            gr.HTML(note, visible=bool(note)),
            *plots,
            *[gr.LinePlot(visible=False)] * (len(self.plots) - len(plots)),
        ]

    def draw_history(self, tab: str, moment: int):
        if tab != TRAINING:
            return gr.skip()
        grids = self.run.grids()
        if not grids:
            return self._none_yet("pictures", "comes", "grid_interval")
        images, path = grids[min(int(moment), len(grids)) - 1]
        return rendering.grid(path, images)

    def _none_yet(self, what: str, come: str, name: str) -> str:
        """Why there are no numbers or pictures, and after how many images the first come, by option `name`."""
        header = self.run.header
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


def _extend_history(moment: int, before: int, count: int):
    """The slider of the history for `count` pictures. It keeps its place, but at the end it moves along."""
    at = count if moment >= before else moment
    return gr.Slider(maximum=max(count, 2), value=at, visible=count > 1), count


def _select(event: gr.SelectData) -> list[Any]:
    """The tab in view, and the visibility of the controls."""
    tab = event.value
    shown = [tab != TRAINING, tab in (MIXING, INTERPOLATION), tab == IMAGES, tab == MIXING, tab == INTERPOLATION]
    return [tab, *[gr.Column(visible=visible) for visible in shown]]


def _resolution_choices(resolutions: list[int]) -> list[tuple[str, int]]:
    return [(f"{side}×{side}", side) for side in resolutions]


def _chosen_position(event: gr.EventData) -> tuple[float, bool]:
    """Position of a clicked image of the row; it switches the animation off."""
    return event.choice / 100, False


def _check_values(control: Component) -> None:
    """Make a control refuse, in one line and without a traceback, values that the page itself never sends."""
    plain = control.preprocess

    def preprocess(value: Any) -> Any:
        try:
            numeric = isinstance(control, gr.Number | gr.Slider) and value is not None  # None while it is being typed
            if isinstance(value, list) != isinstance(control, gr.CheckboxGroup) or (
                numeric and not math.isfinite(value)
            ):
                raise ValueError
            return plain(value)
        except Exception as error:  # Gradio raises many kinds
            raise gr.Error(f"{control.label}: invalid value", print_exception=False) from error

    control.preprocess = preprocess


def _with_errors_shown(function: Callable) -> Callable:
    """Decorator: user errors appear on the page as one line."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any):
        try:
            with out_of_memory_is_user_error("choose another --device"):
                return function(*arguments, **named)
        except (UserError, studies.Unsupported) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    return call
