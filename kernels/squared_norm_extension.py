"""Launchers of squared_norm in the compiled extension: the C++ kernels for CPU tensors, the CUDA kernels for others.

The signatures are those of `fastgan_kernels.signatures.SquaredNorm`.
"""

from functools import lru_cache
from types import ModuleType

import torch

from fastgan_kernels.extension import DTYPES, place


class Launchers:
    """The launchers of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated
        self._workspace_bytes = lru_cache(maxsize=4096)(extension.squared_norm_workspace)

    def forward(self, sums, x):
        if not x.numel():
            return sums.zero_()
        device, stream = place(x, self._emulated)
        sizes = x.shape[0], x.numel() // x.shape[0], DTYPES[x.dtype]
        workspace = torch.empty(self._workspace_bytes(device, *sizes), dtype=torch.uint8, device=x.device)
        # The tensor dies when the call returns; the allocator keeps its memory for this stream until then.
        self._extension.squared_norm_forward(
            device, stream, *sizes, workspace.data_ptr(), sums.data_ptr(), x.data_ptr()
        )

    def backward(self, dx, grad, x):
        if dx.numel():
            sizes = x.shape[0], x.numel() // x.shape[0], DTYPES[x.dtype]
            self._extension.squared_norm_backward(
                *place(x, self._emulated), *sizes, dx.data_ptr(), grad.data_ptr(), x.data_ptr()
            )
