"""EMA of the generator: half-lives, ramp-up, parameters and buffers."""

import copy

import pytest
import torch
from torch import nn

from fastgan.layers import BatchNormAct
from fastgan.training.ema import EMA, ema_decay, ema_decays
from tests.support.tiny_training import TinyTraining


def test_half_life_of_the_ema():
    keep = ema_decay(10**9, 32, 10_000, 0.05)
    assert keep ** (10_000 / 32) == pytest.approx(0.5)


def test_ramp_up_limits_the_half_life_to_a_fraction_of_images_seen():
    assert ema_decay(1000, 10, 10_000, 0.05) == pytest.approx(0.5 ** (10 / 50))
    assert ema_decay(1000, 10, 10_000, 0) == pytest.approx(0.5 ** (10 / 10_000))
    assert ema_decay(1000, 10, 0, 0.05) == 0


def test_half_lives_stay_in_proportion_to_the_first_one_which_the_ramp_up_limits():
    early = ema_decays(1000, 10, (10_000, 2_500, 40_000), 0.05)
    assert early == pytest.approx([0.5 ** (10 / half_life) for half_life in (50, 12.5, 200)])
    late = ema_decays(10**9, 10, (10_000, 2_500, 40_000), 0.05)
    assert late == pytest.approx([0.5 ** (10 / half_life) for half_life in (10_000, 2_500, 40_000)])
    for ramp_up in (0, 0.05):
        assert ema_decays(1000, 10, (10_000,), ramp_up) == [ema_decay(1000, 10, 10_000, ramp_up)]
    assert ema_decays(1000, 10, (0,), 0.05) == [0]


def test_emas_interpolate_parameters_and_copy_buffers():
    model, *averages = (BatchNormAct(3) for _ in range(3))
    nn.init.constant_(model.weight, 5)
    model(torch.randn(2, 3, 4, 4))
    EMA(averages, model).update([0.25, 0.5])
    for average, weight in zip(averages, (2.0, 3.0), strict=True):
        torch.testing.assert_close(average.weight, torch.full((3,), weight))
        torch.testing.assert_close(average.running_mean, model.running_mean)
        assert average.num_batches_tracked == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_on_the_device_give_the_same_emas(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 6)).to(dtype, memory_format=torch.channels_last)
    ours, expected = ([copy.deepcopy(model) for _ in range(2)] for _ in range(2))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    EMA(expected, model).update([0.125, 0.7])
    EMA(ours, model).update([torch.tensor(0.125), torch.tensor(0.7)])
    for each, other in zip(ours, expected, strict=True):
        for one, same in zip(each.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, same, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-7)


@pytest.mark.parametrize("arch", ["mlp", "dcgan"])
def test_the_emas_of_a_training_are_those_of_a_plain_loop(arch):
    half_lives = (0.02, 0.005, 0.08)
    training = TinyTraining(arch, ema_halflife=half_lives, ema_rampup=0.5)
    state = training.state
    averages = [copy.deepcopy(state.generator) for _ in half_lives]
    for images in range(8, 81, 8):
        training.run(1)
        for average, decay in zip(
            averages, ema_decays(images, 8, [1000 * each for each in half_lives], 0.5), strict=True
        ):
            for old, new in zip(average.parameters(), state.generator.parameters(), strict=True):
                old.data.lerp_(new.data, 1 - decay)
            for old, new in zip(average.buffers(), state.generator.buffers(), strict=True):
                old.copy_(new)
    for ours, average in zip((state.ema, *state.other_emas), averages, strict=True):
        assert all(torch.equal(value, ours.state_dict()[name]) for name, value in average.state_dict().items())
    assert len({next(each.parameters()).sum().item() for each in averages}) == 3


def test_the_first_of_several_emas_is_that_of_a_training_with_one():
    alone, first = (TinyTraining("mlp", ema_halflife=each).run(3).state.ema for each in (0.02, (0.02, 0.01)))
    assert all(map(torch.equal, alone.parameters(), first.parameters()))
