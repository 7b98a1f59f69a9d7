"""Triton kernel of filtered_lrelu, for any filters and factors, in either layout.

A program takes 16 channels of one sample and a strip of columns, and walks down. A row of z, the image between the
filters, is [columns, channels]. Along y, rows of x are added up to a row of z, and a row of z is added to the open rows
of y, which stay in registers. Along x, a filter is a product with a matrix that holds the taps near its diagonal.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import FilteredLreluCall
from fastgan_kernels.triton.tiles import COMPILED, arithmetic
from fastgan_kernels.triton.upfirdn2d import begin

LANES = tl.constexpr(16)  # channels whose signs share a word
_OUTSIDE = tl.constexpr(-65536)  # the signs outside of all signs: every channel is clamped
_PROGRAMS = 1056  # 8 for each of an H100's multiprocessors: strips are as high as leaves so many
_FEWEST_ROWS = 16  # of a strip: it computes the rows of z again that a filter reaches into its neighbour


@triton.jit
def _row(x, bias, sample, iy, ix, channel, c, h, w, NHWC: tl.constexpr, S: tl.constexpr):
    """Row `iy` of x with the bias, zeros outside of the image: [X, LANES]."""
    iy += 0 * ix  # no scalar, which the interpreter would not take as a part of a mask
    at = ((sample * h + iy) * w + ix) * c + channel if NHWC else ((sample * c + channel) * h + iy) * w + ix
    there = (ix >= 0) & (ix < w) & (channel < c) & (iy >= 0) & (iy < h)
    value = tl.load(x + at, mask=there, other=0.0).to(S)
    if bias is not None:
        value += tl.where(there, tl.load(bias + channel, mask=channel < c, other=0.0).to(S), 0.0)
    return value


@triton.jit
def _taps_up(taps, at, tap, ix, UP: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr):
    """Taps [Z, X] from a row of inputs at columns `ix` [1, X] to outputs that begin at `at` with `tap` [Z, 1]."""
    index = tap + (ix - at) * UP
    return tl.load(taps + index, mask=(ix >= at) & (index < SIZE), other=0.0).to(S)


@triton.jit
def _taps_down(taps, column, output, DOWN: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr):
    """Taps [Y, Z] from columns of z [1, Z] to outputs [Y, 1], both counted from the first of the strip."""
    index = column - output * DOWN
    return tl.load(taps + index, mask=(index >= 0) & (index < SIZE), other=0.0).to(S)


@triton.jit(
    do_not_specialize=[
        "c", "h", "w", "oh", "ow", "left", "top", "lift_x", "lift_y", "signs_left", "signs_top", "signs_h", "signs_w",
        "outputs", "rows", "tiles", "strips", "blocks",
    ]
)  # fmt: skip
def _filtered(
    y, x, bias, up_taps, down_taps, signs,
    c: tl.int64, h: tl.int64, w: tl.int64, oh: tl.int64, ow: tl.int64, left: tl.int64, top: tl.int64,
    lift_x: tl.int64, lift_y: tl.int64,
    signs_left: tl.int64, signs_top: tl.int64, signs_h: tl.int64, signs_w: tl.int64,
    up_gain: tl.float64, slope: tl.float64, gain: tl.float64, clamp: tl.float64,
    outputs: tl.int32,  # columns of y of a strip
    rows: tl.int32,  # of y of a strip
    tiles: tl.int32, strips: tl.int32, blocks: tl.int32,  # strips across and down, blocks of channels
    UP: tl.constexpr, DOWN: tl.constexpr, UP_SIZE: tl.constexpr, DOWN_SIZE: tl.constexpr,
    UP_SEPARABLE: tl.constexpr, DOWN_SEPARABLE: tl.constexpr,
    NHWC: tl.constexpr, WRITES: tl.constexpr, READS: tl.constexpr,
    ALIGN: tl.constexpr,  # divides the number of channels; the compiler needs it for wide accesses
    S: tl.constexpr,  # precision of the arithmetic
    X: tl.constexpr, Z: tl.constexpr, Y: tl.constexpr,  # columns of x, z and y in a tile
):  # fmt: skip
    if NHWC:
        c = c // ALIGN * ALIGN
    pid = tl.program_id(0)
    tile, strip, block = pid % tiles, pid // tiles % strips, (pid // tiles // strips).to(tl.int64)
    sample, lane = block // blocks, tl.arange(0, LANES)[None, :]
    channel = block % blocks * LANES + lane  # [1, LANES]
    oy, ox = strip * rows, tile * outputs
    z_h, z_w = (oh - 1) * DOWN + DOWN_SIZE, (ow - 1) * DOWN + DOWN_SIZE
    column = tl.arange(0, Z)  # of z, from the first of the strip
    at, tap = begin(ox * DOWN + column[:, None], left, lift_x, UP, 1)  # [Z, 1]
    first, _ = begin(ox * DOWN, left, lift_x, UP, 1)
    i = tl.arange(0, X)
    ix, ix_row = first + i[:, None], first + i[None, :]
    output = tl.arange(0, Y)[:, None]

    MOST_UP: tl.constexpr = (UP_SIZE + UP - 1) // UP
    MOST_DOWN: tl.constexpr = (DOWN_SIZE + DOWN - 1) // DOWN
    if UP_SEPARABLE:
        along_x = _taps_up(up_taps, at, tap, ix_row, UP, UP_SIZE, S)
    if DOWN_SEPARABLE:
        down_x = _taps_down(down_taps, column[None, :], output, DOWN, DOWN_SIZE, S)
    open_rows = (tl.zeros([Z if DOWN_SEPARABLE else Y, LANES], S),) * MOST_DOWN  # of y, the newest first
    slopes = tl.full([1, 1], slope, S)
    gains, limit = tl.full([1, 1], gain, S), tl.full([1, 1], clamp, S)
    up_gains = tl.full([1, 1], up_gain, S)
    for j in tl.range(0, rows + MOST_DOWN - 1):
        for phase in tl.static_range(DOWN):
            row = (oy + j) * DOWN + phase  # of z
            iy, tap_y = begin(row, top, lift_y, UP, 1)
            if UP_SEPARABLE:
                along_y = tl.zeros([X, LANES], S)
                for t in tl.static_range(MOST_UP):
                    weight = tl.load(up_taps + tap_y + t * UP, mask=tap_y + t * UP < UP_SIZE, other=0.0).to(S)
                    along_y += weight * _row(x, bias, sample, iy + t, ix, channel, c, h, w, NHWC, S)
                u = tl.dot(along_x, along_y, input_precision="ieee", out_dtype=S)
            else:
                u = tl.zeros([Z, LANES], S)
                for t in tl.static_range(MOST_UP):
                    tap_row = tap_y + t * UP
                    taps = _taps_up(up_taps + tap_row * UP_SIZE, at, tap, ix_row, UP, UP_SIZE, S)
                    taps = tl.where(tap_row + 0 * i[None, :] < UP_SIZE, taps, 0.0)
                    values = _row(x, bias, sample, iy + t, ix, channel, c, h, w, NHWC, S)
                    u += tl.dot(taps, values, input_precision="ieee", out_dtype=S)
            u *= up_gains
            z_row, z_column = row + 0 * column, ox * DOWN + column
            if READS:
                at_y, at_x = z_row + signs_top, z_column + signs_left
                there = (at_y >= 0) & (at_y < signs_h) & (at_x >= 0) & (at_x < signs_w)
                place = (block * signs_h + at_y) * signs_w + at_x
                words = tl.load(signs + place, mask=there, other=_OUTSIDE)[:, None] >> lane
                z = u * tl.where((words & 1) != 0, slopes * gains, gains)
                z = tl.where(((words >> LANES) & 1) != 0, 0.0, z)
            else:
                below = u < 0
                z = tl.where(below, u * slopes, u) * gains
                clamped = tl.abs(z) > limit
                z = tl.where(clamped, tl.where(z > 0, limit, -limit), z)
                if WRITES:
                    bits = (below.to(tl.int32) | clamped.to(tl.int32) << LANES) << lane
                    ends_x = tl.where(ox + outputs >= ow, z_w, (ox + outputs) * DOWN)  # the next strip has the others
                    ends_y = tl.where(oy + rows >= oh, z_h, (oy + rows) * DOWN)
                    place = (block * signs_h + z_row) * signs_w + z_column
                    tl.store(signs + place, tl.sum(bits, axis=1), mask=(z_column < ends_x) & (z_row < ends_y))
            z = tl.where(z_row[:, None] < z_h, z, 0.0)
            added = ()
            for m in tl.static_range(MOST_DOWN):
                if phase + m * DOWN < DOWN_SIZE:
                    if DOWN_SEPARABLE:
                        more = tl.load(down_taps + phase + m * DOWN).to(S) * z
                    else:
                        taps = down_taps + (phase + m * DOWN) * DOWN_SIZE
                        taps = _taps_down(taps, column[None, :], output, DOWN, DOWN_SIZE, S)
                        more = tl.dot(taps, z, input_precision="ieee", out_dtype=S)
                    added = added + (open_rows[m] + more,)  # type: ignore[assignment]  # noqa: RUF005
                else:
                    added = added + (open_rows[m],)  # type: ignore[assignment]  # noqa: RUF005
            open_rows = added
        total = open_rows[MOST_DOWN - 1]
        if DOWN_SEPARABLE:
            total = tl.dot(down_x, total, input_precision="ieee", out_dtype=S)
        y_row = oy + j - (MOST_DOWN - 1) + 0 * output
        if NHWC:
            place = ((sample * oh + y_row) * ow + ox + output) * c + channel
        else:
            place = ((sample * c + channel) * oh + y_row) * ow + ox + output
        made = (output < outputs) & (ox + output < ow) & (channel < c) & (y_row >= oy) & (y_row < oh)
        tl.store(y + place, total.to(y.dtype.element_ty), mask=made)
        open_rows = (tl.zeros_like(open_rows[0]),) + open_rows[:-1]  # noqa: RUF005


class _Plan(NamedTuple):
    x: int
    z: int
    y: int
    outputs: int
    rows: int
    tiles: int
    strips: int
    blocks: int


@lru_cache(maxsize=4096)
def _plan(n: int, c: int, oh: int, ow: int, up: int, down: int, up_size: int, down_size: int) -> _Plan:
    z = max(32, triton.next_power_of_2(2 * down_size))  # narrow: a product takes the zeros of its matrix too
    outputs = min((z - down_size) // down + 1, ow)
    tiles = triton.cdiv(ow, outputs)
    outputs = triton.cdiv(ow, tiles)
    x = triton.next_power_of_2(max(16, (z - 1 + up_size - 1) // up + 2))
    blocks = triton.cdiv(c, LANES.value)
    rows = oh
    while rows >= 2 * _FEWEST_ROWS and n * blocks * tiles * triton.cdiv(oh, rows) < _PROGRAMS:
        rows = triton.cdiv(rows, 2)
    return _Plan(x, z, max(16, triton.next_power_of_2(outputs)), outputs, rows, tiles, triton.cdiv(oh, rows), blocks)


def forward(call: FilteredLreluCall) -> None:
    plan = _plan(call.n, call.c, call.oh, call.ow, call.up, call.down, call.up_size, call.down_size)
    lift_x, lift_y = max(0, -(-call.left // call.up)), max(0, -(-call.top // call.up))
    with torch.cuda.device_of(call.y):
        _filtered[(call.n * plan.blocks * plan.strips * plan.tiles,)](
            call.y, call.x, call.bias, call.up_taps, call.down_taps, call.signs, call.c, call.h, call.w, call.oh,
            call.ow, call.left, call.top, lift_x, lift_y, call.signs_left, call.signs_top, call.signs_h, call.signs_w,
            call.up_gain, call.slope, call.gain, call.clamp, plan.outputs, plan.rows, plan.tiles, plan.strips,
            plan.blocks, UP=call.up, DOWN=call.down, UP_SIZE=call.up_size, DOWN_SIZE=call.down_size,
            UP_SEPARABLE=call.up_separable, DOWN_SEPARABLE=call.down_separable, NHWC=call.channels_last,
            WRITES=call.writes_signs, READS=call.reads_signs, ALIGN=min(call.c & -call.c, 16),
            S=arithmetic(call.dtype), X=plan.x, Z=plan.z, Y=plan.y, **COMPILED,
        )  # fmt: skip
