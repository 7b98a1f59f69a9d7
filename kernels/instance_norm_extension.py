"""Launchers of instance_norm in the compiled extension: the C++ kernels for CPU tensors, the CUDA kernels for others.

The signatures are those of `fastgan_kernels.signatures.InstanceNorm`.
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
        self._workspace = Workspace(extension.instance_norm_workspace)

    def _call(self, view: View, x: Tensor) -> tuple:
        """What the bound functions have in common: place, sizes, and a workspace."""
        device, stream = place(x, self._emulated)
        dtype = DTYPES[x.dtype]
        workspace = self._workspace(x, device, *view, dtype)
        return device, stream, *view, dtype, workspace

    def forward(self, view, y, statistics, x, noise, strength, bias, style_scale, style_bias, slope, gain, eps):
        if y.numel() == 0:
            return
        *call, workspace = self._call(view, x)
        self._extension.instance_norm_forward(
            *call, address(workspace), slope, gain, eps, y.data_ptr(), statistics.data_ptr(), x.data_ptr(),
            *_before(noise, strength, bias), address(style_scale), address(style_bias),
        )  # fmt: skip

    def backward(
        self, view, dx, dstrength, dbias, dstyle_scale, dstyle_bias, dy, x, statistics,
        noise, strength, bias, style_scale, slope, gain, eps,
    ):  # fmt: skip
        if x.numel() == 0:
            return zero(dstrength, dbias, dstyle_scale, dstyle_bias)
        *call, workspace = self._call(view, x)
        self._extension.instance_norm_backward(
            *call, address(workspace), slope, gain, eps, address(dx), address(dstrength), address(dbias),
            address(dstyle_scale), address(dstyle_bias), dy.data_ptr(), x.data_ptr(), statistics.data_ptr(),
            *_before(noise, strength, bias), address(style_scale),
        )  # fmt: skip


def _before(noise, strength, bias) -> tuple:
    return (
        address(noise),
        noise is not None and noise.shape[0] > 1,
        address(strength),
        strength is not None and strength.dim() > 0,
        address(bias),
    )
