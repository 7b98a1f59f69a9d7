"""lerp_samples: random points between real and fake images, where WGAN-GP penalises the discriminator's gradient.

    y[n] = a[n] + t[n] * (b[n] - a[n])

Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", section 4.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.arguments import check_activation
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import dense, dense_like, sizes_of
from fastgan.ops.recordable import recordable
from fastgan_kernels.calls import SamplesCall


class Options(NamedTuple):
    """No options."""


@recordable
def lerp_samples(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """`a + t[n] * (b - a)`, with a weight for each sample, fused; twice differentiable in every tensor.

    Args:
        a: [N, C, ...]; fp32, bf16, fp16 or fp64.
        b: shape and dtype of `a`; copied if its memory format differs.
        t: [N]; converted to the precision of arithmetic, fp32 (fp64 for fp64 input).

    Returns:
        A tensor of the shape, dtype and memory format of `a`.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
        BackendUnavailable: none of the requested backends can serve.

    If `t` requires a gradient, the reference runs, on any backend.
    """
    check_activation("lerp_samples", a, "a")
    if b.shape != a.shape:
        raise ValueError(f"lerp_samples: b has shape {list(b.shape)}, must be {list(a.shape)}, that of a")
    if b.dtype != a.dtype:
        raise ValueError(f"lerp_samples: b has dtype {b.dtype}, must be {a.dtype}, that of a")
    if t.shape != a.shape[:1]:
        raise ValueError(f"lerp_samples: t has shape {list(t.shape)}, must be {[a.shape[0]]} for a {list(a.shape)}")
    if not t.is_floating_point():
        raise ValueError(f"lerp_samples: t has dtype {t.dtype}, must be floating-point")
    for name, tensor in (("b", b), ("t", t)):
        if tensor.device != a.device:
            raise ValueError(f"lerp_samples: {name} is on {tensor.device}, a on {a.device}")
    backend = "torch" if t.requires_grad else backends.choose("lerp_samples", a.device)
    a = dense(a)
    inputs = a, dense_like(b, a), t.to(arithmetic_dtype(a.dtype)).contiguous()
    return LerpSamples.apply(backend, inputs, Options())


def _column(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (like.dim() - 1))


@register
class LerpSamples(FusedOperation):
    """Saved for backward: t."""

    name = "lerp_samples"
    inputs = ("a", "b", "t")
    Options = Options

    @staticmethod
    def reference(inputs, options):
        a, b, t = inputs
        start = to_arithmetic(a)
        return (start + _column(t, a) * (to_arithmetic(b) - start)).to(a.dtype)

    @staticmethod
    def allocate_output(inputs, options):
        return torch.empty_like(inputs[0])

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        a, b, t = inputs
        launchers.forward(SamplesCall(*sizes_of(a), a, b, t, output))

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        return None, None, inputs[2]

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        db = _column(saved[2], grad) * to_arithmetic(grad)
        return (to_arithmetic(grad) - db).to(grad.dtype), db.to(grad.dtype) if needs_grad[1] else None, None

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        like = dense(grad)
        return torch.empty_like(like), torch.empty_like(like) if needs_grad[1] else None, None

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        dy = dense(grad)
        launchers.backward(SamplesCall(*sizes_of(dy), dy, None, saved[2], *grads[:2]))
