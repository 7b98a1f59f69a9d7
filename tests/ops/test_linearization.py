"""Linearization of noise_bias_act. tests/penalties holds `linearized` to double backward, in whole discriminators."""

import pytest
import torch

from fastgan.ops.linearization import weighted_channel_sums
from tests.support.table import DTYPES, arrange


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 37, 9, 7), (2, 64, 4, 4), (5, 8), (0, 4, 2, 2)])
def test_weighted_channel_sums(shape, dtype):
    x = arrange(torch.randn(shape), "nhwc" if len(shape) == 4 else "nchw").to(DTYPES[dtype])
    factor = torch.randn(shape[0], dtype=torch.float64 if dtype == "fp64" else torch.float32)
    expected = torch.einsum("n,nc...->c", factor.double(), x.double())
    torch.testing.assert_close(weighted_channel_sums(x, factor).double(), expected, rtol=0, atol=2e-5)
