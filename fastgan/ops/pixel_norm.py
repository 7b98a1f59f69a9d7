"""pixel_norm: scales the channels of each position to a mean square of 1.

    y = x * rsqrt(mean over channels of x^2 + eps)

Karras et al. 2018, "Progressive Growing of GANs", section 4.2. StyleGAN applies it to its latents z [N, C].
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.arguments import check_activation
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import dense, dense_like, require_view
from fastgan.ops.recordable import recordable
from fastgan_kernels.calls import PixelNormCall


class Options(NamedTuple):
    """The non-differentiable arguments."""

    eps: float


@recordable
def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """`x * rsqrt(mean over channels of x^2 + eps)`, fused; twice differentiable, by kernels.

    Args:
        x: [N, C, ...], any number of further dimensions; fp32, bf16, fp16 or fp64.
        eps: added to the mean square; a position of zeros stays zero.

    Returns:
        A tensor of the shape, dtype and memory format of `x`. Arithmetic is fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shape, dtype or eps does not fit.
        BackendUnavailable: none of the requested backends can serve.
    """
    check_activation("pixel_norm", x)
    if not 0 <= eps < math.inf:  # not math.isfinite: torch.compile cannot trace it for a number that changes
        raise ValueError(f"pixel_norm: eps is {eps}, must be finite and not below zero")
    return PixelNorm.apply(backends.choose("pixel_norm", x.device), (dense(x),), Options(float(eps)))


def _inverse_root(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(1, keepdim=True) + eps)


@register
class PixelNorm(FusedOperation):
    """Saved for backward: x."""

    name = "pixel_norm"
    inputs = ("x",)
    Options = Options

    @staticmethod
    def reference(inputs, options):
        x = to_arithmetic(inputs[0])
        return (x * _inverse_root(x, options.eps)).to(inputs[0].dtype)

    @staticmethod
    def allocate_output(inputs, options):
        return torch.empty_like(inputs[0])

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        x = inputs[0]
        launchers.run(PixelNormCall(*require_view(x), x.dtype, 0, *options, x, output))

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        return inputs

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        x, dy = to_arithmetic(saved[0]), to_arithmetic(grad)
        r = _inverse_root(x, options.eps)
        normalized = x * r
        return ((r * (dy - normalized * (dy * normalized).mean(1, keepdim=True))).to(grad.dtype),)

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        return (torch.empty_like(saved[0]),)

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        (x,), (dx,) = saved, grads
        launchers.run(PixelNormCall(*require_view(x), x.dtype, 1, *options, x, dx, None, dense_like(grad, x)))

    @staticmethod
    def double_backward(launchers, grad, saved, grad_grads, options, needs_grad):
        (x,), (gx,) = saved, grad_grads
        if gx is None:
            return None
        ddy, dx = torch.empty_like(x), torch.empty_like(x)
        dy, gx = dense_like(grad, x), dense_like(gx, x)
        launchers.run(PixelNormCall(*require_view(x), x.dtype, 2, *options, x, ddy, dx, dy, gx))
        return ddy, dx
