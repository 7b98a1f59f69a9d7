"""Weights of many layers at once: converted, scaled, stacked; and energies, which are computed from weights alone.

A GPU computes a layer's share of this in less time than it takes to launch the kernels, so all layers share a few
multi-tensor ("foreach") kernels. Every function is differentiable any number of times.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.constants import constant
from fastgan.ops.transforms import must_use_reference

SENT_AT_ONCE = 25 << 20  # bytes of gradients

Strides = Sequence[tuple[int, ...]]


def computed_together(tensors: Sequence[Tensor]) -> bool:
    """Whether layers should share kernels for these weights: on a GPU, outside of torch.compile and torch.func.

    On a CPU a launch costs little, and padding is work. A GPU's backend that is forced on a CPU counts as a GPU.
    """
    if torch.compiler.is_compiling() or must_use_reference(tensors):
        return False
    device = tensors[0].device
    return device.type == "cuda" or backends.choose("noise_bias_act", device) not in backends.PREFERENCE["cpu"]


def finished_together(weights: Sequence[Tensor]) -> list[slice]:
    """Groups of weights that should share kernels, in their order: all of them in a single process.

    The gradients of a group are finished together. Several processes send each other gradients while backward runs, so
    a group is as large there as what they send at once.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [slice(None)]
    totals = np.cumsum([weight.nbytes for weight in weights]) // SENT_AT_ONCE
    starts = [0, *(np.flatnonzero(np.diff(totals)) + 1), len(weights)]
    return [slice(*pair) for pair in pairwise(map(int, starts))]


# Conversion -----------------------------------------------------------------------------------------------------------


def converted(tensors: Sequence[Tensor], factors: Sequence[float], dtype: torch.dtype) -> list[Tensor]:
    """Each tensor times its factor, in `dtype`; the tensors share a dtype and a device, and are dense."""
    return list(_Converted.apply(tuple(factors), dtype, *tensors)) if tensors else []


class _Converted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, factors, dtype, *tensors):
        ctx.set_materialize_grads(False)
        ctx.call = factors, tensors[0].dtype, [tensor.stride() for tensor in tensors]
        results = _convert(tensors, factors, dtype, ctx.call[2])
        ctx.mark_non_differentiable(*_without_grad(results, ctx.needs_input_grad[2:]))
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):
        factors, dtype, strides = ctx.call
        there = [i for i, grad in enumerate(grads) if grad is not None]
        found, factors = [grads[i] for i in there], [factors[i] for i in there]
        if torch.is_grad_enabled():
            results = converted(found, factors, dtype)
        else:
            results = _convert(found, factors, dtype, [strides[i] for i in there])
        filled: list[Tensor | None] = [None] * len(grads)
        for i, result in zip(there, results, strict=True):
            filled[i] = result
        return None, None, *filled


def _without_grad(results: Sequence[Tensor], needs_grad: Sequence[bool]) -> list[Tensor]:
    """Results that are constants, although other results of the same Function are not."""
    return [result for result, needs in zip(results, needs_grad, strict=True) if not needs]


def _convert(tensors: Sequence[Tensor], factors: Sequence[float], dtype: torch.dtype, strides: Strides) -> list[Tensor]:
    """Products in the wider dtype, rounded once. New tensors have the given strides."""
    results = list(tensors)
    narrows = bool(results) and results[0].dtype.itemsize >= dtype.itemsize
    if narrows:
        _scale(results, factors)
    if results and results[0].dtype != dtype:
        device = results[0].device
        made = [
            torch.empty_strided(x.shape, s, dtype=dtype, device=device) for x, s in zip(tensors, strides, strict=True)
        ]
        _copy(made, results)
        results = made
    if not narrows:
        _scale(results, factors)
    return results


def _scale(tensors: list[Tensor], factors: Sequence[float]) -> None:
    """Replaces tensors of the list by products, where the factor is not 1."""
    scaled = [i for i, factor in enumerate(factors) if factor != 1]
    if scaled:
        products = torch._foreach_mul([tensors[i] for i in scaled], [factors[i] for i in scaled])
        for i, product in zip(scaled, products, strict=True):
            tensors[i] = product


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies and converts. A multi-tensor kernel takes all pairs of equal strides; a dimension of size 1 may differ."""
    alike: tuple[list[Tensor], list[Tensor]] = [], []
    for target, source in zip(targets, sources, strict=True):
        strides = zip(target.shape, target.stride(), source.stride(), strict=True)
        if all(size == 1 or a == b for size, a, b in strides):
            alike[0].append(target)
            alike[1].append(source.as_strided(target.shape, target.stride()))
        else:
            target.copy_(source)
    if alike[0]:
        torch._foreach_copy_(*alike)


# Stacks: tensors of different sizes in one, padded with zeros ---------------------------------------------------------


def stacked(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Contiguous tensors [size, ...] of one dtype, equal but for their sizes, as one [number, largest size, ...]."""
    return _Stacked.apply(dtype, max(map(len, tensors)), *tensors)


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, size, *tensors):
        given = [(i, tensor) for i, tensor in enumerate(tensors) if tensor is not None]
        first = given[0][1]
        ctx.call = first.dtype, tuple([0 if tensor is None else len(tensor) for tensor in tensors])
        stack = first.new_zeros(len(tensors), size, *first.shape[1:], dtype=dtype)
        _copy([stack[i, : len(tensor)] for i, tensor in given], [tensor for _, tensor in given])
        return stack

    @staticmethod
    def backward(ctx, grad):
        parts = iter(_Unstacked.apply(*ctx.call, grad))
        return None, None, *[next(parts) if size else None for size in ctx.call[1]]


class _Unstacked(torch.autograd.Function):
    """The first `sizes[i]` rows of `stack[i]`, for every i whose size is not 0."""

    @staticmethod
    def forward(ctx, dtype, sizes, stack):
        ctx.set_materialize_grads(False)
        ctx.call = stack.dtype, stack.shape[1], sizes
        parts = [part[:size] for part, size in zip(stack.contiguous(), sizes, strict=True) if size]
        results = [torch.empty_like(part, dtype=dtype) for part in parts]
        _copy(results, parts)
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):
        dtype, size, sizes = ctx.call
        if all(grad is None for grad in grads):
            return None, None, None
        found = iter([None if grad is None else grad.contiguous() for grad in grads])
        return None, None, _Stacked.apply(dtype, size, *[next(found) if rows else None for rows in sizes])


def unpadded(x: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """The parts [N, widths[i]] of x [len(widths), N, width], each contiguous."""
    if all(width == x.shape[2] for width in widths):
        return list(x.unbind())
    return list(_Unpadded.apply(x, tuple(widths)))


class _Unpadded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, widths):
        ctx.set_materialize_grads(False)
        _, n, width = x.shape
        ctx.call = n, width, widths
        parts = x.reshape(-1)[_kept(n, width, widths, x.device)].split([n * each for each in widths])
        return tuple([part.view(n, -1) for part in parts])

    @staticmethod
    def backward(ctx, *grads):
        return (None if all(grad is None for grad in grads) else _Padded.apply(*ctx.call, *grads)), None


class _Padded(torch.autograd.Function):
    """Tensors [n, widths[i]] as [len(widths), n, width], padded with zeros. None stands for zeros."""

    @staticmethod
    def forward(ctx, n, width, widths, *parts):
        ctx.widths = widths
        like = next(part for part in parts if part is not None)
        flat = [like.new_zeros(n * w) if x is None else x.reshape(-1) for x, w in zip(parts, widths, strict=True)]
        padded = like.new_zeros(len(widths) * n * width)
        padded[_kept(n, width, widths, like.device)] = torch.cat(flat)
        return padded.view(-1, n, width)

    @staticmethod
    def backward(ctx, grad):
        parts = unpadded(grad, ctx.widths)
        return (
            None,
            None,
            None,
            *[part if need else None for part, need in zip(parts, ctx.needs_input_grad[3:], strict=True)],
        )


@constant
def _kept(n: int, width: int, widths: tuple[int, ...], device: torch.device) -> Tensor:
    """Indices into [len(widths), n, width], flattened, of the first `widths[i]` columns of each [i]."""
    starts = np.arange(len(widths) * n).reshape(-1, n) * width
    columns = [np.add.outer(row, np.arange(w)) for row, w in zip(starts, widths, strict=True)]
    return torch.from_numpy(np.concatenate(columns, None)).to(device)


# Modulated convolutions ----------------------------------------------------------------------------------------------


def with_energies(weights: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Weights [O, I, kh, kw] of one dtype converted to `dtype`, and their energies.

    Energies are sums of squares over kh and kw, in the precision of the weights: [len(weights), largest O, largest I],
    padded with zeros. One gradient a weight serves both results.
    """
    *made, energies = _WithEnergies.apply(dtype, *weights)
    return made, energies


class _WithEnergies(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, *weights):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*weights)
        sizes = [max(weight.shape[i] for weight in weights) for i in (0, 1)]
        energies = weights[0].new_zeros(len(weights), *sizes)
        for part, weight in zip(energies, weights, strict=True):
            torch.linalg.vector_norm(weight, dim=(2, 3), out=part[: weight.shape[0], : weight.shape[1]])
        results = _convert(weights, [1.0] * len(weights), dtype, [weight.stride() for weight in weights])
        ctx.mark_non_differentiable(*_without_grad(results, ctx.needs_input_grad[1:]))
        return *results, energies.square_()

    @staticmethod
    def backward(ctx, *grads):
        *grads, of_energies = grads
        weights, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        results: list[Tensor | None] = [None] * len(weights)
        if of_energies is None and not torch.is_grad_enabled():
            there = [i for i, grad in enumerate(grads) if grad is not None and needed[i]]
            strides = [weights[i].stride() for i in there]
            made = _convert([grads[i] for i in there], [1.0] * len(there), weights[0].dtype, strides)
            for i, grad in zip(there, made, strict=True):
                results[i] = grad
        else:
            for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
                if needed[i]:
                    results[i] = _gradient_of_weight(weight, grad, None if of_energies is None else of_energies[i])
        return None, *results


def _gradient_of_weight(weight: Tensor, grad: Tensor | None, of_energy: Tensor | None) -> Tensor | None:
    """From the gradient of the converted weight, and that of the padded energy."""
    if of_energy is None:
        return None if grad is None else grad.to(weight.dtype)
    of_energy = of_energy[: weight.shape[0], : weight.shape[1], None, None]
    if grad is None:
        return weight * (2 * of_energy)
    if torch.is_grad_enabled():
        return grad.to(weight.dtype) + weight * (2 * of_energy)
    return torch.addcmul(grad, weight, of_energy, value=2)
