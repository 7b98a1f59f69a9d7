"""Launchers of lerp_samples in the compiled extension: the C++ kernels for CPU tensors, the CUDA kernels for others.

The signatures are those of `fastgan_kernels.signatures.LerpSamples`.
"""

from types import ModuleType

from fastgan_kernels.extension import DTYPES, address, place


class Launchers:
    """The launchers of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated

    def _where(self, x):
        return *place(x, self._emulated), x.shape[0], x.numel() // x.shape[0], DTYPES[x.dtype]

    def forward(self, y, a, b, t):
        if y.numel():
            self._extension.lerp_samples_forward(
                *self._where(a), y.data_ptr(), a.data_ptr(), b.data_ptr(), t.data_ptr()
            )

    def backward(self, da, db, dy, t):
        if da.numel():
            self._extension.lerp_samples_backward(
                *self._where(dy), da.data_ptr(), address(db), dy.data_ptr(), t.data_ptr()
            )
