"""Launchers of minibatch_stddev in the compiled extension: C++ kernels for CPU tensors, CUDA kernels for others.

The signatures are those of `fastgan_kernels.signatures.MinibatchStddev`.
"""

from types import ModuleType

from fastgan_kernels.extension import DTYPES, Workspace, address, place


class Launchers:
    """The launchers of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated
        self._workspace = Workspace(extension.minibatch_stddev_workspace)

    def _run(self, order, view, size, features, appended, dx, x, dy, gx):
        if not x.numel():
            return
        device, stream = place(x, self._emulated)
        sizes = *view, DTYPES[x.dtype], size, features
        workspace = self._workspace(x, device, *sizes)
        self._extension.minibatch_stddev(
            device, stream, *sizes, order, address(workspace),
            address(appended), address(dx), x.data_ptr(), address(dy), address(gx),
        )  # fmt: skip

    def forward(self, view, y, x, size, features):
        self._run(0, view, size, features, y, None, x, None, None)

    def backward(self, view, dx, dy, x, size, features):
        self._run(1, view, size, features, None, dx, x, dy, None)

    def double_backward(self, view, ddy, dx, dy, x, gx, size, features):
        self._run(2, view, size, features, ddy, dx, x, dy, gx)
