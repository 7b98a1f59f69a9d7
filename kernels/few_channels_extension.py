"""Launchers of few_channels in the compiled extension: C++ kernels, for CPU tensors.

The signatures are those of `fastgan_kernels.signatures.FewChannels`.
"""

from types import ModuleType

import torch

from fastgan_kernels.extension import DTYPES

_GATHER, _SCATTER, _OUTER = range(3)  # as in csrc/few_channels/call.h


class Launchers:
    """The launchers of one extension module."""

    def __init__(self, extension: ModuleType):
        self._extension = extension

    def _run(self, map_, wide, thin, weight, kernel, turned, steps):
        sizes = map_, DTYPES[wide.dtype], wide.shape, thin.shape[1:], kernel, turned, steps
        # Not cached: how much it is hangs on the number of threads.
        workspace = torch.empty(self._extension.few_channels_workspace(*sizes), dtype=torch.uint8)
        self._extension.few_channels(
            *sizes, workspace.data_ptr(), wide.data_ptr(), thin.data_ptr(), weight.data_ptr()
        )  # fmt: skip

    def gather(self, wide, thin, weight, kernel, turned, steps):
        self._run(_GATHER, wide, thin, weight, kernel, turned, steps)

    def scatter(self, thin, wide, weight, kernel, turned, steps):
        self._run(_SCATTER, wide, thin, weight, kernel, turned, steps)

    def outer(self, weight, wide, thin, kernel, turned, steps):
        self._run(_OUTER, wide, thin, weight, kernel, turned, steps)
