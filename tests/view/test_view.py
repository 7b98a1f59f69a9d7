"""The page of `fastgan view`: a run that changes, the controls of each family, and the page in a browser."""

import asyncio
import base64
import io
import json
import math
import os
import re
import shutil
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastgan import editing, models, studies
from fastgan.cli.view import main
from fastgan.errors import UserError
from fastgan.interop import load_official
from fastgan.runs import checkpoint, drawing
from fastgan.runs import log as run_log
from fastgan.runs.config import Config, DataOptions, NetworkOptions
from fastgan.training.configure import resolve
from fastgan.training.state import new_state
from fastgan.view import rendering
from fastgan.view.watching import Grid, Run, Runs
from tests.support import official, official_stylegan3
from tests.support.processes import LONG, start
from tests.support.tiny_run import train, untrained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]

needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason='the extra "view" is not installed: pip install ".[view]"'
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
CPU = torch.device("cpu")
STYLES, NOISE = {"psi", "editing", "find", "projection-space"}, {"noise", "sides"}
FAMILIES = {  # arch: number of classes, and its controls besides those that all have
    "mlp": (0, set()),
    "dcgan": (0, set()),
    "cgan": (2, {"class", "sheet-shows"}),
    "pggan": (0, set()),
    "stylegan": (0, STYLES | NOISE),
    "stylegan2": (2, STYLES | NOISE | {"class", "sheet-shows"}),
    "stylegan3": (2, STYLES | {"class", "sheet-shows", "moving"}),
    "r3gan": (2, {"class", "sheet-shows"}),
    "fastgan": (0, set()),
}


def save(folder, arch="stylegan2", classes=2, seed=0, images=0, side=16, class_names=("dark", "light")):
    """Save a checkpoint with random weights, noise that shows, and a mean style other than zero."""
    torch.manual_seed(seed)
    network = NetworkOptions(arch=arch, z_dim=8, channel_base=128, channel_max=8)
    config = resolve(Config(network=network, data=DataOptions(resolution=side, classes=10)))
    model = models.ModelConfig(**vars(config.network), resolution=side, channels=1, num_classes=classes)
    state = new_state(model, config, CPU)
    randomize_styles(state.ema)
    state.images = images
    if "growth" in state.ema.supports:
        state.stage = side // 2, 1.0
    folder.mkdir(exist_ok=True)
    dataset = {"images": 20, "class_names": list(class_names), "digests": {}}
    checkpoint.save(folder / checkpoint.FILE_NAME, state, config, model, dataset)
    return folder


def randomize_styles(generator):
    for module in generator.modules():
        if getattr(module, "strength", None) is not None:
            nn.init.constant_(module.strength, 0.3)
    if hasattr(generator, "mapping"):
        nn.init.normal_(generator.mapping.w_avg)


def pixels(html):
    """Grey values of the first image in some HTML, or in a data URL."""
    data = re.search(r"data:image/\w+;base64,([\w+/=]+)", html).group(1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))


def drawn(run, seed, label=None, **options):
    """The image that `fastgan generate` draws: [H, W]."""
    generator, _ = checkpoint.load_generator(run)
    label = None if label is None else torch.tensor([label])
    return drawing.draw(generator, drawing.latents([seed], generator.z_dim), label, **options)[0, :, :, 0]


# A run that changes -------------------------------------------------------------------------------------------------


def test_a_changed_checkpoint_is_loaded_again(tmp_path):
    run = Run(save(tmp_path / "run"), CPU)
    before = studies.samples(run.generator, [0], label=0)
    assert not run.reread() and run.name == "run" and run.classes == ["dark", "light"]
    save(tmp_path / "run", seed=1, images=100)
    assert run.reread() and run.header.images == 100
    assert not torch.equal(studies.samples(run.generator, [0], label=0), before)


def test_one_of_several_emas_is_shown(tmp_path):
    run = untrained(tmp_path / "run", "stylegan2", ema_halflife=(10.0, 2.5))
    first, second = (Run(run, CPU, ema).generator.state_dict() for ema in (None, 2.5))
    expected = checkpoint.load_generator(run, ema=2.5)[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.items())
    assert any(not torch.equal(value, first[name]) for name, value in second.items())


@needs_gradio
def test_a_file_of_another_program_is_shown_without_a_training(tmp_path):
    """Even if other files of a run lie beside it."""
    from fastgan.view import training

    save(tmp_path)
    for name in ("grid-000000008.png", "log.jsonl"):
        (tmp_path / name).write_text('{"step": 1, "images": 4}\n')
    path = official.write(tmp_path / "network.pkl", official.snapshot(official.Sizes(img_resolution=8, c_dim=2)))
    run = Run(path, CPU)
    assert (run.name, run.classes, run.log(), run.grids()) == ("network.pkl", ["0", "1"], [], [])
    head = training.head(run)
    assert "stylegan2 · 8×8 · file of another program" in head and "progress" not in head
    assert "No pictures: this file holds networks only" in training.history(run, 0)
    path.unlink()
    assert not run.reread() and "there is no such checkpoint" in run.problem
    assert "there is no such checkpoint" in training.head(run)


def test_an_unreadable_checkpoint_keeps_the_old_generator_and_is_reported(tmp_path):
    run = Run(save(tmp_path / "run"), CPU)
    generator = run.generator
    save(tmp_path / "run", side=8)
    assert not run.reread() and "holds another network now; restart the view" in run.problem
    (tmp_path / "run" / checkpoint.FILE_NAME).write_bytes(b"broken")
    assert not run.reread() and "is no checkpoint, or a truncated one" in run.problem
    assert run.generator is generator
    save(tmp_path / "run", images=7)
    assert run.reread() and run.problem is None


def test_a_half_written_line_is_skipped(tmp_path):
    run = Run(save(tmp_path / "run"), CPU)
    assert run.log() == [] and run.grids() == []
    lines = ['{"step": 1, "images": 4, "loss_d": 1.5}\n', '{"step": 2, "images": 8, "lo']
    (run.folder / "log.jsonl").write_text("".join(lines))
    assert run.log() == [{"step": 1, "images": 4, "loss_d": 1.5}]
    assert run.log() is run.log()
    (run.folder / "log.jsonl").write_text("".join(lines) + 'ss_d": 1.25}\n')
    assert [line["images"] for line in run.log()] == [4, 8]


@pytest.mark.parametrize("how", ["removed", "a file", "half written", "without its checkpoint"])
def test_a_missing_folder_may_come_back(tmp_path, how):
    folder, backup = save(tmp_path / "run"), save(tmp_path / "backup", images=9)
    run = Run(folder, CPU)
    (folder / "log.jsonl").write_text('{"step": 1, "images": 4, "loss_d": 1.5}\n')
    assert len(run.log()) == 1
    if how in ("removed", "a file"):
        shutil.rmtree(folder)
    if how == "a file":
        folder.write_text("")
    if how == "without its checkpoint":
        (folder / checkpoint.FILE_NAME).unlink()
    if how == "half written":
        content = (folder / checkpoint.FILE_NAME).read_bytes()
        (folder / checkpoint.FILE_NAME).write_bytes(content[: len(content) // 2])
    assert not run.reread() and str(folder) in run.problem
    assert run.log() == [] or folder.is_dir()
    assert run.grids() == []
    if how == "a file":
        folder.unlink()
    shutil.copytree(backup, folder, dirs_exist_ok=True)
    assert run.reread() and run.problem is None and run.header.images == 9


@pytest.mark.parametrize(
    "line",
    ["", "{", "null", "[1, 2]", "17", '"text"', '{"step": 1}', '{"step": "1", "images": 4}', "\xff\xfe", "[" * 100_000,
     '{"step": 1, "images": null}', '{"step": 1, "images": NaN}', '{"step": 1, "images": -4}',
     '{"step": 1, "images": 1e400}'],
)  # fmt: skip
def test_damaged_lines_of_the_log_are_skipped_and_counted(tmp_path, line):
    run = Run(save(tmp_path / "run"), CPU)
    good = (
        '{"step": 1, "images": 4, "loss_d": 1.5, "odd": [1], "text": "x", "nothing": null, "huge": 1'
        + "0" * 400
        + "}\n"
    )
    (run.folder / "log.jsonl").write_bytes(good.encode() + line.encode("latin-1") + b"\n" + good.encode())
    assert run.log() == [{"step": 1, "images": 4, "loss_d": 1.5}] * 2 and run.damaged_lines == 1
    assert rendering.charts(run.log())["losses"] == {"loss_d": [(4, 1.5), (4, 1.5)]}


def test_a_damaged_picture_of_samples_is_an_error_with_its_name(tmp_path):
    path = tmp_path / "grid-000000008.png"
    for content in (b"", b"no picture", b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"grid-000000008.png cannot be shown"):
            rendering.grid(path, 8)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot be shown: No such file"):
        rendering.grid(path, 8)


def test_pictures_of_samples_are_in_the_order_of_training(tmp_path):
    run = Run(save(tmp_path / "run"), CPU)
    for name in ("grid-000000016.png", "grid-000000008.png", "grid-000000012.png.unfinished", "generated.png"):
        (run.folder / name).touch()
    assert run.grids() == [Grid(8, run.folder / "grid-000000008.png"), Grid(16, run.folder / "grid-000000016.png")]


# Pictures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side, width, crisp", [(8, 512, True), (28, 504, True), (256, 512, True), (1024, 1024, False)])
def test_pixels_are_enlarged_by_an_integer_factor(side, width, crisp):
    image = np.random.default_rng(0).integers(0, 256, (side, side, 1), dtype=np.uint8)
    html = rendering.figure(image, "<seed>", "name.png")
    assert f'style="width: {width}px"' in html and ("crisp" in html) == crisp
    assert np.array_equal(pixels(html), image[:, :, 0]), "pixels are sent unchanged"
    assert "&lt;seed&gt;" in html and "<seed>" not in html


def test_large_images_of_a_sheet_are_reduced():
    html = rendering.sheet(np.zeros((2, 1024, 1024, 3), np.uint8), ["a", "b"], [5, 6])
    assert pixels(html).shape == (256, 256) and html.count("width: 128px") == 2 and 'data-choice="6"' in html


def test_an_animation_plays_back_and_forth():
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2) * 60
    html = rendering.animation(frames, "way", "way.webp")
    data = base64.b64decode(re.search(r"webp;base64,([\w+/=]+)", html).group(1))
    picture = Image.open(io.BytesIO(data))
    shown = []
    for number in range(picture.n_frames):
        picture.seek(number)
        shown.append(np.asarray(picture.convert("L"))[0, 0])
    assert shown == [0, 60, 120, 180, 120, 60]


def test_curves_are_grouped_and_each_metric_has_its_own_chart():
    log = [{"step": n, "images": 4 * n, "loss_d": n, "loss_g": -n, "sign_real": 0.5} for n in range(1, 4)]
    log.append({"step": 3, "images": 12, "kid": 0.1, "frechet": 20.0, "broken": float("nan")})
    charts = rendering.charts(log)
    assert list(charts) == ["losses", "signs of logits", "kid", "frechet"]
    assert charts["losses"] == {"loss_g": [(4, -1), (8, -2), (12, -3)], "loss_d": [(4, 1), (8, 2), (12, 3)]}
    assert charts["kid"] == {"kid": [(12, 0.1)]}
    assert rendering.charts([]) == {}


@needs_gradio
def test_every_chart_has_a_title_on_the_page():
    from fastgan.view.training import TITLES

    assert set(TITLES) == set(run_log.CHARTS)


def test_a_long_log_is_averaged():
    points = rendering.charts([{"step": n, "images": n, "loss_d": n % 2} for n in range(2000)])["losses"]["loss_d"]
    assert len(points) == rendering.MAX_POINTS
    assert points[:2] == [(1.5, 0.5), (5.5, 0.5)]


# The page -----------------------------------------------------------------------------------------------------------


@needs_gradio
def test_the_head_shows_warnings_on_the_training(tmp_path):
    from fastgan.view import training

    folder = save(tmp_path / "run", arch="dcgan")
    run = Run(folder, CPU)
    lines = [
        {"step": 40 * n, "images": 4 * n, "distance_real": 0.5, "distance_fake": fake}
        for n, fake in enumerate([0.4, 0.01, 0.01, 0.01, 0.4], 1)
    ]
    assert "Warning" not in training.head(run)
    for count, warned in ((2, False), (3, True), (4, True), (5, False)):
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:count]))
        head = training.head(run)
        assert ("Warning: samples are nearly alike since 8 images (2% of" in head) == warned
        assert head.count('class="problem"') == warned


@needs_gradio
@pytest.mark.parametrize("arch", FAMILIES)
def test_a_family_has_the_controls_that_it_supports(tmp_path, arch):
    from fastgan.view import images
    from fastgan.view.images import CLASSES, SEEDS, Point
    from fastgan.view.page import Page

    classes, own = FAMILIES[arch]
    folder = save(tmp_path / "run", arch, classes)
    runs = Runs([str(folder)], CPU)
    run = runs[runs.first]
    page = Page(runs)
    assert {name for name, part in page.setup_of(run, runs.first).items() if part.get("visible")} == {
        {"sheet-shows": "shows", "mixed": "mixing-tab"}.get(name, name) for name in own
    } | ({"mixing-tab"} if own & STYLES else set())

    name = "light" if classes else None
    label, point = 1 if classes else None, Point(3, name)
    assert np.array_equal(pixels(images.image(run, point)), drawn(folder, 3, label))
    every = images.sheet(run, point, CLASSES)
    assert every.count("<figure>") == (classes or 12)
    choices = [int(choice) for choice in re.findall(r'data-choice="(-?\d+)"', every)]
    assert [images.class_of(each) for each in choices] == [0, 1] if classes else choices[0] == 4
    shown = images.sheet(run, point, SEEDS)
    assert shown.count("<figure>") == 12 and np.array_equal(pixels(shown), drawn(folder, 4, label))
    spaces = [value for _, value in page.controls["space"].choices]
    assert spaces == (["slerp", "z", "w"] if own & STYLES else ["slerp", "z"])
    for space in spaces:
        for position, seed in ((0, 3), (1, 5)):
            image = pixels(images.between(run, point, 5, space, position))
            assert np.abs(image.astype(int) - drawn(folder, seed, label)).max() <= 1
        assert images.row(run, point, 5, space).count("<figure>") == 9
    assert "image/webp" in images.between(run, point, 5, "slerp", 0, animated=True)
    assert images.compared([run, run], point).count("<figure>") == 26
    half, without = (
        pixels(images.image(run, point._replace(psi=0.5))),
        pixels(images.image(run, point._replace(sides=()))),
    )
    assert np.array_equal(without, drawn(folder, 3, label)) == (not own & NOISE)
    if not own & STYLES:
        assert np.array_equal(half, drawn(folder, 3, label)), "it has no truncation"
        assert "no styles to mix" in images.mixed(run, point, 5, [4])
        return
    assert np.array_equal(half, drawn(folder, 3, label, truncation=0.5))
    every = images.mixing_sides(run)
    assert np.array_equal(pixels(images.mixed(run, point, 5, every)), drawn(folder, 5, label))
    assert np.array_equal(pixels(images.mixed(run, point, 5, [])), drawn(folder, 3, label))

    run.find_directions()
    (first, second, *_), edited = run.directions, point._replace(strengths=(0.5, -1.0))
    generator, _ = checkpoint.load_generator(folder)
    with editing.edited(generator, run.directions, {first.name: 0.5, second.name: -1.0}):
        expected = studies.to_uint8(studies.samples(generator, [3], label=label)[0, 0])[:, :, 0]
    assert np.array_equal(pixels(images.image(run, edited)), expected)
    assert not np.array_equal(expected, drawn(folder, 3, label))
    assert f"{first.name} +0.5, {second.name} -1" in images.image(run, edited)
    moved = pixels(images.image(run, point._replace(x=0.25, degrees=90.0)))
    assert np.array_equal(moved, drawn(folder, 3, label)) == ("moving" not in own)


@needs_gradio
@pytest.mark.parametrize("arch", ["stylegan2", "cgan"])
def test_a_projected_image_takes_the_place_of_the_seed(tmp_path, arch):
    """Its own image is found again, edited, mixed and interpolated."""
    from fastgan.view import images, projecting
    from fastgan.view.images import CLASSES, Point

    folder = save(tmp_path / "run", arch, side=8)
    run = Run(folder, CPU)
    picture = io.BytesIO()
    Image.fromarray(drawn(folder, 40, 1)).resize((24, 16)).save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    given = projecting.read(url, "<me>.png", run)
    assert given.note == "24x16, cropped and resized to 8x8" and "&lt;me&gt;.png" in projecting.preview(given)
    *progress, found = projecting.project(run, "run", given, "w" if arch == "stylegan2" else None, 3)
    assert "comparing with random images" in progress[0] and "found: PSNR" in progress[-1]
    point = Point(3, found.class_name or "light", projected=found)
    image = pixels(images.image(run, point))
    assert np.array_equal(image, pixels(progress[-1].partition("given.png")[2].partition("<figure>")[2]))
    assert not np.array_equal(image, pixels(images.image(run, point._replace(projected=None))))
    assert np.array_equal(pixels(images.between(run, point, 5, "slerp", 0.0)), image)
    assert images.sheet(run, point, CLASSES).count("<figure>") == (12 if arch == "stylegan2" else 2)
    if arch == "stylegan2":
        assert np.array_equal(pixels(images.mixed(run, point, 5, [])), image)
        assert ", class" not in images.caption(run, point), "styles have no class"
    letters = "data:image/png;base64,é"
    no_image = "data:image/png;base64," + base64.b64encode(b"no").decode()
    for data in ("", "data:,", "data:image/png;base64,!!", letters, no_image):
        with pytest.raises(UserError, match=r"<me>.png (cannot be decoded|is not an image)"):
            projecting.read(data, "<me>.png", run)


@needs_gradio
@pytest.mark.parametrize("arch", ["stylegan2", "stylegan3"])
def test_a_network_in_the_official_layout_is_edited_and_projected_to(tmp_path, arch):
    """It has the controls of a run."""
    from fastgan.view import images, projecting
    from fastgan.view.images import Point
    from fastgan.view.page import Page

    module, sizes = {
        "stylegan2": (official, {"channel_base": 64, "channel_max": 8}),
        "stylegan3": (official_stylegan3, {"num_layers": 3, "num_critical": 1, "margin_size": 4}),
    }[arch]
    content = module.snapshot(module.Sizes(img_resolution=8, img_channels=1, c_dim=2, **sizes))
    path = official.write(tmp_path / "network.pkl", content)
    generator, runs = load_official(path).ema, Runs([str(path)], CPU)
    run = runs[runs.first]
    shown = {name for name, part in Page(runs).setup_of(run, runs.first).items() if part.get("visible")}
    assert shown == FAMILIES[arch][1] - {"sheet-shows"} | {"shows", "mixing-tab"}
    drawn = lambda latents, **options: studies.to_uint8(studies.samples(generator, latents, **options)[0, 0])[..., 0]
    point = Point(3, "1", psi=0.5)
    assert np.array_equal(pixels(images.image(run, point)), drawn([3], label=1, truncation=0.5))
    run.find_directions()
    strengths = {run.directions[0].name: 2.0, run.directions[1].name: -1.0}
    edited = point._replace(psi=1.0, strengths=tuple(strengths.values()))
    with editing.edited(generator, run.directions, strengths):
        expected = drawn([3], label=1)
    assert np.array_equal(pixels(images.image(run, edited)), expected)
    picture = io.BytesIO()
    Image.fromarray(drawn([40], label=1)).save(picture, "PNG")
    given = projecting.fitted("me.png", picture.getvalue(), run)
    *_, found = projecting.project(run, runs.first, given, "w+", 3)
    projected = edited._replace(projected=found)
    with editing.edited(generator, run.directions, strengths):
        expected = drawn(found.values)
    assert np.array_equal(pixels(images.image(run, projected)), expected)
    if arch == "stylegan3":
        moved = pixels(images.image(run, edited._replace(x=0.25)))
        assert not np.array_equal(moved, pixels(images.image(run, edited)))


@needs_gradio
def test_a_projection_that_nobody_waits_for_stops(tmp_path, monkeypatch):
    from fastgan.view import projecting

    run = Run(save(tmp_path / "run", side=8), CPU)
    ended = threading.Event()
    project = projecting.projection.project

    def observed(*arguments, **options):
        try:
            return project(*arguments, **options)
        finally:
            ended.set()

    monkeypatch.setattr(projecting.projection, "project", observed)
    given = projecting.Given("image", b"", np.zeros((8, 8, 1), np.uint8), "")
    for stop in (lambda projection: projection.close(), lambda projection: projecting.stop_all()):
        projection = projecting.project(run, "run", given, "w", 10**9)
        while "step " not in next(projection):
            pass
        assert not ended.is_set()
        stop(projection)
        assert ended.wait(60)
        ended.clear()


# Several runs -------------------------------------------------------------------------------------------------------


def test_a_folder_of_runs_has_their_names(tmp_path):
    for name in ("b", "a/new", "a/new/kept"):
        (tmp_path / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / "runs" / name)
    (tmp_path / "runs" / ".hidden").mkdir()
    save(tmp_path / "runs" / ".hidden" / "run")
    os.utime(tmp_path / "runs" / "b" / checkpoint.FILE_NAME)
    runs = Runs([str(tmp_path / "runs")], CPU)
    assert runs.names == ["a/new", "b"], "folders within a run are not searched"
    assert runs.first == "b" and runs["b"].folder == tmp_path / "runs" / "b"
    with pytest.raises(UserError, match="there is no run c"):
        runs["c"]
    save(tmp_path / "runs" / "c")
    runs.find()
    assert runs.names == ["a/new", "b", "c"] and runs["c"] is runs["c"]

    several = Runs([str(tmp_path / "runs"), "example:digits", str(tmp_path / "runs" / "b")], CPU)
    assert several.names == ["runs/a/new", "runs/b", "runs/c", "example:digits"], "a run comes once"
    assert Runs([str(tmp_path / "runs" / "b")], CPU).names == ["b"]
    (tmp_path / "runs" / "a" / "new" / "empty").mkdir()
    with pytest.raises(UserError, match="not the folder of a run"):
        Runs([str(tmp_path / "runs" / "a" / "new" / "empty")], CPU)


def test_few_runs_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr("fastgan.view.watching.MAX_OPEN", 2)
    for name in "abc":
        save(tmp_path / name)
    runs = Runs([str(tmp_path)], CPU)
    opened = {name: runs[name] for name in "abc"}
    assert runs["c"] is opened["c"] and runs["b"] is opened["b"] and runs["a"] is not opened["a"]


def test_a_run_that_is_being_loaded_is_loaded_once_and_keeps_no_other_waiting(tmp_path, monkeypatch):
    for name in "ab":
        save(tmp_path / name)
    runs, loads, loading, go_on = Runs([str(tmp_path)], CPU), [], threading.Event(), threading.Event()
    other = next(name for name in "ab" if name != runs.first)

    def load(path, **options):
        loads.append(path)
        loading.set()
        assert go_on.wait(LONG)
        return Run(path, **options)

    monkeypatch.setattr("fastgan.view.watching.Run", load)
    with ThreadPoolExecutor(3) as threads:
        try:
            waiting = [threads.submit(lambda: runs[other]) for _ in range(2)]
            assert loading.wait(LONG)
            assert threads.submit(lambda: runs[runs.first]).result(LONG).path.parent.name == runs.first
            assert not any(each.done() for each in waiting)
        finally:
            go_on.set()
    assert waiting[0].result() is waiting[1].result() and len(loads) == 1


def test_directions_beside_a_run_are_read_again(tmp_path):
    run = Run(save(tmp_path / "run"), CPU)
    path = run.folder / editing.FILE_NAME
    assert run.directions == []
    editing.save(path, editing.factorized(run.generator, count=2, samples=50))
    run.reread()
    assert [each.name for each in run.directions] == ["f0", "f1"] and run.directions_problem is None
    path.write_bytes(b"broken")
    run.reread()
    assert run.directions == [] and "has no directions" in run.directions_problem
    other = Run(save(tmp_path / "other", "stylegan3"), CPU)
    editing.save(path, editing.factorized(other.generator, count=1, samples=50))
    run.reread()
    assert run.directions == [] and "is of another network" in run.directions_problem
    assert [each.name for each in Run(other.path, CPU, None, path).directions] == ["f0"]


def error_of(argv, capsys):
    assert main(argv) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and "\n" not in line
    return line.removeprefix("error: ")


@needs_gradio
def test_errors_are_one_line(tmp_path, capsys):
    assert "there is no such checkpoint; give a run's folder" in error_of([str(tmp_path / "none")], capsys)
    assert "not the folder of a run, or stopped before its first save" in error_of([str(tmp_path)], capsys)
    run = str(save(tmp_path / "run"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert error_of([run, "--port", str(port)], capsys).startswith(f"--port {port}: Address already in use; choose")
    assert "does not exist" in error_of([run, "--directions", str(tmp_path / "none")], capsys)
    plain, directions = str(save(tmp_path / "plain", "dcgan")), tmp_path / "d.safetensors"
    editing.save(directions, editing.factorized(Run(run, CPU).generator, count=1, samples=50))
    line = error_of([plain, "--directions", str(directions)], capsys)
    assert line == f"--directions {directions}: dcgan has no styles: directions need a style-based generator"
    beside = Runs([run, plain], CPU, None, directions)
    assert beside["run"].directions_problem is None and "no styles" in beside["plain"].directions_problem
    assert error_of([], capsys) == "give a run, or a folder of runs"
    assert error_of([run, "--port", "70000"], capsys) == "--port 70000: must be from 1 to 65535"
    assert error_of([run, "--host", "a" * 300], capsys).endswith(": there is no such address")
    assert error_of([run, "--host", "192.0.2.1"], capsys).startswith("--host 192.0.2.1: no address of this machine")


def test_error_without_gradio_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "fastgan.view.page", raising=False)
    monkeypatch.delattr("fastgan.view.page", raising=False)
    run = str(save(tmp_path / "run"))
    line = error_of([run], capsys)
    assert line == 'the page needs the extra "view", which is not installed: pip install ".[view]"'


# Access ------------------------------------------------------------------------------------------------------------


def answer(
    host="127.0.0.1:7860", path="/gradio_api/queue/join", method="POST", kind="http", served="127.0.0.1", query="",
    token="", whole=False, **headers,
):  # fmt: skip
    """The status of the response to a request, or the code that a websocket is closed with. whole: all of its start."""
    from fastgan.view import access

    headers = {"host": host, "content_length": "2", **headers}
    scope = {
        "type": kind,
        "path": path,
        "query_string": query.encode(),
        "headers": [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items() if value is not None
        ],
    }
    if kind == "http":
        scope["method"] = method
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    asyncio.run(access.RequestFilter(app, access.host_names(served), token)(scope, None, send))
    if kind == "websocket":
        return sent[0].get("code", 200)
    assert {b"x-frame-options", b"content-security-policy"} <= {name for name, _ in sent[0]["headers"]}
    return sent[0] if whole else sent[0]["status"]


@needs_gradio
@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost:9000", "LOCALHOST", "[::1]:7860"])
def test_requests_from_this_machine_are_answered(host):
    assert answer(host) == answer(host, origin=f"http://{host}", sec_fetch_site="same-origin") == 200
    assert answer(host, "/", "GET", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200  # a link to it
    assert answer(host, kind="websocket", origin=f"http://{host}") == 200


@needs_gradio
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"host": "evil.example"}, 403),  # DNS rebinding: a name that has been pointed here
        ({"host": "evil.example:7860", "path": "/config", "method": "GET"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": None}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": "http://evil.example"}, 403),  # a form or a script of another site
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),  # another program of this machine
        ({"origin": "http://evil.example", "kind": "websocket"}, 1008),
        (
            {"sec_fetch_site": "cross-site", "path": "/gradio_api/info", "method": "GET", "sec_fetch_mode": "no-cors"},
            403,
        ),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 403),
        ({"path": "/gradio_api/upload"}, 403),
        ({"path": "/gradio_api/deep_link", "method": "GET"}, 403),
        ({"path": "/gradio_api/component_server"}, 403),
        ({"path": "/gradio_api/run/predict"}, 403),
        ({"path": "/gradio_api/file=/etc/hostname", "method": "GET"}, 403),
        ({"path": "/gradio_api/proxy=https://example.org", "method": "GET"}, 403),
        ({"content_length": str(2**21)}, 413),
        ({"content_length": None}, 411),
        ({"content_length": "many"}, 411),
    ],
)
def test_foreign_requests_are_refused(request_, status):
    assert answer(**request_) == status


@needs_gradio
def test_a_public_page_answers_to_addresses_and_to_the_machine_name():
    for host in ("192.0.2.7:7860", f"{socket.gethostname()}:7860", "localhost"):
        assert answer(host, served="0.0.0.0") == 200
    assert answer("evil.example", served="0.0.0.0") == 403
    assert answer("gpu.example", served="gpu.example") == 200


@needs_gradio
def test_a_public_page_asks_for_its_token():
    """It is a part of the printed address at the first visit, a cookie later."""
    ask = {"served": "0.0.0.0", "token": "secret"}
    visit = {"path": "/", "method": "GET", **ask}
    assert answer(**ask) == answer(**visit) == answer(query="token=wrong", **visit) == 401
    assert answer(kind="websocket", **ask) == 1008
    assert answer(query="token=secret", **ask) == 401, "a token in the address counts for a visit only"
    start = dict(answer(query="a=1&token=secret", whole=True, **visit)["headers"])
    assert start[b"location"] == b"/?a=1", "the token does not stay in the address"
    cookie = start[b"set-cookie"].decode()
    assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower()
    assert answer(cookie=cookie.partition(";")[0], **ask) == 200
    assert answer(cookie=cookie.partition("=")[0] + "=wrong", **ask) == 401
    assert answer(cookie='broken="; =', **ask) == 401
    assert answer(cookie=cookie.partition(";")[0], origin="http://evil.example", **ask) == 403


@needs_gradio
@pytest.mark.parametrize(
    ("host", "shown", "words"),
    [("127.0.0.1", "http://127.0.0.1:80/", "only this machine"), ("::1", "http://[::1]:80/", "only this machine"),
     ("0.0.0.0", f"http://{socket.gethostname()}:80/?token=secret", "warning: everyone who can reach")],
)  # fmt: skip
def test_the_command_says_who_can_reach_the_page(host, shown, words):
    from fastgan.view import access

    assert words in access.reachability(host)
    assert access.address(host, 80, "" if access.is_loopback(host) else "secret") == shown


@needs_gradio
def test_values_that_the_page_never_sends_are_refused_in_one_line(tmp_path):
    """Each control takes the one it was made with, and none of these."""
    import gradio as gr

    from fastgan.view.page import Page, _with_errors_shown

    page = Page(Runs([str(save(tmp_path / "run"))], CPU))
    first = [page.controls[name].value for name in page.controls]
    assert list(page._checked(list(page.controls), first)) == list(page.controls)
    for name, control in page.controls.items():
        for value in (math.nan, math.inf, -math.inf, 1e300, 10**400, [math.nan], ["x"], {"a": 1}, object()):
            with pytest.raises(UserError, match=f"{re.escape(control.label)}: invalid value"):
                page._checked([name], [value])
    for name in ("psi", "seed", "position", "edit-0", "x", "moment"):
        for value in ("5", True, [1], -1e9):
            with pytest.raises(UserError, match="invalid value"):
                page._checked([name], [value])
    from types import SimpleNamespace

    from fastgan.view.page import _choice

    for event in (SimpleNamespace(choice="x"), SimpleNamespace(choice=math.nan), SimpleNamespace(choice=[1])):
        with pytest.raises(UserError, match="Image: invalid value"):
            _choice(event)
    assert (_choice(SimpleNamespace()), _choice(SimpleNamespace(choice=-3))) == (0, -3)
    with pytest.raises(gr.Error, match="Truncation: invalid value") as refused:
        _with_errors_shown(page._checked)(["psi"], [math.nan])
    assert not refused.value.print_exception


@needs_gradio
def test_markup_in_names_is_escaped(tmp_path):
    from fastgan.view import images, training
    from fastgan.view.images import CLASSES, Point

    folder = save(tmp_path / "<img src=x onerror=alert(1)>", class_names=["<script>alert(2)</script>", '"light'])
    run = Run(folder, CPU)
    shown = [training.head(run), images.sheet(run, Point(), CLASSES), images.image(run, Point())]
    shown += [images.between(run, Point(0, '"light'), 1, "slerp", 0.5), images.compared([run], Point())]
    for text in shown:
        assert "<script" not in text and "<img src=x" not in text
    assert "&lt;script&gt;" in shown[1] and "&quot;light" in shown[3]


@needs_gradio
def test_answers_that_nobody_fetches_are_dropped_but_none_that_is_awaited(monkeypatch):
    from types import SimpleNamespace

    from fastgan.view import queueing

    monkeypatch.setattr(queueing, "MAX_MAILBOXES", 3)
    waiting, running = SimpleNamespace(session_hash="waiting"), SimpleNamespace(session_hash="running")
    queue = SimpleNamespace(
        event_queue_per_concurrency_id={"a": SimpleNamespace(queue=[waiting])}, active_jobs=[None, [running]],
        pending_event_ids_session={str(number): set() for number in range(3000)},
    )  # fmt: skip
    boxes = queueing.Mailboxes(queue)
    for name in ("waiting", "running", *map(str, range(3000))):
        boxes[name] = name
    assert list(boxes) == ["waiting", "running", "2999"] and len(queue.pending_event_ids_session) == 1
    queue.event_queue_per_concurrency_id["a"].queue = []
    assert boxes["running"] == "running"
    boxes["new"] = ""
    assert list(boxes) == ["2999", "running", "new"], "the one that was used longest ago is dropped"


@pytest.mark.slow
@needs_gradio
def test_the_page_survives_many_clients_and_abandoned_requests(tmp_path):
    """And a folder that disappears and comes back, without a traceback. With FASTGAN_FAULTS=all there are 3,000 posts,
    which take minutes, else a fortieth of all numbers."""
    import httpx

    posts = 3000 if os.environ.get("FASTGAN_FAULTS") == "all" else 75
    run = save(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    scale = 3000 // posts
    # Slow polls, and images that wait for a file.
    small = f"""
import time, pathlib, fastgan.studies as studies, fastgan.view.queueing as queueing, fastgan.view.watching as watching
queueing.MAX_WAITING //= {scale}
queueing.MAX_MAILBOXES //= {scale}
reread, samples = watching.Run.reread, studies.samples
watching.Run.reread = lambda self: (time.sleep({0.0005 * scale}), reread(self))[1]
def slow(*arguments, **options):
    while not pathlib.Path({str(tmp_path / "go")!r}).exists():
        time.sleep(0.05)
    return samples(*arguments, **options)
studies.samples = slow
"""
    process = start([str(run), "--port", str(port), "--device", "cpu"], small, module="view")
    try:
        assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
        assert "only this machine" in process.stdout.readline()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/gradio_api", timeout=LONG) as client:
            config = client.get(f"http://127.0.0.1:{port}/config").json()

            def call(event, session):
                """Post a request of the function that listens to this event, until the queue takes it."""
                function = next(
                    each for each in config["dependencies"] if event in dict(map(reversed, each["targets"]))
                )
                values = {each["id"]: each["props"].get("value") for each in config["components"] if event == "change"}
                body = {
                    "fn_index": function["id"], "data": [values.get(number) for number in function["inputs"]],
                    "trigger_id": None, "event_data": None, "session_hash": session,
                }  # fmt: skip
                refused = 0
                while (status := client.post("/queue/join", json=body).status_code) == 503:
                    refused += 1
                    time.sleep(0.05)
                assert status == 200
                return refused

            def answer_to(session):
                with client.stream("GET", "/queue/data", params={"session_hash": session}) as lines:
                    for line in lines.iter_lines():
                        if '"process_completed"' in line:
                            return json.loads(line.removeprefix("data:"))["output"]["data"]

            def head(session):
                """The head of the page as a polling client sees it."""
                call("tick", session)
                return answer_to(session)[0]

            def health():
                answer = client.get(f"http://127.0.0.1:{port}/health")
                assert answer.status_code == 200
                return answer.text

            assert health().startswith("ok: 0 of at most")
            for session in ("drawing", "waiting"):  # one after the other
                call("change", session)
            with ThreadPoolExecutor(10) as clients:
                refused = clients.map(lambda number: call("tick", f"abandoned{number}"), range(posts))
                assert sum(refused), "the queue was never full"
                assert health().startswith("ok: ")
                for text in clients.map(head, [f"client{number}" for number in range(10)]):
                    assert "<h1>run</h1>" in text and "problem" not in text
            (tmp_path / "go").touch()
            for session in ("drawing", "waiting"):
                assert "data:image/png" in str(answer_to(session)), "its mailbox was dropped"
            run.rename(tmp_path / "elsewhere")
            assert "there is no such checkpoint" in head("gone")
            run.write_text("a file")
            assert "problem" in head("a file")
            run.unlink()
            (tmp_path / "elsewhere").rename(run)
            assert "problem" not in head("back")
            assert health().startswith("ok: ")
    finally:
        process.terminate()
        output = process.communicate()[0]
    assert "Traceback" not in output, output


# In a browser -------------------------------------------------------------------------------------------------------


class Browser:
    """A headless Chromium that shows the page, and the actions of the test."""

    def __init__(self, address, profile):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        options.page_load_strategy = "none"  # a page with server-sent events never finishes loading
        flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage"]
        flags += ["disable-background-networking", "disable-component-update", "disable-sync", "window-size=1440,1000"]
        rules = "host-resolver-rules=MAP evil.example 127.0.0.1"  # a name of another website that leads here
        for flag in [*flags, rules, f"user-data-dir={profile}"]:
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.get(address)
        self.requested = []  # URLs of all requests until the last call of `new_requests`

    def new_requests(self):
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [each for each in messages if each["method"] == "Network.requestWillBeSent"]
        new = [each["params"]["request"]["url"] for each in sent]
        self.requested += new
        return new

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def wait(self, what, condition, seconds=120):
        """Wait until `condition()` is true and return its value. Elements may be replaced while they are read."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except (WebDriverException, IndexError):  # not there yet, or replaced
                pass
            assert self.errors() == [], what
            time.sleep(0.15)
        raise AssertionError(f"{what} did not come in {seconds} seconds")

    def refusal(self, words):
        """Wait until the page has refused something with these words, and close the message."""
        end = time.monotonic() + 120
        while not any(words in text for text in self.errors()):
            assert time.monotonic() < end, words
            time.sleep(0.15)
        while self.errors():
            self.driver.execute_script("document.querySelector('.toast-close')?.click()")
            time.sleep(0.15)

    def errors(self):
        return self.driver.execute_script(
            "return [...document.querySelectorAll('.toast-body')].map(each => each.innerText)"
        )

    def click(self, selector, text=None):
        """Click the visible element, with this text if there are several."""
        from selenium.webdriver import ActionChains

        def done():
            for element in self.all(selector):
                if element.is_displayed() and text in (None, element.text.strip()):
                    # Not `element.click()`, which waits for seconds until nothing moves on the page.
                    self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
                    ActionChains(self.driver, duration=0).move_to_element(element).click().perform()
                    return True

        self.wait(f"{selector} {text or ''}", done)

    def type(self, selector, text):
        from selenium.webdriver.common.keys import Keys

        (field,) = self.wait(selector, lambda: [each for each in self.all(selector) if each.is_displayed()][:1])
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(text), Keys.TAB)

    def press(self, selector, key):
        """Press a key in the visible element."""
        (field,) = self.wait(selector, lambda: [each for each in self.all(selector) if each.is_displayed()][:1])
        field.send_keys(key)

    def choose(self, selector, option):
        """Choose an option of a dropdown."""
        self.click(f"{selector} input")
        self.click("li[role=option]", option)

    def open(self, tab):
        """Open a tab, which a narrow page keeps in a menu."""
        found = [
            each for each in self.all("#tabs button[role=tab]") if each.text.strip() == tab and each.is_displayed()
        ]
        if not found:
            self.click("#tabs .overflow-menu > button")
        self.click("#tabs button[role=tab], #tabs .overflow-dropdown button", tab)

    def source(self, selector):
        """The `src` of the first image below `selector`."""
        image = self.wait(selector, lambda: self.all(f"{selector} img"))[0]
        return image.get_attribute("src")

    def shows(self, selector, expected):
        """Wait until the image below `selector` has these pixels."""
        self.wait(f"{selector} as expected", lambda: np.array_equal(pixels(self.source(selector)), expected))

    def reached_by_tab(self, selector, presses):
        """Ids of the elements that the tab key leads to, from the one of the selector on, and of those around them."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        found = []
        self.driver.execute_script("arguments[0].focus()", self.all(selector)[0])
        for _ in range(presses):
            ActionChains(self.driver, duration=0).send_keys(Keys.TAB).perform()
            found += self.driver.execute_script(
                "const ids = []; for (let at = document.activeElement; at; at = at.parentElement) ids.push(at.id);"
                "return ids.filter(id => id)"
            )
        return list(dict.fromkeys(found))

    def changed(self, selector, before):
        """Wait until the image below `selector` is another one, and return its `src`."""
        return self.wait(
            f"another {selector}", lambda: (now := self.source(selector)) != before and pixels(now) is not None and now
        )


@pytest.fixture
def served(folder, tmp_path):
    """Two runs of tiny networks, one trained and one of stylegan3 with movement, a browser that shows their page, and a
    function that saves a new checkpoint of the first."""
    (tmp_path / "runs").mkdir()
    moving = save(tmp_path / "runs" / "moving", "stylegan3", side=8)
    run = train(folder, tmp_path / "runs" / "trained", "--grid-interval", "16")
    header = checkpoint.read_header(run)
    state = new_state(header.model, header.config, CPU)
    checkpoint.restore(header, state)

    def resave(value, images):
        """Save a checkpoint as a continued training would."""
        randomize_styles(state.ema)
        nn.init.constant_(state.ema.mapping.w_avg, value)
        state.images = images
        checkpoint.save(header.path, state, header.config, header.model, header.dataset)

    resave(0.0, 48)
    editing.save(run / editing.FILE_NAME, editing.factorized(state.ema.eval(), count=2, samples=50))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start([str(run.parent), "--port", str(port), "--device", "cpu"], module="view")
    browser = None
    try:
        line = process.stdout.readline()
        assert f"2 runs are at http://127.0.0.1:{port}/" in line, line + process.communicate()[0]
        browser = Browser(f"http://127.0.0.1:{port}/", tmp_path / "profile")
        yield run, moving, browser, resave
    finally:
        if browser:
            browser.driver.quit()
        process.terminate()
        output = process.communicate()[0]
    assert "Traceback" not in output, output


# The accessible name of every control in view, or its HTML if it has none.
NAMELESS = """
return [...document.querySelectorAll('input, button, select, textarea, [role=slider]')].filter(each => {
    const box = each.getBoundingClientRect();
    if (!box.width || !box.height) return false;
    const labels = each.labels ? [...each.labels].map(label => label.textContent).join('') : '';
    const inside = each.textContent + [...each.querySelectorAll('img')].map(image => image.alt).join('');
    return !(each.ariaLabel || each.title || each.placeholder || labels.trim() || inside.trim());
}).map(each => each.outerHTML.slice(0, 300));
"""


# What is cut off or out of the screen, and what overlaps. A sheet of images scrolls sideways by itself.
MISPLACED = """
const seen = 'img, figcaption, h1, h2, input, button, label > span, [data-testid=block-info], [role=progressbar], ' +
    '.curve svg';
const placed = [...document.querySelectorAll(seen)].map(each => [each, each.getBoundingClientRect()]).filter(
    ([each, box]) => box.width > 1 && box.height > 1 && each.checkVisibility({opacityProperty: true}));
const name = each => `${each.tagName} ${each.id || each.alt || each.ariaLabel || each.textContent.trim()}`;
const found = [];
placed.forEach(([each, box], i) => {
    if (!each.closest('.sheet') && (box.left < 0 || box.right > innerWidth))
        found.push(`${name(each)} is from ${box.left} to ${box.right}`);
    if (each.tagName !== 'INPUT' && each.clientWidth && each.scrollWidth > each.clientWidth + 1)
        found.push(`${name(each)} is cut off`);
    for (const [other, place] of placed.slice(0, i)) {
        if (each.contains(other) || other.contains(each)) continue;
        const across = Math.min(box.right, place.right) - Math.max(box.left, place.left);
        const down = Math.min(box.bottom, place.bottom) - Math.max(box.top, place.top);
        if (across > 1 && down > 1) found.push(`${name(each)} overlaps ${name(other)}`);
    }
});
return found;
"""


def assert_fits(browser, what):
    """Once nothing moves any more, everything is within the screen and beside each other."""
    problems = []

    def fits():
        problems[:] = browser.driver.execute_script(MISPLACED)
        return not problems

    try:
        browser.wait(what, fits, 20)
    except AssertionError:
        raise AssertionError(f"{what}: {problems or browser.errors()}") from None
    width = browser.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= 375, f"{what} scrolls sideways: {width} pixels"


def check_on_a_phone(browser, run):
    """Every tab with its controls, from a page that shows another run, seed 3 and a projection."""
    from selenium.webdriver.common.keys import Keys

    screen = {"width": 375, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    assert_fits(browser, "Images with movement")
    browser.choose("#run", "trained")
    curves = lambda: [each for each in browser.all(".curve svg") if each.size["height"] > 100]
    widths = lambda: [each.size["width"] for each in browser.all(".sheet img") if each.is_displayed()]
    ready = {
        "Images": lambda: browser.shows("#image", drawn(run, 3, 0)),
        "Style mixing": lambda: browser.shows("#mixed", drawn(run, 7, 0)),
        "Interpolation": lambda: browser.shows("#between", drawn(run, 3, 0)),
        "Projection": lambda: browser.wait("the projection", lambda: len(browser.all("#projection img")) == 2),
        "Compare": lambda: browser.wait("both runs", lambda: len(browser.all("#compared section")) == 2),
        "Training": lambda: browser.wait("curves", lambda: len(curves()) >= 6),
    }
    for tab, wait in ready.items():
        if tab == "Training":  # from the menu, by keys
            browser.press("#tabs .overflow-menu > button", Keys.ENTER)
            (entry,) = [each for each in browser.all("#tabs .overflow-dropdown button") if each.text == tab]
            entry.send_keys(Keys.ENTER)
        else:
            browser.open(tab)
        wait()
        assert_fits(browser, tab)
        browser.wait("small images that are not tiny", lambda: min(widths(), default=60) >= 60)
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
@needs_gradio
@pytest.mark.skipif(find_spec("selenium") is None, reason="selenium is not installed")
@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="there is no Chromium with its driver here")
def test_every_control_in_a_browser(served):
    from selenium.webdriver.common.keys import Keys

    from fastgan.view.page import POLL_SECONDS

    run, moving, browser, resave = served

    # A seed gives the image of `fastgan generate`.
    browser.shows("#image", drawn(run, 0, 0))
    first = browser.source("#image")
    browser.type("#seed input", 5)
    browser.shows("#image", drawn(run, 5, 0))
    browser.type("#seed input", 0)
    browser.shows("#image", drawn(run, 0, 0))
    assert browser.source("#image") == first
    assert not np.array_equal(drawn(run, 5, 0), drawn(run, 0, 0))
    assert browser.all("#image img")[0].size == {"width": 512, "height": 512}, "each pixel covers 64x64 on the screen"
    browser.click("#random")
    browser.changed("#image", first)
    browser.type("#seed input", 0)

    # Class and truncation.
    browser.choose("#class", "light")
    browser.shows("#image", drawn(run, 0, 1))
    browser.type("#psi input[type=number]", 0.5)
    browser.shows("#image", drawn(run, 0, 1, truncation=0.5))
    browser.type("#psi input[type=number]", 1)
    browser.shows("#image", drawn(run, 0, 1))

    # An idle page only polls, once it has drawn.
    def only_polls():
        browser.new_requests()
        time.sleep(3 * POLL_SECONDS)
        return sum("queue/join" in url for url in browser.new_requests()) <= 4

    browser.wait("an idle page", only_polls)

    # Images beside it, which can be selected.
    browser.click("#sheet-shows label", "every class")
    browser.wait("an image a class", lambda: [each.text for each in browser.all("#sheet figure")] == ["dark", "light"])
    browser.click("#sheet button")
    browser.shows("#image", drawn(run, 0, 0))
    browser.click("#sheet-shows label", "more seeds")
    browser.wait("more seeds", lambda: browser.all("#sheet figure")[2].text == "seed 3")
    browser.click("#sheet button[data-choice='3']")
    browser.shows("#image", drawn(run, 3, 0))

    # Noise.
    before = browser.source("#image")
    browser.click("#sides label", "8×8")
    browser.changed("#image", before)
    browser.click("#sides label", "8×8")
    browser.shows("#image", drawn(run, 3, 0))
    before = browser.source("#image")
    browser.click("#noise label", "random")
    once = browser.changed("#image", before)
    browser.press("#seed input", Keys.ENTER)  # draws again
    browser.changed("#image", once)
    browser.click("#noise label", "fixed")
    browser.shows("#image", drawn(run, 3, 0))

    # Directions; the arrow keys move a slider.
    generator, _ = checkpoint.load_generator(run)
    found = editing.load(run / editing.FILE_NAME)
    assert browser.all("#edit-1 label, #edit-1 span")[0].text.startswith("f1 · ")

    def edited(strength):
        with editing.edited(generator, found, {"f0": strength}):
            return studies.to_uint8(studies.samples(generator, [3], label=0)[0, 0])[:, :, 0]

    browser.type("#edit-0 input[type=number]", 2)
    browser.shows("#image", edited(2.0))
    browser.press("#edit-0 input[type=range]", Keys.ARROW_RIGHT)
    browser.shows("#image", edited(2.1))
    browser.click("#reset")
    browser.shows("#image", drawn(run, 3, 0))
    browser.press("#seed input", Keys.TAB)
    assert browser.driver.switch_to.active_element.get_attribute("id") == "random", "controls follow each other"
    order = ["refresh", "run", "seed", "random", "class", "psi", "edit-0", "edit-1", "reset", "noise", "sides"]
    order += ["sheet-shows", "tabs", "image", "sheet"]
    reached = browser.reached_by_tab("#follow input", 60)
    assert [each for each in reached if each in order] == order
    assert browser.driver.execute_script(NAMELESS) == []

    # Style mixing: no layer of the second seed, some, all.
    browser.click("#tabs button[role=tab]", "Style mixing")
    browser.shows("#mixed", drawn(run, 1, 0))  # all layers that this small network has
    every = browser.source("#mixed")
    browser.click("#layers label", "8×8")
    some = browser.changed("#mixed", every)
    assert not any(np.array_equal(pixels(some), drawn(run, seed, 0)) for seed in (1, 3))
    browser.click("#layers label", "8×8")
    browser.type("#second input", 7)
    browser.shows("#mixed", drawn(run, 7, 0))
    for side in ("4×4", "8×8"):
        browser.click("#layers label", side)
    browser.shows("#mixed", drawn(run, 3, 0))

    # Interpolation.
    browser.click("#tabs button[role=tab]", "Interpolation")
    arc = browser.source("#between")
    browser.click("#space label", "line in w")
    browser.changed("#between", arc)
    browser.wait("the row", lambda: len(browser.all("#row figure")) == 9)
    browser.click("#animate label")
    browser.wait("the animation", lambda: browser.source("#between").startswith("data:image/webp"))
    browser.type("#second input", 8)
    browser.wait("another animation", lambda: "seed 8 and back" in browser.all("#between figcaption")[0].text)
    browser.type("#second input", 7)
    browser.click("#row button[data-choice='100']")
    browser.wait("the end", lambda: "100% of the way" in browser.all("#between figcaption")[0].text)
    browser.shows("#between", drawn(run, 7, 0))
    browser.click("#animate label")
    browser.wait("the animation", lambda: browser.source("#between").startswith("data:image/webp"))
    browser.type("#position input[type=number]", 0)
    browser.shows("#between", drawn(run, 3, 0))

    # Projection, whose result takes the place of the seed.
    picture, broken = run.parent / "me.png", run.parent / "broken.png"
    broken.write_bytes(b"no image")
    Image.fromarray(drawn(run, 40, 1)).resize((24, 16)).save(picture)
    browser.click("#tabs button[role=tab]", "Projection")
    (file,) = browser.wait("the file input", lambda: browser.all("#upload input"))
    file.send_keys(str(broken))
    browser.refusal("broken.png is not an image")
    file.send_keys(str(picture))
    given = "me.png: 24x16, cropped and resized to 8x8"
    browser.wait("the preview", lambda: browser.all("#projection figcaption")[0].text == given)
    browser.type("#steps input[type=number]", 2000)
    browser.click("#project")
    browser.wait("progress", lambda: "step " in browser.all("#projection figcaption")[1].text)
    assert not browser.all("#project")[0].is_enabled()
    browser.click("#stop")
    browser.wait("the end of the projection", lambda: browser.all("#project")[0].is_enabled())
    browser.type("#steps input[type=number]", 10)
    found = lambda: "found: PSNR" in browser.all("#projection figcaption")[1].text
    browser.click("#project")
    browser.wait("the projection", found)
    projected = pixels(browser.all("#projection img")[1].get_attribute("src"))
    browser.click("#tabs button[role=tab]", "Images")
    browser.shows("#image", projected)
    assert browser.all("#image figcaption")[0].text == "projection of me.png"
    browser.type("#edit-0 input[type=number]", 2)
    browser.wait("an edit", lambda: "projection of me.png, f0 +2" in browser.all("#image figcaption")[0].text)
    browser.click("#reset")
    browser.type("#seed input", 3)  # back to seeds
    browser.shows("#image", drawn(run, 3, 0))

    # Two runs side by side, and the other one alone, which moves.
    browser.click("#tabs button[role=tab]", "Compare")
    browser.wait("both runs", lambda: len(browser.all("#compared section")) == 2)
    assert [each.text for each in browser.all("#compared h2")] == ["trained", "moving"]
    sources = [browser.source(f"#compared section:nth-child({number})") for number in (1, 2)]
    assert all(np.array_equal(pixels(src), drawn(own, 3, 0)) for src, own in zip(sources, (run, moving), strict=True))
    browser.click("#tabs button[role=tab]", "Images")
    browser.choose("#run", "moving")
    browser.shows("#image", drawn(moving, 3, 0))
    assert "moving" in browser.all("#head")[0].text
    browser.wait("its controls", lambda: not browser.all("#noise, #edit-0"))
    browser.type("#x input[type=number]", 0.25)
    scene, _ = checkpoint.load_generator(moving)
    browser.shows(
        "#image", studies.to_uint8(studies.move(scene, [3], [studies.translation(0.25, 0)], label=0)[0, 0])[..., 0]
    )
    browser.type("#x input[type=number]", 0)

    # A phone.
    check_on_a_phone(browser, run)
    tabs = "#tabs button[role=tab]"
    browser.wait(
        "the wide page", lambda: "Training" in [each.text for each in browser.all(tabs) if each.is_displayed()]
    )
    browser.click(tabs, "Images")
    browser.wait("the tab", lambda: browser.all(f"{tabs}[aria-selected=true]")[0].text == "Images")
    browser.shows("#image", drawn(run, 3, 0))

    # Curves, and earlier samples.
    browser.click("#tabs button[role=tab]", "Training")
    browser.wait("curves", lambda: len([each for each in browser.all(".curve svg, .curve canvas") if each.size]) >= 6)
    assert {"Losses", "Mean sign of logits"} <= {each.text for each in browser.all(".curve text")}
    last = browser.source("#history")
    assert "after 48 images" in browser.all("#history figcaption")[0].text
    browser.type("#moment input[type=number]", 1)
    browser.changed("#history", last)
    assert "after 16 images" in browser.all("#history figcaption")[0].text

    # The page follows a running training, unless Follow is off.
    browser.click("#tabs button[role=tab]", "Images")
    browser.shows("#image", drawn(run, 3, 0))
    before = browser.source("#image")
    resave(0.5, 52)
    browser.type("#psi input[type=number]", 0.5)
    browser.wait("the new checkpoint", lambda: "after 52" in browser.all("#head")[0].text)
    browser.shows("#image", drawn(run, 3, 0, truncation=0.5))
    browser.click("#follow label")
    time.sleep(1)
    resave(-0.5, 56)
    time.sleep(3)
    assert "after 52" in browser.all("#head")[0].text
    browser.click("#refresh")
    browser.wait("the newest checkpoint", lambda: "after 56" in browser.all("#head")[0].text)
    browser.shows("#image", drawn(run, 3, 0, truncation=0.5))

    # No errors, and no requests to other servers.
    assert browser.errors() == []
    severe = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []
    browser.new_requests()
    servers = {re.sub(r"(\d):.*", r"\1", url) for url in browser.requested if re.match("(https?|wss?):", url)}
    assert servers == {"http://127.0.0.1"}

    # Another website: under a name of its own that leads here, and by a form.
    address = browser.driver.current_url
    browser.driver.get(address.replace("127.0.0.1", "evil.example"))
    browser.wait("a refusal of the name", lambda: "is not served as 'evil.example" in browser.all("body")[0].text)
    form = f"<form method=post action={address}gradio_api/queue/join><button>Win</button></form>"
    browser.driver.get(f"data:text/html,{form}")
    browser.click("button", "Win")
    browser.wait(
        "a refusal of the form", lambda: "Requests from other sites are refused" in browser.all("body")[0].text
    )
