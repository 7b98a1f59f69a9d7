"""EMA of the generator: half-life, ramp-up, parameters and buffers."""

import copy

import pytest
import torch
from torch import nn

from fastgan.layers import BatchNormAct
from fastgan.training.ema import EMA, ema_decay


def test_half_life_of_the_ema():
    keep = ema_decay(10**9, 32, 10_000, 0.05)
    assert keep ** (10_000 / 32) == pytest.approx(0.5)


def test_ramp_up_limits_the_half_life_to_a_fraction_of_images_seen():
    assert ema_decay(1000, 10, 10_000, 0.05) == pytest.approx(0.5 ** (10 / 50))
    assert ema_decay(1000, 10, 10_000, 0) == pytest.approx(0.5 ** (10 / 10_000))
    assert ema_decay(1000, 10, 0, 0.05) == 0


def test_ema_interpolates_parameters_and_copies_buffers():
    model, average = BatchNormAct(3), BatchNormAct(3)
    nn.init.constant_(model.weight, 5)
    model(torch.randn(2, 3, 4, 4))
    EMA(average, model).update(0.25)
    torch.testing.assert_close(average.weight, torch.full((3,), 2.0))
    torch.testing.assert_close(average.running_mean, model.running_mean)
    assert average.num_batches_tracked == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_on_the_device_gives_the_same_ema(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 6)).to(dtype, memory_format=torch.channels_last)
    ours, expected = copy.deepcopy(model), copy.deepcopy(model)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    EMA(expected, model).update(0.125)
    EMA(ours, model).update(torch.tensor(0.125))
    for one, other in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)
