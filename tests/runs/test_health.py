"""Warnings about collapse and overfitting, from the lines of a log."""

import pytest

from fastgan.runs import config as configuration
from fastgan.runs import health
from fastgan.runs.health import Watch
from fastgan.training import configure


def watch(images=1_000, labels="auto", **training):
    regularization = {name: training.pop(name) for name in ("augment",) if name in training}
    config = configuration.Config(
        data=configuration.DataOptions(labels=labels),
        training=configuration.TrainingOptions(**training),
        regularization=configuration.RegularizationOptions(**regularization),
    )
    return Watch(configure.resolve(config), {"images": images, "class_names": ["one", "two"]})


def lines(shares):
    """Log lines, one per 2,000 images (40 steps), with the given ratios of sample distance to real distance."""
    return [
        {"step": 40 * number, "images": 2_000 * number, "distance_fake": share / 2, "distance_real": 0.5}
        for number, share in enumerate(shares, 1)
    ]


def warned_at(watch, lines):
    """Number of images at each warning."""
    return [line["images"] for line in lines for _ in watch.read(line)]


class TestCollapse:
    def test_an_episode_warns_once(self):
        own = watch()
        shares = [0.1, 0.5, 0.9, 0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1]
        assert warned_at(own, lines(shares)) == [10_000, 24_000]
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
        assert warned_at(watch(), lines([0.9, 0.1, 0.9, 0.1, 0.3, 0.1, 0.9])) == []

    def test_untrained_networks_get_no_warning(self):
        steps = health.UNTRAINED // 40
        assert warned_at(watch(), lines([0.05] * (steps - 1) + [0.5, 0.9])) == []
        own = watch()
        assert warned_at(own, lines([0.05] * (steps + 3))) == [2_000 * (steps + 1)]
        assert "since 2,000 images" in own.warnings[0]
        assert warned_at(watch(loss="wgan"), lines([0.05] * (steps + 3))) == []  # five steps for one of the generator

    def test_a_log_without_distances_gives_no_warning(self):
        log = [{"step": 99_999, "images": 9}, {"step": 99_999, "images": 10, "distance_real": 0.0}]
        assert warned_at(watch(), log) == []

    def test_a_resumed_run_warns_like_an_uninterrupted_one(self):
        all_lines = lines([0.9, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1])
        for cut in range(len(all_lines)):
            resumed = watch().read_all(all_lines[:cut])
            assert warned_at(resumed, all_lines[cut:]) == [images for images in (6_000, 14_000) if images > 2_000 * cut]


class TestOverfitting:
    def signs(self, *values):
        signs = [{"sign_real": value, "sign_fake": -1.0} for value in values]
        return [line | sign for line, sign in zip(lines([0.9] * len(values)), signs, strict=True)]

    def test_an_episode_warns_once(self):
        own = watch()
        windows = [0.6, 0.99, 0.99, 0.92, 0.99, 0.7, 0.99, 0.99]  # each of 10,000 images, five lines
        assert warned_at(own, self.signs(*[value for value in windows for _ in range(5)])) == [20_000, 70_000]
        (warning,) = own.warnings
        assert warning.startswith("the discriminator overfits since 60,000 images (right about 99.5% of images, each")
        assert "real one shown 70 times" in warning and "--augment ada" in warning

    def test_the_mean_over_a_window_counts_whatever_the_log_interval(self):
        swinging = [1.0, 1.0, 1.0, 0.7, 1.0] * 10
        assert warned_at(watch(), self.signs(*swinging)) == []
        fine = [
            {"step": n, "images": 50 * n, "sign_real": 1.0 if n % 10 else 0.0, "sign_fake": -1.0}
            for n in range(1, 1_000)
        ]
        assert warned_at(watch(), fine) == []
        fine = [line | {"sign_real": 0.97} for line in fine]
        assert warned_at(watch(), fine) == [10_000]

    def test_a_resumed_run_warns_like_an_uninterrupted_one(self):
        all_lines = self.signs(*[0.99] * 12)
        for cut in range(len(all_lines)):
            assert warned_at(watch().read_all(all_lines[:cut]), all_lines[cut:]) == ([10_000] if cut < 5 else [])

    def test_images_shown_a_few_times_give_no_overfitting_warning(self):
        assert warned_at(watch(images=20_000), self.signs(*[1.0] * 39)) == []

    def test_collapsed_samples_give_no_overfitting_warning(self):
        own = watch().read_all([line | {"sign_real": 1.0, "sign_fake": -1.0} for line in lines([0.9] + [0.05] * 30)])
        (warning,) = own.warnings
        assert "nearly alike" in warning

    def test_a_discriminator_that_calls_everything_real_does_not_overfit(self):
        assert warned_at(watch(), [line | {"sign_fake": 0.0} for line in self.signs(*[1.0] * 30)]) == []

    def test_augmentation_is_suggested_only_if_it_is_off(self):
        own = watch(augment="ada").read_all(self.signs(*[1.0] * 9))
        assert "--augment" not in own.warnings[0]

    @pytest.mark.parametrize("loss", ["relativistic", "wgan", "wgan-gp", "least-squares"])
    def test_signs_without_meaning_give_no_warning(self, loss):
        assert warned_at(watch(loss=loss), self.signs(*[1.0] * 30)) == []
