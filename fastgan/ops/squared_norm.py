"""squared_norm: the sum of squares of each sample, in one pass, for gradient penalties."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.arguments import check_activation
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import dense, dense_like, sizes_of
from fastgan_kernels.calls import SamplesCall


class Options(NamedTuple):
    """No options."""


def squared_norm(x: Tensor) -> Tensor:
    """The sum of squares of each sample, fused; twice differentiable.

    Args:
        x: [N, C, ...]; fp32, bf16, fp16 or fp64.

    Returns:
        [N] in the precision of the sums, fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shape or dtype does not fit.
        BackendUnavailable: none of the requested backends can serve.
    """
    check_activation("squared_norm", x)
    return SquaredNorm.apply(backends.choose("squared_norm", x.device), (dense(x),), Options())


@register
class SquaredNorm(FusedOperation):
    """Saved for backward: x."""

    name = "squared_norm"
    inputs = ("x",)
    Options = Options

    @staticmethod
    def reference(inputs, options):
        return to_arithmetic(inputs[0]).square().flatten(1).sum(1)

    @staticmethod
    def allocate_output(inputs, options):
        x = inputs[0]
        return torch.empty(x.shape[0], dtype=arithmetic_dtype(x.dtype), device=x.device)

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        (x,) = inputs
        if x.numel():
            launchers.forward(SamplesCall(*sizes_of(x), x, sums=output))
        else:
            output.zero_()

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        return inputs

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        (x,) = saved
        return ((2 * grad.reshape(-1, *[1] * (x.dim() - 1)) * to_arithmetic(x)).to(x.dtype),)

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        return (torch.empty_like(dense(saved[0])),)

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        (dx,), (x,) = grads, saved
        x, grad = dense_like(x, dx), grad.contiguous()  # the gradient of a mean is expanded
        if x.numel():
            launchers.backward(SamplesCall(*sizes_of(x), x, weight=grad, first=dx))
