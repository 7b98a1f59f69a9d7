"""Launchers of squared_norm in Triton. The signatures are those of `fastgan_kernels.signatures.SquaredNorm`.

    s[n] = sum of x[n]^2,   dx[n] = 2 g[n] x[n]

The sums are taken in two stages, each in a fixed order: no atomics, the same bits every time.
"""

import torch
import triton
import triton.language as tl

from fastgan_kernels.samples_triton import WARPS, Pieces, arithmetic, where_of_piece


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


def forward(sums, x):
    if not x.numel():
        return sums.zero_()
    size, pieces, align, numbers = Pieces.of(x)
    programs = x.shape[0] * pieces
    partial = sums if pieces == 1 else sums.new_empty(programs)
    with torch.cuda.device_of(x):
        _sum_of_squares[(programs,)](partial, x, size, pieces, S=arithmetic(x), ALIGN=align, B=numbers, num_warps=WARPS)
        if pieces > 1:
            _add_pieces[(x.shape[0],)](sums, partial, pieces, B=128, num_warps=WARPS)


def backward(dx, grad, x):
    if dx.numel():
        size, pieces, align, numbers = Pieces.of(x)
        with torch.cuda.device_of(x):
            _scale[(x.shape[0] * pieces,)](
                dx, grad, x, size, pieces, S=arithmetic(x), ALIGN=align, B=numbers, num_warps=WARPS
            )
