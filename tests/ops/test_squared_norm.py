"""squared_norm: what its table of cases, test_small_operations.py, does not show."""

import torch

from fastgan import ops
from tests.support import backends


def test_squared_norms_of_16_bit_numbers_are_sums_in_32_bits(backend):
    x = torch.randn(3, 4, 60, 61, device=backends.device(backend)).to(torch.bfloat16)
    got = ops.squared_norm(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), x.double().square().flatten(1).sum(1), rtol=1e-6, atol=0)
