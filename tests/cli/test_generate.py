"""`fastgan generate`: images of seeds and classes, pictures of studies, animations, and one line for every error."""

import dataclasses
import math
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fastgan
from fastgan import editing, models, studies
from fastgan.cli.generate import SUB_COMMANDS, parse_classes, parse_seeds
from fastgan.cli.generate import main as generate
from fastgan.errors import UserError
from fastgan.runs import checkpoint, drawing
from fastgan.runs.grid import draw_grid
from tests.support.commands import SHORTAGES, error_of, failing
from tests.support.processes import start
from tests.support.tiny_run import train as train_tiny
from tests.support.tiny_run import untrained
from tests.test_studies import Growing

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return train_tiny(folder, tmp_path_factory.mktemp("run") / "run")


@pytest.mark.parametrize("text, seeds", [("3", [3]), ("0-2,7", [0, 1, 2, 7]), ("5, 1-2", [5, 1, 2])])
def test_lists_of_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-3", "1,,2", "1.5"])
def test_invalid_lists_of_seeds(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_classes_by_name():
    assert parse_classes("b, a", ["a", "b"]) == [("b", 1), ("a", 0)]
    assert parse_classes(None, ["a", "b"]) == [("a", 0), ("b", 1)]
    with pytest.raises(UserError, match="there is no class 'c'; there are a, b"):
        parse_classes("c", ["a", "b"])
    with pytest.raises(UserError, match="without classes"):
        parse_classes("c", [])


def test_an_image_depends_on_its_seed_class_and_truncation_only(run, tmp_path):
    many, one, other = tmp_path / "many", tmp_path / "one", tmp_path / "other"
    assert generate(["--checkpoint", str(run), "--seeds", "0-5", "--trunc", "0.7", "--out", str(many)]) == 0
    argv = ["--checkpoint", str(run), "--seeds", "4", "--classes", "light", "--out"]
    assert generate([*argv, str(one), "--trunc", "0.7"]) == generate([*argv, str(other)]) == 0
    assert len(list(many.iterdir())) == 12
    (only,) = one.iterdir()
    assert only.name == "class01-light-seed0004.png"
    image, again, whole = (np.asarray(Image.open(folder / only.name)) for folder in (one, many, other))
    assert np.array_equal(image, again) and not np.array_equal(image, whole)


def test_images_of_one_of_several_emas(tmp_path, capsys):
    run = untrained(tmp_path / "run", "stylegan2", ema_halflife=(10.0, 2.5))
    pictures = {}
    for ema in (None, "10", "2.5"):
        out = tmp_path / f"{ema}.png"
        assert generate(["--checkpoint", str(run), "--out", str(out), *(["--ema", ema] if ema else [])]) == 0
        pictures[ema] = out.read_bytes()
    assert pictures[None] == pictures["10"] != pictures["2.5"]
    images = {ema: fastgan.load(run, "cpu", ema=ema).sample(2) for ema in (None, 10, 2.5)}
    assert torch.equal(images[None], images[10]) and not torch.equal(images[10], images[2.5])
    for tensor in checkpoint.read_networks(checkpoint.read_header(run), 2.5):
        assert tensor.startswith(checkpoint.NETWORKS)
    argv = ["--checkpoint", str(run), "--ema", "5"]
    assert "--ema 5: " in error_of(generate, argv, capsys)


def test_a_picture_is_a_labelled_grid(run, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    assert generate(["--checkpoint", str(run), "--seeds", "0-19", "--classes", "dark", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert Image.open(out).size[0] > 16 * 48 and [path.name for path in out.parent.iterdir()] == ["grid.png"]


GENERATE_ERRORS = {
    "no such run": (["--checkpoint", "nowhere"], "nowhere: there is no such checkpoint"),
    "no such class": (["--classes", "grey"], "there is no class 'grey'; there are dark, light"),
    "seeds": (["--seeds", "first"], "--seeds first"),
    "negative seed": (["--seeds=-3"], "--seeds -3: '-3' is neither a number from 0 up nor a range"),
    "large seed": (["--seeds", f"1,{2**64}"], f"{2**64} is out of range; a seed is from 0 to {2**64 - 1}"),
    "seed beyond numpy's": (
        ["--seeds", f"1,{2**32}", "--seed-format", "numpy"],
        f"{2**32} is out of range; a seed of numpy is from 0 to {2**32 - 1}",
    ),
    "seed beyond Python's integers": (["--seeds", "9" * 5000], "is out of range; a seed is from 0 to"),
    "a slip of the finger": (["--seeds", "0-99999999999"], "--seeds 0-99999999999: more than 1,000,000"),
}


@pytest.mark.parametrize("case", GENERATE_ERRORS)
def test_a_wrong_option_of_grid_is_one_line(case, run, capsys):
    argv, says = GENERATE_ERRORS[case]
    argv = argv if "--checkpoint" in argv else ["--checkpoint", str(run), *argv]
    assert says in error_of(generate, argv, capsys)


def test_the_largest_seed(folder, run, tmp_path):
    largest = str(2**64 - 1)
    assert train_tiny(folder, tmp_path / "run", "--images", "4", "--seed", largest)
    out = tmp_path / "images"
    assert generate(["--checkpoint", str(run), "--classes", "dark", "--seeds", largest, "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == [f"class00-dark-seed{largest}.png"]


@pytest.fixture
def studied(run, monkeypatch):
    """Function that draws a study of a run, or of `generator`, and returns the sections of its picture."""

    def draw(argv, out, generator=None):
        drawn = []
        with monkeypatch.context() as patch:
            patch.setattr("fastgan.cli.generate.draw_grid", lambda *given: drawn.extend(given) or draw_grid(*given))
            if generator is not None:
                patch.setattr(checkpoint, "load_generator", lambda *_: (generator, None))
            assert generate([*argv, "--checkpoint", str(run), "--out", str(out)]) == 0
        sections, smallest = drawn
        assert smallest == 96
        return sections

    return draw


STUDIES = {  # with each, rows and columns of a section, and sections
    "classes --seeds 0-4": (2, 5, 1),
    "interpolate --seeds 0-2": (2, 9, 1),
    "interpolate --seeds 0,1 --space w --steps 4 --classes light,dark": (1, 4, 2),
    "mix --seeds 0,1 --seeds-b 4-6 --layers 1-2": (3, 4, 1),
    "noise --seeds 5 --draws 3 --classes light": (1, 5, 1),
    "truncation --seeds 0-1 --steps 5": (2, 5, 1),
}


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_a_labelled_picture(study, studied, tmp_path):
    rows, columns, number = STUDIES[study]
    out = tmp_path / "new" / "study.png"
    sections = studied(study.split(), out)
    assert len(sections) == number
    for section in sections:
        assert section.heading and len(section.columns) == columns
        assert [(len(images), bool(label)) for label, images in section.rows] == [(columns, True)] * rows
    picture = Image.open(out)
    picture.load()
    height = number * (rows * 98 + 22)  # images of 96 pixels with their gap, and the labels of columns
    assert height + number * 28 <= picture.height <= height + number * 68 + 14  # headings of one to three lines
    assert columns * 98 < picture.width < columns * 98 + 500
    assert [path.name for path in out.parent.iterdir()] == ["study.png"]


def test_pictures_show_the_images_of_the_studies(run, studied, tmp_path):
    generator, _ = checkpoint.load_generator(run)
    out = tmp_path / "study.png"

    def rows(argv):
        (section,) = studied(argv.split(), out)
        return np.stack([images for _, images in section.rows])

    expected = {
        "classes --seeds 0-4 --classes light,dark --trunc 0.7": studies.classes(
            generator, range(5), [1, 0], truncation=0.7
        ),
        "interpolate --space z --steps 3": studies.interpolate(generator, range(4), steps=3, space="z", label=0),
        "truncation --steps 3 --classes light": studies.truncation_sweep(generator, range(4), [-1, 0, 1], label=1),
    }
    for argv, images in expected.items():
        assert np.array_equal(rows(argv), studies.to_uint8(images)), argv
    options = {"label": 1, "truncation": 0.7}
    table = rows("mix --seeds 0-2 --seeds-b 5,6 --layers coarse --classes light --trunc 0.7")
    assert np.array_equal(
        table[1:, 1:], studies.to_uint8(studies.mix(generator, range(3), [5, 6], "coarse", **options))
    )
    assert np.array_equal(table[0, 1:], studies.to_uint8(studies.samples(generator, [5, 6], **options)[0]))
    assert np.array_equal(table[1:, 0], studies.to_uint8(studies.samples(generator, range(3), **options)[0]))
    assert (table[0, 0] == 255).all()
    table = rows("noise --draws 4")
    assert np.array_equal(table[:, :4], studies.to_uint8(studies.noise_by_layer(generator, range(4), label=0)))
    deviation = studies.noise_deviation(generator, range(4), draws=4, label=0)
    assert np.array_equal(table[:, 4:], studies.to_uint8(2 * deviation / deviation.max() - 1))
    assert table[:, 4].max() == 255


NUMPY = {  # with each, the study of latents of source A and source B
    "classes --seeds 3,0 --classes light": lambda g, a, b: studies.classes(g, a, [1]),
    "interpolate --seeds 3,0 --steps 3": lambda g, a, b: studies.interpolate(g, a, steps=3, label=0),
    "truncation --seeds 3,0 --steps 2": lambda g, a, b: studies.truncation_sweep(g, a, [-1, 1], label=0),
    "noise --seeds 3,0 --draws 2": lambda g, a, b: studies.noise_by_layer(g, a, label=0),
    "mix --seeds 3,0 --seeds-b 5,6": lambda g, a, b: studies.mix(g, a, b, "coarse", label=0),
}


@pytest.mark.parametrize("study", NUMPY)
def test_numpy_seeds_give_the_latents_of_the_official_scripts(study, run, studied, tmp_path):
    generator, _ = checkpoint.load_generator(run)
    a, b = (
        torch.from_numpy(
            np.concatenate([np.random.RandomState(seed).randn(1, generator.z_dim) for seed in seeds])
        ).float()
        for seeds in ([3, 0], [5, 6])
    )
    (section,) = studied([*study.split(), "--seed-format", "numpy"], tmp_path / "study.png")
    drawn, expected = np.stack([images for _, images in section.rows]), studies.to_uint8(NUMPY[study](generator, a, b))
    assert np.array_equal(drawn[-len(expected) :, : 4 if "noise" in study else None][:, -expected.shape[1] :], expected)


def test_numpy_seeds_of_single_images_and_of_a_sampler(run, tmp_path):
    sampler = fastgan.load(run, "cpu", batch=1)
    z = torch.from_numpy(np.random.RandomState(7).randn(1, sampler.model.z_dim)).float()
    expected = drawing.draw(sampler.generator, z, torch.tensor([1]))[0]
    argv = ["--checkpoint", str(run), "--seeds", "7", "--classes", "light", "--out", str(tmp_path)]
    assert generate([*argv, "--seed-format", "numpy"]) == 0
    drawn = np.asarray(Image.open(tmp_path / "class01-light-seed0007.png")).reshape(expected.shape)
    sample = sampler.sample(seeds=[7], classes="light", seed_format="numpy")[0].permute(1, 2, 0).numpy()
    assert np.array_equal(drawn, expected) and np.array_equal(sample, expected)
    for wrong in ({"seed_format": "jax"}, {"seed_format": "numpy", "seeds": [2**32]}):
        with pytest.raises(ValueError, match="must be"):
            sampler.sample(**{"seeds": [7]} | wrong)


def test_noise_without_effect_has_a_black_deviation(run, studied, tmp_path):
    generator, _ = checkpoint.load_generator(run)
    for module in generator.modules():
        if getattr(module, "strength", None) is not None:
            module.strength.zero_()
    (section,) = studied(["noise", "--draws", "2"], tmp_path / "noise.png", generator)
    assert all((images[4] == 0).all() for _, images in section.rows)
    assert "white is 0 %" in section.heading


def test_growth_of_a_network(studied, tmp_path):
    generator = Growing()
    (section,) = studied(["growth", "--seeds", "3,1"], tmp_path / "growth.png", generator)
    assert section.columns == ["4x4", "8x8", "16x16"] and [label for label, _ in section.rows] == ["seed 3", "seed 1"]
    images = np.stack([images for _, images in section.rows])
    assert np.array_equal(images, studies.to_uint8(studies.growth(generator, [3, 1])))
    assert Image.open(tmp_path / "growth.png").height >= 2 * 98


def test_growth_shows_trained_resolutions_only(folder, tmp_path, monkeypatch, capsys):
    """A StyleGAN begins at 8x8: its layer to images of 4x4 has never been trained."""
    small = ["--arch", "stylegan", "--images", "16", "--level-images", "4", "--fade-images", "4"]
    options = ["--resolution", "16", "--channel-base", "64", "--channel-max", "4", "--z-dim", "4"]
    for path in folder.rglob("*.png"):
        larger = tmp_path / "large" / path.relative_to(folder)
        larger.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((16, 16)).save(larger)
    grown = train_tiny(tmp_path / "large", tmp_path / "grown", *small, *options)
    drawn = []
    monkeypatch.setattr("fastgan.cli.generate.draw_grid", lambda *given: drawn.extend(given[0]) or draw_grid(*given))
    assert generate(["growth", "--checkpoint", str(grown), "--seeds", "0"]) == 0
    assert drawn[0].columns == ["8x8", "16x16"]
    straight = train_tiny(tmp_path / "large", tmp_path / "straight", *small[:4], *options, "--grow-from", "0")
    capsys.readouterr()
    assert generate(["growth", "--checkpoint", str(straight)]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: growth: this network of stylegan did not grow: it was trained at 16x16 alone"
    )


def test_grid_is_the_default_sub_command(run, tmp_path):
    for name, argv in {"a.png": [], "b.png": ["grid"]}.items():
        argv = [*argv, "--checkpoint", str(run), "--seeds", "0-3", "--trunc", "0.7", "--classes", "light"]
        assert generate([*argv, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("name, kind", [("a.jpg", "JPEG"), ("b.JPEG", "JPEG"), ("c.webp", "WEBP"), ("d.png", "PNG")])
@pytest.mark.parametrize("study", ["grid", "truncation --steps 3"])
def test_the_file_name_selects_the_format(run, tmp_path, name, kind, study):
    argv = [*study.split(), "--checkpoint", str(run), "--seeds", "0,1"]
    assert generate([*argv, "--out", str(tmp_path / name)]) == generate([*argv, "--out", str(tmp_path / "x.png")]) == 0
    picture, plain = Image.open(tmp_path / name), Image.open(tmp_path / "x.png")
    assert picture.format == kind and picture.size == plain.size
    error = np.abs(np.asarray(picture.convert("RGB")).astype(int) - np.asarray(plain.convert("RGB")))
    assert error.max() <= (60 if kind == "JPEG" else 0) and error.mean() < 2


def test_pictures_are_written_to_the_run_by_default(run, capsys):
    for argv in (["truncation", "--seeds", "1"], ["--seeds", "1"]):
        assert generate([*argv, "--checkpoint", str(run)]) == 0
        path = run / ("truncation.png" if argv[0] == "truncation" else "generated.png")
        assert capsys.readouterr().out.strip() == str(path)
        Image.open(path).load()
        path.unlink()


def test_help_lists_every_sub_command_and_its_options(capsys):
    def help_of(*argv):
        with pytest.raises(SystemExit) as status:
            generate([*argv, "--help"])
        assert status.value.code == 0
        return capsys.readouterr().out

    assert all(f" {name} " in help_of() for name in SUB_COMMANDS)
    for name in SUB_COMMANDS:
        text = help_of(name)
        assert all(option in text for option in ("--checkpoint", "--seeds", "--classes", "--out", "--device"))
        assert ("--trunc" in text) == (name != "truncation")  # which is what it varies


@pytest.mark.parametrize("classes", [["--classes", "light"], ["--classes", "dark,light"]])
def test_an_animated_gif(run, tmp_path, classes):
    out = tmp_path / "walk.gif"
    argv = ["interpolate", "--checkpoint", str(run), "--seeds", "0-2", "--loop", "--steps", "4", "--fps", "10"]
    assert generate([*argv, *classes, "--out", str(out)]) == 0
    picture = Image.open(out)
    assert picture.size == (256 * len(classes[1].split(",")), 256)
    assert picture.n_frames == 3 * 3 and picture.info["loop"] == 0 and picture.info["duration"] == 100
    generator, _ = checkpoint.load_generator(run)
    plain = studies.to_uint8(studies.samples(generator, [0], label=1)[0, 0])
    shown = np.asarray(picture.convert("L"))[:, -256:]
    assert np.array_equal(shown, plain[:, :, 0].repeat(32, 0).repeat(32, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["walk.gif"]


def video_frames(path):
    """uint8 [F, H, W, 3]."""
    with pytest.importorskip("av").open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_an_mp4_of_a_grid_of_edited_and_truncated_interpolations(run, tmp_path):
    """In the best quality it shows the curve through the styles, with the edit in every frame."""
    pytest.importorskip("av")
    generator, _ = checkpoint.load_generator(run)
    found = editing.principal(generator, count=1, samples=100)
    editing.save(tmp_path / "d.safetensors", found)
    out = tmp_path / "walk.MP4"
    argv = [
        "interpolate",
        "--checkpoint",
        str(run),
        "--seeds",
        "0-3",
        "--grid",
        "1x2",
        "--steps",
        "4",
        "--trunc",
        "0.7",
    ]
    argv += ["--edit", "p0=6", "--directions", str(tmp_path / "d.safetensors"), "--classes", "light"]
    assert generate([*argv, "--quality", "10", "--fps", "60", "--out", str(out)]) == 0
    with editing.edited(generator, found, {"p0": 6.0}):
        options = {"steps": 4, "space": "spline", "label": 1, "truncation": 0.7}
        cells = [studies.interpolate(generator, seeds, **options)[0] for seeds in ([0, 1], [2, 3])]
    expected = np.concatenate(studies.to_uint8(torch.stack(cells)), 1)
    shown = video_frames(out)
    assert shown.shape == (4, 256, 128, 3)
    error = np.abs(shown[:, ::16, ::16].astype(int) - expected)
    assert error.mean() < 3
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["d.safetensors", "walk.MP4"]


def test_the_path_of_an_animation_is_smooth_by_default(run, tmp_path):
    """Along the spline; a picture shows arcs."""
    generator, _ = checkpoint.load_generator(run)
    argv = ["interpolate", "--checkpoint", str(run), "--seeds", "5,2,7", "--steps", "5"]
    files = {}
    for name, more in (
        ("auto.gif", []),
        ("spline.gif", ["--space", "spline"]),
        ("line.gif", ["--space", "w"]),
        ("auto.png", []),
        ("arc.png", ["--space", "slerp"]),
    ):
        assert generate([*argv, *more, "--out", str(tmp_path / name)]) == 0
        files[name] = (tmp_path / name).read_bytes()
    assert files["auto.gif"] == files["spline.gif"] != files["line.gif"]
    assert files["auto.png"] == files["arc.png"]


MOVES = {  # with each, the transform of each of 4 frames
    "translate --x 0.5 --y -0.25": [studies.translation(share * 0.5, share * -0.25) for share in (0, 0.5, 1, 0.5)],
    "rotate": [studies.rotation(math.radians(degrees)) for degrees in (0, 90, 180, 270)],
    "rotate --degrees -60": [studies.rotation(math.radians(degrees)) for degrees in (0, -30, -60, -30)],
}


@pytest.mark.parametrize("move", MOVES)
def test_an_animation_of_moving_scenes(move, tmp_path, capsys):
    """Of a network, and below of another one."""
    first, second = untrained(tmp_path / "first", "stylegan3"), untrained(tmp_path / "second", "stylegan2", ("a", "b"))
    out = tmp_path / "moves.gif"
    argv = [*move.split(), "--checkpoint", str(first), "--beside", str(second), "--seeds", "0,5", "--steps", "4"]
    assert generate([*argv, "--trunc", "0.7", "--out", str(out)]) == 0
    rows = []
    for path, label in ((first, None), (second, 0)):
        generator, _ = checkpoint.load_generator(path)
        images = studies.move(generator, [0, 5], MOVES[move], label=label, truncation=0.7)
        rows.append(np.concatenate([*studies.to_uint8(images)], 2))
    expected = np.concatenate(rows, 1)
    picture = Image.open(out)
    assert picture.n_frames == 4 and picture.info["loop"] == 0
    for number, frame in enumerate(expected):
        picture.seek(number)
        factor = picture.height // len(frame)
        shown = np.asarray(picture.convert("RGB"))[::factor, ::factor].astype(int)
        assert np.abs(shown - frame).max() < 32  # a palette
    assert ("only variant r" in capsys.readouterr().out) == move.startswith("rotate")


def test_a_network_beside_another_has_images_of_the_same_size(run, tmp_path, capsys):
    other = untrained(tmp_path / "other", "stylegan2")
    argv = ["translate", "--checkpoint", str(run), "--beside", str(other), "--out", str(tmp_path / "x.gif")]
    assert "--beside: its frames are 32x8, 3 channels, must be 32x8, 1 channels" in error_of(generate, argv, capsys)


def test_an_mp4_without_the_extra_video(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    out = tmp_path / "new" / "walk.mp4"
    line = error_of(generate, ["interpolate", "--checkpoint", str(run), "--out", str(out)], capsys)
    assert line.startswith(f'{out}: MP4 needs the extra "video", which is not installed: pip install ".[video]"')
    assert not list(tmp_path.iterdir())


STUDY_ERRORS = {
    "one end": ("interpolate --seeds 4", "--seeds 4: give two or more to interpolate between"),
    "one step": ("interpolate --steps 1", "--steps 1: must be at least 2"),
    "too fast": ("interpolate --fps 51 --out x.gif", "--fps 51: must be from 1 to 50 for .gif"),
    "no end of a loop": ("interpolate --loop --seeds 3,1,3", "--seeds 3,1,3: end where they begin, as --loop does"),
    "a grid of one number": ("interpolate --grid 4 --out x.gif", "--grid 4: must be two numbers, like 4x2"),
    "an empty grid": ("interpolate --grid 0x2 --out x.gif", "--grid 0x2: must be two numbers, like 4x2"),
    "a grid in a picture": ("interpolate --grid 2x1", "--grid 2x1: is of an animation"),
    "too few for a grid": (
        "interpolate --grid 2x2 --seeds 0-5 --out x.gif",
        "--grid 2x2: --seeds 0-5 are 6, must be two or more for each of 4 interpolations, and as many for each",
    ),
    "one each": ("interpolate --grid 2x2 --out x.gif", "--grid 2x2: --seeds 0-3 are 4, must be two or more for each"),
    "speed of a picture": ("interpolate --fps 10", "--fps 10: is of an animation, and interpolate.png is none"),
    "quality of a GIF": ("interpolate --quality 5 --out x.gif", "--quality 5: is of an .mp4, and x.gif is none"),
    "quality of nothing": ("rotate --quality 5", "--quality 5: is of an .mp4, and rotate.gif is none"),
    "no quality": ("interpolate --quality 11 --out x.mp4", "--quality 11: must be from 1 to 10"),
    "far away": ("translate --x 1000", "--x 1000: must be from -100 to 100"),
    "nowhere": ("translate --y nan", "--y nan: must be a finite number"),
    "any angle": ("rotate --degrees inf", "--degrees inf: must be a finite number"),
    "one frame": ("rotate --steps 1", "--steps 1: must be at least 2"),
    "a picture of a move": ("translate --out x.png", "--out x.png: the name must end in .gif or .mp4"),
    "no network beside": ("translate --beside nowhere", "nowhere"),
    "no such class": ("mix --classes grey", "there is no class 'grey'; there are dark, light"),
    "source B": ("mix --seeds-b x", "--seeds-b x: 'x' is neither a number"),
    "no such word": ("mix --layers rough", "--layers rough: must be coarse, middle, fine, or numbers like 2-4"),
    "no such range": ("mix --layers 3-2", "--layers 3-2: the range 3-2 is empty"),
    "no such layer": ("mix --layers 3-9", "mix: this network of stylegan2 has layers 0 to 3, not 4"),
    "no fine layers": ("mix --layers fine", "has layers 0 to 3, and 'fine' ones begin at 8"),
    "one draw": ("noise --draws 1", "--draws 1: must be from 2 to 100,000"),
    "one psi": ("truncation --steps 1", "--steps 1: must be at least 2"),
    "truncation": ("classes --trunc nan", "--trunc nan: must be a finite number"),
    "more steps than memory": ("interpolate --steps 100000000", "a picture of 100,000,000 times 3 images would take"),
    "an animation without end": (
        "interpolate --steps 1000000 --out x.gif",
        "an animation of 2,999,998 frames is too long; give fewer --steps or --seeds",
    ),
    "a move without end": ("rotate --steps 1000001", "an animation of 1,000,001 frames is too long"),
    "a frame larger than a GIF": (
        "rotate --seeds 0-9999",
        "a frame of 2560000x256 is larger than the 65535 pixels that a side of .gif may have",
    ),
    "enlarged, more than memory": ("interpolate --steps 1000000", "a picture of 1,000,000 times 3 images would take"),
    "more than a JPEG holds": (
        "truncation --steps 1000 --out x.jpg",
        "96000x384 is larger than the 65500",
    ),
    "draws": ("noise --draws 100000000000", "--draws 100000000000: must be from 2 to 100,000"),
    "another picture": ("grid --out x.tif", "--out x.tif: the name must end in .png, .jpg, .jpeg or .webp"),
    "an ending": ("classes --out x.bmp", "--out x.bmp: the name must end in .png, .jpg, .jpeg or .webp"),
    "an animation's ending": (
        "interpolate --out x.webm",
        ".png, .jpg, .jpeg, .webp, .gif or .mp4",
    ),
    "an animation of something else": ("mix --out x.gif", "--out x.gif: the name must end in .png"),
    "an edit without a number": ("mix --edit f0", "--edit f0: must be a name and a number, like f0=2.5"),
    "an edit with spaces": (["mix", "--edit", "f0 = x"], "--edit f0 = x: must be a name and a number"),
    "an endless edit": ("mix --edit f0=inf", "--edit f0=inf: must be a name and a number"),
    "directions for nothing": (
        "mix --directions d.safetensors",
        "--directions d.safetensors: is for --edit; give both",
    ),
    "an edit of two": (
        "rotate --edit f0=1 --beside other",
        "--edit f0=1: directions are of one network; leave out --beside",
    ),
    "seeds of nothing": (
        "mix --projected p.safetensors --seed-format numpy",
        "--seed-format numpy: is of random latents, not of --projected",
    ),
    "no directions": ("mix --edit f0=1", "directions.safetensors does not exist; `fastgan directions` writes it"),
    "it does not grow": ("growth", "growth: stylegan2 does not grow"),
}


@pytest.mark.parametrize("case", STUDY_ERRORS)
def test_a_wrong_option_of_a_study_is_one_line(case, run, capsys):
    argv, says = STUDY_ERRORS[case]
    argv = argv.split() if isinstance(argv, str) else argv
    before = sorted(run.iterdir())
    assert says in error_of(generate, [*argv, "--checkpoint", str(run)], capsys)
    assert sorted(run.iterdir()) == before


DCGAN_LACKS = {
    "interpolate --space w": "interpolate: dcgan has no styles",
    "mix --layers 0": "mix: dcgan has no styles",
    "noise": "noise: dcgan has no noise",
    "truncation": "truncation: dcgan has no truncation",
    "growth": "growth: dcgan does not grow",
    "translate": "translate: dcgan has no input to move",
    "interpolate --trunc 0.5": "--trunc 0.5: dcgan has no truncation; leave it out",
}


def test_studies_that_an_architecture_does_not_support(run, monkeypatch, capsys):
    _, config = checkpoint.load_generator(run)
    header = checkpoint.read_header(run)
    model = dataclasses.replace(header.model, arch="dcgan")
    monkeypatch.setattr(checkpoint, "read_header", lambda path: dataclasses.replace(header, model=model))
    monkeypatch.setattr(checkpoint, "load_generator", lambda *_: (models.build(model)[0].eval(), config))
    for argv, says in DCGAN_LACKS.items():
        assert error_of(generate, [*argv.split(), "--checkpoint", str(run)], capsys).startswith(says)
    for argv in ("classes --seeds 1", "interpolate --seeds 1,2"):
        assert generate([*argv.split(), "--checkpoint", str(run), "--out", str(run / "x.png")]) == 0
    (run / "x.png").unlink()


def test_classes_of_a_network_without_classes(run, monkeypatch, capsys):
    header = checkpoint.read_header(run)
    without = dataclasses.replace(header, dataset={**header.dataset, "class_names": []})
    monkeypatch.setattr(checkpoint, "read_header", lambda path: without)
    line = error_of(generate, ["classes", "--checkpoint", str(run)], capsys)
    assert line == "classes: this network of stylegan2 was trained without classes"


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_running_out_of_memory_while_generating(run, tmp_path, monkeypatch, capsys, shortage):
    error, says = SHORTAGES[shortage]
    monkeypatch.setattr("fastgan.runs.drawing.draw", failing(error, 1, drawing.draw))
    argv = ["--checkpoint", str(run), "--out", str(tmp_path / "all.png")]
    assert error_of(generate, argv, capsys).startswith(says + "give fewer --seeds")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["drawing", "writing"])
@pytest.mark.parametrize("out", ["images", "all.png"])
def test_ctrl_c_while_generating(run, tmp_path, place, out):
    """After the first image, where there are single ones: whole images stay, and nothing else."""
    hang = """
import os, time
from fastgan.runs import drawing

def wait(*_, **__):
    print("hanging", flush=True)
    time.sleep(600)

def patched(function, calls):
    def call(*arguments, **named):
        nonlocal calls
        calls -= 1
        return (function if calls >= 0 else wait)(*arguments, **named)
    return call

"""
    if place == "drawing":
        hang += "drawing.recommended_batch = lambda _: 1\ndrawing.draw = patched(drawing.draw, 1)"
    else:  # of a file and its folder, two calls an image
        hang += f"os.fsync = patched(os.fsync, {2 if out == 'images' else 0})"
    process = start(["--checkpoint", str(run), "--out", str(tmp_path / out)], hang, "generate")
    first = process.stdout.readline()
    assert first == "hanging\n", first + process.communicate()[0]
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == ""
    assert process.returncode == 130
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in left] == (["class00-dark-seed0000.png"] if out == "images" else [])
    for path in left:
        Image.open(path).load()


def test_truncation_of_a_network_without_truncation(folder, tmp_path, capsys):
    run = train_tiny(folder, tmp_path / "run", "--arch", "dcgan", "--images", "4")
    assert "has no truncation" in error_of(generate, ["--checkpoint", str(run), "--trunc", "0.5"], capsys)
    assert not (run / "generated.png").exists()
