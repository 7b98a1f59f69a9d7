"""What a newcomer types: help that names everything, one line for every mistake, images where asked for."""

import dataclasses
import inspect
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import fastgan
from fastgan import models, options, studies
from fastgan.cli import dataset, evaluate
from fastgan.cli import export as export
from fastgan.cli import view as view
from fastgan.cli.generate import SUB_COMMANDS, parse_classes, parse_seeds
from fastgan.cli.generate import main as generate
from fastgan.cli.train import main
from fastgan.errors import UserError
from fastgan.progress import ProgressBar
from fastgan.runs import checkpoint, drawing
from fastgan.runs import config as configuration
from fastgan.runs.grid import Section, draw_grid, save_animation, save_picture
from fastgan.training import configure, step
from tests.support.tiny_run import WIDTHS, arguments, assert_same_checkpoint, start
from tests.support.tiny_run import train as train_tiny
from tests.test_studies import Growing

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return train_tiny(folder, tmp_path_factory.mktemp("run") / "run")


def error_of(command, argv, capsys):
    """Its one line, checked to be one, of exit status 2."""
    capsys.readouterr()
    assert command(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    lines = [line for line in lines if not re.search(r"(images|img)/s", line)]  # of progress bars
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as status:
        main(["--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out
    missing = [name for name in configuration.options(configuration.Config()) if configuration.flag(name) not in text]
    assert not missing


def _help(hint) -> list[type]:
    """A dataclass of options and those that it is made of."""
    fields = options._fields(hint)
    return [hint, *(each for kind in fields.values() if dataclasses.is_dataclass(kind) for each in _help(kind))]


def _kinds():
    modules = (evaluate, dataset, export, view)
    return [
        each
        for kind in (configuration.Config, *SUB_COMMANDS.values(), *(m.Options for m in modules))
        for each in _help(kind)
    ]


@pytest.mark.parametrize("kind", _kinds(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_help_flows(kind):
    """tyro keeps a line break before what begins with no letter: a list has its dash, and a sentence none of these."""
    texts = re.findall(r'"""(.*?)"""', inspect.getsource(kind), re.S)
    breaks = [
        line for text in texts for line in text.splitlines()[1:] if line.strip() and not line.strip()[0].isalpha()
    ]
    assert not [line for line in breaks if not line.strip().startswith("- ")]


@pytest.mark.parametrize(
    "given, images", [("10k", 10_000), ("25M", 25_000_000), ("1.5k", 1_500), ("2_000", 2_000), ("7", 7)]
)
def test_images_are_counted_in_thousands_and_millions(given, images):
    assert configure.parse(["--images", given, "--grid-interval", given]).training.images == images
    assert configure.parse([f"--images={given}"]).training.images == images


@pytest.mark.parametrize("argv", [["--kimg", "10k"], ["--kimg=x"], ["--kimg"], ["--kimg", "--batch"], ["--kimg="]])
def test_kimg_is_named_where_it_is_no_number(argv, capsys):
    line = error_of(main, argv, capsys)
    assert line.startswith(" ".join(argv).replace("=", " ").strip() + ": must be thousands of images, like 25000")


@pytest.mark.parametrize("argv", [["--kimg", "25"], ["--kimg=25"], ["--images", "25k"]])
def test_kimg_is_thousands_of_images(argv):
    assert configure.parse(["--lr-g", "1", *argv, "--seed", "3"]).training.images == 25_000


WRONG_FLAGS = {
    "train": (main, ["--resolutoin", "8"], "did you mean --resolution? python -m fastgan.train --help lists all"),
    "underscores": (main, ["--batch_gup=8"], "--batch_gup=8: no such option; did you mean --batch-gpu?"),
    "generate": (generate, ["mix", "--clases", "3"], "did you mean --classes? python -m fastgan.generate mix --help"),
    "sub-command": (generate, ["intrepolate"], "intrepolate: no such sub-command; did you mean interpolate?"),
    "missing": (generate, ["--class", "3"], "--checkpoint is missing; python -m fastgan.generate grid --help"),
    "choice": (main, ["--loss", "foo"], "hinge, wgan, wgan-gp, relativistic or auto"),
    "no number": (main, ["--batch", "x"], "--batch x: must be a whole number or auto"),
    "one of two": (main, ["--betas", "1"], "--betas 1: must be 2 numbers or auto"),
    "no value": (main, ["--device"], "--device: needs a value, a text"),
    "too many": (main, ["--lr-g", "3", "4"], "4: belongs to no option"),
    "infinite": (main, ["--mapping-lr", "inf"], "--mapping-lr inf: must be a finite number"),
    "infinite in fp32": (generate, ["--checkpoint", "x", "--trunc", "1e300"], "--trunc 1e+300: must be a finite"),
    "among others": (main, ["--level-lr", "1", "nan"], "--level-lr (1.0, nan): must be a finite number"),
    "null byte": (main, ["--out", "a\0b"], "--out a\\x00b: must not have a null byte"),
    "lone surrogate": (main, ["--out", "a\udce9"], "--out a\\udce9: must be UTF-8"),
    "nobody": (main, ["--out", "~nobody-here/x"], "--out ~nobody-here/x: there is no such user's folder"),
    "no name": (main, ["--out", ""], "--out: the name is empty; give one, like . for the current folder"),
    "no name to go on with": (main, ["--resume="], "--resume: the name is empty"),
    "no name of a run": (generate, ["--checkpoint", ""], "--checkpoint: the name is empty"),
    "no name of data": (dataset.main, ["", "--resolution", "8"], "SOURCE: the name is empty"),
    "long name": (generate, ["--checkpoint", "x" * 5000], "File name too long"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG_FLAGS)
def test_a_mistake_in_spelling_names_what_was_meant(mistake, capsys):
    command, argv, says = WRONG_FLAGS[mistake]
    assert says in error_of(command, argv, capsys)


SIZES = {  # of images, and what is asked for, with what the training has
    "grey": (["L"], (28, 28), [], (28, 1)),
    "one in colour": (["L"] * 20 + ["RGB"] * 20, (64, 32), [], ("64x32", 3)),
    "opaque": (["RGBA"], (16, 16), [], (16, 3)),
    "a smaller size": (["RGB"], (64, 64), ["--resolution", "32"], (32, 3)),
    "other channels": (["L"], (32, 32), ["--channels", "3"], (32, 3)),
}


@pytest.mark.parametrize("case", SIZES)
def test_size_and_channels_are_those_of_the_images(case, tmp_path):
    modes, size, argv, found = SIZES[case]
    for number, mode in enumerate(modes):
        colour = {"L": 9, "RGB": (9, 0, 0), "RGBA": (9, 0, 0, 255)}[mode]
        Image.new(mode, size, colour).save(tmp_path / f"{number:02d}.png")
    data = configure.resolve(configure.parse(["--data", str(tmp_path), *argv])).data
    assert (data.resolution, data.channels) == found


def test_images_of_a_size_that_cannot_be_trained_at(tmp_path, capsys):
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    assert f"--data {tmp_path}: its images are 40x30" in error_of(main, ["--data", str(tmp_path)], capsys)
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    line = error_of(main, ["--data", str(tmp_path), "--resolution", "32", "--out", str(tmp_path / "run")], capsys)
    assert (
        "is 16x16, not 32 times 1, 2, 4, ...; resize all images to 32x32, as python -m fastgan.dataset --enlarge"
        in line
    )


def test_home_is_meant_by_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configure.parse(["--out=~/run"]).output.out == str(tmp_path / "run")


@pytest.mark.parametrize("program", ["train", "generate"])
def test_a_reader_that_goes_is_no_mistake(program):
    command = [sys.executable, "-m", f"fastgan.{program}", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_the_package_shows_what_it_has():
    assert {"load", "patch", "patch_ops"} <= set(dir(fastgan))


def test_progress_in_a_file_is_a_line_a_quarter_minute_and_ends_at_all_of_it(capsys, monkeypatch):
    monkeypatch.setattr("fastgan.progress.INTERVAL", 0.02)
    with ProgressBar(total=10, unit="img") as bar:
        for _ in range(6):
            time.sleep(0.015)
            bar.update(2)
    with ProgressBar(total=3, leave=False) as bar:  # too quick for a line
        bar.update(3)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5 and lines[-1].startswith("100%") and "10/10" in lines[-1]


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
@pytest.mark.parametrize("resolution", [8, 32, 64, 128, 1024])
def test_there_is_a_recipe_for_every_architecture_and_resolution(arch, resolution):
    given = configure.parse(["--arch", arch, "--resolution", str(resolution)])
    left = [name for name, value in configuration.options(configure.resolve(given)).items() if value == "auto"]
    assert left == ["device", "cuda_graphs"]  # they depend on the machine


def test_a_configuration_survives_json():
    config = configure.resolve(configuration.Config())
    assert configuration.from_dict(json.loads(json.dumps(configuration.to_dict(config)))) == config


MISTAKES = {
    "resolution that halving ends": (["--resolution", "50"], "--resolution 50: must be a number or WIDTHxHEIGHT"),
    "resolution of what grows": (["--arch", "pggan", "--resolution", "28"], "must be a power of two for pggan"),
    "channels": (["--channels", "2"], "--channels 2: must be 1 (grey), 3 (colour) or 4 (colour with transparency)"),
    "empty batch": (["--batch", "0"], "--batch 0: must be at least 1"),
    "batch against stddev groups": (["--batch", "6"], "--batch 6: must be a multiple of 4"),
    "no images": (["--images", "-5"], "--images -5: must be at least 1"),
    "learning rate": (["--lr-g", "0"], "--lr-g 0.0: must be more than 0"),
    "variant of another": (["--arch", "dcgan", "--variant", "mlp"], "--variant mlp: must be transposed or upsample"),
    "variant of none": (["--variant", "mlp"], "--variant mlp: stylegan2 has no variants"),
    "paths without styles": (["--arch", "dcgan", "--path-length", "2"], "--path-length 2.0: dcgan has no styles"),
    "penalty of another loss": (["--gp-lambda", "10"], "--gp-lambda 10.0: belongs to --loss wgan-gp"),
    "strength without augmentation": (["--augment-p", "0.5"], "--augment-p 0.5: needs --augment fixed or ramp"),
    "micro-batches against stddev groups": (["--batch-gpu", "6"], "--batch-gpu 6: must be a multiple of 4"),
    "micro-batches of unequal size": (["--batch", "32", "--batch-gpu", "12"], "--batch-gpu 12: must divide --batch 32"),
    "blocks of what has none": (
        ["--arch", "dcgan", "--checkpoint-blocks"],
        "--checkpoint-blocks: dcgan is not made of",
    ),
    "growth of what does not grow": (["--grow-from", "8"], "--grow-from 8: stylegan2 does not grow"),
    "growth from between": (["--arch", "pggan", "--grow-from", "6"], "--grow-from 6: must be 4 or 8 for pggan"),
    "levels without growth": (["--level-batch", "8", "8"], "--level-batch: nothing grows"),
    "numbers of levels": (
        ["--arch", "pggan", "--resolution", "32", "--level-batch", "8", "8"],
        "--level-batch 8 8: must be 4 numbers",
    ),
    "betas": (["--betas", "0.5", "1"], "--betas (0.5, 1.0): must be two numbers"),
    "negative penalty": (["--r1-gamma", "-1"], "--r1-gamma -1.0: must be at least 0"),
    "mixing is a share": (["--style-mixing", "2"], "--style-mixing 2.0: must be from 0 to 1"),
    "no styles": (["--arch", "dcgan", "--style-mixing", "0.5"], "--style-mixing 0.5: dcgan has no styles"),
    "classes of a folder": (["--data", "x", "--classes", "10"], "--classes 10: x brings its own classes"),
    "classes of glyphs": (["--classes", "11"], "--classes 11"),
    "threads": (["--threads", "100000"], "--threads 100000: must be from 1 to 1024"),
    "data at a URL": (["--data", "https://127.0.0.1:9/x.zip"], "--data https://127.0.0.1:9/x.zip: only shards are"),
    "data at another": (["--data", "ftp://127.0.0.1/x"], "--data ftp://127.0.0.1/x: only shards are read from a URL"),
    "negative seed": (["--seed", "-1"], "--seed -1: must be from 0 to 18446744073709551615"),
    "large seed": (["--seed", str(2**64)], "--seed 18446744073709551616: must be smaller than 2^64"),
    "too narrow": (["--channel-base", "4"], "channel_base is 4"),
    "no such data": (["--data", "nowhere"], "nowhere"),
    "graphs without a GPU": (["--cuda-graphs", "on", "--device", "cpu"], "--cuda-graphs on: there are none on cpu"),
    "no such device": (["--device", "toaster"], "--device toaster: no such device"),
    "resume and out": (["--resume", "x", "--out", "y"], "--out and --resume exclude each other"),
    "nothing to resume": (["--resume", "nowhere"], "nowhere: there is no such checkpoint"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line_and_leaves_nothing_behind(mistake, folder, tmp_path, monkeypatch, capsys):
    argv, says = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    if "--data" not in argv and "--classes" not in argv:
        argv = [*argv, "--data", str(folder)]
    if "--resolution" not in argv:
        argv = [*argv, "--resolution", "8"]
    assert says in error_of(main, argv, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(capsys):
    assert "--device cuda: this PyTorch finds no CUDA GPU" in error_of(main, ["--device", "cuda"], capsys)


def test_a_folder_with_a_run_in_it_is_not_overwritten(folder, run, capsys):
    assert f"--out {run} holds a run already" in error_of(main, arguments(folder, run), capsys)


def test_a_folder_that_cannot_be_made(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    assert f"cannot make the folder {out}" in error_of(main, arguments(folder, out), capsys)


RESUME_MISTAKES = {
    "another architecture": (["--arch", "dcgan"], "--arch dcgan", "was trained with stylegan2"),
    "another width": (["--channel-max", "16"], "--channel-max 16", "was trained with 8"),
    "another resolution": (["--resolution", "16"], "--resolution 16", "was trained with 8"),
    "another batch": (["--batch", "8"], "--batch 8", "was trained with 4"),
    "already further": (["--images", "16"], "--images 16", "has seen 48 already"),
}


@pytest.mark.parametrize("mistake", RESUME_MISTAKES)
def test_resuming_cannot_change_what_the_run_is(mistake, run, capsys):
    argv, *says = RESUME_MISTAKES[mistake]
    message = error_of(main, ["--resume", str(run), *argv], capsys)
    assert all(each in message for each in [*says, str(run)])


def test_resuming_a_finished_run_says_where_its_results_are(run, capsys):
    assert main(["--resume", str(run / "checkpoint.safetensors")]) == 0
    assert str(run / "grid-000000048.png") in capsys.readouterr().out


def test_runs_are_numbered(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--data", str(folder), "--resolution", "8", *WIDTHS, "--images", "4", "--batch", "4", "--no-tensorboard"]
    assert main(argv) == main([*argv, "--arch", "dcgan"]) == main(argv) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["dcgan-images-000", "stylegan2-images-000", "stylegan2-images-001"]
    files = sorted(path.name for path in (tmp_path / "runs" / names[0]).iterdir())
    assert files == ["checkpoint.safetensors", "config.json", "grid-000000004.png", "log.jsonl"]


@pytest.mark.parametrize("text, seeds", [("3", [3]), ("0-2,7", [0, 1, 2, 7]), ("5, 1-2", [5, 1, 2])])
def test_lists_of_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-3", "1,,2", "1.5"])
def test_what_is_no_list_of_seeds(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_classes_by_name():
    assert parse_classes("b, a", ["a", "b"]) == [("b", 1), ("a", 0)]
    assert parse_classes(None, ["a", "b"]) == [("a", 0), ("b", 1)]
    with pytest.raises(UserError, match="there is no class 'c'; there are a, b"):
        parse_classes("c", ["a", "b"])
    with pytest.raises(UserError, match="without classes"):
        parse_classes("c", [])


def test_an_image_depends_on_its_seed_and_class_only(run, tmp_path):
    many, one = tmp_path / "many", tmp_path / "one"
    assert generate(["--checkpoint", str(run), "--seeds", "0-5", "--trunc", "0.7", "--out", str(many)]) == 0
    argv = ["--checkpoint", str(run), "--seeds", "4", "--classes", "light", "--trunc", "0.7", "--out", str(one)]
    assert generate(argv) == 0
    assert len(list(many.iterdir())) == 12
    (only,) = one.iterdir()
    assert only.name == "class01-light-seed0004.png"
    assert np.array_equal(np.asarray(Image.open(only)), np.asarray(Image.open(many / only.name)))


def test_a_png_is_a_labelled_grid(run, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    assert generate(["--checkpoint", str(run), "--seeds", "0-19", "--classes", "dark", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert Image.open(out).size[0] > 16 * 48 and [path.name for path in out.parent.iterdir()] == ["grid.png"]


GENERATE_MISTAKES = {
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


@pytest.mark.parametrize("mistake", GENERATE_MISTAKES)
def test_generating_names_a_mistake_in_one_line(mistake, run, capsys):
    argv, says = GENERATE_MISTAKES[mistake]
    argv = argv if "--checkpoint" in argv else ["--checkpoint", str(run), *argv]
    assert says in error_of(generate, argv, capsys)


def test_the_largest_seeds(folder, run, tmp_path):
    largest = str(2**64 - 1)
    assert train_tiny(folder, tmp_path / "run", "--images", "4", "--seed", largest)
    out = tmp_path / "images"
    assert generate(["--checkpoint", str(run), "--classes", "dark", "--seeds", largest, "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == [f"class00-dark-seed{largest}.png"]


@pytest.fixture
def studied(run, monkeypatch):
    """Draw a study of a run, or of `generator` in its place; what comes back is the sections of its picture."""

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


def test_studies_are_what_the_functions_return(run, studied, tmp_path):
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
def test_seeds_of_numpy_draw_the_latents_of_the_official_scripts(study, run, studied, tmp_path):
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


def test_single_images_and_a_sampler_have_seeds_of_numpy(run, tmp_path):
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


def test_noise_without_effect_is_black_in_the_picture(run, studied, tmp_path):
    generator, _ = checkpoint.load_generator(run)
    for module in generator.modules():
        if getattr(module, "strength", None) is not None:
            module.strength.zero_()
    (section,) = studied(["noise", "--draws", "2"], tmp_path / "noise.png", generator)
    assert all((images[4] == 0).all() for _, images in section.rows)
    assert "white is 0 %" in section.heading


def test_the_growth_of_a_network(studied, tmp_path):
    generator = Growing()
    (section,) = studied(["growth", "--seeds", "3,1"], tmp_path / "growth.png", generator)
    assert section.columns == ["4x4", "8x8", "16x16"] and [label for label, _ in section.rows] == ["seed 3", "seed 1"]
    images = np.stack([images for _, images in section.rows])
    assert np.array_equal(images, studies.to_uint8(studies.growth(generator, [3, 1])))
    assert Image.open(tmp_path / "growth.png").height >= 2 * 98


def test_growth_shows_what_was_trained(folder, tmp_path, monkeypatch, capsys):
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


def test_without_a_sub_command_it_is_a_grid(run, tmp_path):
    for name, argv in {"a.png": [], "b.png": ["grid"]}.items():
        argv = [*argv, "--checkpoint", str(run), "--seeds", "0-3", "--trunc", "0.7", "--classes", "light"]
        assert generate([*argv, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("name, kind", [("a.jpg", "JPEG"), ("b.JPEG", "JPEG"), ("c.webp", "WEBP"), ("d.png", "PNG")])
@pytest.mark.parametrize("study", ["grid", "truncation --steps 3"])
def test_the_ending_is_the_format(run, tmp_path, name, kind, study):
    argv = [*study.split(), "--checkpoint", str(run), "--seeds", "0,1"]
    assert generate([*argv, "--out", str(tmp_path / name)]) == generate([*argv, "--out", str(tmp_path / "x.png")]) == 0
    picture, plain = Image.open(tmp_path / name), Image.open(tmp_path / "x.png")
    assert picture.format == kind and picture.size == plain.size
    error = np.abs(np.asarray(picture.convert("RGB")).astype(int) - np.asarray(plain.convert("RGB")))
    assert error.max() <= (60 if kind == "JPEG" else 0) and error.mean() < 2


def test_transparency_in_a_jpeg_is_on_a_chequered_ground(tmp_path):
    save_picture(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), tmp_path / "a.jpg")
    assert set(np.unique(np.asarray(Image.open(tmp_path / "a.jpg").convert("L")).round(-1))) <= {200, 250, 260, 4}


def test_pictures_lie_in_the_run_where_nothing_else_is_said(run, capsys):
    for argv in (["truncation", "--seeds", "1"], ["--seeds", "1"]):
        assert generate([*argv, "--checkpoint", str(run)]) == 0
        path = run / ("truncation.png" if argv[0] == "truncation" else "generated.png")
        assert capsys.readouterr().out.strip() == str(path)
        Image.open(path).load()
        path.unlink()


def test_help_of_generate_names_every_sub_command_and_their_options(capsys):
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
    argv = ["interpolate", "--checkpoint", str(run), "--seeds", "0-2,0", "--steps", "4", "--fps", "10", *classes]
    assert generate([*argv, "--out", str(out)]) == 0
    picture = Image.open(out)
    assert picture.size == (256 * len(classes[1].split(",")), 256)
    assert picture.n_frames == 3 * 3 + 1 and picture.info["loop"] == 0 and picture.info["duration"] == 100
    generator, _ = checkpoint.load_generator(run)
    plain = studies.to_uint8(studies.samples(generator, [0], label=1)[0, 0])
    shown = np.asarray(picture.convert("L"))[:, -256:]
    assert np.array_equal(shown, plain[:, :, 0].repeat(32, 0).repeat(32, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["walk.gif"]


def test_a_gif_in_colour(tmp_path):
    frames = [np.full((8, 8, 3), (60 * number, 100, 200), np.uint8) for number in range(4)]
    save_animation(iter(frames), tmp_path / "a.gif", 25)
    picture = Image.open(tmp_path / "a.gif")
    assert picture.n_frames == 4
    for number, frame in enumerate(ImageSequence.Iterator(picture)):
        assert np.abs(np.asarray(frame.convert("RGB")).astype(int) - (60 * number, 100, 200)).max() <= 4


def test_an_mp4(run, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / "walk.MP4"
    argv = ["interpolate", "--checkpoint", str(run), "--seeds", "0-2", "--steps", "4", "--classes", "dark,light"]
    assert generate([*argv, "--out", str(out)]) == 0
    frames = imageio_ffmpeg.read_frames(str(out))
    assert next(frames)["size"] == (512, 256)
    assert len(list(frames)) == 2 * 3 + 1
    assert [path.name for path in tmp_path.iterdir()] == ["walk.MP4"]


def test_an_mp4_without_the_extra(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    out = tmp_path / "new" / "walk.mp4"
    line = error_of(generate, ["interpolate", "--checkpoint", str(run), "--out", str(out)], capsys)
    assert line.startswith(f'{out}: MP4 needs the extra "video", which is not installed: pip install ".[video]"')
    assert not list(tmp_path.iterdir())


def test_an_mp4_that_ffmpeg_cannot_write(run, tmp_path, monkeypatch, capsys):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

    def write_frames(*_, **__):
        yield
        raise OSError("broken pipe\n\nFFMPEG COMMAND: ...")

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", write_frames)
    out = tmp_path / "walk.mp4"
    line = error_of(generate, ["interpolate", "--checkpoint", str(run), "--out", str(out)], capsys)
    assert line == f"cannot write {out}: ffmpeg failed: broken pipe"
    assert not list(tmp_path.iterdir())


STUDY_MISTAKES = {
    "one end": ("interpolate --seeds 4", "--seeds 4: give two or more to interpolate between"),
    "one step": ("interpolate --steps 1", "--steps 1: must be at least 2"),
    "too fast": ("interpolate --fps 51", "--fps 51: must be from 1 to 50"),
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
    "more frames than memory": (
        "interpolate --steps 100000000000 --out x.gif",
        "an animation of 300,000,000,000 images would take",
    ),
    "enlarged, more than memory": ("interpolate --steps 1000000", "a picture of 1,000,000 times 3 images would take"),
    "enlarged frames": ("interpolate --steps 10000000 --out x.gif", "an animation of 30,000,000 images would take"),
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
    "it does not grow": ("growth", "growth: stylegan2 does not grow"),
}


@pytest.mark.parametrize("mistake", STUDY_MISTAKES)
def test_a_study_names_a_mistake_in_one_line(mistake, run, capsys):
    argv, says = STUDY_MISTAKES[mistake]
    before = sorted(run.iterdir())
    assert says in error_of(generate, [*argv.split(), "--checkpoint", str(run)], capsys)
    assert sorted(run.iterdir()) == before


DCGAN_LACKS = {
    "interpolate --space w": "interpolate: dcgan has no styles",
    "mix --layers 0": "mix: dcgan has no styles",
    "noise": "noise: dcgan has no noise",
    "truncation": "truncation: dcgan has no truncation",
    "growth": "growth: dcgan does not grow",
    "interpolate --trunc 0.5": "--trunc 0.5: dcgan has no truncation; leave it out",
}


def test_what_an_architecture_lacks_is_said_in_one_line(run, monkeypatch, capsys):
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


def test_classes_of_a_network_without_any(run, monkeypatch, capsys):
    header = checkpoint.read_header(run)
    without = dataclasses.replace(header, dataset={**header.dataset, "class_names": []})
    monkeypatch.setattr(checkpoint, "read_header", lambda path: without)
    line = error_of(generate, ["classes", "--checkpoint", str(run)], capsys)
    assert line == "classes: this network of stylegan2 was trained without classes"


def test_labels_of_a_picture_are_not_cut_off():
    """Ink, which is black, ends before the borders, however long the text and small the images."""
    images = np.full((2, 8, 8, 1), 200, np.uint8)
    long = "seed 18446744073709551615"
    for section in (
        Section(long + long + "\nsecond line " + long, [(long, images)], [long, long]),
        Section("short", [("a", images), (long, images)], ["b", long], sources=True),
    ):
        picture = np.asarray(draw_grid([section, section]).convert("L"))
        ink = picture < 128
        assert ink.any() and not ink[:, [0, -1]].any() and not ink[[0, -1]].any()
        assert (picture == 200).sum() == 4 * len(section.rows) * 48 * 48  # and no text over an image


SHORTAGES = {
    "GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        "out of memory (20.00 GiB more asked for); ",
    ),
    "CPU": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "out of memory (4,096 MiB more asked for); ",
    ),
    "Python": (MemoryError(), "out of memory; "),
}


def failing(error, calls_before, then):
    """`then`, but the call after so many raises."""
    calls = iter(range(calls_before))

    def function(*arguments, **named):
        if next(calls, None) is None:
            raise error
        return then(*arguments, **named)

    return function


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("function", ["step.logits_and_squared_grad", "loop.checkpoint.save"])
def test_too_large_for_a_first_step_is_one_line_and_leaves_nothing(
    folder, tmp_path, monkeypatch, capsys, shortage, function
):
    error, says = SHORTAGES[shortage]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"fastgan.training.{function}", failing(error, 0, None))
        line = error_of(main, [*arguments(folder, out), "--tensorboard"], capsys)
    assert line == says + "make --batch smaller, or --channel-base and --channel-max, or --resolution"
    assert not list(tmp_path.iterdir())
    (out / "wandb" / "theirs").mkdir(parents=True)  # made before, and with files of someone else
    (out / "notes.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(f"fastgan.training.{function}", failing(error, 0, None))
        assert error_of(main, arguments(folder, out), capsys).startswith(says)
    assert sorted(path.name for path in out.rglob("*")) == ["notes.txt", "theirs", "wandb"]
    train_tiny(folder, out, "--images", "4")  # the same folder serves


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_running_out_of_memory_later_leaves_a_run_to_go_on_with(folder, run, tmp_path, monkeypatch, capsys, shortage):
    error, says = SHORTAGES[shortage]
    out = tmp_path / "run"
    original = step.logits_and_squared_grad
    monkeypatch.setattr(step, "logits_and_squared_grad", failing(error, 3, original))  # every second step has it
    assert error_of(main, arguments(folder, out), capsys).startswith(says)
    assert checkpoint.read_header(out).step == 4
    monkeypatch.setattr(step, "logits_and_squared_grad", failing(error, 0, original))
    assert "a resumed run needs what it needed before" in error_of(main, ["--resume", str(out)], capsys)
    monkeypatch.setattr(step, "logits_and_squared_grad", original)
    assert main(["--resume", str(out)]) == 0
    assert_same_checkpoint(out, run)


def test_other_mistakes_of_the_program_are_no_shortage(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "logits_and_squared_grad", failing(RuntimeError("shapes differ"), 0, None))
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(arguments(folder, tmp_path / "run"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
@pytest.mark.parametrize("options", [["--batch", str(2**20)], ["--channel-base", "8388608", "--channel-max", "65536"]])
def test_a_real_shortage_on_a_cpu(folder, tmp_path, options):
    limit = """
import resource, torch
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))
"""
    process = start(arguments(folder, tmp_path / "run", *options), limit)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("error: out of memory")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_generating_without_the_memory_for_it(run, tmp_path, monkeypatch, capsys, shortage):
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
        hang += "drawing.draw = patched(drawing.draw, 1)"
    else:  # of a file and its folder, two calls an image
        hang += f"os.fsync = patched(os.fsync, {2 if out == 'images' else 0})"
    process = start(["--checkpoint", str(run), "--out", str(tmp_path / out)], hang, "generate")
    first = process.stdout.readline()
    assert first == "hanging\n", first + process.communicate()[0]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == 130
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in left] == (["class00-dark-seed0000.png"] if out == "images" else [])
    for path in left:
        Image.open(path).load()


def test_truncation_where_there_is_none(folder, tmp_path, capsys):
    run = train_tiny(folder, tmp_path / "run", "--arch", "dcgan", "--images", "4")
    assert "has no truncation" in error_of(generate, ["--checkpoint", str(run), "--trunc", "0.5"], capsys)
    assert not (run / "generated.png").exists()
