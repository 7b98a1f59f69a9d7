"""Distances between samples and between real images, and that measuring them does not change a training."""

import numpy as np
import pytest
import torch
from torch import nn

from fastgan.cli.train import main
from fastgan.data import ImageDataset
from fastgan.models import ModelConfig
from fastgan.runs import health
from fastgan.runs.precision import choose
from fastgan.training import diversity
from fastgan.training.diversity import Diversity
from fastgan.training.growth import Stage
from tests.support.tiny_run import arguments, assert_same_checkpoint, log_lines, train

pytestmark = pytest.mark.usefixtures("one_cache")

AUTOCAST = choose(False, torch.device("cpu")).autocast


class Generator(nn.Module):
    """Draws what `of` makes of z and labels."""

    supports = frozenset()

    def __init__(self, of):
        super().__init__()
        self.of, self.unused = of, nn.Parameter(torch.zeros(()))

    def forward(self, z, label=None):
        return self.of(z, label)


def dataset_of(images, labels=None):
    names = [] if labels is None else [str(label) for label in range(labels.max() + 1)]
    return ImageDataset(images, labels, names, "random", {})


def random_images(n, h=16, w=16, c=1):
    return np.random.default_rng(0).integers(0, 256, (n, h, w, c), dtype=np.uint8)


def measure(dataset, of, stage=None, batch=64, **model):
    model = ModelConfig(resolution=16, channels=dataset.channels, **model)
    found = Diversity(dataset, model).measure(Generator(of), AUTOCAST, batch, stage)
    return found and (found["distance_fake"], found["distance_real"])


class TestDiversity:
    def test_the_distance_is_the_root_mean_square_of_the_difference(self):
        black_and_white = np.zeros((2, 16, 16, 1), np.uint8)
        black_and_white[1] = 255
        fake, real = measure(dataset_of(black_and_white), lambda z, _: torch.zeros(len(z), 1, 16, 16))
        assert fake == 0 and real == pytest.approx(2.0)

    def test_samples_equal_to_real_images_have_their_distance(self):
        images = random_images(64)
        reals = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        batches = iter(reals.split(24))
        fake, real = measure(dataset_of(images), lambda z, _: next(batches), batch=24)
        assert fake == pytest.approx(real)

    def test_with_classes_distances_are_within_a_class(self):
        images, labels = random_images(40), np.arange(40) % 2
        images[labels == 0] //= 2
        pattern = torch.randn(2, 1, 16, 16)
        fake, real = measure(dataset_of(images, labels), lambda z, label: pattern[label], num_classes=2)
        halves = [
            measure(dataset_of(images[labels == label][:8]), lambda z, _: z[:, :1, None, None])[1] for label in (0, 1)
        ]
        assert fake == 0 and real == pytest.approx(sum(halves) / 2)

    def test_classes_of_one_image_have_no_distance(self):
        assert measure(dataset_of(random_images(3), np.arange(3)), lambda z, label: None, num_classes=3) == {}
        assert measure(dataset_of(random_images(1)), lambda z, label: None) == {}

    def test_transparent_pixels_do_not_count(self):
        images = random_images(8, c=4)
        images[..., 3] = 0

        def clear(z, _):
            return torch.cat([torch.randn(len(z), 3, 16, 16), torch.full((len(z), 1, 16, 16), -1.0)], 1)

        assert measure(dataset_of(images), clear) == (0, 0)

    def test_real_images_are_reduced_to_the_stage_of_growth(self):
        images = random_images(64)
        reals = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        small = nn.functional.avg_pool2d(reals, 2)
        fake, real = measure(dataset_of(images), lambda z, _: small, Stage(8, 1.0, 4, 1.0))
        assert fake == pytest.approx(real)

    def test_distances_of_images_that_are_not_square(self):
        images = random_images(8, 48, 32)
        model = ModelConfig(resolution=32, base_size=(6, 4))
        of = lambda z, _: torch.randn(len(z), 1, 48, 32)
        found = Diversity(dataset_of(images), model).measure(Generator(of), AUTOCAST, 16, None)
        assert found["distance_fake"] > 0.1 and 0.1 < found["distance_real"] < 0.5


def test_diversity_is_measured_with_lines_of_the_log():
    assert [diversity.interval(log) for log in (0, 1, 800, 1_000, 1_500, 5_000)] == [
        0,
        2_000,
        2_400,
        2_000,
        3_000,
        5_000,
    ]
    assert diversity.interval(1_000, processes=4) == 8_000


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(diversity, "INTERVAL", 16)


@pytest.mark.parametrize("arch", ["stylegan2", "dcgan", "pggan"])
def test_measuring_diversity_does_not_change_the_training(folder, tmp_path, monkeypatch, arch):
    plain = train(folder, tmp_path / "plain", "--arch", arch)
    monkeypatch.setattr(diversity, "INTERVAL", 16)
    watched = train(folder, tmp_path / "watched", "--arch", arch)
    assert_same_checkpoint(plain, watched)
    own = {"distance_real", "distance_fake"}
    found = log_lines(watched)
    assert [line["images"] for line in found if own & line.keys()] == [16, 32, 48]
    assert [{name: line[name] for name in line if name not in own} for line in found] == log_lines(plain)


def test_a_resumed_training_measures_like_an_uninterrupted_one(folder, tmp_path, often):
    unbroken, broken = train(folder, tmp_path / "unbroken"), train(folder, tmp_path / "broken", "--images", "16")
    assert main(["--resume", str(broken), "--images", "48"]) == 0
    assert log_lines(broken) == log_lines(unbroken)


def test_the_terminal_prints_a_warning_once(folder, tmp_path, often, monkeypatch, capsys):
    for name, value in {"UNTRAINED": 0, "ALIKE": 10.0, "DIFFERENT": 20.0}.items():  # whatever they draw is too alike
        monkeypatch.setattr(health, name, value)
    run = tmp_path / "run"
    assert main([*arguments(folder, run), "--images", "32"]) == 0
    printed = capsys.readouterr()
    warnings = [line for line in (printed.out + printed.err).splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and warnings[0].startswith(
        "warning    samples of a class are nearly alike since 16 images"
    )
    assert main(["--resume", str(run), "--images", "64"]) == 0
    printed = capsys.readouterr()
    assert "nearly alike" not in printed.out + printed.err
