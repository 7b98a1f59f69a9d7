"""Launchers of filtered_noise_bias_act in the compiled extension: CUDA kernels only.

The signatures are those of `fastgan_kernels.signatures.FilteredNoiseBiasAct`.
"""

from functools import lru_cache
from types import ModuleType

from fastgan_kernels.extension import DTYPES, place
from fastgan_kernels.noise_bias_act_extension import Launchers as NoiseBiasActLaunchers
from fastgan_kernels.noise_bias_act_extension import small_tensors
from fastgan_kernels.upfirdn2d_extension import Launchers as Upfirdn2dLaunchers


class Launchers:
    """The launchers of one extension module. With `emulated`, its CUDA kernels take CPU tensors (for tests)."""

    def __init__(self, extension: ModuleType, emulated: bool = False):
        self._extension = extension
        self._emulated = emulated
        self._pieces = lru_cache(maxsize=None)(extension.filtered_noise_bias_act_pieces)
        self.noise_bias_act = NoiseBiasActLaunchers(extension, emulated)
        self.upfirdn2d = Upfirdn2dLaunchers(extension, emulated)

    def forward(
        self, y, x, taps, noise, strength, bias, scale, post, left, top, fir_gain, slope, gain, clamp
    ):  # fmt: skip
        self._extension.filtered_noise_bias_act_forward(
            *place(x, self._emulated), (*x.shape, *y.shape[2:], left, top), DTYPES[x.dtype], fir_gain, slope, gain,
            clamp, taps.data_ptr(), x.data_ptr(), y.data_ptr(), *small_tensors(noise, strength, bias, scale, post),
        )  # fmt: skip

    def backward(
        self, du, dstrength, dbias, dscale, dpost, dy, x, taps, noise, strength, bias, scale, post,
        left, top, fir_gain, slope, gain, clamp,
    ):  # fmt: skip
        sizes, dtype = (*x.shape, *dy.shape[2:], left, top), DTYPES[x.dtype]
        n, c = x.shape[:2]
        sums = taps.new_empty(n, self._pieces(sizes, dtype), 4, c)
        self._extension.filtered_noise_bias_act_backward(
            *place(x, self._emulated), sizes, dtype, fir_gain, slope, gain, clamp,
            taps.data_ptr(), x.data_ptr(), dy.data_ptr(), du.data_ptr(), sums.data_ptr(),
            *small_tensors(noise, strength, bias, scale, post),
        )  # fmt: skip
        of_bias, of_strength, of_scale, of_post = sums.unbind(2)  # [N, pieces, C]
        for total, parts, dims in (
            (dbias, of_bias, (0, 1)),
            (dstrength, of_strength, (0, 1) if dstrength is not None and dstrength.dim() else (0, 1, 2)),
            (dscale, of_scale, (1,)),
            (dpost, of_post, (1,)),
        ):
            if total is not None:
                total.copy_(parts.sum(dims))
