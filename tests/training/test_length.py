"""Trainings that fit a time: end, schedules, resuming, several processes; and learning-rate warm-up."""

import math
from contextlib import nullcontext

import pytest

from fastgan.cli.train import main
from fastgan.distributed import Ranks
from fastgan.runs import checkpoint, process
from fastgan.runs.config import TrainingOptions
from fastgan.training import length
from tests.support.tiny_run import BATCH, arguments, assert_same_checkpoint, log_lines
from tests.support.tiny_training import TinyTraining

PER_STEP = 1.5  # seconds by the clock of these tests


class Clock:
    """Every reading is PER_STEP later than the one before."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        self.now += PER_STEP
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(length, "time", made := Clock())
    return made


def timed(folder, out, minutes, *more):
    given = [*arguments(folder, out, "--arch", "dcgan", "--final-lr", "0.1"), *more]
    at = given.index("--images")
    return [*given[:at], "--minutes", str(minutes), *given[at + 2 :]]


def test_schedules_follow_the_time():
    training = TinyTraining("mlp", minutes=0.1, lr_g=0.1, lr_d=0.2, final_lr=0.5)  # 6 seconds
    for seconds, share in ((0.0, 1.0), (3.0, 0.75), (6.0, 0.5), (7.0, 0.5)):
        training.state.seconds = seconds
        training.run(1)
        assert training.state.optimizer_g.param_groups[0]["lr"] == pytest.approx(0.1 * share)


def test_learning_rates_rise_during_the_warm_up():
    training = TinyTraining("mlp", images=80, lr_g=0.1, lr_warmup=0.25)  # 8 images a step
    rates = []
    for _ in range(4):
        training.run(1)
        rates.append(training.state.optimizer_g.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0, 0.04, 0.08, 0.1])


def test_warm_up_and_decay_multiply():
    training = TinyTraining("mlp", images=80, lr_g=0.1, lr_warmup=0.5, final_lr=0.2)
    training.state.images = 20
    training.run(1)
    share = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2
    assert training.state.optimizer_g.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 * share)


@pytest.mark.slow
def test_a_run_ends_with_its_time_and_says_what_it_reached(folder, tmp_path, clock, capsys):
    run = tmp_path / "run"
    assert main(timed(folder, run, 0.25)) == 0
    header = checkpoint.read_header(run)
    assert (header.step, header.images, header.seconds) == (10, 10 * BATCH, 15.0)
    assert f"reached    {10 * BATCH} images in 0.25 minutes" in capsys.readouterr().out
    assert [line["minutes"] for line in log_lines(run)][-1] == 0.25


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_time_that_was_used(folder, tmp_path, clock, monkeypatch):
    """By the same clock it is the same run, bit for bit."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main(timed(folder, whole, 0.25)) == 0

    class Interrupt:
        exit_code, left = 130, 4

        @property
        def signum(self):
            self.left -= 1
            return 2 if self.left == 0 else 0

    with monkeypatch.context() as patch:
        patch.setattr(process, "finish_step_on_signal", lambda _: nullcontext(Interrupt()))
        assert main(timed(folder, half, 0.25)) == 130
    assert checkpoint.read_header(half).seconds == 4 * PER_STEP
    assert main(["--resume", str(half)]) == 0
    assert_same_checkpoint(half, whole)
    assert log_lines(half)[-1] == log_lines(whole)[-1]


@pytest.mark.slow
def test_a_run_with_nothing_left_is_refused_and_may_go_on_by_images(folder, tmp_path, clock, capsys):
    run = tmp_path / "run"
    assert main(timed(folder, run, 0.05)) == 0
    before = checkpoint.read_header(run).images
    assert main(["--resume", str(run)]) == 0, "the same time again makes up for what a kill left undone"
    assert checkpoint.read_header(run).images == before
    assert main(["--resume", str(run), "--minutes", "0.04"]) == 2
    assert "has trained for 0.05 already; give more" in capsys.readouterr().err
    assert main(["--resume", str(run), "--images", "40"]) == 0
    config = checkpoint.read_header(run).config
    assert (config.training.images, config.training.minutes) == (40, 0.0)
    assert checkpoint.read_header(run).images == 40


def test_several_processes_use_the_time_of_the_step_before(clock):
    class Two(Ranks):
        before = 0

        def previous_max(self, value, of=""):
            assert of == "milliseconds"
            self.before, before = value + 250, self.before  # the other one is ahead
            return before

    state = checkpoint.State(*[None] * 6, seconds=3.0)
    read = length.Clock(state, length.Length(TrainingOptions(images=0, minutes=1.0, batch=4)), Two())
    seen = []
    for _ in range(3):
        read.read()
        seen.append(state.seconds)
    assert seen == [3.0, 3.0 + PER_STEP + 0.25, 3.0 + 2 * PER_STEP + 0.25]


def test_a_training_by_images_measures_no_time(clock):
    state = checkpoint.State(*[None] * 6)
    length.Clock(state, length.Length(TrainingOptions(images=8, batch=4)), Ranks()).read()
    assert state.seconds == 0.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--minutes", "-1"], "--minutes -1.0: must be at least 0"),
        (["--minutes", "5", "--images", "8"], "--images 8: excludes --minutes 5; leave one of them out"),
        (["--images", "0"], "--images 0: must be at least 1, or give --minutes"),
        (["--minutes", "5", "--arch", "pggan"], "--minutes 5: networks grow by --images; give those, or --grow-from 0"),
        (["--lr-warmup", "1.5"], "--lr-warmup 1.5: must be from 0 to 1"),
    ],
)
def test_wrong_lengths_are_refused(options, says, capsys):
    assert main(options) == 2
    assert says in capsys.readouterr().err
