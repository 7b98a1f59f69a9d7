"""Triton kernels of filtered_noise_bias_act: the epilogue, or its derivative, applied to outputs of the filter.

    f = FIR(x),   u = scale[n,c] * f + strength[c] * noise + bias[c]
    forward:   y = clamp(gain * lrelu(u)) * post[n,c]
    backward:  du and the sums of noise_bias_act, from dy and f, for which x is filtered again; then dx = FIR'(du)

Programs walk down strips (strips.py). Sums are made in two stages, as in noise_bias_act.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan_kernels.calls import FilteredNoiseBiasActCall
from fastgan_kernels.triton import noise_bias_act, strips, upfirdn2d
from fastgan_kernels.triton.curves import curve
from fastgan_kernels.triton.strips import along_x, along_y, place, taps_of
from fastgan_kernels.triton.tiles import COMPILED, add_tables, arithmetic, tables_of


@triton.jit(do_not_specialize=strips.GEOMETRY)
def _filtered(
    out,  # y or du, the gradient of f
    dstrength, dbias, dscale, dpost,  # backward: tables [pieces, C] of partial sums; a shared strength: [programs]
    x, taps,
    dy,  # backward
    noise, strength, bias, scale, post,
    c: tl.int64, h: tl.int32, w: tl.int32, oh: tl.int32, ow: tl.int32, first_x: tl.int32, first_y: tl.int32,
    shift_x: tl.int32, shift_y: tl.int32, runs: tl.int32, strips: tl.int32, steps: tl.int32, tiles_c: tl.int32,
    tiles: tl.int32,
    slope: tl.float64, gain: tl.float64, clamp: tl.float64, fir_gain: tl.float64,
    CLAMPED: tl.constexpr,
    NOISE_PER_SAMPLE: tl.constexpr,
    STRENGTH_PER_CHANNEL: tl.constexpr,
    FLIP: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic and of the small tensors
    ALIGN: tl.constexpr,  # divides the number of channels; the compiler needs it for wide accesses
    L: tl.constexpr,  # strips in a tile
    F: tl.constexpr,  # channels in a tile
):  # fmt: skip
    c = c // ALIGN * ALIGN
    EARLY: tl.constexpr = 3
    sample, channel, ix, iy, at_x, ox, oy, at, live = place(
        c, h, w, oh, ow, first_x, first_y, shift_x, shift_y, runs, strips, steps, tiles_c, tiles, 1, 1, EARLY, L, F
    )
    x += at_x
    out += at
    if dy is not None:
        dy += at
    if noise is not None:
        noise += oy.to(tl.int64) * ow + ox
        if NOISE_PER_SAMPLE:
            noise += sample * oh * ow
    taps_x, taps_y = taps_of(taps, fir_gain, FLIP, S)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    clamp = tl.full([1, 1], clamp, S) if CLAMPED else None
    # Loaded as whole tiles, small tensors have the layout of the activations.
    at_channel, channels = tl.broadcast_to(channel, [L, F]), tl.broadcast_to(channel < c, [L, F])
    at_sample = sample * c + at_channel
    k_bias = tl.load(bias + at_channel, mask=channels, other=0.0) if bias is not None else 0.0
    k_scale = tl.load(scale + at_sample, mask=channels, other=0.0) if scale is not None else 1.0
    k_post = tl.load(post + at_sample, mask=channels, other=0.0) if post is not None else 1.0
    if STRENGTH_PER_CHANNEL:
        k_strength = tl.load(strength + at_channel, mask=channels, other=0.0)
    else:
        k_strength = tl.load(strength) if strength is not None else 1.0
    has_left, has_right = ox < ow, ox + 1 < ow
    zero = tl.full([L, F], 0.0, S)
    sum_bias, sum_strength, sum_scale, sum_post = zero, zero, zero, zero
    sums_left, sums_right = (zero, zero, zero), (zero, zero, zero)
    for step in tl.range(-EARLY, steps):
        left, right = along_x(x, ix, w, c, live & (iy >= 0) & (iy < h), taps_x, 1, 1, S)
        lefts, sums_left = along_y(sums_left, (left,), taps_y, 1, 1)
        rights, sums_right = along_y(sums_right, (right,), taps_y, 1, 1)
        has_row = (step >= 0) & (oy < oh)
        for i in tl.static_range(2):
            f = rights[0] if i else lefts[0]
            there = (has_right if i else has_left) & has_row
            v_noise = tl.load(noise + i, mask=there, other=0.0) if noise is not None else 0.0
            value, first, _ = curve(k_scale * f + (k_strength * v_noise + k_bias), slope, gain, clamp, "lrelu")
            if dy is None:
                v_out = value * k_post
            else:
                v_dy = tl.load(dy + i * c, mask=live & there, other=0.0).to(S)  # zeros make the sums' terms zero
                du = v_dy * k_post * first
                v_out = k_scale * du
                sum_bias += du
                sum_scale += du * f
                sum_post += v_dy * value
                if dstrength is not None:
                    sum_strength += du * v_noise
            tl.store(out + i * c, v_out.to(out.dtype.element_ty), mask=live & there)
        x += w * c
        out += ow * c
        if dy is not None:
            dy += ow * c
        if noise is not None:
            noise += ow
        iy += 1
        oy += 1

    piece = (tl.program_id(0) // tiles_c).to(tl.int64) * c + channel
    if dbias is not None:
        tl.store(dbias + piece, tl.sum(sum_bias, 0, keep_dims=True), mask=channel < c)
    if dstrength is not None:
        if STRENGTH_PER_CHANNEL:
            tl.store(dstrength + piece, tl.sum(sum_strength, 0, keep_dims=True), mask=channel < c)
        else:
            tl.store(dstrength + tl.program_id(0), tl.sum(sum_strength))
    if dscale is not None:
        tl.store(dscale + piece, tl.sum(sum_scale, 0, keep_dims=True), mask=channel < c)
    if dpost is not None:
        tl.store(dpost + piece, tl.sum(sum_post, 0, keep_dims=True), mask=channel < c)


def _launch(call: FilteredNoiseBiasActCall, out: Tensor, dy: Tensor | None) -> None:
    filter, epilogue = call
    plan = strips.plan_of(filter, many_registers=dy is not None)
    sums = tables_of(epilogue, plan.segments, plan.programs)
    with torch.cuda.device_of(out):
        _filtered[(plan.programs,)](
            out, *sums, filter.x, filter.taps, dy, epilogue.noise, epilogue.strength, epilogue.bias, epilogue.scale,
            epilogue.post, *strips.geometry(filter, plan), epilogue.slope, epilogue.gain, epilogue.clamp, filter.gain,
            CLAMPED=epilogue.clamp < math.inf, NOISE_PER_SAMPLE=epilogue.noise_per_sample,
            STRENGTH_PER_CHANNEL=epilogue.strength_per_channel, FLIP=filter.flip, S=arithmetic(filter.dtype),
            ALIGN=plan.align, L=plan.lanes, F=plan.channels, **COMPILED,
        )  # fmt: skip
        add_tables(epilogue, sums, plan.segments, plan.programs)


def forward(call: FilteredNoiseBiasActCall) -> None:
    assert call.filter.y is not None
    _launch(call, call.filter.y, None)


def backward(call: FilteredNoiseBiasActCall) -> None:
    """Two passes: `du`, the gradient of the filter's output, then the adjoint filter."""
    adjoint, epilogue = call
    dy, du = adjoint.x, torch.empty_like(adjoint.x)
    if epilogue.from_output:
        noise_bias_act.backward(epilogue._replace(dy=dy, dx=du))
    else:
        assert epilogue.reference is not None
        filter = adjoint._replace(
            h=adjoint.oh, w=adjoint.ow, oh=adjoint.h, ow=adjoint.w, left=adjoint.kw - 1 - adjoint.left,
            top=adjoint.kh - 1 - adjoint.top, flip=not adjoint.flip, x=epilogue.reference, y=None,
        )  # fmt: skip
        _launch(call._replace(filter=filter), du, dy)
    upfirdn2d.forward(adjoint._replace(x=du))
