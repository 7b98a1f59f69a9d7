"""The configuration of a training: counts of images, sizes from the data, and recipes."""

import json
import re
from typing import get_args

import pytest
from PIL import Image

from fastgan import models
from fastgan.cli.train import main
from fastgan.errors import UserError
from fastgan.runs import config as configuration
from fastgan.training import configure, recipes
from tests.support.commands import error_of

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.mark.parametrize(
    "given, images", [("10k", 10_000), ("25M", 25_000_000), ("1.5k", 1_500), ("2_000", 2_000), ("7", 7)]
)
def test_counts_of_images_may_be_in_thousands_and_millions(given, images):
    assert configure.parse(["--images", given, "--grid-interval", given]).training.images == images
    assert configure.parse([f"--images={given}"]).training.images == images


@pytest.mark.parametrize("argv", [["--kimg", "10k"], ["--kimg=x"], ["--kimg"], ["--kimg", "--batch"], ["--kimg="]])
def test_errors_of_kimg(argv, capsys):
    line = error_of(main, argv, capsys)
    assert line.startswith(" ".join(argv).replace("=", " ").strip() + ": must be thousands of images, like 25000")


@pytest.mark.parametrize("argv", [["--kimg", "25"], ["--kimg=25"], ["--images", "25k"]])
def test_kimg_is_thousands_of_images(argv):
    assert configure.parse(["--lr-g", "1", *argv, "--seed", "3"]).training.images == 25_000


SIZES = {  # of images, and what is asked for, with what the training has
    "grey": (["L"], (28, 28), [], (28, 1)),
    "one in colour": (["L"] * 20 + ["RGB"] * 20, (64, 32), [], ("64x32", 3)),
    "opaque": (["RGBA"], (16, 16), [], (16, 3)),
    "a smaller size": (["RGB"], (64, 64), ["--resolution", "32"], (32, 3)),
    "other channels": (["L"], (32, 32), ["--channels", "3"], (32, 3)),
}


@pytest.mark.parametrize("case", SIZES)
def test_resolution_and_channels_are_those_of_the_images(case, tmp_path):
    modes, size, argv, found = SIZES[case]
    for number, mode in enumerate(modes):
        colour = {"L": 9, "RGB": (9, 0, 0), "RGBA": (9, 0, 0, 255)}[mode]
        Image.new(mode, size, colour).save(tmp_path / f"{number:02d}.png")
    data = configure.resolve(configure.parse(["--data", str(tmp_path), *argv])).data
    assert (data.resolution, data.channels) == found


def test_images_of_an_unsupported_size(tmp_path, capsys):
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    assert f"--data {tmp_path}: its images are 40x30" in error_of(main, ["--data", str(tmp_path)], capsys)
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    line = error_of(main, ["--data", str(tmp_path), "--resolution", "32", "--out", str(tmp_path / "run")], capsys)
    assert (
        "is 16x16, not 32 times 1, 2, 4, ...; resize all images to 32x32, as python -m fastgan.dataset --enlarge"
        in line
    )


def test_every_model_family_has_an_option_value_and_a_recipe():
    """models.ARCHITECTURES, runs.config.Architecture and training.recipes.RECIPES name the same families."""
    families = set(models.ARCHITECTURES)
    assert set(get_args(configuration.Architecture)) == families, "Architecture in fastgan/runs/config.py"
    assert set(recipes.RECIPES) == families, "RECIPES in fastgan/training/recipes.py"


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
@pytest.mark.parametrize("resolution", [8, 32, 64, 128, 1024])
def test_every_architecture_and_resolution_has_a_recipe(arch, resolution):
    given = configure.parse(["--arch", arch, "--resolution", str(resolution)])
    left = [name for name, value in configuration.options(configure.resolve(given)).items() if value == "auto"]
    assert left == ["device", "capture_steps"]  # they depend on the machine


@pytest.mark.parametrize(
    ("options", "noise", "shuffle"),
    [
        (["--resolution", "32"], True, False),
        (["--resolution", "64"], False, True),
        (["--resolution", "64x96", "--noise", "True"], True, True),
        (["--resolution", "128"], True, False),
        (["--resolution", "128", "--channels", "4"], False, False),
        (["--resolution", "128", "--channels", "4", "--noise", "True"], True, False),
    ],
)
def test_noise_and_pixel_shuffle_follow_from_the_images(options, noise, shuffle):
    network = configure.resolve(configure.parse(["--channels", "3", *options])).network
    assert (network.noise, network.pixel_shuffle) == (noise, shuffle)


def test_a_configuration_survives_json():
    config = configure.resolve(configuration.Config())
    assert configuration.from_dict(json.loads(json.dumps(configuration.to_dict(config)))) == config


@pytest.mark.parametrize(
    "arch, batch, batch_gpu, processes, message",
    [
        ("mlp", 32, 0, 3, "--batch 32: must be a multiple of 3"),
        ("stylegan2", 24, 0, 4, "--batch 24: must be a multiple of 4 for each of 4 processes, as the discriminator"),
        ("mlp", 24, 8, 2, "--batch-gpu 8: must divide the 12 images of a process"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(arch, batch, batch_gpu, processes, message):
    config = configure.resolve(
        configuration.Config(
            network=configuration.NetworkOptions(arch=arch),
            training=configuration.TrainingOptions(batch=batch, batch_gpu=batch_gpu),
        )
    )
    with pytest.raises(UserError, match=re.escape(message)):
        configure.check_processes(config, processes)
        configure.check_groups(config, 4, processes)
