"""Triton kernels of noise_bias_act_to_rgb, in NHWC.

    z = clamp(gain * lrelu(scale * x + strength * noise + bias)),   y = z * post,   rgb[k] = sum over c of to_rgb[k] * z

A program takes rows (positions of a sample) x columns (channels). Forward: it walks over all channels of its rows.
Backward: it walks over the positions of a segment, and leaves partial sums that a second stage adds up. The formulas
are those of csrc/noise_bias_act_to_rgb/arithmetic.h.
"""

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import NoiseBiasActToRGBCall, View
from fastgan_kernels.triton.noise_gradient import launch_noise_gradient
from fastgan_kernels.triton.tiles import COMPILED, add_pieces, add_rows, arithmetic, plan_of


@triton.jit
def _activation(u, slope, gain, clamp):
    """clamp(gain * lrelu(u)) and its derivative."""
    first = tl.where(u > 0, gain, gain * slope)
    value = u * first
    limited = tl.abs(value) > clamp
    value = tl.where(value > clamp, clamp, tl.where(value < -clamp, -clamp, value))  # NaN stays NaN
    return value, tl.where(limited, 0.0, first)


@triton.jit
def _channels(row, channel, live, absent):
    """A row of a small tensor at the channels of a tile; `absent` if it is None."""
    return tl.load(row + channel, mask=live, other=0.0) if row is not None else absent


@triton.jit(do_not_specialize=["n", "c", "p", "tiles"])
def _forward(
    y, rgb, x, to_rgb, noise, strength, bias, scale, post,
    slope: tl.float64, gain: tl.float64, clamp: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64,
    tiles: tl.int64,  # tiles along the positions of a sample
    NOISE_PER_SAMPLE: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic and of the small tensors
    K: tl.constexpr,  # channels of the image
    ALIGN: tl.constexpr,  # divides the number of channels; the compiler needs it for wide accesses
    R: tl.constexpr,  # rows in a tile
    F: tl.constexpr,  # columns in a tile
):  # fmt: skip
    c = c // ALIGN * ALIGN
    pid = tl.program_id(0).to(tl.int64)
    sample = pid // tiles
    position = pid % tiles * R + tl.arange(0, R)[:, None]  # [R, 1]
    column = tl.arange(0, F)[None, :]  # [1, F]
    slope, gain, clamp = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S), tl.full([1, 1], clamp, S)
    shift = tl.full([R, 1], 0.0, S)
    if noise is not None:
        shift = tl.load(noise + (sample * p if NOISE_PER_SAMPLE else 0) + position, mask=position < p, other=0.0)
        if strength is not None:
            shift *= tl.load(strength)
    red, green, blue, alpha = shift * 0.0, shift * 0.0, shift * 0.0, shift * 0.0
    weights = to_rgb + sample * K * c
    for start in range(0, c, F):
        channel = start + column
        live = channel < c
        mask = live & (position < p)
        at = (sample * p + position) * c + channel
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        u = v_x
        if scale is not None:
            u *= tl.load(scale + sample * c + channel, mask=live, other=0.0)
        u += shift + _channels(bias, channel, live, 0.0)
        z, _ = _activation(u, slope, gain, clamp)
        if y is not None:
            k_post = tl.load(post + sample * c + channel, mask=live, other=0.0)
            tl.store(y + at, (z * k_post).to(y.dtype.element_ty), mask=mask)
        red += tl.sum(z * _channels(weights, channel, live, 0.0), 1, keep_dims=True)
        if K >= 3:
            green += tl.sum(z * _channels(weights + c, channel, live, 0.0), 1, keep_dims=True)
            blue += tl.sum(z * _channels(weights + 2 * c, channel, live, 0.0), 1, keep_dims=True)
        if K == 4:
            alpha += tl.sum(z * _channels(weights + 3 * c, channel, live, 0.0), 1, keep_dims=True)
    to = rgb + (sample * p + position) * K
    tl.store(to, red, mask=position < p)
    if K >= 3:
        tl.store(to + 1, green, mask=position < p)
        tl.store(to + 2, blue, mask=position < p)
    if K == 4:
        tl.store(to + 3, alpha, mask=position < p)


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def _backward(
    dx, dstrength, dbias, dscale, dpost, dto_rgb,  # tables [pieces, C] of partial sums; strength: [programs]
    dy, x, drgb, to_rgb, noise, strength, bias, scale, post,
    slope: tl.float64, gain: tl.float64, clamp: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64,
    segments: tl.int32,  # segments of a sample's positions
    steps: tl.int64,  # loop steps in a segment
    tiles: tl.int32,  # tiles along the channels
    NOISE_PER_SAMPLE: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    ALIGN: tl.constexpr,
    R: tl.constexpr,
    F: tl.constexpr,
):  # fmt: skip
    c = c // ALIGN * ALIGN
    pid = tl.program_id(0)
    tile, outer = (pid % tiles).to(tl.int64), pid // tiles
    sample, segment = (outer // segments).to(tl.int64), (outer % segments).to(tl.int64)
    row = tl.arange(0, R)[:, None]  # [R, 1]
    channel = tile * F + tl.arange(0, F)[None, :]  # [1, F]
    live = channel < c
    slope, gain, clamp = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S), tl.full([1, 1], clamp, S)
    weights = to_rgb + sample * K * c
    k_bias = _channels(bias, channel, live, 0.0)
    k_scale = tl.load(scale + sample * c + channel, mask=live, other=0.0) if scale is not None else 1.0
    k_post = tl.load(post + sample * c + channel, mask=live, other=0.0) if dy is not None else 0.0
    k_strength = tl.load(strength) if strength is not None else 1.0
    k_red = _channels(weights, channel, live, 0.0)
    k_green = _channels(weights + c, channel, live, 0.0) if K >= 3 else 0.0
    k_blue = _channels(weights + 2 * c, channel, live, 0.0) if K >= 3 else 0.0
    k_alpha = _channels(weights + 3 * c, channel, live, 0.0) if K == 4 else 0.0
    zeros = tl.full([R, F], 0.0, S)
    sum_strength, sum_bias, sum_scale, sum_post = zeros, zeros, zeros, zeros
    sum_red, sum_green, sum_blue, sum_alpha = zeros, zeros, zeros, zeros

    begin = segment * steps * R
    for start in range(begin, tl.minimum(begin + steps * R, p), R):
        position = start + row  # [R, 1]
        there = position < p
        mask = live & there
        at = (sample * p + position) * c + channel  # [R, F]
        v_noise = tl.full([R, 1], 0.0, S)
        if noise is not None:
            v_noise = tl.load(noise + (sample * p if NOISE_PER_SAMPLE else 0) + position, mask=there, other=0.0)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        z, first = _activation(k_scale * v_x + (k_strength * v_noise + k_bias), slope, gain, clamp)
        pixel = drgb + (sample * p + position) * K
        v_red = tl.load(pixel, mask=there, other=0.0)
        dz = v_red * k_red
        sum_red += v_red * z
        if K >= 3:
            v_green, v_blue = tl.load(pixel + 1, mask=there, other=0.0), tl.load(pixel + 2, mask=there, other=0.0)
            dz += v_green * k_green + v_blue * k_blue
            sum_green += v_green * z
            sum_blue += v_blue * z
        if K == 4:
            v_alpha = tl.load(pixel + 3, mask=there, other=0.0)
            dz += v_alpha * k_alpha
            sum_alpha += v_alpha * z
        if dy is not None:
            v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
            dz += v_dy * k_post
            sum_post += v_dy * z
        du = dz * first
        tl.store(dx + at, (k_scale * du).to(dx.dtype.element_ty), mask=mask)
        sum_bias += du
        sum_strength += du * v_noise
        sum_scale += du * v_x

    of_piece = (sample * segments + segment) * c + channel
    if dbias is not None:
        tl.store(dbias + of_piece, tl.sum(sum_bias, 0, keep_dims=True), mask=live)
    if dscale is not None:
        tl.store(dscale + of_piece, tl.sum(sum_scale, 0, keep_dims=True), mask=live)
    if dpost is not None:
        tl.store(dpost + of_piece, tl.sum(sum_post, 0, keep_dims=True), mask=live)
    if dstrength is not None:
        tl.store(dstrength + pid, tl.sum(tl.where(live, sum_strength, 0.0)))
    if dto_rgb is not None:
        to = dto_rgb + (sample * segments + segment) * K * c + channel
        tl.store(to, tl.sum(sum_red, 0, keep_dims=True), mask=live)
        if K >= 3:
            tl.store(to + c, tl.sum(sum_green, 0, keep_dims=True), mask=live)
            tl.store(to + 2 * c, tl.sum(sum_blue, 0, keep_dims=True), mask=live)
        if K == 4:
            tl.store(to + 3 * c, tl.sum(sum_alpha, 0, keep_dims=True), mask=live)


@triton.jit(do_not_specialize=["segments", "width", "tiles"])
def _add_samples(
    table, out, segments: tl.int64, width: tl.int64, tiles: tl.int32, R: tl.constexpr, F: tl.constexpr
):  # fmt: skip
    """Sums [N, segments, width] over the segments."""
    pid = tl.program_id(0)
    sample, column = (pid // tiles).to(tl.int64), (pid % tiles).to(tl.int64) * F + tl.arange(0, F)[None, :]
    total = add_rows(table + sample * segments * width, segments, width, column, R, F)
    tl.store(out + sample * width + column, total, mask=column < width)


def forward(call: NoiseBiasActToRGBCall) -> None:
    plan = plan_of(View(call.n, call.c, call.p, True), call.dtype.itemsize, False)
    tiles = triton.cdiv(call.p, plan.rows)
    with torch.cuda.device_of(call.x):
        _forward[(call.n * tiles,)](
            call.y, call.rgb, call.x, call.to_rgb, call.noise, call.strength, call.bias, call.scale, call.post,
            call.slope, call.gain, call.clamp, call.n, call.c, call.p, tiles, NOISE_PER_SAMPLE=call.noise_per_sample,
            S=arithmetic(call.dtype), K=call.k, ALIGN=plan.align, R=plan.rows, F=plan.columns, **COMPILED,
        )  # fmt: skip


def backward(call: NoiseBiasActToRGBCall) -> None:
    n, c, k = call.n, call.c, call.k
    plan = plan_of(View(n, c, call.p, True), call.dtype.itemsize, True)
    tiles = triton.cdiv(c, plan.columns)
    steps = triton.cdiv(triton.cdiv(call.p, plan.rows), plan.segments)
    pieces, programs = n * plan.segments, n * plan.segments * tiles
    small = call.dstrength, call.dbias, call.dscale, call.dpost
    sizes = programs, pieces * c, pieces * c, pieces * c
    tables = [None if t is None else t.new_empty(size) for t, size in zip(small, sizes, strict=True)]
    to_rgb = None if call.dto_rgb is None else call.dto_rgb.new_empty(pieces * k * c)
    with torch.cuda.device_of(call.x):
        _backward[(programs,)](
            call.dx, *tables, to_rgb, call.dy, call.x, call.drgb, call.to_rgb, call.noise, call.strength, call.bias,
            call.scale, call.post, call.slope, call.gain, call.clamp, n, c, call.p, plan.segments, steps, tiles,
            NOISE_PER_SAMPLE=call.noise_per_sample, S=arithmetic(call.dtype), K=k, ALIGN=plan.align, R=plan.rows,
            F=plan.columns, **COMPILED,
        )  # fmt: skip
        if any(table is not None for table in tables):
            wide = triton.cdiv(c, 16)
            groups = 1 if tables[2] is None and tables[3] is None else 1 + n
            add_pieces[(groups * wide,)](
                *tables, *small, n, c, plan.segments, wide, programs,
                STRENGTH_PER_CHANNEL=False, R=128, F=16, **COMPILED,
            )  # fmt: skip
        if to_rgb is not None:
            wide = triton.cdiv(k * c, 16)
            _add_samples[(n * wide,)](to_rgb, call.dto_rgb, plan.segments, k * c, wide, R=128, F=16, **COMPILED)
    launch_noise_gradient(
        call, View(n, c, call.p, True), call.x, act="lrelu", drgb=call.drgb, to_rgb=call.to_rgb, k=k
    )  # fmt: skip
