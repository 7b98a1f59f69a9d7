"""Launcher of upfirdn2d in the compiled extension: the C++ kernel for CPU tensors, the CUDA kernel for others.

The signature is that of `fastgan_kernels.signatures.Upfirdn2d`.
"""

from types import ModuleType

from fastgan_kernels.extension import DTYPES, place


class Launchers:
    """The launcher of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated

    def forward(
        self, y, x, taps, up_x, up_y, down_x, down_y, left, right, top, bottom, gain, flip, channels_last
    ):  # fmt: skip
        if y.numel() == 0:
            return
        self._extension.upfirdn2d_forward(
            *place(x, self._emulated), *x.shape, *y.shape[2:], channels_last, DTYPES[x.dtype],
            up_x, up_y, down_x, down_y, left, top, taps.shape[0], taps.shape[-1], taps.dim() == 1, gain, flip,
            taps.data_ptr(), x.data_ptr(), y.data_ptr(),
        )  # fmt: skip
