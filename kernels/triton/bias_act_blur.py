"""Triton kernels of bias_act_blur: the activation on the way into the filter, or its derivative on the way out.

    forward:   y = FIR(z(x + bias))
    backward:  dx = z'(x + bias) * FIR(dy),   dbias = sum(dx),   FIR being the adjoint filter

A program walks over tiles of outputs, pixels x channels.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import BiasActBlurCall
from fastgan_kernels.triton.noise_bias_act import curve
from fastgan_kernels.triton.tiles import COMPILED, MAX_PROGRAMS, MIN_STEPS, WARPS, add_pieces, arithmetic


@triton.jit(do_not_specialize=["rows", "c", "h", "w", "oh", "ow", "left", "top", "tiles", "steps"])
def _blur(
    out,  # y or dx
    sums,  # backward: table [segments, C] of partial sums, or None
    image,  # x or dy
    taps, bias,
    reference,  # backward: x
    slope: tl.float64, gain: tl.float64, clamp: tl.float64, fir_gain: tl.float64,
    rows: tl.int64,  # pixels of the output
    c: tl.int64, h: tl.int64, w: tl.int64, oh: tl.int64, ow: tl.int64, left: tl.int64, top: tl.int64,
    tiles: tl.int32,  # tiles along the channels
    steps: tl.int64,  # tiles of pixels that a program walks over
    FLIP: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic
    ALIGN: tl.constexpr,  # divides the number of channels; the compiler needs it for wide accesses
    R: tl.constexpr,  # pixels in a tile
    F: tl.constexpr,  # channels in a tile
):  # fmt: skip
    pid = tl.program_id(0)
    c = c // ALIGN * ALIGN
    channel = (pid % tiles).to(tl.int64) * F + tl.arange(0, F)[None, :]  # [1, F]
    segment = (pid // tiles).to(tl.int64)
    slope, gain, clamp = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S), tl.full([1, 1], clamp, S)
    # Loaded as a whole tile, the bias has the layout of the activations.
    at_channel, live = tl.broadcast_to(channel, [R, F]), tl.broadcast_to(channel < c, [R, F])
    k_bias = tl.load(bias + at_channel, mask=live, other=0.0) if bias is not None else 0.0
    total_bias = tl.full([R, F], 0.0, S)
    left_over = tl.cdiv(rows - segment * steps * R, R)  # the last segment may be shorter
    for step in range(tl.minimum(steps, left_over)):
        row = (segment * steps + step) * R + tl.arange(0, R)[:, None]  # [R, 1]
        ox, oy, sample = row % ow, row // ow % oh, row // ow // oh
        mask = (row < rows) & (channel < c)
        value = tl.full([R, F], 0.0, S)
        for i in tl.static_range(4):
            iy = oy - top + i
            weight_y = tl.load(taps + (i if FLIP else 3 - i)) * tl.full([1, 1], fir_gain, S)
            for j in tl.static_range(4):
                ix = ox - left + j
                inside = mask & (iy >= 0) & (iy < h) & (ix >= 0) & (ix < w)
                v_in = tl.load(image + ((sample * h + iy) * w + ix) * c + channel, mask=inside, other=0.0).to(S)
                if reference is None:
                    activated, _, _ = curve(v_in + k_bias, slope, gain, clamp, "lrelu")
                    v_in = tl.where(inside, activated, 0.0)
                value += weight_y * tl.load(taps + (j if FLIP else 3 - j)) * v_in
        if reference is not None:
            u = tl.load(reference + row * c + channel, mask=mask, other=0.0).to(S) + k_bias
            _, first, _ = curve(u, slope, gain, clamp, "lrelu")
            value *= first
            total_bias += value
        tl.store(out + row * c + channel, value.to(out.dtype.element_ty), mask=mask)
    if sums is not None:
        tl.store(sums + segment * c + channel, tl.sum(total_bias, 0, keep_dims=True), mask=channel < c)


class _Plan(NamedTuple):
    """Tile sizes and grid, from the shape alone; names as in `_blur`."""

    align: int
    rows: int
    columns: int
    tiles: int
    steps: int
    segments: int  # programs for each tile of channels


@lru_cache(maxsize=4096)
def _plan(rows: int, c: int, element_size: int) -> _Plan:
    size = WARPS * 32 * (16 // element_size)  # elements in a tile
    columns = min(triton.next_power_of_2(c), size, 256)
    tiles, row_tiles = triton.cdiv(c, columns), triton.cdiv(rows, size // columns)
    steps = triton.cdiv(row_tiles, min(triton.cdiv(MAX_PROGRAMS, tiles), triton.cdiv(row_tiles, MIN_STEPS)))
    return _Plan(min(c & -c, 16), size // columns, columns, tiles, steps, triton.cdiv(row_tiles, steps))


def _launch(call: BiasActBlurCall) -> None:
    filter, activation = call
    rows, dbias = filter.n * filter.oh * filter.ow, activation.dbias
    plan = _plan(rows, filter.c, call.filter.dtype.itemsize)
    table = dbias if dbias is None or plan.segments == 1 else dbias.new_empty(plan.segments, filter.c)
    with torch.cuda.device_of(filter.y):
        _blur[(plan.tiles * plan.segments,)](
            filter.y, table, filter.x, filter.taps, activation.bias, activation.reference, activation.slope,
            activation.gain, activation.clamp, filter.gain, rows, filter.c, filter.h, filter.w, filter.oh, filter.ow,
            filter.left, filter.top, plan.tiles, plan.steps, FLIP=filter.flip, S=arithmetic(filter.dtype),
            ALIGN=plan.align, R=plan.rows, F=plan.columns, **COMPILED,
        )  # fmt: skip
        if table is not dbias:
            tiles = triton.cdiv(filter.c, 16)
            add_pieces[(tiles,)](
                None, table, None, None, None, dbias, None, None, 1, filter.c, plan.segments, tiles, 0,
                STRENGTH_PER_CHANNEL=False, R=128, F=16, **COMPILED,
            )  # fmt: skip


forward = backward = _launch
