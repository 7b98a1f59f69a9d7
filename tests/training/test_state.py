"""A new training's state: optimizers under lazy regularisation, and whether steps are captured."""

import pytest
import torch

from fastgan import models
from fastgan.errors import UserError
from fastgan.runs import config as configuration
from fastgan.training import configure
from fastgan.training.state import new_state, why_not_captured
from tests.support.tiny_training import TinyTraining


def fresh_state(config):
    model = models.ModelConfig(**vars(config.network), resolution=config.data.resolution, num_classes=10)
    return new_state(model, config, torch.device("cpu"))


def test_lazy_regularisation_corrects_its_network_s_optimizer():
    given = configuration.Config(regularization=configuration.RegularizationOptions(path_length=2.0))
    config = configure.resolve(given)
    options, terms = config.training, config.regularization
    state = fresh_state(config)
    share = terms.r1_interval / (terms.r1_interval + 1)
    (group,) = state.optimizer_d.param_groups
    assert group["lr"] == pytest.approx(options.lr_d * share)
    assert group["betas"] == pytest.approx((0, 0.99**share))
    share = terms.path_interval / (terms.path_interval + 1)
    (group,) = state.optimizer_g.param_groups
    assert group["lr"] == pytest.approx(options.lr_g * share)
    assert group["betas"] == pytest.approx((0, 0.99**share))
    (group,) = fresh_state(configure.resolve(configuration.Config())).optimizer_g.param_groups
    assert (group["lr"], group["betas"]) == (options.lr_g, options.betas)
    assert all(
        p.is_contiguous(memory_format=torch.channels_last) for p in state.discriminator.parameters() if p.ndim == 4
    )


@pytest.mark.parametrize(
    "device, machine, optimizer, processes, reason",
    [
        ("cuda", {}, "adam", 1, None),
        ("cuda:1", {"capture_steps": "on", "compile": True}, "rmsprop", 1, None),
        ("cuda", {"capture_steps": "off"}, "adam", 1, "--capture-steps off"),
        ("cuda", {"checkpoint_blocks": True}, "adam", 1, "--checkpoint-blocks draws random numbers again"),
        ("cpu", {}, "adam", 1, None),
        ("cpu", {"capture_steps": "off", "compile": True}, "adam", 1, "--capture-steps off"),
        ("cpu", {"checkpoint_blocks": True}, "adam", 1, "--checkpoint-blocks draws random numbers again"),
        ("cpu", {"compile": True}, "adam", 1, "--compile makes code that cannot be captured on a CPU"),
        ("cpu", {}, "rmsprop", 1, "torch's RMSprop takes the learning rate from Python on a CPU"),
        ("cpu", {}, "adam", 2, "several processes send each other gradients within a step"),
        ("mps", {}, "adam", 1, "there is no way to on mps"),
    ],
)
def test_steps_are_captured_where_it_is_possible(device, machine, optimizer, processes, reason):
    config = configuration.Config(
        machine=configuration.MachineOptions(**machine), training=configuration.TrainingOptions(optimizer=optimizer)
    )
    found = why_not_captured(config, torch.device(device), processes)
    assert found == reason or found.startswith(reason)


def test_asking_for_captured_steps_where_they_are_impossible_is_an_error():
    with pytest.raises(UserError, match=r"--capture-steps on: torch's RMSprop .*; leave it out"):
        TinyTraining(capture_steps="on", loss="wgan", optimizer="rmsprop")
