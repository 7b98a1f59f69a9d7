"""The measure of error in all tests: distance from an fp64 reference, relative to plain PyTorch's in the same dtype."""

import math

import torch
from torch import Tensor


def assert_as_good_as_plain(
    got: Tensor, plain: Tensor, reference: Tensor, dtype: torch.dtype, what: str, summed: int = 0
) -> None:
    """The error may be at most twice that of plain PyTorch, plus 4 eps of the largest reference value.

    Args:
        got: the result to check.
        plain: the result of plain PyTorch in `dtype`. Numbers that overflowed there are ignored.
        reference: the result in fp64.
        dtype: of the computation; its eps is the unit.
        what: name of the result, for the message.
        summed: number of terms, of magnitude about 1, that were added up for each value. Where terms cancel, their
            rounding errors remain; the allowance grows by 4 eps times the square root of it, as for a random walk.
    """
    assert got.shape == reference.shape, f"{what}: shape {list(got.shape)}, must be {list(reference.shape)}"
    if reference.numel() == 0:
        return
    got, plain, reference = (t.detach().double().cpu() for t in (got, plain, reference))
    largest = reference.abs().max()
    eps = torch.finfo(dtype).eps
    plain_error = (plain - reference).abs().nan_to_num(nan=0.0, posinf=0.0).max()
    allowed = 2 * plain_error + 4 * eps * largest + 4 * eps * math.sqrt(summed)
    error = (got - reference).abs().max()
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}, largest value {largest:.3g}"
