"""The page of `fastgan view`, made with Gradio.

Controls on the left, tabs on the right. A timer polls the run's folder; if something has changed there, the tab in view
is drawn again.
"""

from __future__ import annotations

import contextlib
import functools
import html
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from fastgan import studies
from fastgan.errors import UserError
from fastgan.runs.log import CHARTS
from fastgan.runs.memory import out_of_memory_is_user_error
from fastgan.view import images, projecting, rendering, training, values
from fastgan.view.images import CLASSES, SEEDS, Latents, Point
from fastgan.view.watching import Run, Runs

POLL_SECONDS = 2.0
LARGEST_SEED = 2**31 - 1
MOST_DIRECTIONS = 16  # sliders
STRONGEST = 5.0  # of a direction
METRIC_CHARTS = 6  # most charts of metrics
IMAGES, MIXING, INTERPOLATION, TRAINING = "Images", "Style mixing", "Interpolation", "Training"
COMPARISON, PROJECTION = "Compare", "Projection"
SEED, PROJECTED = "seed", "projected image"
LATENT = ["seed", "start", "class", "psi"]  # controls that every image depends on
# always_last: while a function is busy, only the latest call is kept. preprocess: values are checked here, since Gradio
# reports wrong ones by a traceback.
QUIETLY = {
    "show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private", "preprocess": False,
}  # fmt: skip
SPACES = {"slerp": "arc in z", "z": "line in z", "w": "line in w"}
NOISES = {"fixed": "const", "random": "random", "none": "none"}

CSS = """
html { scrollbar-gutter: stable; }
.gradio-container { overflow: clip !important; width: 100%; max-width: 1500px !important; margin: 0 auto !important; }
.run-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 20px; padding-top: 4px; }
.run-head h1 { font-size: 21px; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
.run-head .facts { color: var(--body-text-color-subdued); font-size: 14px; }
.run-head .problem { color: var(--error-text-color); flex-basis: 100%; }
.progress { height: 3px; border-radius: 2px; background: var(--border-color-primary); margin-top: 8px; }
.progress div { height: 100%; border-radius: 2px; background: var(--color-accent); }
#follow { align-self: center; border: none !important; background: none; box-shadow: none; padding: 0; }
#refresh { align-self: center; }
#views { position: sticky; top: 8px; align-self: flex-start; }
#editing .block, #moving .block { padding: 4px 8px; }
#editing label span, #moving label span { white-space: nowrap; }
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
.pair, .compared { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; }
.progress + .pair { padding-top: 12px; }
.pair p { flex-basis: 100%; margin: 0; color: var(--body-text-color-subdued); font-size: 13px; }
.compared section { flex: 1 1 300px; max-width: 524px; }
.compared h2 { font-size: 16px; font-weight: 650; margin: 0 0 6px; overflow-wrap: anywhere; }
.compared figure { margin-bottom: 6px; }
.upload { display: block; border: 1px dashed var(--border-color-primary); border-radius: 3px; padding: 12px; }
.upload.over, .upload:focus-within { border-color: var(--color-accent); }
.upload span { display: block; font-weight: 600; padding-bottom: 6px; }
.upload input { width: 100%; }
footer { display: none !important; }
@media (max-width: 700px) {
    #top, #body, #views .row { flex-direction: column; align-items: stretch; }
    #views { order: -1; position: static; align-self: stretch; }
    #top > *, #body > *, #views .row > * { width: 100% !important; min-width: 0 !important; }
    #image figure, #between figure, #history figure, .mixing > figure, section > figure { width: 100%; }
    #image img, #between img, #history img, .mixing > figure img, section > figure img { width: 100% !important; }
    .sheet { flex-wrap: nowrap; overflow-x: auto; }
    #views #projecting { flex-direction: row; }
    #views .curve { flex: none !important; }
    .compared section { flex-basis: 100%; min-width: 0; max-width: none; }
    .mixing .sheet { flex-direction: row; width: 100%; }
    .sheet figure { flex: 0 0 calc(30% - 4px); }
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
UPLOAD = """
<label class="upload"><span>Image to project</span>
<input type="file" accept="image/*" aria-describedby="upload-hint">
<small id="upload-hint">Or drop one here. It is not stored.</small></label>
"""
# Sends a small file as it is, and a large one reduced, in a request below the limit of `access`.
TAKE = """
const LIMIT = 600000;
const area = element.querySelector('.upload'), input = element.querySelector('input');
const dataURL = blob => new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = failed;
    reader.readAsDataURL(blob);
});
const reduced = async file => {
    const bitmap = await createImageBitmap(file);
    for (let side = 2048; side >= 256; side /= 2) {
        const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
        const canvas = document.createElement('canvas');
        canvas.width = Math.max(1, Math.round(bitmap.width * scale));
        canvas.height = Math.max(1, Math.round(bitmap.height * scale));
        canvas.getContext('2d').drawImage(bitmap, 0, 0, canvas.width, canvas.height);
        const blob = await new Promise(done => canvas.toBlob(done, 'image/webp', 0.95));
        if (blob.size <= LIMIT) return blob;
    }
};
const take = async file => {
    let data = '';
    try { data = await dataURL(file.size <= LIMIT ? file : await reduced(file)); } catch (error) {}
    trigger('select', {name: file.name, data});
};
const chosen = () => { if (input.files.length) take(input.files[0]); };
input.addEventListener('change', chosen);
chosen();  // before this script was loaded
area.addEventListener('dragover', event => { event.preventDefault(); area.classList.add('over'); });
area.addEventListener('dragleave', () => area.classList.remove('over'));
area.addEventListener('drop', event => {
    event.preventDefault();
    area.classList.remove('over');
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});
"""


def theme() -> gr.themes.Base:
    """A plain theme with the browser's own fonts, so that no other server is contacted."""
    return gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="sm",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(block_title_text_weight="600", body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950")


class View(NamedTuple):
    """How a tab is drawn.

    Attributes:
        draw: from a run, a point and the values of controls to HTML.
        needs: names of the controls that it depends on, besides those of the point's latent.
        output: where the HTML is shown.
    """

    draw: Callable[[Run, Point, dict[str, Any]], str]
    needs: list[str]
    output: gr.HTML


class Page:
    """The page of some runs, `blocks`, before it is served. Shown are the controls that a run's generator supports.

    Attributes:
        controls: those whose values are sent, by name.
    """

    def __init__(self, runs: Runs):
        self.runs = runs
        self.controls: dict[str, gr.components.Component] = {}
        self._checks: dict[str, values.Check] = {}
        first = runs[runs.first]
        title = f"{first.name} - fastgan" if len(runs.names) == 1 else "fastgan"
        with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as self.blocks:
            self._lay_out(first, self.setup_of(first, runs.first))
            self._connect()

    # Layout ---------------------------------------------------------------------------------------------------------

    def setup_of(self, run: Run, name: str) -> dict[str, dict[str, Any]]:
        """Properties of the controls, groups and tabs that depend on the run."""
        generator: Any = run.generator
        styled = images.has(run, "style_mixing")
        sides = sorted(set(generator.noise_resolutions)) if images.has(run, "noise") else []
        layers = images.mixing_sides(run)
        several = len(self.runs.names) > 1
        others = [each for each in self.runs.names if each != name]
        setup: dict[str, dict[str, Any]] = {
            "run": {"choices": self.runs.names, "value": name, "visible": several},
            "other": {"choices": self.runs.names, "value": others[0] if others else name},
            "class": {"choices": run.classes, "value": next(iter(run.classes), None), "visible": bool(run.classes)},
            "psi": {"visible": images.has(run, "truncation")},
            "noise": {"visible": bool(sides)},
            "sides": {"choices": [(f"{side}×{side}", side) for side in sides], "value": sides, "visible": bool(sides)},
            "shows": {"visible": bool(run.classes)},
            "layers": {"choices": [(images.layers_of(run, side), side) for side in layers], "value": layers[:2]},
            "space": {"choices": [(text, name) for name, text in SPACES.items() if name != "w" or styled]},
            "projection-space": {"visible": styled},
            "mixing-tab": {"visible": styled},
            "compare-tab": {"visible": several},
            "editing": {"visible": styled},
            "moving": {"visible": images.has(run, "movement")},
            "find": {"visible": styled and not run.directions},
            "reset": {"visible": bool(run.directions)},
        }
        for i in range(MOST_DIRECTIONS):
            there = i < len(run.directions)
            label = f"{run.directions[i].name} · {run.directions[i].share:.0%}" if there else f"direction {i}"
            setup[f"edit-{i}"] = {"label": label, "value": 0, "visible": there}
        return setup

    def _lay_out(self, first: Run, setup: dict[str, dict[str, Any]]) -> None:
        self._parts: dict[str, Any] = {}  # that the setup changes
        with gr.Row(elem_id="top"):
            self.head = gr.HTML(training.head(first), elem_id="head", scale=1, apply_default_css=False)
            with gr.Column(scale=0, min_width=200), gr.Row():
                self.follow = gr.Checkbox(True, label="Follow", elem_id="follow", container=False, min_width=80)
                self.refresh = gr.Button("Refresh", size="sm", elem_id="refresh", min_width=80)
        with gr.Row(elem_id="body"):
            with gr.Column(scale=0, min_width=240, elem_id="controls") as self.left:
                self._lay_out_controls(setup)
            with gr.Column(scale=1, elem_id="views"), gr.Tabs(elem_id="tabs") as self.tabs:
                self._lay_out_tabs(setup)
        self._parts |= {name: control for name, control in self.controls.items() if name in setup}
        self.timer = gr.Timer(POLL_SECONDS)
        # State of a page: the tab in view, and the versions of checkpoint, log, pictures and setup that it shows.
        self.tab, self.checkpoint, self.log = gr.State(IMAGES), gr.State(None), gr.State(None)
        self.grids, self.known = gr.State(None), gr.State(None)  # name of the run and number of pictures
        self.setup = gr.State(self._setup_version(self.runs.first))
        self.given, self.projected = gr.State(None), gr.State(None)
        self.again = gr.State(0)  # Enter was pressed so often

    def _add(self, name: str, check: values.Check, component: gr.components.Component) -> Any:
        """Take a control whose values are sent. Returns it."""
        self.controls[name], self._checks[name] = component, check
        return component

    def _add_seed(self, name: str, value: int, label: str) -> gr.Number:
        number = gr.Number(value, label=label, precision=0, minimum=0, maximum=LARGEST_SEED, elem_id=name)
        return self._add(name, values.whole(0, LARGEST_SEED), number)

    def _add_slider(self, name: str, low: float, high: float, step: float, **properties: Any) -> gr.Slider:
        slider = gr.Slider(low, high, step=step, elem_id=name, **properties)
        return self._add(name, values.number(low, high), slider)

    def _lay_out_controls(self, setup: dict[str, dict[str, Any]]) -> None:
        self._add("run", values.text, gr.Dropdown(label="Run", elem_id="run", **setup["run"]))
        with gr.Group():
            self.seed = self._add_seed("seed", 0, "Seed")
            self.random = gr.Button("Random seed", size="sm", elem_id="random")
        start = gr.Radio([SEED, PROJECTED], value=SEED, label="Image of", visible=False, elem_id="start")
        self._add("start", values.one_of([SEED, PROJECTED]), start)
        self._add("class", values.text, gr.Dropdown(label="Class", elem_id="class", **setup["class"]))
        psi = {"label": "Truncation", "info": "psi; 0 gives the mean image", "value": 1, **setup["psi"]}
        self._add_slider("psi", -1, 1.5, 0.05, **psi)
        with gr.Column(visible=False) as self.two:
            self._add_seed("second", 1, "Second seed")
        with gr.Column() as self.of_images:
            self._lay_out_editing(setup)
            noise = gr.Radio(list(NOISES), value="fixed", label="Noise", elem_id="noise", **setup["noise"])
            self._add("noise", values.one_of(NOISES), noise)
            self._add(
                "sides", values.sides, gr.CheckboxGroup(label="Noise in layers", elem_id="sides", **setup["sides"])
            )
            shows = gr.Radio([SEEDS, CLASSES], value=SEEDS, label="Also show", elem_id="sheet-shows", **setup["shows"])
            self._add("shows", values.one_of([SEEDS, CLASSES]), shows)
        with gr.Column(visible=False) as self.of_mixing:
            layers = gr.CheckboxGroup(label="Layers from the second seed", elem_id="layers", **setup["layers"])
            self._add("layers", values.sides, layers)
        with gr.Column(visible=False) as self.of_interpolation:
            space = gr.Radio(value="slerp", label="Path", elem_id="space", **setup["space"])
            self._add("space", values.one_of(SPACES), space)
            self._add_slider("position", 0, 1, 0.02, value=0.5, label="Position")
            animate = gr.Checkbox(False, label="Animate", info="back and forth", elem_id="animate")
            self._add("animate", values.one_of([True, False]), animate)

    def _lay_out_editing(self, setup: dict[str, dict[str, Any]]) -> None:
        """Sliders of directions, and of the movement of a scene."""
        with gr.Accordion("Directions", elem_id="editing", **setup["editing"]) as self._parts["editing"]:
            self.find = gr.Button("Find directions", size="sm", elem_id="find", **setup["find"])
            for i in range(MOST_DIRECTIONS):
                self._add_slider(f"edit-{i}", -STRONGEST, STRONGEST, 0.1, **setup[f"edit-{i}"])
            self.reset = gr.Button("Reset", size="sm", elem_id="reset", **setup["reset"])
            self._parts |= {"find": self.find, "reset": self.reset}
        with gr.Accordion("Movement", elem_id="moving", **setup["moving"]) as self._parts["moving"]:
            self._add_slider("x", -0.5, 0.5, 0.01, value=0, label="Right", info="widths of the image")
            self._add_slider("y", -0.5, 0.5, 0.01, value=0, label="Down")
            self._add_slider("degrees", -180, 180, 1, value=0, label="Rotation", info="degrees, counterclockwise")

    def _lay_out_tabs(self, setup: dict[str, dict[str, Any]]) -> None:
        picture = functools.partial(gr.HTML, apply_default_css=False, js_on_load=CHOOSE)
        with gr.Tab(IMAGES), gr.Row():
            self.image = picture(elem_id="image", scale=0, min_width=rendering.LARGE + 16)
            self.sheet = picture(elem_id="sheet", scale=1, min_width=280)
        with gr.Tab(MIXING, **setup["mixing-tab"]) as self._parts["mixing-tab"]:
            self.mixed = picture(elem_id="mixed")
        with gr.Tab(INTERPOLATION), gr.Row():
            self.between = picture(elem_id="between", scale=0, min_width=rendering.LARGE + 16)
            self.row = picture(elem_id="row", elem_classes="three", scale=1, min_width=280)
        with gr.Tab(PROJECTION), gr.Row():
            with gr.Column(scale=0, min_width=280):
                self.upload = gr.HTML(UPLOAD, elem_id="upload", apply_default_css=False, js_on_load=TAKE)
                space = gr.Radio(
                    ["w", "w+"], value="w", label="Space", info="w+ comes nearer, but edits less well",
                    elem_id="projection-space", **setup["projection-space"],
                )  # fmt: skip
                self._add("projection-space", values.one_of(["w", "w+"]), space)
                steps = gr.Slider(10, projecting.MOST_STEPS, 200, step=10, label="Steps", elem_id="steps")
                self._add("steps", values.whole(1, projecting.MOST_STEPS), steps)
                with gr.Row(elem_id="projecting"):
                    self.project = gr.Button("Project", variant="primary", size="sm", elem_id="project", min_width=100)
                    self.stop = gr.Button("Stop", size="sm", elem_id="stop", min_width=100)
            self.projection = gr.HTML(elem_id="projection", scale=1, min_width=280, apply_default_css=False)
        with gr.Tab(COMPARISON, **setup["compare-tab"]) as self._parts["compare-tab"]:
            self._add("other", values.text, gr.Dropdown(label="Beside", elem_id="other", **setup["other"]))
            self.compared = picture(elem_id="compared")
        with gr.Tab(TRAINING), gr.Row():
            with gr.Column(scale=4, min_width=280):
                self.moment = gr.Slider(1, 2, 1, step=1, label="History of samples", visible=False, elem_id="moment")
                self._add("moment", values.whole(1, 10**9), self.moment)
                self.history = gr.HTML(elem_id="history", apply_default_css=False)
            with gr.Column(scale=6, min_width=280):
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
                            min_width=280,
                            visible=False,
                            elem_classes="curve",
                        )
                        for _ in range(len(CHARTS) + METRIC_CHARTS)
                    ]

    # Events ---------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        edits = [f"edit-{i}" for i in range(MOST_DIRECTIONS)]
        two = ["second", "space"]
        large = {
            IMAGES: View(
                lambda run, point, chosen: images.image(run, point),
                ["noise", "sides", "x", "y", "degrees", *edits],
                self.image,
            ),
            MIXING: View(
                lambda run, point, chosen: images.mixed(run, point, chosen["second"], chosen["layers"]),
                ["second", "layers"],
                self.mixed,
            ),
            INTERPOLATION: View(
                lambda run, point, chosen: images.between(
                    run, point, chosen["second"], chosen["space"], chosen["position"], chosen["animate"]
                ),
                [*two, "position", "animate"],
                self.between,
            ),
            COMPARISON: View(
                lambda run, point, chosen: images.compared([run, self.runs[chosen["other"]]], point),
                ["other"],
                self.compared,
            ),
        }
        small = {
            IMAGES: View(
                lambda run, point, chosen: images.sheet(run, point, chosen["shows"]), ["shows", *edits], self.sheet
            ),
            INTERPOLATION: View(
                lambda run, point, chosen: images.row(run, point, chosen["second"], chosen["space"]), two, self.row
            ),
        }
        # Gradio 6 repeats an event for all its listeners if one of them was busy: two listeners of one control would
        # trigger each other for ever. So only the first listens, and the second is chained to it by `then`.
        needed = [name for view in (*large.values(), *small.values()) for name in view.needs]
        controls = [self.controls[name] for name in dict.fromkeys([*LATENT, *needed])]
        states = (self.tab, self.checkpoint, self.setup, self.projected, self.again)
        changes = [component.change for component in (*states, *controls)]
        gr.on(changes, *self._drawing(large), **QUIETLY).then(*self._drawing(small), **QUIETLY)

        start = self.controls["start"]
        self._on(self.random.click, lambda: (random.randrange(10_000), SEED), None, [self.seed, start])
        self._on(self.seed.input, lambda: SEED, None, start)
        self._on([self.seed.submit, self.controls["second"].submit], lambda count: count + 1, self.again, self.again)
        run, chosen = self.controls["run"], [self.seed, self.controls["class"], start]
        self._on(self.sheet.select, self._choose, run, chosen)
        self._on(self.compared.select, _chosen_seed, None, self.seed)
        position, animate = self.controls["position"], self.controls["animate"]
        self._on(self.row.select, _chosen_position, None, [position, animate])
        self._on(position.input, lambda: False, None, animate)

        self._on([self.tab.change, self.log.change], self._draw_curves, [run, self.tab], [self.note, *self.plots])
        self._on(self.grids.change, _extend_history, [self.moment, self.known, self.grids], [self.moment, self.known])
        moved = [self.tab.change, self.moment.change, self.grids.change]
        self._on(moved, self._draw_history, [run, self.tab, self.moment], self.history)

        groups = [self.left, self.two, self.of_images, self.of_mixing, self.of_interpolation]
        self._on(self.tabs.select, _select, None, [self.tab, *groups])
        self._on(self.follow.change, lambda on: gr.Timer(active=bool(on)), self.follow, self.timer)
        shown = [self.head, self.checkpoint, self.log, self.grids, self.setup]
        polled = [run, self.controls["other"], self.tab]
        self._on([self.blocks.load, self.refresh.click], self._look, [*polled, *shown], shown)
        self._on([self.timer.tick, run.change, self.controls["other"].change], self._poll, [*polled, *shown], shown)
        kept = [run, *(self.controls[name] for name in ("other", "class", "space"))]
        self._on(self.setup.change, self._configure, kept, list(self._parts.values()))

        moves = [self.controls[name] for name in (*edits, "x", "y", "degrees")]
        self._on(self.reset.click, lambda: [0] * len(moves), None, moves)
        self._on(self.find.click, self._find_directions, [*polled, *shown], shown)
        self._on(self.upload.select, self._take, run, [self.given, self.projection])
        given = [run, self.given, self.controls["projection-space"], self.controls["steps"]]
        found = [self.projection, self.projected, start, self.controls["class"]]
        options = QUIETLY | {"trigger_mode": "once"}
        # Gradio ignores a click on Project while the last projection is ending, so the button shows it.
        self.project.click(None, None, self.project, js=_interactive("false"), api_visibility="private")
        projection = self.project.click(_with_errors_shown(self._project), given, found, **options)
        self.stop.click(None, cancels=[projection], api_visibility="private")
        for over in (projection.then, projection.failure):  # `then` is not called after an error
            over(None, None, self.project, js=_interactive("true"), api_visibility="private")

    def _drawing(self, views: dict[str, View]):
        """A function that draws the tab in view, its inputs and its outputs.

        An output that already shows these values and this generator is left as it is.
        """
        names = list(dict.fromkeys(["run", *LATENT, *(name for view in views.values() for name in view.needs)]))
        last = gr.State(None)  # what the image in view was drawn from

        def draw_in_view(
            before: Any, tab: str, checkpoint: str, setup: str, projected: Latents | None, again: int, *sent: Any
        ):
            if tab not in views:
                return gr.skip()
            view, chosen = views[tab], self._checked(names, sent)
            if None in [value for name, value in chosen.items() if name != "class"]:
                return gr.skip()  # a number is being typed
            needed = {name: chosen[name] for name in ["run", *LATENT, *view.needs]}
            now = [tab, checkpoint, setup, projected, again, needed]
            if now == before:
                return gr.skip()
            run = self.runs[chosen["run"]]
            return {view.output: view.draw(run, self._point(chosen, projected), chosen), last: now}

        states = [last, self.tab, self.checkpoint, self.setup, self.projected, self.again]
        outputs = [view.output for view in views.values()]
        return _with_errors_shown(draw_in_view), [*states, *(self.controls[name] for name in names)], [*outputs, last]

    def _checked(self, names: list[str], sent: Any) -> dict[str, Any]:
        """Values of controls by name. Raises UserError for those that the page never sends."""
        return {
            name: values.checked(self._checks[name], str(self.controls[name].label), value)
            for name, value in zip(names, sent, strict=True)
        }

    @staticmethod
    def _point(chosen: dict[str, Any], projected: Latents | None) -> Point:
        here = projected is not None and chosen["start"] == PROJECTED and projected.run == chosen["run"]
        point = Point(chosen["seed"], chosen["class"], chosen["psi"], projected if here else None)
        strengths = tuple(value for name, value in chosen.items() if name.startswith("edit-"))
        if "noise" not in chosen:  # not the large image
            return point._replace(strengths=strengths)
        return point._replace(
            noise=NOISES[chosen["noise"]], sides=chosen["sides"], strengths=strengths, x=chosen["x"], y=chosen["y"],
            degrees=chosen["degrees"],
        )  # fmt: skip

    @staticmethod
    def _on(triggers: Any, function: Callable, inputs: Any, outputs: Any) -> None:
        triggers = triggers if isinstance(triggers, list) else [triggers]
        gr.on(triggers, _with_errors_shown(function), inputs, outputs, **QUIETLY)

    # Runs -----------------------------------------------------------------------------------------------------------

    def _look(self, *given: Any) -> list[Any]:
        """Look for new runs, then as `_poll`."""
        self.runs.find()
        return self._poll(*given)

    def _poll(self, name: str, other: str, tab: str, *versions: Any) -> list[Any]:
        """Read the run's folder: the head of the page, and the versions of checkpoint, log, pictures and setup."""
        run = self._run(name)
        run.reread()
        log, beside = run.log(), ""
        if tab == COMPARISON and other in self.runs.names:
            self.runs[other].reread()
            beside = f"{other} {self.runs[other].stamp}"
        now = [
            training.head(run), f"{name} {run.stamp} {beside}", f"{name} {len(log)} {log[-1:]}",
            (name, len(run.grids())),
            self._setup_version(name),
        ]  # fmt: skip
        return [gr.skip() if before == after else after for before, after in zip(versions, now, strict=True)]

    def _run(self, name: Any) -> Run:
        """The run of this name; without one, as before the page is complete, the first."""
        return self.runs[self.runs.first if name is None else values.checked(values.text, "Run", name)]

    def _setup_version(self, name: str | None) -> str:
        """Changes with what `setup_of` depends on."""
        run = self._run(name)
        return f"{name} {self.runs.names} {[each.name for each in run.directions]}"

    def _configure(self, name: str, other: str, class_name: str | None, space: str) -> list[Any]:
        """The controls of another run. They keep their values if it has them as well."""
        setup = self.setup_of(self._run(name), name)
        del setup["run"]["value"]  # another may have been chosen meanwhile
        for control, value in (("other", other), ("class", class_name)):
            if value in setup[control]["choices"] and (control, value) != ("other", name):
                setup[control]["value"] = value
        if space not in [value for _, value in setup["space"]["choices"]]:
            setup["space"]["value"] = "slerp"
        return [gr.update(**setup[part]) for part in self._parts]

    def _find_directions(self, name: str, *given: Any) -> list[Any]:
        self._run(name).find_directions()
        return self._poll(name, *given)

    def _choose(self, name: str, event: gr.EventData):
        """Seed, class and start of a clicked image of the sheet."""
        choice, classes = _choice(event), self._run(name).classes
        if choice < 0 and classes:
            return gr.skip(), classes[min(images.class_of(choice), len(classes) - 1)], gr.skip()
        return max(0, choice), gr.skip(), SEED

    # Projection -----------------------------------------------------------------------------------------------------

    def _take(self, name: str, event: gr.EventData):
        """An image that was chosen or dropped."""
        data, file_name = (str(getattr(event, part, "")) for part in ("data", "name"))
        given = projecting.read(data, file_name, self._run(name))
        return given, projecting.preview(given)

    def _project(self, name: str, given: projecting.Given | None, space: str, steps: int) -> Iterator[list[Any]]:
        """Project the image; progress and at the end the latents, from which the tab of images starts then."""
        chosen = self._checked(["run", "projection-space", "steps"], [name, space, steps])
        run = self._run(name)
        if given is None:
            raise UserError("choose an image first")
        given = projecting.fitted(given.name, given.data, run)
        in_space = chosen["projection-space"] if images.has(run, "style_mixing") else None
        for found in projecting.project(run, name, given, in_space, chosen["steps"] or 1):
            if isinstance(found, str):
                yield [found, gr.skip(), gr.skip(), gr.skip()]
            else:
                start = gr.update(visible=True, value=PROJECTED)
                yield [gr.skip(), found, start, found.class_name or gr.skip()]

    # Training -------------------------------------------------------------------------------------------------------

    def _draw_curves(self, name: str, tab: str):
        return training.curves(self._run(name), len(self.plots)) if tab == TRAINING else gr.skip()

    def _draw_history(self, name: str, tab: str, moment: int):
        if tab != TRAINING:
            return gr.skip()
        return training.history(self._run(name), self._checked(["moment"], [moment])["moment"] or 1)


def _extend_history(moment: int | None, before: tuple[str, int] | None, now: tuple[str, int]):
    """The slider of the history for the pictures there are now. It keeps its place, but at the end it moves along."""
    name, count = now
    stays = before is not None and before[0] == name and moment is not None and moment < before[1]
    return gr.Slider(maximum=max(count, 2), value=moment if stays else count, visible=count > 1), now


def _select(event: gr.SelectData) -> list[Any]:
    """The tab in view, and the visibility of the controls."""
    tab = event.value
    two = tab in (MIXING, INTERPOLATION)
    shown = [tab != TRAINING, two, tab == IMAGES, tab == MIXING, tab == INTERPOLATION]
    return [tab, *[gr.Column(visible=visible) for visible in shown]]


def _interactive(value: str) -> str:
    """JavaScript that makes a button usable, or not."""
    return f"() => ({{__type__: 'update', interactive: {value}}})"


def _choice(event: gr.EventData) -> int:
    """The seed or class that a clicked image stands for."""
    choice = values.checked(values.whole(-LARGEST_SEED, LARGEST_SEED), "Image", getattr(event, "choice", None))
    return choice or 0


def _chosen_seed(event: gr.EventData) -> int:
    return max(0, _choice(event))


def _chosen_position(event: gr.EventData) -> tuple[float, bool]:
    """Position of a clicked image of the row; it switches the animation off."""
    return min(1.0, max(0, _choice(event)) / 100), False


def _with_errors_shown(function: Callable) -> Callable:
    """Decorator: user errors appear on the page as one line."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def iterate(*arguments: Any):
            with _errors_shown():
                yield from function(*arguments)

        return iterate

    @functools.wraps(function)
    def call(*arguments: Any):
        with _errors_shown():
            return function(*arguments)

    return call


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    try:
        with out_of_memory_is_user_error("choose another --device"):
            yield
    except (UserError, studies.Unsupported) as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
