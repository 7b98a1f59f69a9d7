"""The operations of a formula each: one table of cases for every backend, and what they promise besides."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastgan import ops
from fastgan.ops import use_backend
from tests import backends, table
from tests.emulation import build as emulation
from tests.table import DTYPES, arrange

# The operations as one writes them in PyTorch, in the dtype of their inputs: written apart from those in fastgan ----


def textbook_pixel_norm(x, eps=1e-8):
    return x / (x.pow(2).mean(1, keepdim=True) + eps).sqrt()


class Operation(NamedTuple):
    fused: Callable[..., Tensor]
    textbook: Callable[..., Tensor]
    gives: str = "activations"  # or "numbers": one a sample
    also: tuple[str, ...] = ()  # tensors beside x


OPERATIONS = {
    "pixel_norm": Operation(ops.pixel_norm, textbook_pixel_norm),
}


class Case(NamedTuple):
    operation: str
    shape: tuple[int, ...] = (2, 16, 5, 7)
    layout: str = "nhwc"
    options: tuple[tuple[str, float], ...] = ()

    def __str__(self):
        options = [f"{name}={value}" for name, value in self.options]
        return "-".join([self.operation, "x".join(map(str, self.shape)), self.layout, *options])


def _cases():
    for name in OPERATIONS:
        for layout in ("nhwc", "nchw"):
            for shape in ((2, 16, 5, 7), (1, 1, 1, 1), (3, 5, 1, 1), (4, 3, 33, 17), (4, 1, 9, 31), (8, 37, 4, 4)):
                # The norm of a single channel is its sign, whose derivatives are rounding alone; not so with this eps.
                alone = name == "pixel_norm" and shape[1] == 1
                yield Case(name, shape, layout, options=(("eps", 0.5),) * alone)
            yield Case(name, (4, 160, 9, 9), layout)
            for empty in ((0, 4, 3, 3), (2, 4, 0, 3)):
                yield Case(name, empty, layout)
        yield Case(name, (4, 16, 5, 7), "sliced")
        yield Case(name, (4, 16, 5, 7), "expanded")
        for shape in ((4, 8), (300, 33), (0, 3), (2, 3, 11), (2, 3, 2, 3, 5)):
            yield Case(name, shape, "nchw")


CASES = list(_cases())


def make(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a call, exact in `dtype`."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)
    return {"x": arrange(draw(*case.shape), case.layout)}


def of(case: Case) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The fused operation and the textbook's, with the options of the case."""
    operation, options = OPERATIONS[case.operation], dict(case.options)
    return (lambda **tensors: operation.fused(**tensors, **options)), (
        lambda **tensors: operation.textbook(**tensors, **options)
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_derivatives_are_as_good_as_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    tensors = make(case, dtype, backends.device(backend))
    fused, textbook = of(case)
    layout = case.layout if OPERATIONS[case.operation].gives == "activations" else "nchw"
    in_dtype = lambda **tensors: fused(**tensors).to(dtype)  # numbers come in fp32 at least
    table.assert_derivatives_as_good_as_plain(in_dtype, textbook, tensors, layout=layout)
