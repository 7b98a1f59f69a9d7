"""Adam whose beta2 is on the device, against torch's."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.runs.graphs import Numbers
from fastgan.training.adam import Adam


@pytest.mark.parametrize("betas", [(0.0, 0.9), (0.5, 0.999)])
def test_adam_with_beta2_on_the_device_is_adam(betas):
    """Also for a parameter that is used later, like the levels of growing networks."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(2))]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    adam, torchs = Adam(ours, lr=0.01, betas=betas), torch.optim.Adam(theirs, lr=0.01, betas=betas)
    numbers = Numbers(torch.device("cpu"))
    for number in range(30):
        beta2 = betas[1] + (0.9995 - betas[1]) * number / 30
        adam.param_groups[0]["betas"] = betas[0], numbers.set("beta2", beta2, torch.float64)
        adam.param_groups[0]["lr"] = numbers.set("lr", 0.01 / (1 + number))
        torchs.param_groups[0]["betas"], torchs.param_groups[0]["lr"] = (betas[0], beta2), 0.01 / (1 + number)
        for one, other in zip(ours, theirs, strict=True):
            takes_part = len(one) != 2 or number > 9
            other.grad = torch.randn_like(other) if takes_part else None
            one.grad = other.grad.clone() if takes_part else None
        adam.step()
        torchs.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(adam.state[one], torchs.state[other], rtol=1e-5, atol=1e-7)


def test_adam_with_beta2_on_the_device_calls_no_operation_for_each_parameter():
    counts = []
    for number in (3, 30):
        parameters = [
            nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)) for _ in range(number)
        ]
        adam = Adam(parameters, lr=torch.tensor(0.01), betas=(0.5, 0.9))
        adam.param_groups[0]["betas"] = 0.5, torch.tensor(0.9, dtype=torch.float64)
        adam.found_inf = torch.zeros(())
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        adam.step()  # makes the state
        with Operations() as operations:
            adam.step()
        counts.append(len(operations.names))
    assert counts[0] == counts[1] > 0


class Operations(TorchDispatchMode):
    """Names of the operations called, without views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))
