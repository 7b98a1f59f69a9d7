"""Launchers of noise_bias_act in the compiled extension: the C++ kernels for CPU tensors, the CUDA kernels for others.

The signatures are those of `fastgan_kernels.signatures.NoiseBiasAct`.
"""

from types import ModuleType

from torch import Tensor

from fastgan_kernels.extension import DTYPES, Workspace, address, place, zero
from fastgan_kernels.signatures import View

_ACTS = {"lrelu": 0, "tanh": 1, "sigmoid": 2, "silu": 3, "softplus": 4}


class Launchers:
    """The launchers of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated
        self._workspace = Workspace(extension.noise_bias_act_workspace)

    def _call(self, view: View, x: Tensor, act: str, slope: float, gain: float, clamp: float) -> tuple:
        """What the bound functions have in common: place, sizes, options and a workspace."""
        device, stream = place(x, self._emulated)
        dtype = DTYPES[x.dtype]
        workspace = self._workspace(x, device, *view, dtype)
        return device, stream, *view, dtype, _ACTS[act], slope, gain, clamp, workspace

    def forward(self, view, y, x, noise, strength, bias, scale, post, act, slope, gain, clamp):
        if y.numel() == 0:
            return
        *call, workspace = self._call(view, x, act, slope, gain, clamp)
        self._extension.noise_bias_act_forward(
            *call, address(workspace), y.data_ptr(), x.data_ptr(), *small_tensors(noise, strength, bias, scale, post)
        )

    def backward(
        self, view, dx, dstrength, dbias, dscale, dpost, dy, reference, from_output,
        noise, strength, bias, scale, post, act, slope, gain, clamp,
    ):  # fmt: skip
        if dx.numel() == 0:
            return zero(dstrength, dbias, dscale, dpost)
        *call, workspace = self._call(view, dx, act, slope, gain, clamp)
        self._extension.noise_bias_act_backward(
            *call, address(workspace), dx.data_ptr(), address(dstrength), address(dbias), address(dscale),
            address(dpost), dy.data_ptr(), reference.data_ptr(), from_output,
            *small_tensors(noise, strength, bias, scale, post),
        )  # fmt: skip

    def double_backward(
        self, view, ddy, dx, dstrength, dbias, dscale, dpost, dy, reference, from_output,
        noise, strength, bias, scale, post, gx, gstrength, gbias, gscale, gpost, act, slope, gain, clamp,
    ):  # fmt: skip
        if ddy.numel() == 0:
            return zero(dstrength, dbias, dscale, dpost)
        *call, workspace = self._call(view, ddy, act, slope, gain, clamp)
        self._extension.noise_bias_act_double_backward(
            *call, address(workspace), ddy.data_ptr(), address(dx), address(dstrength), address(dbias),
            address(dscale), address(dpost), dy.data_ptr(), reference.data_ptr(), from_output,
            *small_tensors(noise, strength, bias, scale, post),
            address(gx), address(gstrength), address(gbias), address(gscale), address(gpost),
        )  # fmt: skip


def small_tensors(noise, strength, bias, scale, post) -> tuple:
    """The small tensors as the bound functions take them."""
    return (
        address(noise),
        noise is not None and noise.shape[0] > 1,
        address(strength),
        strength is not None and strength.dim() > 0,
        address(bias),
        address(scale),
        address(post),
    )
