"""Whole steps in which layers share kernels, as on a GPU, against steps in which they do not."""

from functools import partial

import pytest
import torch

from fastgan.models.gradient_checkpointing import enable_gradient_checkpointing
from tests.support.shared_kernels import compute_together
from tests.support.tiny_training import TinyTraining, assert_same

amp = partial(torch.autocast, "cpu", torch.bfloat16)


def trained(monkeypatch, together, steps=3, checkpointed=False, frozen=0, **options):
    """A training after some steps."""
    decisions = compute_together(monkeypatch, together)
    training = TinyTraining(**options)
    if checkpointed:
        enable_gradient_checkpointing(training.state.generator)
        enable_gradient_checkpointing(training.state.discriminator)
    for layer in training.state.discriminator.layers_from_image()[:frozen] if frozen else ():
        layer.requires_grad_(False)
    training.run(steps)
    assert decisions
    return training


@pytest.fixture
def fp64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_bitwise_equal(ours, theirs):
    ours, theirs = ours.tensors(), theirs.tensors()
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


@pytest.mark.parametrize("options", [{}, {"autocast": amp}, {"batch_gpu": 4}, {"checkpointed": True}, {"labels": True}])
@pytest.mark.parametrize("arch", ["pggan", "stylegan", "r3gan"])
def test_trainings_are_the_same_bit_by_bit(arch, options, monkeypatch):
    regularization = {"r1_interval": 1} if arch != "pggan" else None
    run = partial(trained, monkeypatch, arch=arch, regularization=regularization, **options)
    assert_bitwise_equal(run(True), run(False))


PATH_LENGTH = {"r1_interval": 2, "path_length": 2.0, "path_interval": 1}


@pytest.mark.parametrize(
    "options", [{}, {"batch_gpu": 4}, {"checkpointed": True}, {"labels": True}, {"frozen": 2}, {"style_mixing": 0.0}]
)
def test_trainings_of_stylegan2_are_the_same_in_fp64(fp64, options, monkeypatch):
    run = partial(trained, monkeypatch, arch="stylegan2", regularization=PATH_LENGTH, **options)
    assert_same(run(True), run(False), rtol=1e-9)


def test_trainings_of_stylegan2_are_the_same_up_to_rounding(monkeypatch):
    run = partial(trained, monkeypatch, arch="stylegan2", regularization=PATH_LENGTH)
    assert_same(run(True), run(False))


def test_trainings_of_stylegan2_with_amp_start_alike(monkeypatch):
    """Gradients of the first step; Adam turns their rounding errors into changes of full size."""
    together, each = (
        trained(monkeypatch, choice, steps=1, arch="stylegan2", regularization=PATH_LENGTH, autocast=amp)
        for choice in (True, False)
    )
    ours, theirs = (
        torch.cat([p.grad.flatten() for p in each.state.generator.parameters()]) for each in (together, each)
    )
    assert (ours - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize("arch", ["pggan", "stylegan"])
def test_levels_that_are_not_in_use_get_no_gradient(arch, monkeypatch):
    compute_together(monkeypatch)
    training = TinyTraining(arch=arch)
    for network in training.state.networks:
        network.grow_to(4)
    training.step(torch.rand(8, 1, 4, 4) * 2 - 1, None)
    assert training.state.generator.to_rgb[1].weight.grad is None
    assert training.state.generator.to_rgb[0].weight.grad is not None
