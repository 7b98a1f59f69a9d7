"""Means of logged scalars between two lines of the log."""

import math

import pytest
import torch

from fastgan.training.averages import Averages


def test_averages_are_over_the_steps_that_had_a_value():
    averages = Averages()
    averages.add(loss=torch.tensor(1.0), penalty=torch.tensor(6.0))
    averages.add(loss=torch.tensor(3.0))
    assert averages.read() == {"loss": 2.0, "penalty": 6.0}
    assert averages.read() == {}


def test_averages_skip_non_finite_values():
    averages = Averages()
    for value in (1.0, math.inf, 3.0):
        averages.add(loss=torch.tensor(value), broken=torch.tensor(math.nan))
    assert averages.read() == pytest.approx({"loss": 2.0, "broken": math.nan}, nan_ok=True)


def test_averages_count_finished_steps_only():
    averages = Averages()
    for value in (1.0, 3.0):
        with averages.step():
            averages.add(loss=torch.tensor(value))
            averages.add(loss=torch.tensor(value + 1), other=torch.tensor(value))
    with pytest.raises(RuntimeError), averages.step():
        averages.add(loss=torch.tensor(100.0))
        raise RuntimeError("capturing failed")
    assert averages.read() == {"loss": 2.5, "other": 2.0}
