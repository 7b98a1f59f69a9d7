"""batch_norm_act: batch normalisation and activation, in as many passes as normalisation alone.

    v = weight[c] * (x - mean[c]) / sqrt(var[c] + eps) + bias[c]
    y = gain * act(v)

In training, mean and population variance of a channel are taken over all samples and positions (Ioffe and Szegedy 2015,
"Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", algorithm 1). In
evaluation they are the running averages. Then v is x times a factor plus a term, and `noise_bias_act` computes y.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.activations import leaky_relu, leaky_relu_derivative, require_slope
from fastgan.ops.arguments import check_activation, prepare
from fastgan.ops.arithmetic import arithmetic_dtype, to_arithmetic, update_average
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.instance_norm import centred, check_eps
from fastgan.ops.layout import channels, dense, dense_like, require_view
from fastgan.ops.noise_bias_act import noise_bias_act
from fastgan.ops.recordable import recordable
from fastgan_kernels.calls import NormCall


class Options(NamedTuple):
    """The non-differentiable arguments. `slope` is that of the activation below zero."""

    slope: float
    gain: float
    eps: float
    batches: int


@recordable
def batch_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    batches: int = 1,
) -> Tensor:
    """`gain * act(batch_norm(x))`, with PyTorch's batch norm, fused; twice differentiable in x, weight and bias.

    Args:
        x: activations [N, C, ...], any number of further dimensions; fp32, bf16, fp16 or fp64.
        weight: [C], factor after normalisation. Default: 1.
        bias: [C]. Default: 0.
        running_mean, running_var: [C], both or neither. Training updates them in place, by the mean and the unbiased
            variance of `x` where these are finite. Evaluation normalises by them.
        training: whether to normalise `x` by its own statistics.
        momentum: weight of this call in the running averages, 0 to 1.
        eps: added to the variance.
        act: "linear", "relu" or "lrelu".
        slope: slope of "lrelu" below zero.
        gain: factor after the activation.
        batches: number of batches of the same size that `x` concatenates. Training normalises each by its own
            statistics, and updates the running averages by each in turn.

    Returns:
        A tensor of the shape, dtype and memory format of `x`. Statistics and arithmetic are fp32 (fp64 for fp64 input);
        weight and bias are converted to that precision.

    Raises:
        ValueError: a shape, dtype or option does not fit, or a batch in training has a single value per channel; the
            message names the argument.
        BackendUnavailable: none of the requested backends can serve.
    """
    name = "batch_norm_act"
    options = Options(require_slope(name, act, slope, gain), float(gain), float(eps), batches)
    check_eps(name, eps)
    check_activation(name, x)
    shape = ((x.shape[1],),)
    weight, bias = prepare(name, "weight", weight, shape, x), prepare(name, "bias", bias, shape, x)
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{name}: one of running_mean and running_var is given, must be both or neither")
    mean = prepare(name, "running_mean", running_mean, shape, x)
    var = prepare(name, "running_var", running_var, shape, x)
    if not training:
        if mean is None:
            raise ValueError(f"{name}: running_mean and running_var are not given, must be where training is False")
        return _with_statistics(x, mean, var, weight, bias, options)
    if not 0 <= momentum <= 1:
        raise ValueError(f"{name}: momentum is {momentum}, must be from 0 to 1")
    if batches < 1 or x.shape[0] % batches:
        raise ValueError(f"{name}: batches is {batches}, must divide the {x.shape[0]} samples of x")
    if x.numel() == batches * x.shape[1]:
        raise ValueError(
            f"{name}: x has shape {list(x.shape)}, must have more than one value per channel and batch in training"
        )
    y, statistics = BatchNormAct.apply(backends.choose(name, x.device), (dense(x), weight, bias), options)
    if running_mean is not None and running_var is not None and x.numel() > 0:
        with torch.no_grad():
            for batch_mean, _, batch_var in statistics:
                update_average(running_mean, batch_mean, momentum)
                update_average(running_var, batch_var, momentum)
    return y


def _with_statistics(x, mean, var, weight, bias, options):
    """The operation with given mean and variance, by `noise_bias_act`."""
    factor = torch.rsqrt(var + options.eps)
    if weight is not None:
        factor = factor * weight
    term = -mean * factor if bias is None else torch.addcmul(bias, mean, factor, value=-1)
    scale = factor.expand(x.shape[0], -1)
    return noise_bias_act(x, scale=scale, bias=term, act="lrelu", slope=options.slope, gain=options.gain)


@register
class BatchNormAct(FusedOperation[tuple[Tensor, Tensor]]):
    """The operation in training.

    Saved for backward: x, weight and bias. Statistics [batches, 3, C], which the caller gets too: mean,
    1 / sqrt(var + eps) and unbiased variance. Kernels take one batch at a time.
    """

    name = "batch_norm_act"
    inputs = ("x", "weight", "bias")
    Options = Options
    num_statistics = 1
    returns_statistics = True

    @staticmethod
    def reference(inputs, options):
        x, weight, bias = inputs
        parts = [_reference(part, weight, bias, options) for part in x.chunk(options.batches)]
        return _concatenated(*(y for y, _ in parts)), torch.stack([statistics for _, statistics in parts])

    @staticmethod
    def allocate_output(inputs, options):
        return torch.empty_like(inputs[0])

    @staticmethod
    def allocate_statistics(inputs, options):
        x = inputs[0]
        return (x.new_empty((options.batches, 3, x.shape[1]), dtype=arithmetic_dtype(x.dtype)),)

    @staticmethod
    def launch_forward(launchers, output, inputs, options, statistics):
        x, weight, bias = inputs
        batches = options.batches
        for y_part, x_part, part_stats in zip(_parts(output, batches), _parts(x, batches), statistics, strict=True):
            launchers.forward(_call(x_part, weight, bias, part_stats, options, y=y_part))

    @staticmethod
    def saved_tensors(inputs, output, options, needs_grad):
        return inputs

    @staticmethod
    def output_mask(needs_grad):
        return needs_grad

    @staticmethod
    def reference_backward(grad, saved, options, needs_grad):
        x, weight, bias, *_ = saved
        parts = zip(grad.chunk(options.batches), x.chunk(options.batches), strict=True)
        dx, *sums = zip(*(_reference_backward(*part, weight, bias, options, needs_grad) for part in parts), strict=True)
        small = (sum(each) if need else None for each, need in zip(sums, needs_grad[1:], strict=True))
        return _concatenated(*dx) if needs_grad[0] else None, *small

    @staticmethod
    def allocate_grads(grad, saved, options, needs_grad):
        x = saved[0]
        small = lambda: torch.empty(x.shape[1], dtype=arithmetic_dtype(x.dtype), device=x.device)
        return torch.empty_like(x) if needs_grad[0] else None, *(small() if need else None for need in needs_grad[1:])

    @staticmethod
    def launch_backward(launchers, grads, grad, saved, options):
        x, weight, bias, statistics = saved
        batches = options.batches
        grad = dense_like(grad, x)
        if batches == 1:
            launchers.backward(_call(x, weight, bias, statistics[0], options, None, grad, *grads))
            return
        dx, *sums = grads
        parts = [None if each is None else each.new_empty((batches, *each.shape)) for each in sums]
        sums_of_parts = [[None] * batches if each is None else each for each in parts]
        images = [[None] * batches if each is None else _parts(each, batches) for each in (dx, grad, x)]
        for dx_part, grad_part, x_part, part_stats, *small in zip(*images, statistics, *sums_of_parts, strict=True):
            launchers.backward(_call(x_part, weight, bias, part_stats, options, None, grad_part, dx_part, *small))
        for each, part in zip(sums, parts, strict=True):
            if each is not None:
                torch.sum(part, 0, out=each)


def _call(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor, options: Options,
    y: Tensor | None = None,
    dy: Tensor | None = None, dx: Tensor | None = None, dweight: Tensor | None = None, dbias: Tensor | None = None,
) -> NormCall:  # fmt: skip
    """The call for one batch: forward fills `y`, backward the gradients. In NHWC all samples count as one."""
    n, c, p, channels_last = require_view(x)
    n, p = (1, n * p) if channels_last else (n, p)
    slope, gain, eps, _ = options
    return NormCall(
        n, c, p, channels_last, x.dtype, True, slope, gain, eps, False, False, None, None, None, weight, bias,
        x, statistics, y, dy, dx, None, None, dweight, dbias,
    )  # fmt: skip


def _parts(x: Tensor, batches: int) -> Sequence[Tensor]:
    """Splits a dense tensor into its batches, which are dense too."""
    return (x,) if batches == 1 else x.chunk(batches)


def _concatenated(*parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, options: Options) -> tuple[Tensor, Tensor]:
    """The output and the statistics [3, C] of one batch."""
    converted = to_arithmetic(x)
    mean = _mean(converted)
    difference = converted - mean
    var = _mean(difference.square())
    inverse = torch.rsqrt(var + options.eps)
    y = leaky_relu(_affine(difference * inverse, weight, bias), options).to(x.dtype)
    count = x.numel() // max(x.shape[1], 1)
    unbiased = var * (count / max(count - 1, 1))
    return y, torch.stack([t.detach().flatten() for t in (mean, inverse, unbiased)])


def _reference_backward(grad, x, weight, bias, options, needs_grad) -> tuple[Tensor | None, ...]:
    """The needed gradients of x, weight and bias for one batch."""
    difference = centred(to_arithmetic(x), _mean)
    inverse = torch.rsqrt(_mean(difference.square()) + options.eps)
    normal = difference * inverse
    dv = to_arithmetic(grad) * leaky_relu_derivative(_affine(normal, weight, bias), options)
    dx = None
    if needs_grad[0]:
        g = dv if weight is None else dv * channels(weight, dv)
        dx = (inverse * (g - _mean(g) - normal * _mean(g * normal))).to(grad.dtype)
    return (
        dx,
        (dv * normal).sum(_reduced_dims(dv)) if needs_grad[1] else None,
        dv.sum(_reduced_dims(dv)) if needs_grad[2] else None,
    )


def _reduced_dims(t: Tensor) -> tuple[int, ...]:
    """All dimensions but the channels."""
    return (0, *range(2, t.dim()))


def _mean(t: Tensor) -> Tensor:
    """The mean over samples and positions, [N, C, ...] to [1, C, 1, ...]."""
    return t.mean(_reduced_dims(t), keepdim=True)


def _affine(normal: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        normal = normal * channels(weight, normal)
    return normal if bias is None else normal + channels(bias, normal)
