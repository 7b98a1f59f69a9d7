"""minibatch_stddev: feature maps that show the discriminator how much the samples of a batch differ.

Karras et al. 2018, "Progressive Growing of GANs", section 3; over groups of samples, as in its published code.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.arguments import check_activation
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import dense, empty_nhwc, require_view, view_of
from fastgan.ops.recordable import recordable
from fastgan_kernels.calls import MinibatchStddevCall

_EPS = 1e-8  # csrc/minibatch_stddev/, kernels/triton/minibatch_stddev.py


class Options(NamedTuple):
    """The non-differentiable arguments."""

    size: int  # samples of a group
    features: int  # maps to append


@recordable
def minibatch_stddev(x: Tensor, group_size: int | None = 4, features: int = 1) -> Tensor:
    """Appends the standard deviation over groups of samples as constant maps, fused; twice differentiable.

    The channels are split among the `features` maps. A map holds one number for all positions and samples of a group:
    the standard deviation over the group's samples, averaged over the map's channels and all positions. Samples whose
    indices are equal modulo N / group_size form a group.

    Args:
        x: [N, C, ...]; fp32, bf16, fp16 or fp64.
        group_size: samples of a group; divides N. If N is smaller, or for None, all samples form one group.
        features: number of maps to append; divides C.

    Returns:
        [N, C + features, ...] in the dtype and memory format of `x`. Arithmetic is fp32 (fp64 for fp64 input).

    Raises:
        ValueError: a shape, dtype or option does not fit.
        BackendUnavailable: none of the requested backends can serve.
    """
    check_activation("minibatch_stddev", x)
    n, c = x.shape[:2]
    group_size = max(n, 1) if group_size is None else group_size
    if group_size < 1 or features < 1:
        raise ValueError(
            f"minibatch_stddev: group_size is {group_size} and features {features}, both must be at least 1"
        )
    if c == 0 or c % features:
        raise ValueError(f"minibatch_stddev: {c} channels of x cannot be split among {features} features")
    size = min(group_size, n) or 1
    if n % size:
        raise ValueError(f"minibatch_stddev: a batch of {n} is not a multiple of group_size {size}")
    backend = backends.choose("minibatch_stddev", x.device)
    return MinibatchStddev.apply(backend, (dense(x),), Options(size, features))


def _groups(x: Tensor, options: Options) -> Tensor:
    """[N, C, ...] to [members, groups, features, all that is averaged over], in the precision of arithmetic."""
    size, features = options
    n, c = x.shape[:2]
    return to_arithmetic(x).reshape(size, n // size, features, x.shape[2:].numel() * (c // features))


def _centred(x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The deviations of the members from their mean, and the standard deviation."""
    members = _groups(x, options)
    v = members - members.mean(0)
    return v, (v.square().mean(0) + _EPS).sqrt()


def _shared_fields(order: int, x: Tensor, options: Options) -> tuple:
    """The fields of a call, up to `x`, that all passes have."""
    n, c, p, channels_last = require_view(x)
    size, features = options
    share = 1 / (c // features * p * size)
    return n, c, p, channels_last, x.dtype, order, size, n // size, features, share, x


def _as_output(x: Tensor, channels_last: bool) -> Tensor:
    """`x`, or a copy of it in that layout."""
    view = view_of(x)
    if view is not None and view.channels_last == channels_last:
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


@register
class MinibatchStddev(FusedOperation):
    """Saved for backward: x."""

    name = "minibatch_stddev"
    inputs = ("x",)
    Options = Options

    @staticmethod
    def reference(inputs, options):
        (x,) = inputs
        n, _, *spatial = x.shape
        maps = _centred(x, options)[1].mean(2).to(x.dtype).repeat(options.size, 1)  # [N, F]
        maps = maps.reshape(n, *[1] * len(spatial), options.features).expand(n, *spatial, options.features)
        view = view_of(x)
        if view is not None and view.channels_last:
            return torch.cat([x.movedim(1, -1), maps], -1).movedim(-1, 1)
        return torch.cat([x, maps.movedim(-1, 1)], 1)

    @staticmethod
    def allocate_output(inputs, options):
        (x,) = inputs
        n, c, *spatial = x.shape
        shape = n, c + options.features, *spatial
        return empty_nhwc(x, shape) if require_view(x).channels_last else x.new_empty(shape)

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        launchers.run(MinibatchStddevCall(*_shared_fields(0, inputs[0], options), output))

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        return inputs

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        (x,) = saved
        n, c = x.shape[:2]
        size, features = options
        v, s = _centred(x, options)
        maps = to_arithmetic(grad[:, c:]).reshape(size, n // size, features, -1).sum((0, 3))  # [N / size, F]
        through = (maps / (v.shape[3] * size))[..., None] * v / s
        return ((to_arithmetic(grad[:, :c]) + through.reshape(x.shape)).to(grad.dtype),)

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        return (torch.empty_like(saved[0]),)

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        (x,) = saved
        dy = _as_output(grad, require_view(x).channels_last)
        launchers.run(MinibatchStddevCall(*_shared_fields(1, x, options), None, *grads, dy))

    @staticmethod
    def double_backward(launchers, grad, saved, grad_grads, options, needs_grad):
        (x,), (gx,) = saved, grad_grads
        if gx is None:
            return None
        ddy, dx = MinibatchStddev.allocate_output(saved, options), torch.empty_like(x)
        channels_last = require_view(x).channels_last
        dy, gx = _as_output(grad, channels_last), _as_output(gx, channels_last)
        launchers.run(MinibatchStddevCall(*_shared_fields(2, x, options), ddy, dx, dy, gx))
        return ddy, dx
