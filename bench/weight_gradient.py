"""Times weight gradients by our CPU kernel against the library's, in fp32, and in bf16 where instructions for it exist.

The kernel is called with every instruction set: these numbers decide where `fastgan.ops.weight_gradient` uses it. The
forward convolution, of as many operations, is timed beside both.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import measure, report
from fastgan.ops.weight_gradient import weight_gradient
from fastgan_kernels import extension

SECONDS = 3.0


class Case(NamedTuple):
    """A convolution from I to O channels with a square kernel, on square images."""

    n: int
    i: int
    o: int
    side: int
    kernel: int = 3
    stride: int = 1
    transposed: bool = False

    @property
    def padding(self) -> int:
        return (self.kernel - 1) // 2

    @property
    def form(self) -> str:
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel}{stride}{' transposed' if self.transposed else ''}"

    @property
    def shape(self) -> str:
        return f"{self.n}x{self.i}x{self.side}x{self.side} to {self.o}"


CASES = {
    "StyleGAN2 64x64": [
        Case(16, 512, 512, 4),
        Case(16, 512, 512, 8),
        Case(16, 512, 512, 16),
        Case(16, 256, 256, 32),
        Case(16, 128, 128, 64),
        Case(16, 512, 512, 4, 4, 2, True),
        Case(16, 256, 128, 32, 4, 2, True),
        Case(16, 128, 256, 64, 4, 2),
        Case(16, 512, 512, 8, 4, 2),
    ],
    "default": [Case(64, 16, 16, 32), Case(64, 32, 32, 16), Case(64, 64, 64, 8), Case(64, 16, 32, 32, 4, 2)],
    "DCGAN": [Case(64, 128, 128, 8, 4, 2, True), Case(64, 128, 64, 16, 4, 2, True), Case(64, 16, 32, 16, 3, 2)],
    # Few channels, partly filled panels, small and large images. The first two are left to the library.
    "limits": [
        Case(32, 8, 16, 32),
        Case(16, 17, 32, 32),
        Case(16, 24, 24, 32),
        Case(32, 16, 8, 32),
        Case(64, 16, 8, 32, 4, 2),
        Case(16, 16, 16, 4),
        Case(4, 32, 32, 128),
        Case(2, 64, 64, 256),
    ],
}


def run(model: str, case: Case, dtype: torch.dtype) -> dict:
    """Times one case. Returns the report's row. Raises AssertionError if kernel and library differ."""
    torch.manual_seed(0)
    channels_last = partial(torch.Tensor.to, dtype=dtype, memory_format=torch.channels_last)
    x = channels_last(torch.randn(case.n, case.i, case.side, case.side))
    shape = (case.i, case.o) if case.transposed else (case.o, case.i)
    weight = channels_last(torch.randn(*shape, case.kernel, case.kernel))
    function = F.conv_transpose2d if case.transposed else F.conv2d
    forward = partial(function, x, weight, stride=case.stride, padding=case.padding)
    dy = torch.randn_like(forward())
    contestants = {
        "fastgan": partial(weight_gradient, dy, x, weight, case.stride, (case.padding,) * 2, case.transposed),
        "library": partial(_by_library, dy, x, weight, case),
        "forward": forward,
    }
    ours, theirs = (contestants[name]() for name in ("fastgan", "library"))
    rounding = {torch.float32: 0.0, torch.bfloat16: 2.0**-7}[dtype]  # rounding of the results
    torch.testing.assert_close(ours, theirs, rtol=rounding, atol=1e-4 * theirs.abs().max().item())
    clock = measure.WallClock(torch.device("cpu"))
    timings = measure.alternate(contestants, clock, SECONDS)
    positions = (x if case.transposed else dy).shape
    operations = 2 * positions[0] * positions[2] * positions[3] * weight.numel()
    return {
        "operation": report.WEIGHT_GRADIENT,
        "form": case.form,
        "arch": model,
        "shape": case.shape,
        "dtype": {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype],
        **{f"{name}_ms": timing.seconds * 1e3 for name, timing in timings.items()},
        "vs_library": timings["fastgan"].times_faster_than(timings["library"]),
        "gflop_per_s": operations / timings["fastgan"].seconds / 1e9,
        "share_of_product": operations / timings["fastgan"].seconds / measure.matrix_rate(dtype),
        "rounds": len(timings["fastgan"].rounds),
        "isa": extension.module().cpu_isa(),
        "notes": "",
        **measure.machine(),
    }


def _by_library(dy: Tensor, x: Tensor, weight: Tensor, case: Case) -> Tensor:
    stride, padding, one = ([number] * 2 for number in (case.stride, case.padding, 1))
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, one, case.transposed, [0, 0], 1, [False, True, False]
    )[1]


def cases() -> dict[str, Callable[[], list[dict]]]:
    """The cases for this machine, by name; each measures, and returns its row."""
    dtypes = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if measure.has_bf16() else {})
    return {
        f"{model} {case.form} {case.shape} {name}": partial(_rows, model, case, dtype)
        for name, dtype in dtypes.items()
        for model, group in CASES.items()
        for case in group
    }


def _rows(model: str, case: Case, dtype: torch.dtype) -> list[dict]:
    return [run(model, case, dtype)]
