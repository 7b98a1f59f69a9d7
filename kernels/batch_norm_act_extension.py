"""Launchers of batch_norm_act in the compiled extension: the C++ kernels for CPU tensors, the CUDA kernels for others.

The signatures are those of `fastgan_kernels.signatures.BatchNormAct`.
"""

from types import ModuleType

from torch import Tensor

from fastgan_kernels.extension import DTYPES, Workspace, address, place, zero
from fastgan_kernels.signatures import View


class Launchers:
    """The launchers of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated
        self._workspace = Workspace(extension.batch_norm_act_workspace)

    def _call(self, view: View, x: Tensor) -> tuple:
        """What the bound functions have in common: place, sizes, and a workspace."""
        device, stream = place(x, self._emulated)
        dtype = DTYPES[x.dtype]
        workspace = self._workspace(x, device, *view, dtype)
        return device, stream, *view, dtype, workspace

    def forward(self, view, y, statistics, x, weight, bias, slope, gain, eps):
        if y.numel() == 0:
            return
        *call, workspace = self._call(view, x)
        self._extension.batch_norm_act_forward(
            *call, address(workspace), slope, gain, eps, y.data_ptr(), statistics.data_ptr(), x.data_ptr(),
            address(weight), address(bias),
        )  # fmt: skip

    def backward(self, view, dx, dweight, dbias, dy, x, statistics, weight, bias, slope, gain):
        if x.numel() == 0:
            return zero(dweight, dbias)
        *call, workspace = self._call(view, x)
        self._extension.batch_norm_act_backward(
            *call, address(workspace), slope, gain, address(dx), address(dweight), address(dbias), dy.data_ptr(),
            x.data_ptr(), statistics.data_ptr(), address(weight), address(bias),
        )  # fmt: skip
