"""Triton kernels of bias_act_blur: the activation on the way into the filter, or its derivative on the way out.

    forward:   y = FIR(z(x + bias))
    backward:  dx = z'(x + bias) * FIR(dy),   dbias = sum(dx),   FIR being the adjoint filter

The kernel is that of upfirdn2d: programs walk down strips (strips.py).
"""

import math

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import BiasActBlurCall
from fastgan_kernels.triton import strips
from fastgan_kernels.triton.curves import curve
from fastgan_kernels.triton.strips import along_x, along_y, place, taps_of, where
from fastgan_kernels.triton.tiles import COMPILED, add_tables, arithmetic, tables_of


@triton.jit(do_not_specialize=strips.GEOMETRY)
def _blur(
    out,  # y or dx
    sums,  # backward: table [pieces, C] of partial sums, or None
    image,  # x or dy
    taps, bias,
    reference,  # backward: x
    c: tl.int64, h: tl.int32, w: tl.int32, oh: tl.int32, ow: tl.int32, first_x: tl.int32, first_y: tl.int32,
    shift_x: tl.int32, shift_y: tl.int32, runs: tl.int32, strips: tl.int32, steps: tl.int32, tiles_c: tl.int32,
    tiles: tl.int32,
    slope: tl.float64, gain: tl.float64, clamp: tl.float64, fir_gain: tl.float64,
    CLAMPED: tl.constexpr,
    FLIP: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic
    ALIGN: tl.constexpr,  # divides the number of channels; the compiler needs it for wide accesses
    L: tl.constexpr,  # strips in a tile
    F: tl.constexpr,  # channels in a tile
):  # fmt: skip
    c = c // ALIGN * ALIGN
    EARLY: tl.constexpr = 3
    sample, channel, ix, iy, at_x, ox, oy, at, live = place(
        c, h, w, oh, ow, first_x, first_y, shift_x, shift_y, runs, strips, steps, tiles_c, tiles, 1, 1, EARLY, L, F
    )
    image += at_x
    out += at
    if reference is not None:
        reference += at
    taps_x, taps_y = taps_of(taps, fir_gain, FLIP, S)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    clamp = tl.full([1, 1], clamp, S) if CLAMPED else None
    # Loaded as a whole tile, the bias has the layout of the activations.
    at_channel, channels = tl.broadcast_to(channel, [L, F]), tl.broadcast_to(channel < c, [L, F])
    k_bias = tl.load(bias + at_channel, mask=channels, other=0.0) if bias is not None else 0.0
    has_left, has_right = ox < ow, ox + 1 < ow
    zero = tl.full([L, F], 0.0, S)
    total_bias, sums_left, sums_right = zero, (zero, zero, zero), (zero, zero, zero)
    for step in tl.range(-EARLY, steps):
        inside = (iy >= 0) & (iy < h)
        if reference is None:
            left, right = along_x(image, ix, w, c, live & inside, taps_x, 1, 1, S, k_bias, slope, gain, clamp)
            taps_here = where(inside, taps_y)
        else:
            left, right = along_x(image, ix, w, c, live & inside, taps_x, 1, 1, S)
            taps_here = taps_y
        lefts, sums_left = along_y(sums_left, (left,), taps_here, 1, 1)
        rights, sums_right = along_y(sums_right, (right,), taps_here, 1, 1)
        left, right = lefts[0], rights[0]
        has_row = (step >= 0) & (oy < oh)
        here_left, here_right = has_left & has_row, has_right & has_row
        if reference is not None:
            v_left = tl.load(reference, mask=live & here_left, other=0.0).to(S)
            v_right = tl.load(reference + c, mask=live & here_right, other=0.0).to(S)
            _, slope_left, _ = curve(v_left + k_bias, slope, gain, clamp, "lrelu")
            _, slope_right, _ = curve(v_right + k_bias, slope, gain, clamp, "lrelu")
            left *= slope_left
            right *= slope_right
            reference += ow * c
            total_bias += tl.where(here_left, left, 0.0) + tl.where(here_right, right, 0.0)
        tl.store(out, left.to(out.dtype.element_ty), mask=live & here_left)
        tl.store(out + c, right.to(out.dtype.element_ty), mask=live & here_right)
        image += w * c
        out += ow * c
        iy += 1
        oy += 1
    if sums is not None:
        piece = (tl.program_id(0) // tiles_c).to(tl.int64)
        tl.store(sums + piece * c + channel, tl.sum(total_bias, 0, keep_dims=True), mask=channel < c)


def _launch(call: BiasActBlurCall) -> None:
    filter, activation = call
    plan = strips.plan_of(filter)
    sums = tables_of(activation, plan.segments, plan.programs)
    with torch.cuda.device_of(filter.y):
        _blur[(plan.programs,)](
            filter.y, sums[1], filter.x, filter.taps, activation.bias, activation.reference,
            *strips.geometry(filter, plan), activation.slope, activation.gain, activation.clamp, filter.gain,
            CLAMPED=activation.clamp < math.inf, FLIP=filter.flip, S=arithmetic(filter.dtype), ALIGN=plan.align,
            L=plan.lanes, F=plan.channels, **COMPILED,
        )  # fmt: skip
        add_tables(activation, sums, plan.segments, plan.programs)


forward = backward = _launch
