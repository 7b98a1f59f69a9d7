"""The race of fastgan and a textbook is fair: same weights, images, hyper-parameters and time."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from bench import time_to_quality
from bench.textbook_training import Trainer
from bench.time_to_quality import Ours, Task, Textbook, draw, minutes_to_last, plot, race
from fastgan.data import ImageDataset
from fastgan.runs.config import Config, DataOptions, NetworkOptions, TrainingOptions
from fastgan.training.ema import EMA, ema_decay

pytestmark = pytest.mark.slow  # trains


@pytest.fixture
def task():
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
    dataset = ImageDataset(images, np.arange(24) % 3, ["a", "b", "c"], "noise", {})
    config = Config(
        network=NetworkOptions(channel_base=64, channel_max=8, z_dim=8),
        data=DataOptions(resolution=8),
        training=TrainingOptions(batch=8),
    )
    return Task(3, config, dataset)


def test_both_start_from_the_same_weights_and_draw_the_same_images(task):
    ours, textbook = Ours(task, amp=False), Textbook(task, "scaled", "NCHW")
    pairs = (
        (ours.state.generator, textbook.trainer.generator),
        (ours.state.discriminator, textbook.trainer.discriminator),
    )
    for own, theirs in (*pairs, (ours.average, textbook.average)):
        expected = dict(theirs.named_parameters())
        assert expected.keys() == dict(own.named_parameters()).keys()
        assert all(torch.equal(value, expected[name]) for name, value in own.named_parameters())
    labels = np.array([0, 1, 2, 2])
    images = draw(ours.average, labels, seed=1)
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.uint8
    assert np.abs(images.astype(int) - draw(textbook.average, labels, seed=1)).max() <= 1
    assert not np.array_equal(images, draw(ours.average, labels, seed=2))


def test_both_have_the_same_hyper_parameters(task):
    ours, textbook = Ours(task, amp=False), Textbook(task, "grouped", "channels_last")
    for name in ("optimizer_g", "optimizer_d"):
        own, theirs = (getattr(each, name).param_groups[0] for each in (ours.state, textbook.trainer))
        assert all(own[key] == theirs[key] for key in ("lr", "betas", "eps", "weight_decay"))
    options, terms, trainer = task.config.training, task.config.regularization, textbook.trainer
    assert (trainer.gamma, trainer.r1_interval) == (terms.r1_gamma, terms.r1_interval) == (1.0, 8)
    assert trainer.mixing == ours.step.mixing == {"style_mixing": options.style_mixing}
    assert trainer.optimizer_d.param_groups[0]["lr"] == pytest.approx(options.lr_d * 8 / 9)  # lazy regularisation


def test_both_see_the_same_images_in_the_same_order(task, monkeypatch):
    ours, textbook = Ours(task, amp=False), Textbook(task, "scaled", "NCHW")
    seen = {"ours": [], "textbook": []}
    monkeypatch.setattr(ours, "step", lambda real, label: seen["ours"].append((real, label)))
    monkeypatch.setattr(textbook, "trainer", lambda real, label: seen["textbook"].append((real, label)))
    for _ in range(4):  # more than an epoch
        ours()
        textbook()
    assert ours.shown == textbook.shown == 32
    for own, theirs in zip(*seen.values(), strict=True):
        assert torch.equal(own[0], theirs[0]) and torch.equal(own[1], theirs[1])
    first_epoch = torch.cat([real for real, _ in seen["ours"][:3]])
    assert len({image.numpy().tobytes() for image in first_epoch}) == 24


@pytest.mark.parametrize("make", [lambda task: Ours(task, amp=False), lambda task: Textbook(task, "scaled", "NCHW")])
def test_a_step_trains_both_networks_and_drawing_leaves_it_unchanged(task, make):
    plain, drawing = make(task), make(task)
    weights = []
    for contestant in (plain, drawing):
        torch.manual_seed(7)
        before = [copy.deepcopy(each.state_dict()) for each in _networks(contestant)]
        for _ in range(2):
            contestant()
            if contestant is drawing:
                draw(contestant.average, np.zeros(3, np.int64), seed=0)
        after = [each.state_dict() for each in _networks(contestant)]
        assert all(any(not torch.equal(a[k], b[k]) for k in a) for a, b in zip(before, after, strict=True))
        weights.append(after)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(*weights, strict=True) for k in a)


def _networks(contestant):
    owner = contestant.state if isinstance(contestant, Ours) else contestant.trainer
    return owner.generator, owner.discriminator, contestant.average


def test_both_emas_decay_alike():
    torch.manual_seed(0)
    generator, discriminator = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    trainer = Trainer((generator, discriminator), ema_halflife=100.0, ema_rampup=0.5)
    ours = copy.deepcopy(generator)
    average = EMA(ours, generator)
    for shown in range(16, 400, 16):  # the ramp-up limits the half-life until 200
        torch.nn.init.normal_(generator.weight)
        trainer.update_average(16)
        average.update(1 - ema_decay(shown, 16, 100.0, 0.5))
        torch.testing.assert_close(trainer.average.weight, ours.weight)


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_contestants_get_the_same_time_in_short_turns():
    clock, turns, evaluated = Clock(), [], []
    takes = {"quick": 0.25, "slow": 1.0}

    def step(name):
        clock.seconds += takes[name]
        turns.append(name)

    def evaluate(name, minutes):
        clock.seconds += 100.0  # counts for nobody
        evaluated.append((name, minutes * 60))

    race({name: lambda name=name: step(name) for name in takes}, 0.5, 3, evaluate, clock)
    assert [name for name, _ in evaluated] == ["quick", "slow"] * 4
    for name, seconds in takes.items():
        times = [time for each, time in evaluated if each == name]
        assert times == pytest.approx([0, 10, 20, 30], abs=seconds)
        assert turns.count(name) * seconds == pytest.approx(times[-1])
    quick = "".join("q" if name == "quick" else "s" for name in turns).split("s")
    assert max(map(len, quick)) * takes["quick"] <= time_to_quality.TURN
    assert "ssss" not in "".join(name[0] for name in turns)


def test_time_to_reach_the_textbooks_last_kid():
    rows = lambda *kids: {"evaluations": [{"minutes": float(at), "kid": kid} for at, kid in enumerate(kids)]}
    assert minutes_to_last({"fastgan": rows(9, 5, 3, 1), "textbook": rows(9, 7, 5, 4)}) == 2.0
    assert minutes_to_last({"fastgan": rows(9, 8, 7, 6), "textbook": rows(9, 7, 5, 4)}) is None
    assert (
        minutes_to_last({"fastgan": rows(3, 9, 8, 4), "textbook": rows(3, 9, 8, 5)}) == 3.0
    )  # the untrained one does not count


@pytest.mark.parametrize("kids", [(0.3, 0.1, 0.02), (0.3, 0.0, -0.001)])
def test_plots_negative_estimates_too(kids, tmp_path):
    rows = [{"minutes": at, "kid": kid, "images": 32 * at} for at, kid in enumerate(kids)]
    found = {
        "arch": "stylegan2", "batch": 32, "real": "glyphs", "device": "a machine", "instructions": "some", "threads": 2,
        "floor": {"of": "training images", "kid": 0.01},
        "contestants": {name: {"about": name, "evaluations": rows} for name in ("fastgan", "textbook")},
    }  # fmt: skip
    plot(found, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size == (960, 600)
