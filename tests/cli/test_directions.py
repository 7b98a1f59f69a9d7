"""`fastgan directions` and `fastgan generate --edit`."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import editing, figures, studies
from fastgan.cli.directions import Directions
from fastgan.cli.directions import main as directions
from fastgan.cli.generate import main as generate
from fastgan.interop import load_official
from fastgan.runs import checkpoint
from fastgan.runs.grid import draw_grid
from tests.support import official, official_stylegan3
from tests.support.commands import error_of
from tests.support.tiny_run import untrained

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    return untrained(tmp_path / "run", "stylegan2", ("dark", "light"))


@pytest.mark.parametrize(
    "method, names",
    [("factorization", ["f0", "f1"]), ("components", ["p0", "p1"]), ("classes", ["class-dark", "class-light"])],
)
def test_a_sheet_and_a_file_of_directions(method, names, run, capsys):
    """The sheet has a row a direction; with the file, `generate` draws the images of its columns."""
    argv = ["--checkpoint", str(run), "--method", method, "--count", "2", "--samples", "1", "--class", "light"]
    assert directions([*argv, "--strength", "3", "--steps", "3", "--seeds", "5"]) == 0
    found = editing.load(run / "directions.safetensors")
    assert [each.name for each in found] == names
    printed = capsys.readouterr().out
    assert all(f"{each.name:12} {100 * each.share:5.1f} %" in printed for each in found)
    sheet = Image.open(run / "directions.png")

    generator, _ = checkpoint.load_generator(run)
    images = studies.to_uint8(studies.edits(generator, [5], found, [-3.0, 0.0, 3.0], label=1)[0])
    section = figures.directions(generator, 5, found, [-3.0, 0.0, 3.0], label=1)
    heading = section.heading.replace("seed 5", "seed 5, class light", 1)
    expected = draw_grid([section._replace(heading=heading)], Directions.smallest_cell)
    assert np.array_equal(np.asarray(sheet), np.asarray(expected))
    assert np.array_equal(section.rows[1][1], images[1])

    single = run / "single"
    argv = ["--checkpoint", str(run), "--class", "light", "--seeds", "5", "--out", str(single)]
    assert generate([*argv, "--edit", f"{names[1]}=3"]) == 0
    (file,) = single.iterdir()
    assert np.array_equal(np.asarray(Image.open(file)), images[1, 2])


def test_edits_add_up_and_can_come_from_another_file(run, tmp_path):
    other = tmp_path / "other.png"
    argv = ["--checkpoint", str(run), "--samples", "1", "--out", str(other), "--layers", "1-2", "--steps", "2"]
    assert directions(argv) == 0
    found = editing.load(other.with_suffix(".safetensors"))
    generator, _ = checkpoint.load_generator(run)
    with editing.edited(generator, found, {"f0": 2.0, "f1": -1.5}):
        (expected,) = studies.to_uint8(studies.samples(generator, [0], label=0)[0])
    argv = ["--checkpoint", str(run), "--class", "dark", "--seeds", "0", "--out", str(tmp_path / "single")]
    assert generate([*argv, "--edit", "f0=2,f1=-1.5", "--directions", str(other.with_suffix(".safetensors"))]) == 0
    (file,) = (tmp_path / "single").iterdir()
    assert np.array_equal(np.asarray(Image.open(file)), expected)


OFFICIAL = {
    "stylegan2": (official, official.Sizes(img_resolution=16, w_dim=12, c_dim=2)),
    "stylegan3": (official_stylegan3, official_stylegan3.Sizes(img_resolution=8, num_layers=3, num_critical=1)),
}


@pytest.mark.parametrize("arch", OFFICIAL)
def test_directions_of_networks_in_the_official_layout(arch, tmp_path):
    """Found by the affine layers of the file, under their official names; the sheet and `generate` show them."""
    module, sizes = OFFICIAL[arch]
    content = module.snapshot(sizes)
    file = official.write(tmp_path / "network.pkl", content)
    argv = ["--checkpoint", str(file), "--samples", "1", "--count", "3", "--steps", "3", "--seeds", "1"]
    assert directions([*argv, "--out", str(tmp_path / "sheet.png")]) == 0
    found = editing.load(tmp_path / "sheet.safetensors")

    tensors = content["G_ema"].modules["synthesis"].tensors()
    maps = [tensor.double() for name, tensor in tensors.items() if name.endswith("affine.weight")]
    squares = sum(weight.T @ weight for weight in maps)
    values, vectors = torch.linalg.eigh(squares)
    for number, each in enumerate(found):
        assert abs(float(each.vector.double() @ vectors[:, -1 - number])) == pytest.approx(1, abs=1e-4)
        assert each.share == pytest.approx(float(values[-1 - number] / squares.trace()), rel=1e-4)

    generator = load_official(file).ema
    label = 0 if sizes.c_dim else None
    images = studies.to_uint8(studies.edits(generator, [1], found, [-4.0, 0.0, 4.0], label=label)[0])
    section = figures.directions(generator, 1, found, [-4.0, 0.0, 4.0], label=label)
    assert all(np.array_equal(row, expected) for (_, row), expected in zip(section.rows, images, strict=True))
    assert (images[:, 0] != images[:, 2]).any((1, 2, 3)).all()
    argv = [
        "--checkpoint",
        str(file),
        "--seeds",
        "1",
        "--edit",
        "f2=4",
        "--directions",
        str(tmp_path / "sheet.safetensors"),
    ]
    classes = ["--classes", "0"] if sizes.c_dim else []
    assert generate([*argv, *classes, "--out", str(tmp_path / "single")]) == 0
    (single,) = (tmp_path / "single").iterdir()
    assert np.array_equal(np.asarray(Image.open(single)), images[2, 2])


ERRORS = {
    "no directions": ("--count 0", "--count 0: must be from 1 to 4,096"),
    "no samples": ("--samples 0", "--samples 0: must be from 1 to 4,096"),
    "one column": ("--steps 1", "--steps 1: must be at least 2"),
    "no such word": ("--layers rough", "--layers rough: must be all, coarse, middle, fine, or numbers like 2-4"),
    "no such layer": ("--layers 9", "has layers 0 to 3, not 9"),
    "without end": ("--strength inf", "--strength inf: must be a finite number"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_option_is_one_line(case, run, capsys):
    argv, says = ERRORS[case]
    before = sorted(run.iterdir())
    assert says in error_of(directions, [*argv.split(), "--checkpoint", str(run)], capsys)
    assert sorted(run.iterdir()) == before


def test_networks_without_styles_or_classes(run, tmp_path, capsys):
    plain = untrained(tmp_path / "dcgan", "dcgan")
    assert "directions: dcgan has no styles" in error_of(directions, ["--checkpoint", str(plain)], capsys)
    unconditional = untrained(tmp_path / "unconditional", "stylegan2")
    argv = ["--checkpoint", str(unconditional), "--method", "classes", "--samples", "1"]
    assert "was trained without classes" in error_of(directions, argv, capsys)
    assert directions(["--checkpoint", str(run), "--samples", "1", "--steps", "2"]) == 0
    argv = ["--checkpoint", str(run), "--edit", "p0=1"]
    assert "--edit p0=1: there is no direction 'p0'; there are f0, f1" in error_of(generate, argv, capsys)
