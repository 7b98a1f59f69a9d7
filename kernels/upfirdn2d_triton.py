"""Launcher of upfirdn2d in Triton. The signature is that of `fastgan_kernels.signatures.Upfirdn2d`.

Along each axis, y[o] = sum_i w[i] * spread[o * down - before + i], where `spread` is the image with zeros between its
samples: only every up-th term is not zero, and only those are visited. A tile of outputs is rows x columns; columns are
adjacent in memory: channels in NHWC, where a row is a pixel, and positions in NCHW, where it is a row of a plane.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl


@triton.jit
def _begin(o, before, lift, UP: tl.constexpr, DOWN: tl.constexpr):
    """The first input that an output reads, and the tap that meets it. `lift` keeps the dividend above zero: compiled
    code and the interpreter divide negative integers differently."""
    start = o * DOWN - before + lift * UP
    at = (start + UP - 1) // UP
    return at - lift, at * UP - start


@triton.jit
def _term(
    i, j, x, taps, image, channel, c, h, w, at_y, tap_y, at_x, tap_x, mask,
    KH: tl.constexpr, KW: tl.constexpr, UP_X: tl.constexpr, UP_Y: tl.constexpr, SEPARABLE: tl.constexpr,
    FLIP: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """What the i-th of the input rows and the j-th of its columns that an output reads add to it."""
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
    y, x, taps,
    rows: tl.int64,  # of the output: pixels, or rows of planes
    c: tl.int64, h: tl.int64, w: tl.int64, oh: tl.int64, ow: tl.int64,
    left: tl.int64, top: tl.int64, lift_x: tl.int64, lift_y: tl.int64,
    gain: tl.float64,
    tiles: tl.int32,  # that the columns are cut into
    KH: tl.constexpr, KW: tl.constexpr, UP_X: tl.constexpr, UP_Y: tl.constexpr, DOWN_X: tl.constexpr,
    DOWN_Y: tl.constexpr, SEPARABLE: tl.constexpr, FLIP: tl.constexpr,
    PIXELS: tl.constexpr,
    UNROLL: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic
    ALIGN: tl.constexpr,  # divides the number of columns: the compiler must see it to make wide accesses
    R: tl.constexpr,  # rows of a tile
    F: tl.constexpr,  # columns of a tile
):  # fmt: skip
    pid = tl.program_id(0)
    row = (pid // tiles).to(tl.int64) * R + tl.arange(0, R)[:, None]  # [R, 1]
    column = (pid % tiles).to(tl.int64) * F + tl.arange(0, F)[None, :]  # [1, F]
    if PIXELS:
        c = c // ALIGN * ALIGN
        ox, oy, image = row % ow, row // ow % oh, row // ow // oh
        channel, columns = column, c
    else:
        ow = ow // ALIGN * ALIGN
        ox, oy, image = column, row % oh, row // oh
        channel, columns = tl.full([1, 1], 0, tl.int64), ow
    mask = (row < rows) & (column < columns)
    at_x, tap_x = _begin(ox, left, lift_x, UP_X, DOWN_X)
    at_y, tap_y = _begin(oy, top, lift_y, UP_Y, DOWN_Y)
    stride = c if PIXELS else 1

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
    tl.store(y + row * columns + column, total.to(y.dtype.element_ty), mask=mask)


_WARPS = 4
_MOST_UNROLLED = 16  # products of taps


class _Plan(NamedTuple):
    """How the work is cut up, from the shape alone; names as in `_filter`."""

    align: int
    rows: int
    columns: int
    tiles: int
    programs: int


@lru_cache(maxsize=4096)
def _plan(rows: int, columns: int, pixels: bool, element_size: int) -> _Plan:
    align = min(columns & -columns, 16)
    # In NCHW the inputs of adjacent outputs are not aligned: there is nothing to be had from wide accesses.
    width = min(16 // element_size, max(align, 1)) if pixels else 1
    size = _WARPS * 32 * width
    wide = min(triton.next_power_of_2(columns), size if not pixels else min(size, 256))
    tiles = triton.cdiv(columns, wide)
    return _Plan(align, size // wide, wide, tiles, tiles * triton.cdiv(rows, size // wide))


def forward(y, x, taps, up_x, up_y, down_x, down_y, left, right, top, bottom, gain, flip, channels_last):
    if not y.numel():
        return
    n, c, h, w = x.shape
    oh, ow = y.shape[2:]
    rows, columns = (n * oh * ow, c) if channels_last else (n * c * oh, ow)
    plan = _plan(rows, columns, channels_last, x.element_size())
    kh, kw = taps.shape[0], taps.shape[-1]
    terms = math.ceil(kh / up_y) * math.ceil(kw / up_x)
    with torch.cuda.device_of(y):
        _filter[(plan.programs,)](
            y, x, taps, rows, c, h, w, oh, ow, left, top, max(0, -(-left // up_x)), max(0, -(-top // up_y)), gain,
            plan.tiles, KH=kh, KW=kw, UP_X=up_x, UP_Y=up_y, DOWN_X=down_x, DOWN_Y=down_y, SEPARABLE=taps.dim() == 1,
            FLIP=flip, PIXELS=channels_last, UNROLL=terms <= _MOST_UNROLLED,
            S=tl.float64 if x.dtype == torch.float64 else tl.float32,
            ALIGN=plan.align, R=plan.rows, F=plan.columns, num_warps=_WARPS,
        )  # fmt: skip
