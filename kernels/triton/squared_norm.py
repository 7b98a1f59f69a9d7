"""Triton kernels of squared_norm.

    s[n] = sum of x[n]^2,   dx[n] = 2 g[n] x[n]

The sums are taken in two stages, each in a fixed order: no atomics, the same bits every time.
"""

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import SamplesCall
from fastgan_kernels.triton.samples import RowPlan, where_of_piece
from fastgan_kernels.triton.tiles import COMPILED


@triton.jit(do_not_specialize=["size", "pieces"])
def _sum_of_squares(
    partial, x, size: tl.int64, pieces: tl.int32, S: tl.constexpr, ALIGN: tl.constexpr, B: tl.constexpr
):
    _, at, mask = where_of_piece(size, pieces, ALIGN, B)
    value = tl.load(x + at, mask=mask, other=0.0).to(S)
    tl.store(partial + tl.program_id(0), tl.sum(value * value))


@triton.jit(do_not_specialize=["pieces"])
def _add_pieces(sums, partial, pieces: tl.int32, B: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    total = tl.full([B], 0.0, sums.dtype.element_ty)
    for start in range(0, pieces, B):
        piece = start + tl.arange(0, B)
        total += tl.load(partial + sample * pieces + piece, mask=piece < pieces, other=0.0)
    tl.store(sums + sample, tl.sum(total))


@triton.jit(do_not_specialize=["size", "pieces"])
def _scale(dx, grad, x, size: tl.int64, pieces: tl.int32, S: tl.constexpr, ALIGN: tl.constexpr, B: tl.constexpr):
    sample, at, mask = where_of_piece(size, pieces, ALIGN, B)
    value = tl.load(x + at, mask=mask, other=0.0).to(S)
    tl.store(dx + at, (2.0 * tl.load(grad + sample) * value).to(dx.dtype.element_ty), mask=mask)


def forward(call: SamplesCall) -> None:
    x, sums = call.a, call.sums
    assert sums is not None
    plan = RowPlan.of(call.size, call.dtype)
    programs = call.n * plan.pieces
    partial = sums if plan.pieces == 1 else sums.new_empty(programs)
    with torch.cuda.device_of(x):
        _sum_of_squares[(programs,)](partial, x, call.size, plan.pieces, **plan.options(call.dtype))
        if plan.pieces > 1:
            _add_pieces[(call.n,)](sums, partial, plan.pieces, B=128, **COMPILED)


def backward(call: SamplesCall) -> None:
    plan = RowPlan.of(call.size, call.dtype)
    with torch.cuda.device_of(call.a):
        _scale[(call.n * plan.pieces,)](
            call.first, call.weight, call.a, call.size, plan.pieces, **plan.options(call.dtype)
        )
