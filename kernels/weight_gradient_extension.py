"""Launcher of weight_gradient in the compiled extension: a C++ kernel, for CPU tensors.

The signature is that of `fastgan_kernels.signatures.WeightGradient`.
"""

from types import ModuleType

import torch

from fastgan_kernels.extension import DTYPES


class Launchers:
    """The launchers of one extension module."""

    def __init__(self, extension: ModuleType):
        self._extension = extension

    def forward(self, dw, small, large, stride, top, left):
        n, a, height, width = small.shape
        sizes = DTYPES[dw.dtype], n, a, height, width, *large.shape[1:], *dw.shape[2:], stride, top, left
        # Not cached: how much it is hangs on the number of threads.
        workspace = torch.empty(self._extension.weight_gradient_workspace(*sizes), dtype=torch.uint8)
        self._extension.weight_gradient(*sizes, workspace.data_ptr(), dw.data_ptr(), small.data_ptr(), large.data_ptr())
