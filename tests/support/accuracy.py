"""The one measure of error: how far from an fp64 reference, beside how far plain PyTorch is in the same dtype."""

import math

import torch
from torch import Tensor


def assert_as_good_as_plain(
    got: Tensor, plain: Tensor, reference: Tensor, dtype: torch.dtype, what: str, summed: int = 0
) -> None:
    """The error may be at most twice that of plain PyTorch, plus 4 eps of the largest reference value.

    `summed` is the number of terms, of a size of one to a few, that were added up for each value: their rounding errors
    remain where the terms cancel, so they are added to the allowance as a random walk.
    """
    assert got.shape == reference.shape, f"{what}: shape {list(got.shape)}, must be {list(reference.shape)}"
    if reference.numel() == 0:
        return
    got, plain, reference = (t.detach().double().cpu() for t in (got, plain, reference))
    largest = reference.abs().max()
    eps = torch.finfo(dtype).eps
    allowed = 2 * (plain - reference).abs().max() + 4 * eps * largest + 4 * eps * math.sqrt(summed)
    error = (got - reference).abs().max()
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}, largest value {largest:.3g}"
