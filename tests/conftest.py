"""What all tests share."""

import pytest
import torch

from tests import backends


@pytest.fixture(params=backends.NAMES)
def backend(request):
    """The test runs once on every backend that this machine has; the value is the device of its tensors."""
    with backends.forced(request.param):
        yield request.param


@pytest.fixture
def unwritten_is_nan():
    """Memory that torch.empty hands out is filled with NaN: an element that no kernel wrote fails its comparison."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)
