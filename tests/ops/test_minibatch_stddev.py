"""minibatch_stddev: what its table of cases, test_small_operations.py, does not show."""

import pytest
import torch

from fastgan import ops
from tests.ops.test_small_operations import each_layout
from tests.support import backends
from tests.support.table import arrange


@pytest.mark.parametrize("n", [1, 2])
@each_layout
@backends.one_instruction_set
def test_minibatch_stddev_of_one_or_two_samples(backend, n, layout):
    """One sample has no deviation. That of two is half their distance, which has no curvature."""
    x = arrange(torch.randn(n, 5, 4, 3, dtype=torch.float64), layout).to(backends.device(backend)).requires_grad_()
    y = ops.minibatch_stddev(x)
    expected = 1e-4 if n == 1 else ((x[0] - x[1]).abs() / 2).mean().item()
    torch.testing.assert_close(y[:, 5], torch.full_like(y[:, 5], expected), rtol=1e-5, atol=0)
    assert torch.autograd.gradcheck(ops.minibatch_stddev, [x], fast_mode=True)
    assert torch.autograd.gradgradcheck(ops.minibatch_stddev, [x], fast_mode=True)


def test_minibatch_stddev_of_equal_samples_has_finite_derivatives(backend):
    x = torch.randn(1, 5, 4, 3).to(backends.device(backend)).expand(4, 5, 4, 3).detach().requires_grad_()
    y = ops.minibatch_stddev(x)
    torch.testing.assert_close(y[:, 5], torch.full_like(y[:, 5], 1e-4))
    (dx,) = torch.autograd.grad(y[:, 5].sum(), x, create_graph=True)
    assert torch.equal(dx, torch.zeros_like(dx))
    (second,) = torch.autograd.grad(dx.sum() + dx[0].sum(), x)
    assert second.isfinite().all()
