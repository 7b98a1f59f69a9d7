"""Launchers of squared_norm in the compiled extension: the C++ kernels for CPU tensors, the CUDA kernels for others.

The signatures are those of `fastgan_kernels.signatures.SquaredNorm`.
"""

from types import ModuleType

from fastgan_kernels.extension import DTYPES, Workspace, address, place


class Launchers:
    """The launchers of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated
        self._workspace = Workspace(extension.squared_norm_workspace)

    def forward(self, sums, x):
        if not x.numel():
            return sums.zero_()
        device, stream = place(x, self._emulated)
        sizes = x.shape[0], x.numel() // x.shape[0], DTYPES[x.dtype]
        workspace = self._workspace(x, device, *sizes)
        self._extension.squared_norm_forward(device, stream, *sizes, address(workspace), sums.data_ptr(), x.data_ptr())

    def backward(self, dx, grad, x):
        if dx.numel():
            sizes = x.shape[0], x.numel() // x.shape[0], DTYPES[x.dtype]
            self._extension.squared_norm_backward(
                *place(x, self._emulated), *sizes, dx.data_ptr(), grad.data_ptr(), x.data_ptr()
            )
