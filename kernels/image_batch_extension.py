"""Launchers of image_batch in the compiled extension: the C++ kernels for CPU tensors, the CUDA kernels for others.

The signature is that of `fastgan_kernels.signatures.ImageBatch`.
"""

from types import ModuleType

from fastgan_kernels.extension import DTYPES, address, place


class Launchers:
    """The launchers of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated

    def forward(self, y, pixels, index, mirrored):
        if y.numel():
            n, c, h, w = y.shape
            tensors = y.data_ptr(), pixels.data_ptr(), address(index), address(mirrored)
            self._extension.image_batch(
                *place(y, self._emulated), pixels.shape[0], n, h, w, c, DTYPES[y.dtype], *tensors
            )
