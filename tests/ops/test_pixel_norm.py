"""pixel_norm: what its table of cases, test_small_operations.py, does not show."""

import torch

from fastgan import ops


def test_pixel_norm_compiles_with_more_than_one_eps():
    """The second eps makes it a variable of the graph."""
    x = torch.randn(4, 6, 3, 3)
    compiled = torch.compile(ops.pixel_norm, fullgraph=True, backend="aot_eager")
    for eps in (1e-8, 0.25, 0.5):
        torch.testing.assert_close(compiled(x, eps), ops.pixel_norm(x, eps))
