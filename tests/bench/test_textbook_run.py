"""The textbook's whole training is fastgan's in plain PyTorch: same weights, images, hyper-parameters and EMA."""

import copy

import numpy as np
import pytest
import torch

from bench import textbook_run
from bench.textbook_run import Task, Textbook
from bench.textbook_training import Trainer
from fastgan.data import ImageDataset
from fastgan.runs.checkpoint import load_generator, read_header
from fastgan.runs.config import Config, DataOptions, MachineOptions, NetworkOptions, TrainingOptions
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
        machine=MachineOptions(seed=3),
    )
    return Task(config, dataset)


def test_it_starts_from_fastgans_weights_and_computes_the_same_images(task):
    state, textbook = task.fresh_state(), Textbook(task, "scaled", "NCHW")
    z, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 2])
    pairs = (
        (state.generator, textbook.trainer.generator),
        (state.discriminator, textbook.trainer.discriminator),
        (state.ema, textbook.trainer.average),
    )
    for own, theirs in pairs:
        expected = dict(theirs.named_parameters())
        assert expected.keys() == dict(own.named_parameters()).keys()
        assert all(torch.equal(value, expected[name]) for name, value in own.named_parameters())
    images = []
    for network in (state.ema, textbook.trainer.average):
        torch.manual_seed(0)  # of the noise
        images.append(network(z, labels))
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)


def test_it_has_fastgans_hyper_parameters(task):
    state, textbook = task.fresh_state(), Textbook(task, "grouped", "channels_last")
    for name in ("optimizer_g", "optimizer_d"):
        own, theirs = getattr(state, name).param_groups[0], getattr(textbook.trainer, name).param_groups[0]
        assert all(own[key] == theirs[key] for key in ("lr", "betas", "eps", "weight_decay"))
    options, terms, trainer = task.config.training, task.config.regularization, textbook.trainer
    assert (trainer.gamma, trainer.r1_interval) == (terms.r1_gamma, terms.r1_interval)
    assert trainer.mixing == {"style_mixing": options.style_mixing}


def test_an_epoch_shows_every_image_once(task, monkeypatch):
    textbook, seen = Textbook(task, "scaled", "NCHW"), []
    monkeypatch.setattr(textbook, "trainer", lambda real, label: seen.append(real))
    for _ in range(3):
        textbook()
    assert textbook.shown == 24
    assert len({image.numpy().tobytes() for image in torch.cat(seen)}) == 24


def test_the_ema_decays_as_fastgans():
    torch.manual_seed(0)
    generator, discriminator = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    trainer = Trainer((generator, discriminator), ema_halflife=100.0, ema_rampup=0.5)
    ours = copy.deepcopy(generator)
    average = EMA([ours], generator)
    for shown in range(16, 400, 16):  # the ramp-up limits the half-life until 200
        torch.nn.init.normal_(generator.weight)
        trainer.update_average(16)
        average.update([1 - ema_decay(shown, 16, 100.0, 0.5)])
        torch.testing.assert_close(trainer.average.weight, ours.weight)


def test_fastgan_reads_its_checkpoints(task, tmp_path):
    textbook = Textbook(task, "scaled", "NCHW")
    for _ in range(2):
        textbook()
    textbook.save(tmp_path)
    path = tmp_path / "checkpoint-000000016.safetensors"
    assert read_header(path).images == 16
    generator, _ = load_generator(path)
    expected = dict(textbook.trainer.average.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in generator.named_parameters())


def test_the_command_trains_to_the_last_image(task, tmp_path, monkeypatch):
    monkeypatch.setattr(textbook_run, "Task", lambda config: task)
    monkeypatch.setattr("sys.argv", ["textbook_run", str(tmp_path / "out"), "--images", "40", "--interval", "16"])
    assert textbook_run.main() == 0
    assert [read_header(path).images for path in sorted((tmp_path / "out").iterdir())] == [16, 32, 40]
