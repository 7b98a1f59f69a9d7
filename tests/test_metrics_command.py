"""`python -m fastgan.metrics`: what is compared with what, and one line for every mistake."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fastgan.data import ImageDataset, glyphs
from fastgan.errors import UserError
from fastgan.metrics.__main__ import main
from fastgan.metrics.distances import frechet_distance, kernel_distance
from fastgan.metrics.features import Extractor
from fastgan.metrics.reference import random_labels, reference
from tests.test_command_line import error_of
from tests.test_metrics import needs_network
from tests.tiny_run import WIDTHS, make_folder
from tests.tiny_run import train as train_tiny

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return train_tiny(folder, tmp_path_factory.mktemp("run") / "run")


def measured(run, *more):
    """The numbers that the command writes."""
    out = Path(run).parent / "numbers" / "metrics.json"
    assert main(["--checkpoint", str(run), "--samples", "12", "--json", str(out), *more]) == 0
    return json.loads(out.read_text())


@needs_network
def test_samples_are_compared_with_half_of_the_training_images_and_the_other_half_beside(run, folder, capsys):
    found = measured(run)
    assert found["arch"] == "stylegan2" and found["images_shown"] == 48 and found["data"] == str(folder)
    assert found["real_images"] == found["floor"]["images"] == 10 and found["samples"]["images"] == 12
    assert found["samples"]["frechet"] > 0 and np.isfinite(found["samples"]["kid"])
    lines = capsys.readouterr().out.splitlines()
    assert "10 real images: training images, one half" in lines[1]
    samples, floor = (next(line for line in lines if line.startswith(word)) for word in ("samples", "training images"))
    assert f"{found['samples']['frechet']:.3f}" in samples and f"{found['samples']['kid'] * 1e3:.3f} ±" in samples
    assert f"{found['floor']['frechet']:.3f}" in floor and "the floor" in floor
    assert measured(run) == found  # the same seed
    assert measured(run, "--seed", "1")["samples"] != found["samples"]


@needs_network
def test_held_out_images_of_your_own(run, tmp_path, capsys):
    other = make_folder(tmp_path / "other")
    for path in list(other.glob("*/9.png")):
        path.unlink()
    found = measured(run, "--heldout", str(other))
    assert found["real"].startswith("other") or str(other) in found["real"]
    assert found["real_images"] == 12 and found["floor"]["images"] == 12 and found["floor"]["of"] == "training images"
    assert measured(run, "--heldout", str(other), "--samples", "40")["real_images"] == 18  # all there are


@needs_network
def test_glyphs_are_compared_with_those_of_fonts_that_were_not_trained_with(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "render", functools.partial(glyphs.render, count=30))
    argv = ["--data", "glyphs", "--resolution", "8", "--images", "8", "--batch", "4", "--no-tensorboard", *WIDTHS]
    run = tmp_path / "run"
    from fastgan.train import main as train

    assert train([*argv, "--out", str(run)]) == 0
    assert measured(run)["real"].startswith("glyphs in held-out fonts")
    assert measured(run, "--split", "heldout") == measured(run)
    assert measured(run, "--split", "train")["real"] == "training images, one half"


class OfPixels:
    """Instead of the network: the pixels of an image are its features, and its number tells it."""

    weights = "pixels"

    def __call__(self, images, progress=""):
        return images.reshape(len(images), -1).astype(np.float32)


def numbered(count, first, digest):
    """Images of 1x2 pixels, of different numbers."""
    numbers = np.arange(first, first + count, dtype=np.uint8)
    images = np.stack([numbers, 255 - numbers], 1).reshape(count, 1, 2, 1)
    return ImageDataset(images, np.arange(count) % 3 // 2, ["a", "b"], "numbers", {"images": digest, "labels": ""})


def test_halves_of_the_training_images_have_none_in_common():
    train = numbered(21, 0, "of 21")
    for seed in (0, 1):
        found = reference(train, None, 100, OfPixels(), seed=seed, progress=False)
        kept = found.real[:, 0].tolist()
        rest = [number for number in range(21) if number not in kept]
        assert len(set(kept)) == 11 and found.floor.images == 10
        others = np.array([[number, 255 - number] for number in rest], np.float32)
        assert found.floor.frechet == pytest.approx(frechet_distance(others, found.real))
        assert found.floor.kernel == kernel_distance(others, found.real, subset_size=5, seed=seed)


def test_as_many_held_out_images_as_asked_for_chosen_by_the_seed():
    train, heldout = numbered(50, 0, "of 50"), numbered(40, 100, "of 40")
    chosen = [reference(train, heldout, 8, OfPixels(), seed=seed, progress=False).real[:, 0] for seed in (0, 0, 1)]
    assert all(len(set(each.tolist())) == 8 and each.min() >= 100 for each in chosen)
    assert np.array_equal(chosen[0], chosen[1]) and not np.array_equal(chosen[0], chosen[2])


def test_labels_are_as_frequent_as_in_the_training_images():
    labels = random_labels(numbered(60, 0, ""), 3000)
    assert labels.dtype == np.int64 and np.bincount(labels) == pytest.approx([2000, 1000], rel=0.1)
    assert np.array_equal(labels, random_labels(numbered(60, 0, ""), 3000))


MISTAKES = {
    "few samples": (["--samples", "3"], "--samples 3: must be at least 4"),
    "negative seed": (["--seed", "-1"], "--seed -1: must be from 0 to"),
    "two splits": (["--split", "train", "--heldout", "x"], "--split train and --heldout exclude each other"),
    "no held-out part": (["--split", "heldout"], "has no held-out part; give --heldout DIR, or --split train"),
    "no such images": (["--heldout", "nowhere"], "nowhere"),
    "no such device": (["--device", "toaster"], "--device toaster: no such device"),
}


@needs_network
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line(mistake, run, capsys):
    argv, says = MISTAKES[mistake]
    assert says in error_of(main, ["--checkpoint", str(run), *argv], capsys)


@needs_network
def test_no_such_run(capsys):
    assert "nowhere: there is no such checkpoint" in error_of(main, ["--checkpoint", "nowhere"], capsys)


@needs_network
def test_data_that_have_changed_since(tmp_path, capsys):
    images = make_folder(tmp_path / "images")
    run = train_tiny(images, tmp_path / "run")
    (images / "dark" / "3.png").unlink()
    says = f"{images} has 19 images, not 20; put there again what {run / 'checkpoint.safetensors'} was trained on"
    assert error_of(main, ["--checkpoint", str(run)], capsys) == says


@needs_network
def test_json_where_nothing_can_be_written(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = error_of(main, ["--checkpoint", str(run), "--json", str(tmp_path / "file" / "x.json")], capsys)
    assert "cannot make the folder for --json" in line
    (tmp_path / "folder").mkdir()
    argv = ["--checkpoint", str(run), "--samples", "4", "--json", str(tmp_path / "folder")]
    assert "choose another place with --json" in error_of(main, argv, capsys)


def test_without_the_extra(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    line = error_of(main, ["--checkpoint", str(run)], capsys)
    assert line.startswith('the metrics need the extra "metrics", which is not installed: pip install ".[metrics]"')
    with pytest.raises(UserError):
        Extractor()


def test_help_imports_no_torch():
    import subprocess

    code = "import sys\nfrom fastgan.metrics.__main__ import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n"
    code += "    assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(option in shown for option in ("--checkpoint", "--samples", "--split", "--heldout", "--json", "--seed"))
