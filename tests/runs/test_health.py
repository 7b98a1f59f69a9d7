"""Warnings about collapse and overfitting, and the diversity they are based on."""

import numpy as np
import pytest
import torch
from torch import nn

from fastgan.cli.train import main
from fastgan.data import ImageDataset
from fastgan.models import ModelConfig
from fastgan.runs import config as configuration
from fastgan.runs import health
from fastgan.runs.health import Watch
from fastgan.runs.precision import choose
from fastgan.training import configure, diversity
from fastgan.training.diversity import Diversity
from fastgan.training.growth import Stage
from tests.support.tiny_run import arguments, assert_same_checkpoint, log_lines, train

pytestmark = pytest.mark.usefixtures("one_cache")

AUTOCAST = choose(False, torch.device("cpu")).autocast


def watch(images=1_000, labels="auto", **training):
    regularization = {name: training.pop(name) for name in ("augment",) if name in training}
    config = configuration.Config(
        data=configuration.DataOptions(labels=labels),
        training=configuration.TrainingOptions(**training),
        regularization=configuration.RegularizationOptions(**regularization),
    )
    return Watch(configure.resolve(config), {"images": images, "class_names": ["one", "two"]})


def lines(shares):
    """Of a log, 2,000 images of 40 steps each, in which samples are so many times as far apart as real images."""
    return [
        {"step": 40 * number, "images": 2_000 * number, "distance_fake": share / 2, "distance_real": 0.5}
        for number, share in enumerate(shares, 1)
    ]


def told(watch, lines):
    """Number of images at each warning."""
    return [line["images"] for line in lines for _ in watch.read(line)]


class TestCollapse:
    def test_an_episode_warns_once(self):
        own = watch()
        shares = [0.1, 0.5, 0.9, 0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1]
        assert told(own, lines(shares)) == [10_000, 24_000]
        (warning,) = own.warnings
        assert warning.startswith(
            "samples of a class are nearly alike since 22,000 images (10% of the distance of real"
        )
        assert "--r1-gamma" in warning and "\n" not in warning

    def test_the_warning_suggests_labels_where_they_are_unused(self):
        collapsed = lines([0.9, 0.1, 0.1])
        assert "--labels" not in watch().read_all(collapsed).warnings[0]
        (warning,) = watch(labels=False).read_all(collapsed).warnings
        assert warning.startswith("samples are nearly alike") and "--labels True" in warning

    def test_one_low_reading_does_not_warn(self):
        assert told(watch(), lines([0.9, 0.1, 0.9, 0.1, 0.3, 0.1, 0.9])) == []

    def test_untrained_networks_get_no_warning(self):
        steps = health.UNTRAINED // 40
        assert told(watch(), lines([0.05] * (steps - 1) + [0.5, 0.9])) == []
        own = watch()
        assert told(own, lines([0.05] * (steps + 3))) == [2_000 * (steps + 1)]
        assert "since 2,000 images" in own.warnings[0]
        assert told(watch(loss="wgan"), lines([0.05] * (steps + 3))) == []  # five steps for one of the generator

    def test_a_log_without_distances_gives_no_warning(self):
        assert (
            told(watch(), [{"step": 99_999, "images": 9}, {"step": 99_999, "images": 10, "distance_real": 0.0}]) == []
        )

    def test_a_resumed_run_warns_like_an_uninterrupted_one(self):
        all_lines = lines([0.9, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1])
        for cut in range(len(all_lines)):
            resumed = watch().read_all(all_lines[:cut])
            assert told(resumed, all_lines[cut:]) == [images for images in (6_000, 14_000) if images > 2_000 * cut]


class TestOverfitting:
    def signs(self, *values):
        signs = [{"sign_real": value, "sign_fake": -1.0} for value in values]
        return [line | sign for line, sign in zip(lines([0.9] * len(values)), signs, strict=True)]

    def test_an_episode_warns_once(self):
        own = watch()
        windows = [0.6, 0.99, 0.99, 0.92, 0.99, 0.7, 0.99, 0.99]  # each of 10,000 images, five lines
        assert told(own, self.signs(*[value for value in windows for _ in range(5)])) == [20_000, 70_000]
        (warning,) = own.warnings
        assert warning.startswith("the discriminator overfits since 60,000 images (right about 99.5% of images, each")
        assert "real one shown 70 times" in warning and "--augment ada" in warning

    def test_the_mean_over_a_window_counts_whatever_the_log_interval(self):
        swinging = [1.0, 1.0, 1.0, 0.7, 1.0] * 10
        assert told(watch(), self.signs(*swinging)) == []
        fine = [
            {"step": n, "images": 50 * n, "sign_real": 1.0 if n % 10 else 0.0, "sign_fake": -1.0}
            for n in range(1, 1_000)
        ]
        assert told(watch(), fine) == []
        fine = [line | {"sign_real": 0.97} for line in fine]
        assert told(watch(), fine) == [10_000]

    def test_a_resumed_run_warns_like_an_uninterrupted_one(self):
        all_lines = self.signs(*[0.99] * 12)
        for cut in range(len(all_lines)):
            assert told(watch().read_all(all_lines[:cut]), all_lines[cut:]) == ([10_000] if cut < 5 else [])

    def test_images_shown_a_few_times_give_no_overfitting_warning(self):
        assert told(watch(images=20_000), self.signs(*[1.0] * 39)) == []

    def test_collapsed_samples_give_no_overfitting_warning(self):
        own = watch().read_all([line | {"sign_real": 1.0, "sign_fake": -1.0} for line in lines([0.9] + [0.05] * 30)])
        (warning,) = own.warnings
        assert "nearly alike" in warning

    def test_a_discriminator_that_calls_everything_real_does_not_overfit(self):
        assert told(watch(), [line | {"sign_fake": 0.0} for line in self.signs(*[1.0] * 30)]) == []

    def test_augmentation_is_suggested_only_if_it_is_off(self):
        own = watch(augment="ada").read_all(self.signs(*[1.0] * 9))
        assert "--augment" not in own.warnings[0]

    @pytest.mark.parametrize("loss", ["relativistic", "wgan", "wgan-gp", "least-squares"])
    def test_signs_without_meaning_give_no_warning(self, loss):
        assert told(watch(loss=loss), self.signs(*[1.0] * 30)) == []


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
    told = capsys.readouterr()
    warnings = [line for line in (told.out + told.err).splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and warnings[0].startswith(
        "warning    samples of a class are nearly alike since 16 images"
    )
    assert main(["--resume", str(run), "--images", "64"]) == 0
    told = capsys.readouterr()
    assert "nearly alike" not in told.out + told.err
