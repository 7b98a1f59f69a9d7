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
    "option, device, checkpoint_blocks, reason",
    [
        ("auto", "cuda", False, None),
        ("on", "cuda:1", False, None),
        ("off", "cuda", False, "--cuda-graphs off"),
        ("auto", "cuda", True, "--checkpoint-blocks draws random numbers again, which a graph cannot"),
        ("auto", "cpu", False, "there are none on cpu"),
        ("off", "cpu", True, "--cuda-graphs off"),
    ],
)
def test_cuda_graphs_are_captured_on_gpus_only(option, device, checkpoint_blocks, reason):
    options = configuration.MachineOptions(cuda_graphs=option, checkpoint_blocks=checkpoint_blocks)
    assert why_not_captured(options, torch.device(device)) == reason


def test_cuda_graphs_on_for_a_cpu_is_an_error():
    with pytest.raises(UserError, match="--cuda-graphs on: there are none on cpu; leave it out"):
        TinyTraining(cuda_graphs="on")
    with pytest.raises(UserError, match="--cuda-graphs on: --checkpoint-blocks draws"):
        options = configuration.MachineOptions(cuda_graphs="on", checkpoint_blocks=True)
        why_not_captured(options, torch.device("cuda"))
