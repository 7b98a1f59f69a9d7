"""Adam whose beta2 is on the device, against torch's."""

import pytest
import torch
from torch import nn

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
