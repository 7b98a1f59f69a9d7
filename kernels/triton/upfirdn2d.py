"""Triton kernels of upfirdn2d: strips (strips.py) for separable filters of 4 taps in NHWC, else one output an element.

Along each axis, y[o] = sum_i w[i] * spread[o * down - before + i], where `spread` is the image with `up - 1` zeros
after each pixel. Only the terms that can differ from zero, every up-th, are visited. A tile of outputs of `_filter` has
rows x columns: pixels x channels in NHWC, rows of images x positions in NCHW.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import Upfirdn2dCall
from fastgan_kernels.triton import strips
from fastgan_kernels.triton.strips import along_x, along_y, place, taps_of
from fastgan_kernels.triton.tiles import COMPILED, WARPS, arithmetic


@triton.jit
def begin(o, before, lift, UP: tl.constexpr, DOWN: tl.constexpr):
    """Index of the first input that an output reads, and its tap.

    `lift` keeps the dividend positive: compiled code and the interpreter divide negative integers differently.
    """
    start = o * DOWN - before + lift * UP
    at = (start + UP - 1) // UP
    return at - lift, at * UP - start


@triton.jit
def _term(
    i, j, x, taps, image, channel, c, h, w, at_y, tap_y, at_x, tap_x, mask,
    KH: tl.constexpr, KW: tl.constexpr, UP_X: tl.constexpr, UP_Y: tl.constexpr, SEPARABLE: tl.constexpr,
    FLIP: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """The term of an output for the i-th row and j-th column of the inputs that it reads."""
    row, column = at_y + i, at_x + j
    in_y, in_x = tap_y + i * UP_Y, tap_x + j * UP_X
    live_y = (row >= 0) & (row < h) & (in_y < KH)
    live_x = (column >= 0) & (column < w) & (in_x < KW)
    if not FLIP:
        in_y, in_x = KH - 1 - in_y, KW - 1 - in_x
    if SEPARABLE:
        weight = tl.load(taps + in_y, mask=live_y, other=0.0) * tl.load(taps + in_x, mask=live_x, other=0.0)
    else:
        weight = tl.load(taps + in_y * KW + in_x, mask=live_y & live_x, other=0.0)
    at = ((image * h + row) * w + column) * c + channel
    return weight * tl.load(x + at, mask=mask & live_y & live_x, other=0.0).to(S)


@triton.jit(do_not_specialize=["rows", "c", "h", "w", "oh", "ow", "left", "top", "lift_x", "lift_y", "tiles"])
def _filter(
    y, x, taps, addend,
    rows: tl.int64,  # rows of the output: pixels in NHWC, image rows in NCHW
    c: tl.int64, h: tl.int64, w: tl.int64, oh: tl.int64, ow: tl.int64,
    left: tl.int64, top: tl.int64, lift_x: tl.int64, lift_y: tl.int64,
    gain: tl.float64,
    tiles: tl.int32,  # tiles along the columns
    KH: tl.constexpr, KW: tl.constexpr, UP_X: tl.constexpr, UP_Y: tl.constexpr, DOWN_X: tl.constexpr,
    DOWN_Y: tl.constexpr, SEPARABLE: tl.constexpr, FLIP: tl.constexpr,
    NHWC: tl.constexpr,
    UNROLL: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic
    ALIGN: tl.constexpr,  # divides the number of columns; the compiler needs it for wide accesses
    R: tl.constexpr,  # rows in a tile
    F: tl.constexpr,  # columns in a tile
):  # fmt: skip
    pid = tl.program_id(0)
    row = (pid // tiles).to(tl.int64) * R + tl.arange(0, R)[:, None]  # [R, 1]
    column = (pid % tiles).to(tl.int64) * F + tl.arange(0, F)[None, :]  # [1, F]
    if NHWC:
        c = c // ALIGN * ALIGN
        ox, oy, image = row % ow, row // ow % oh, row // ow // oh
        channel, columns = column, c
    else:
        ow = ow // ALIGN * ALIGN
        ox, oy, image = column, row % oh, row // oh
        channel, columns = tl.full([1, 1], 0, tl.int64), ow
    mask = (row < rows) & (column < columns)
    at_x, tap_x = begin(ox, left, lift_x, UP_X, DOWN_X)
    at_y, tap_y = begin(oy, top, lift_y, UP_Y, DOWN_Y)
    stride = c if NHWC else 1

    total = tl.full([R, F], 0.0, S)
    if UNROLL:
        for i in tl.static_range((KH + UP_Y - 1) // UP_Y):
            for j in tl.static_range((KW + UP_X - 1) // UP_X):
                total += _term(
                    i, j, x, taps, image, channel, stride, h, w, at_y, tap_y, at_x, tap_x, mask,
                    KH, KW, UP_X, UP_Y, SEPARABLE, FLIP, S,
                )  # fmt: skip
    else:
        for i in range((KH + UP_Y - 1) // UP_Y):
            for j in range((KW + UP_X - 1) // UP_X):
                total += _term(
                    i, j, x, taps, image, channel, stride, h, w, at_y, tap_y, at_x, tap_x, mask,
                    KH, KW, UP_X, UP_Y, SEPARABLE, FLIP, S,
                )  # fmt: skip
    total *= tl.full([1, 1], gain, S)
    at = row * columns + column
    if addend is not None:
        total += tl.load(addend + at, mask=mask, other=0.0).to(S)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=strips.GEOMETRY)
def _strips(
    y, x, taps, addend,
    c: tl.int64, h: tl.int32, w: tl.int32, oh: tl.int32, ow: tl.int32, first_x: tl.int32, first_y: tl.int32,
    shift_x: tl.int32, shift_y: tl.int32, runs: tl.int32, strips: tl.int32, steps: tl.int32, tiles_c: tl.int32,
    tiles: tl.int32,
    gain: tl.float64,
    UP: tl.constexpr, DOWN: tl.constexpr, FLIP: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic
    ALIGN: tl.constexpr,  # divides the number of channels; the compiler needs it for wide accesses
    L: tl.constexpr,  # strips in a tile
    F: tl.constexpr,  # channels in a tile
):  # fmt: skip
    c = c // ALIGN * ALIGN
    EARLY: tl.constexpr = 3 if UP * DOWN == 1 else 1
    sample, channel, ix, iy, at_x, ox, oy, at_y, live = place(
        c, h, w, oh, ow, first_x, first_y, shift_x, shift_y, runs, strips, steps, tiles_c, tiles, UP, DOWN, EARLY, L, F
    )
    x += at_x
    y += at_y
    if addend is not None:
        addend += at_y
    taps_x, taps_y = taps_of(taps, gain, FLIP, S)
    has_left, has_right = live & (ox >= 0) & (ox < ow), live & (ox + 1 < ow)
    zero = tl.full([L, F], 0.0, S)
    sums_left = (zero, zero, zero) if UP * DOWN == 1 else (zero,)
    sums_right = sums_left
    for step in tl.range(-EARLY, steps):
        there = live & (iy >= 0) & (iy < h)
        left, right = along_x(x, ix, w, c, there, taps_x, UP, DOWN, S)
        lefts, rights = (left,), (right,)
        if DOWN == 2:
            there = live & (iy >= -1) & (iy < h - 1)
            left, right = along_x(x + w * c, ix, w, c, there, taps_x, UP, DOWN, S)
            lefts, rights = (lefts[0], left), (rights[0], right)  # type: ignore[assignment]
        iy += DOWN
        x += DOWN * w * c
        lefts, sums_left = along_y(sums_left, lefts, taps_y, UP, DOWN)
        rights, sums_right = along_y(sums_right, rights, taps_y, UP, DOWN)
        for row in tl.static_range(UP):
            has_row = (step >= 0) & (oy >= 0) & (oy < oh)
            left, right = lefts[row], rights[row]
            if addend is not None:
                left += tl.load(addend, mask=has_left & has_row, other=0.0).to(S)
                right += tl.load(addend + c, mask=has_right & has_row, other=0.0).to(S)
                addend += ow * c
            tl.store(y, left.to(y.dtype.element_ty), mask=has_left & has_row)
            tl.store(y + c, right.to(y.dtype.element_ty), mask=has_right & has_row)
            y += ow * c
            oy += 1


_MAX_UNROLLED = 16  # maximum number of terms per output that are unrolled


class _Plan(NamedTuple):
    """Tile sizes and grid, from the shape alone; names as in `_filter`."""

    align: int
    rows: int
    columns: int
    tiles: int
    programs: int


@lru_cache(maxsize=4096)
def _plan(rows: int, columns: int, nhwc: bool, element_size: int) -> _Plan:
    align = min(columns & -columns, 16)
    # In NCHW the inputs of adjacent outputs are not aligned, so wide accesses gain nothing.
    width = min(16 // element_size, max(align, 1)) if nhwc else 1
    size = WARPS * 32 * width
    wide = min(triton.next_power_of_2(columns), size if not nhwc else min(size, 256))
    tiles = triton.cdiv(columns, wide)
    return _Plan(align, size // wide, wide, tiles, tiles * triton.cdiv(rows, size // wide))


def forward(call: Upfirdn2dCall) -> None:
    if strips.fits(call):
        return _forward_in_strips(call)
    channels_last, y = call.channels_last, call.y
    rows, columns = (call.n * call.oh * call.ow, call.c) if channels_last else (call.n * call.c * call.oh, call.ow)
    plan = _plan(rows, columns, channels_last, call.dtype.itemsize)
    terms = math.ceil(call.kh / call.up_y) * math.ceil(call.kw / call.up_x)
    lift_x, lift_y = max(0, -(-call.left // call.up_x)), max(0, -(-call.top // call.up_y))
    with torch.cuda.device_of(y):
        _filter[(plan.programs,)](
            y, call.x, call.taps, call.addend, rows, call.c, call.h, call.w, call.oh, call.ow, call.left, call.top,
            lift_x, lift_y, call.gain, plan.tiles, KH=call.kh, KW=call.kw, UP_X=call.up_x, UP_Y=call.up_y,
            DOWN_X=call.down_x, DOWN_Y=call.down_y, SEPARABLE=call.separable, FLIP=call.flip, NHWC=channels_last,
            UNROLL=terms <= _MAX_UNROLLED, S=arithmetic(call.dtype), ALIGN=plan.align, R=plan.rows, F=plan.columns,
            **COMPILED,
        )  # fmt: skip


def _forward_in_strips(call: Upfirdn2dCall) -> None:
    plan = strips.plan_of(call)
    with torch.cuda.device_of(call.y):
        _strips[(plan.programs,)](
            call.y, call.x, call.taps, call.addend, *strips.geometry(call, plan), call.gain, UP=call.up_x,
            DOWN=call.down_x, FLIP=call.flip, S=arithmetic(call.dtype), ALIGN=plan.align, L=plan.lanes,
            F=plan.channels, **COMPILED,
        )  # fmt: skip
