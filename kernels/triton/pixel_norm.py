"""Triton kernels of pixel_norm.

    y = r * x,   r = rsqrt(mean over channels of x^2 + eps)

A program takes some positions and reads their channels twice, the second time from the cache, in tiles of rows x
columns; columns are adjacent in memory. csrc/pixel_norm/arithmetic.h derives the formulas.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import PixelNormCall, View
from fastgan_kernels.triton.tiles import COMPILED, WARPS, arithmetic


@triton.jit(do_not_specialize=["n", "c", "p", "tiles"])
def _normalize(
    first, second,  # outputs; ORDER 0: y; 1: dx; 2: ddy and dx
    x, dy, gx,
    eps: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64,
    tiles: tl.int32,  # tiles along the positions: of all samples in NHWC, of one sample in NCHW
    ORDER: tl.constexpr,  # 0 forward, 1 backward, 2 double backward
    NHWC: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic
    ALIGN: tl.constexpr,  # divides the number of columns; the compiler needs it for wide accesses
    R: tl.constexpr,  # rows in a tile: positions in NHWC, channels in NCHW
    F: tl.constexpr,  # columns in a tile
):  # fmt: skip
    pid = tl.program_id(0)
    row = tl.arange(0, R)[:, None]  # [R, 1]
    column = tl.arange(0, F)[None, :]  # [1, F]
    tile = (pid % tiles).to(tl.int64)
    if NHWC:
        c = c // ALIGN * ALIGN
        position = tile * R + row  # [R, 1]
        live = position < n * p
        at_position = position * c
    else:
        p = p // ALIGN * ALIGN
        position = tile * F + column  # [1, F]
        live = position < p
        at_position = (pid // tiles).to(tl.int64) * c * p + position
    STEP: tl.constexpr = F if NHWC else R
    AXIS: tl.constexpr = 1 if NHWC else 0  # axis of the channels

    zeros = tl.full([R, F], 0.0, S)
    xx, xd, xg, dg = zeros, zeros, zeros, zeros
    for start in range(0, c, STEP):
        channel = start + (column if NHWC else row)
        mask = live & (channel < c)
        at = at_position + (channel if NHWC else channel * p)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        xx += v_x * v_x
        if ORDER >= 1:
            v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
            xd += v_x * v_dy
        if ORDER == 2:
            v_gx = tl.load(gx + at, mask=mask, other=0.0).to(S)
            xg += v_x * v_gx
            dg += v_dy * v_gx

    share = 1.0 / c.to(S)
    r = tl.rsqrt(tl.sum(xx, AXIS, keep_dims=True) * share + tl.full([1, 1], eps, S))
    share = r * r * share
    q = -(r * share)
    if ORDER >= 1:
        d = tl.sum(xd, AXIS, keep_dims=True)
        k = q * d
    if ORDER == 2:
        g = tl.sum(xg, AXIS, keep_dims=True)
        k = q * g
        b = q * d
        a = q * (tl.sum(dg, AXIS, keep_dims=True) - 3.0 * (share * d * g))

    for start in range(0, c, STEP):
        channel = start + (column if NHWC else row)
        mask = live & (channel < c)
        at = at_position + (channel if NHWC else channel * p)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        if ORDER == 0:
            v_first = r * v_x
        elif ORDER == 1:
            v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
            v_first = r * v_dy + k * v_x
        else:
            v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
            v_gx = tl.load(gx + at, mask=mask, other=0.0).to(S)
            v_first = r * v_gx + k * v_x
            v_second = k * v_dy + (b * v_gx + a * v_x)
            tl.store(second + at, v_second.to(second.dtype.element_ty), mask=mask)
        tl.store(first + at, v_first.to(first.dtype.element_ty), mask=mask)


class _Plan(NamedTuple):
    """Tile sizes and grid, from the shape alone; names as in `_normalize`."""

    align: int
    rows: int
    columns: int
    tiles: int
    programs: int


@lru_cache(maxsize=4096)
def _plan(view: View, element_size: int) -> _Plan:
    n, c, p, nhwc = view
    fast = c if nhwc else p
    align = min(fast & -fast, 16)
    width = min(16 // element_size, max(align, 4))  # elements per thread: 16 bytes, or 4 scalar accesses
    size = WARPS * 32 * width  # elements in a tile
    # In NCHW 32 threads lie along a row, enough for whole sectors; the others divide the channels.
    columns = min(triton.next_power_of_2(fast), size if nhwc else 32 * width)
    rows = size // columns
    tiles = triton.cdiv(n * p, rows) if nhwc else triton.cdiv(p, columns)
    return _Plan(align, rows, columns, tiles, tiles if nhwc else n * tiles)


def run(call: PixelNormCall) -> None:
    plan = _plan(call[:4], call.dtype.itemsize)
    with torch.cuda.device_of(call.x):
        _normalize[(plan.programs,)](
            call.first, call.second, call.x, call.dy, call.gx, call.eps, call.n, call.c, call.p, plan.tiles,
            ORDER=call.order, NHWC=call.channels_last, S=arithmetic(call.dtype),
            ALIGN=plan.align, R=plan.rows, F=plan.columns, **COMPILED,
        )  # fmt: skip
