"""Launchers of pixel_norm in the compiled extension: the C++ kernels for CPU tensors, the CUDA kernels for others.

The signatures are those of `fastgan_kernels.signatures.PixelNorm`.
"""

from types import ModuleType

from fastgan_kernels.extension import DTYPES, address, place


class Launchers:
    """The launchers of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated

    def _run(self, order, view, eps, first, second, x, dy, gx):
        if first.numel():
            self._extension.pixel_norm(
                *place(x, self._emulated), *view, DTYPES[x.dtype], order, eps,
                first.data_ptr(), address(second), x.data_ptr(), address(dy), address(gx),
            )  # fmt: skip

    def forward(self, view, y, x, eps):
        self._run(0, view, eps, y, None, x, None, None)

    def backward(self, view, dx, dy, x, eps):
        self._run(1, view, eps, dx, None, x, dy, None)

    def double_backward(self, view, ddy, dx, dy, x, gx, eps):
        self._run(2, view, eps, ddy, dx, x, dy, gx)
