"""`fastgan project`, and `fastgan generate --projected`."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import editing, projection, studies
from fastgan.cli.directions import main as directions
from fastgan.cli.generate import main as generate
from fastgan.cli.project import main as project
from fastgan.runs import checkpoint
from fastgan.runs.networks import open_networks
from tests.support.commands import error_of
from tests.support.tiny_run import untrained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("runs") / "run", "stylegan2", ("dark", "light"))


@pytest.fixture(scope="module")
def image(run, tmp_path_factory):
    """A file with an image of the run."""
    folder = tmp_path_factory.mktemp("images")
    argv = ["--checkpoint", str(run), "--class", "light", "--seeds", "77", "--out", str(folder)]
    assert generate(argv) == 0
    (path,) = folder.iterdir()
    return path


def test_an_image_is_found_and_can_be_drawn_mixed_and_interpolated(run, image, tmp_path, capsys):
    out, way = tmp_path / "found.png", tmp_path / "way.gif"
    argv = [str(image), str(image), "--checkpoint", str(run), "--distance", "pixels", "--steps", "20"]
    assert project([*argv, "--out", str(out), "--video", str(way), "--class", "light"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"{image.name}: PSNR ") == 2 and str(out) in printed
    assert Image.open(way).n_frames == 20 and Image.open(out).width > 2 * 48
    latents = projection.load(out.with_suffix(".safetensors"))
    generator, _ = checkpoint.load_generator(run)
    (expected, _) = studies.to_uint8(studies.samples(*projection.with_noise(generator, latents))[0])
    psnr = float(printed.partition("PSNR ")[2].partition(" dB")[0])
    real = np.asarray(Image.open(image)).astype(float)
    assert psnr == pytest.approx(10 * np.log10(255**2 / np.square(expected - real).mean()), abs=0.3)

    given = ["--checkpoint", str(run), "--projected", str(out.with_suffix(".safetensors"))]
    assert generate([*given, "--out", str(tmp_path / "drawn")]) == 0
    files = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in files] == ["seed0000.png", "seed0001.png"]
    assert np.array_equal(np.asarray(Image.open(files[0])), expected)
    for study in ("mix --layers 1", "interpolate", "truncation", "noise", "interpolate --seeds 1,0"):
        assert generate([*study.split(), *given, "--out", str(tmp_path / "study.png")]) == 0
    assert generate(["interpolate", *given, "--loop", "--steps", "4", "--out", str(tmp_path / "walk.gif")]) == 0
    middle = Image.open(tmp_path / "walk.gif")
    middle.seek(2)
    drawn = studies.interpolate(*projection.with_noise(generator, latents), steps=4, space="spline", loop=True)
    assert np.abs(np.asarray(middle.convert("RGB"))[::32, ::32].astype(int) - studies.to_uint8(drawn[0, 2])).max() < 32
    capsys.readouterr()
    assert generate(["translate", "--steps", "2", *given, "--out", str(tmp_path / "moved.gif")]) == 0
    assert "note: translate draws with the network's own noise" in capsys.readouterr().out


def test_images_of_other_sizes_and_modes_are_fitted(run, tmp_path, capsys):
    """And it is said; a network without styles is projected to z."""
    plain = untrained(tmp_path / "dcgan", "dcgan")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "grey.png")
    argv = [str(tmp_path / "grey.png"), "--checkpoint", str(plain), "--distance", "pixels", "--steps", "1"]
    assert project(argv) == 0
    assert "grey.png: 30x20, cropped and resized to 8x8" in capsys.readouterr().out
    assert error_of(project, [*argv, "--truncation", "0.5"], capsys).startswith("--trunc 0.5: dcgan has no truncation")
    assert projection.load(plain / "projected.safetensors").latents.shape == (1, 8)
    assert generate(["--checkpoint", str(plain), "--projected", str(plain / "projected.safetensors")]) == 0


def test_nothing_that_is_read_is_replaced(run, image, tmp_path, capsys):
    network, picture = tmp_path / "network.safetensors", tmp_path / "me.png"
    network.write_bytes((run / "checkpoint.safetensors").read_bytes())
    Image.open(image).save(picture)
    before = network.read_bytes(), picture.read_bytes()
    own = ["--checkpoint", str(network), "--distance", "pixels", "--steps", "1", "--out"]
    for argv in ([str(picture), *own, str(tmp_path / "network.png")], [str(picture), *own, str(picture)]):
        assert "would replace" in error_of(project, argv, capsys)
    argv = ["directions", "--checkpoint", str(network), "--out", str(tmp_path / "network.png")]
    assert "would replace" in error_of(directions, argv[1:], capsys)
    assert (network.read_bytes(), picture.read_bytes()) == before


@pytest.mark.parametrize("arch", ["pggan", "stylegan"])
def test_an_image_fits_the_stage_of_a_network_that_grows(arch, tmp_path, capsys):
    growing = untrained(tmp_path / arch, arch, stage=(4, 1.0))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "grey.png")
    argv = [str(tmp_path / "grey.png"), "--checkpoint", str(growing), "--distance", "pixels", "--steps", "1"]
    assert project(argv) == 0
    assert "resized to 4x4" in capsys.readouterr().out


def test_latents_of_a_conditional_network_without_styles_are_drawn_as_a_class(tmp_path, capsys):
    conditional = untrained(tmp_path / "r3gan", "r3gan", ("dark", "light"))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "black.png")
    argv = [str(tmp_path / "black.png"), "--checkpoint", str(conditional), "--distance", "pixels", "--steps", "1"]
    assert project([*argv, "--class", "light"]) == 0
    assert ", class light\n" in capsys.readouterr().out
    argv = ["--checkpoint", str(conditional), "--projected", str(conditional / "projected.safetensors")]
    assert generate([*argv, "--class", "light", "--out", str(tmp_path / "drawn")]) == 0
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["class01-light-seed0000.png"]


def test_a_tuned_network_is_a_checkpoint_again(run, image, tmp_path, capsys):
    """It is drawn from, projected to and opened as for an export; with the header of the run."""
    Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "other.png")
    out, argv = tmp_path / "found.png", [str(tmp_path / "other.png"), "--distance", "pixels", "--steps", "5"]
    assert project([*argv, "--checkpoint", str(run), "--tune", "30", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    before, after = (float(part.split()[-1]) for part in printed.partition("PSNR ")[2].split(" dB")[:2])
    assert after > before + 1
    tuned = tmp_path / "found-tuned.safetensors"
    assert f"{tuned}\n" in printed and Image.open(out).height > 3 * 48
    header, expected = checkpoint.read_header(tuned), checkpoint.read_header(run)
    assert header.model == expected.model and header.dataset == expected.dataset and header.images == expected.images
    given = ["--checkpoint", str(tuned), "--projected", str(out.with_suffix(".safetensors"))]
    assert generate([*given, "--out", str(tmp_path / "drawn")]) == 0
    (drawn,) = (tmp_path / "drawn").iterdir()
    squares = np.square(np.asarray(Image.open(drawn)) - np.asarray(Image.open(tmp_path / "other.png")).astype(float))
    assert after == pytest.approx(10 * np.log10(255**2 / squares.mean()), abs=0.3)
    assert project([*argv, "--checkpoint", str(tuned), "--out", str(tmp_path / "again.png")]) == 0
    assert [*open_networks(tuned).load_state_dicts()[1]] == ["ema"]


def test_with_features(run, image, tmp_path):
    argv = [str(image), "--checkpoint", str(run), "--steps", "2", "--space", "w+", "--out", str(tmp_path / "x.png")]
    assert project([*argv, "--trunc", "0.1"]) == 0
    latents, _ = projection.load(tmp_path / "x.safetensors")
    assert not torch.equal(latents[:, 0], latents[:, 1])
    generator, _ = checkpoint.load_generator(run)
    w, _ = editing.sampled(generator)
    typical = (w - w.mean(0)).square().sum(1).mean().sqrt()
    torch.testing.assert_close((latents - w.mean(0)).norm(dim=-1), (0.1 * typical).expand(latents.shape[:2]))


ERRORS = {
    "no step": ("{image} --steps 0", "--steps 0: must be from 1 to 100,000"),
    "seed": ("{image} --seed -1", "--seed -1: must be from 0 to"),
    "a folder's name": ("{image} --out x", "--out x: the name must end in .png, .jpg, .jpeg or .webp"),
    "a picture of the way": ("{image} --video x.png", "--video x.png: the name must end in .gif or .mp4"),
    "two classes": ("{image} --class dark,light", "--class dark,light: must be one class, which all images start from"),
    "no such class": ("{image} --class grey", "--class grey: there is no class 'grey'; there are dark, light"),
    "no such image": ("nowhere.png", "nowhere.png cannot be read"),
    "not an image": ("{config}", "checkpoint.safetensors is not an image in PNG"),
    "tuning": ("{image} --tune -1", "--tune -1: must be from 0 to 100,000"),
    "truncation": ("{image} --trunc 0", "--trunc 0: must be above 0"),
    "no z": ("{image} --space z", "--space z: stylegan2 has no z; give w or w+"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_option_is_one_line(case, run, image, capsys):
    argv, says = ERRORS[case]
    before = sorted(run.iterdir())
    argv = argv.format(image=image, config=run / checkpoint.FILE_NAME).split()
    assert says in error_of(project, [*argv, "--checkpoint", str(run), "--distance", "pixels"], capsys)
    assert sorted(run.iterdir()) == before


def test_latents_that_do_not_fit(run, image, tmp_path, capsys):
    file = tmp_path / "p.safetensors"
    argv = [str(image), "--checkpoint", str(run), "--distance", "pixels", "--steps", "1"]
    assert project([*argv, "--out", str(file.with_suffix(".png"))]) == 0
    capsys.readouterr()
    argv = ["--checkpoint", str(run), "--projected", str(file)]
    assert f"--seeds 3: {file} has images 0 to 0" in error_of(generate, [*argv, "--seeds", "3"], capsys)
    assert "--seeds 0: give two or more to interpolate" in error_of(generate, ["interpolate", *argv], capsys)
    assert "leave out --beside" in error_of(generate, ["translate", *argv, "--beside", str(run)], capsys)
    other = untrained(tmp_path / "other", "dcgan")
    error = error_of(generate, ["--checkpoint", str(other), "--projected", str(file)], capsys)
    assert f"--projected {file}: has styles [1, 4, 8], which are of another network" in error
