"""Launchers of instance_norm in Triton. The signatures are those of `fastgan_kernels.signatures.InstanceNorm`.

Most kernels serve batch_norm_act as well (BATCH; see `batch_norm_act_triton`).

    u = x + strength[c] * noise + bias[c],   z = u * (u > 0 ? gain : gain * slope)
    y = style_scale[n,c] * (z - mean[n,c]) * inverse[n,c] + style_bias[n,c]

Where a tile can hold all positions of some channels, one program does everything and reads once (`_whole_forward`,
`_whole_backward`). Otherwise the positions are cut into segments: a kernel leaves the moments or sums of each, a second
one merges them, and a third reads everything again. The formulas are those of csrc/norm/arithmetic.h.

Products are not contracted with sums here: all passes must see the same z (csrc/norm/arithmetic.h says why).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastgan_kernels.extension import zero
from fastgan_kernels.signatures import View
from fastgan_kernels.tiles_triton import WARPS, add_pieces, plan_of

# A tile, and what stands before the norm ------------------------------------------------------------------------------


@triton.jit
def _spot(n, c, p, segments, tiles, PIXELS: tl.constexpr, R: tl.constexpr, F: tl.constexpr):
    """Sample, segment, channel, plane (sample * C + channel), which of them are live, and where they begin."""
    pid = tl.program_id(0)
    tile = (pid % tiles).to(tl.int64)
    outer = pid // tiles
    if PIXELS:
        sample, segment = (outer // segments).to(tl.int64), (outer % segments).to(tl.int64)
        channel = tile * F + tl.arange(0, F)[None, :]  # [1, F]
        plane = sample * c + channel
        live = channel < c
        base = sample * p * c + channel
    else:
        segment = outer.to(tl.int64)
        plane = tile * R + tl.arange(0, R)[:, None]  # [R, 1]
        sample, channel = plane // c, plane % c
        live = plane < n * c
        base = plane * p
    return sample, segment, channel, plane, live, base


@triton.jit
def _at(start, c, p, base, live, PIXELS: tl.constexpr, R: tl.constexpr, F: tl.constexpr):
    """The positions of a tile, its addresses and its mask."""
    if PIXELS:
        position = start + tl.arange(0, R)[:, None]  # [R, 1]
        at = base + position * c
    else:
        position = start + tl.arange(0, F)[None, :]  # [1, F]
        at = base + position
    return position, at, live & (position < p)


@triton.jit
def _small(table, at, live, absent: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A small tensor at channels or planes [1, F] or [R, 1], as [ROWS, COLUMNS]."""
    if table is None:
        value = tl.full([1, 1], absent, S)
    else:
        at, live = tl.broadcast_to(at, [ROWS, COLUMNS]), tl.broadcast_to(live, [ROWS, COLUMNS])
        value = tl.load(table + at, mask=live, other=0.0)
    return value


@triton.jit
def _strength(
    table, channel, live, PER_CHANNEL: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    if PER_CHANNEL:
        value = _small(table, channel, live, 1.0, S, ROWS, COLUMNS)
    elif table is None:
        value = tl.full([1, 1], 1.0, S)
    else:
        value = tl.full([1, 1], 0.0, S) + tl.load(table)
    return value


@triton.jit
def _noise(noise, sample, position, p, mask, PER_SAMPLE: tl.constexpr, PIXELS: tl.constexpr, S: tl.constexpr):
    if noise is None:
        value = tl.full([1, 1], 0.0, S)
    else:
        at = sample * p + position if PER_SAMPLE else position
        value = tl.load(noise + at, mask=position < p if PIXELS else mask, other=0.0)
    return value


@triton.jit
def _activated(x, noise, strength, bias, slope, gain):
    """gain * act(u), and its derivative."""
    return piecewise_linear(x + (strength * noise + bias), slope, gain)


@triton.jit
def piecewise_linear(u, slope, gain):
    """gain * act(u), and its derivative."""
    first = tl.where(u > 0, gain, gain * slope)
    return u * first, first


@triton.jit
def _row(plane, channel, n, c, p, BATCH: tl.constexpr):
    """What is normalised for itself: a plane, or all planes of a channel; how many there are, and numbers of each."""
    if BATCH:
        row, rows, numbers = channel, c, n * p
    else:
        row, rows, numbers = plane, n * c, p
    return row, rows, numbers


# Everything in one program --------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n", "c", "p", "tiles"])
def _whole_forward(
    y, statistics, x, noise, strength, bias, style_scale, style_bias,
    slope: tl.float64, gain: tl.float64, eps: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, tiles: tl.int32,
    PIXELS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    if PIXELS:
        c = c // ALIGN * ALIGN
    else:
        p = p // ALIGN * ALIGN
    AXIS: tl.constexpr = 0 if PIXELS else 1
    ROWS: tl.constexpr = 1 if PIXELS else R
    COLUMNS: tl.constexpr = F if PIXELS else 1
    sample, _, channel, plane, live, base = _spot(n, c, p, 1, tiles, PIXELS, R, F)
    position, at, mask = _at(tl.full([1, 1], 0, tl.int64), c, p, base, live, PIXELS, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    v_noise = _noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, PIXELS, S)
    k_strength = _strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, ROWS, COLUMNS)
    k_bias = _small(bias, channel, live, 0.0, S, ROWS, COLUMNS)
    v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
    z, _ = _activated(v_x, v_noise, k_strength, k_bias, slope, gain)

    # The mean in two steps: of the numbers, then of what is left of them, whose sum hardly rounds.
    mean = tl.sum(tl.where(mask, z, 0.0), AXIS, keep_dims=True) / p.to(S)
    mean += tl.sum(tl.where(mask, z - mean, 0.0), AXIS, keep_dims=True) / p.to(S)
    centred = tl.where(mask, z - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, AXIS, keep_dims=True) / p.to(S) + tl.full([1, 1], eps, S))
    tl.store(statistics + plane, mean, mask=live)
    tl.store(statistics + n * c + plane, inverse, mask=live)
    factor = _small(style_scale, plane, live, 1.0, S, ROWS, COLUMNS) * inverse
    v_y = centred * factor + _small(style_bias, plane, live, 0.0, S, ROWS, COLUMNS)
    tl.store(y + at, v_y.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _leave(
    dstrength, dbias, sum_strength, sum_bias, sample, segment, channel, segments, c, live,
    PER_CHANNEL: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """What a program leaves for the sums over samples: tables [pieces, C]; of a shared strength [program]."""
    of_piece = (sample * segments + segment) * c + channel
    if dbias is not None:
        tl.store(dbias + of_piece, tl.sum(sum_bias, AXIS, keep_dims=True), mask=live)
    if dstrength is not None:
        if PER_CHANNEL:
            tl.store(dstrength + of_piece, tl.sum(sum_strength, AXIS, keep_dims=True), mask=live)
        else:
            tl.store(dstrength + tl.program_id(0), tl.sum(sum_strength))


@triton.jit(do_not_specialize=["n", "c", "p", "tiles"])
def _whole_backward(
    dx, dstrength, dbias, dstyle_scale, dstyle_bias,
    dy, x, statistics, noise, strength, bias, style_scale,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, tiles: tl.int32,
    PIXELS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    if PIXELS:
        c = c // ALIGN * ALIGN
    else:
        p = p // ALIGN * ALIGN
    AXIS: tl.constexpr = 0 if PIXELS else 1
    ROWS: tl.constexpr = 1 if PIXELS else R
    COLUMNS: tl.constexpr = F if PIXELS else 1
    sample, segment, channel, plane, live, base = _spot(n, c, p, 1, tiles, PIXELS, R, F)
    position, at, mask = _at(tl.full([1, 1], 0, tl.int64), c, p, base, live, PIXELS, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    v_noise = _noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, PIXELS, S)
    k_strength = _strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, ROWS, COLUMNS)
    k_bias = _small(bias, channel, live, 0.0, S, ROWS, COLUMNS)
    v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
    v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
    mean = _small(statistics, plane, live, 0.0, S, ROWS, COLUMNS)
    inverse = _small(statistics, n * c + plane, live, 0.0, S, ROWS, COLUMNS)
    z, first = _activated(v_x, v_noise, k_strength, k_bias, slope, gain)
    centred = tl.where(mask, z - mean, 0.0)
    centred -= tl.sum(centred, AXIS, keep_dims=True) / p.to(S)  # what rounding left of the mean

    sums = tl.sum(v_dy, AXIS, keep_dims=True)
    products = tl.sum(v_dy * centred, AXIS, keep_dims=True)
    if dstyle_bias is not None:
        tl.store(dstyle_bias + plane, sums, mask=live)
    if dstyle_scale is not None:
        tl.store(dstyle_scale + plane, products * inverse, mask=live)
    factor = _small(style_scale, plane, live, 1.0, S, ROWS, COLUMNS) * inverse
    du = first * (factor * (v_dy - sums / p.to(S) - centred * (products / p.to(S) * inverse * inverse)))
    if dx is not None:
        tl.store(dx + at, du.to(dx.dtype.element_ty), mask=mask)
    if dbias is not None or dstrength is not None:
        du = tl.where(mask, du, 0.0)
        _leave(
            dstrength, dbias, du * v_noise, du, sample, segment, channel, 1, c, live, STRENGTH_PER_CHANNEL, AXIS
        )  # fmt: skip


# In segments ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def _moments(
    means, squares,  # tables [piece, C]
    x, noise, strength, bias,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int32, steps: tl.int64, tiles: tl.int32,
    PIXELS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Mean, and sum of the squares of the distances from it, of each segment (Welford 1962; Chan et al. 1983)."""
    if PIXELS:
        c = c // ALIGN * ALIGN
    else:
        p = p // ALIGN * ALIGN
    AXIS: tl.constexpr = 0 if PIXELS else 1
    STEP: tl.constexpr = R if PIXELS else F
    COLUMNS: tl.constexpr = F if PIXELS else 1
    sample, segment, channel, plane, live, base = _spot(n, c, p, segments, tiles, PIXELS, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    # In NHWC small tensors are loaded as whole tiles, to lie as the activations do (see noise_bias_act_triton).
    k_strength = _strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, R, COLUMNS)
    k_bias = _small(bias, channel, live, 0.0, S, R, COLUMNS)
    mean, square, count = tl.full([R, F], 0.0, S), tl.full([R, F], 0.0, S), tl.full([R, F], 0.0, S)
    begin = segment * steps * STEP
    end = tl.minimum(begin + steps * STEP, p)
    for start in range(begin, end, STEP):
        position, at, mask = _at(start, c, p, base, live, PIXELS, R, F)
        v_noise = _noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, PIXELS, S)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        z, _ = _activated(v_x, v_noise, k_strength, k_bias, slope, gain)
        share = 1.0 / ((start - begin) // STEP + 1).to(S)  # of one number among those so far
        distance = tl.where(mask, z - mean, 0.0)
        mean += distance * share
        square += distance * tl.where(mask, z - mean, 0.0)
        count += tl.where(mask, 1.0, 0.0).to(S)
    numbers = tl.maximum(end - begin, 1).to(S)  # a last segment may be empty
    of_segment = tl.sum(mean * count, AXIS, keep_dims=True) / numbers
    of_segment += tl.sum(tl.where(count > 0, mean - of_segment, 0.0) * count, AXIS, keep_dims=True) / numbers
    apart = tl.where(count > 0, mean - of_segment, 0.0)
    total = tl.sum(square + apart * apart * count, AXIS, keep_dims=True)
    of_piece = (sample * segments + segment) * c + channel
    tl.store(means + of_piece, of_segment, mask=live)
    tl.store(squares + of_piece, total, mask=live)


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "positions"])
def _merge_moments(
    statistics, means, squares, eps: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int64,
    positions: tl.int64,  # of a segment
    S: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64) * F + tl.arange(0, F)
    live = plane < n * c
    at = plane // c * segments * c + plane % c
    mean, square, count = tl.full([F], 0.0, S), tl.full([F], 0.0, S), tl.full([F], 0.0, S)
    for segment in range(0, segments):
        more = tl.load(means + at + segment * c, mask=live, other=0.0)
        added = tl.maximum(tl.minimum(p - segment * positions, positions), 0).to(S)
        apart, share = more - mean, added / (count + added)
        mean += apart * share
        square += tl.load(squares + at + segment * c, mask=live, other=0.0) + apart * apart * (count * share)
        count += added
    tl.store(statistics + plane, mean, mask=live)
    tl.store(statistics + n * c + plane, 1.0 / tl.sqrt(square / p.to(S) + tl.full([1], eps, S)), mask=live)


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def _normalise(
    y, x, statistics, noise, strength, bias, style_scale, style_bias,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int32, steps: tl.int64, tiles: tl.int32,
    PIXELS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    if PIXELS:
        c = c // ALIGN * ALIGN
    else:
        p = p // ALIGN * ALIGN
    STEP: tl.constexpr = R if PIXELS else F
    COLUMNS: tl.constexpr = F if PIXELS else 1
    sample, segment, channel, plane, live, base = _spot(n, c, p, segments, tiles, PIXELS, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    k_strength = _strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, R, COLUMNS)
    k_bias = _small(bias, channel, live, 0.0, S, R, COLUMNS)
    row, rows, numbers = _row(plane, channel, n, c, p, BATCH)
    mean = _small(statistics, row, live, 0.0, S, R, COLUMNS)
    inverse = _small(statistics, rows + row, live, 0.0, S, R, COLUMNS)
    factor = _small(style_scale, row, live, 1.0, S, R, COLUMNS) * inverse
    shift = _small(style_bias, row, live, 0.0, S, R, COLUMNS)
    begin = segment * steps * STEP
    for start in range(begin, tl.minimum(begin + steps * STEP, p), STEP):
        position, at, mask = _at(start, c, p, base, live, PIXELS, R, F)
        v_noise = _noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, PIXELS, S)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        if BATCH:
            v_y, _ = piecewise_linear((v_x - mean) * factor + shift, slope, gain)
        else:
            z, _ = _activated(v_x, v_noise, k_strength, k_bias, slope, gain)
            v_y = (z - mean) * factor + shift
        tl.store(y + at, v_y.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def _sums(
    sums, products, distances,  # tables [piece, C]
    dy, x, statistics, noise, strength, bias, style_scale, style_bias,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int32, steps: tl.int64, tiles: tl.int32,
    PIXELS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """Sums of dy, of dy * (z - mean) and of z - mean of each segment."""
    if PIXELS:
        c = c // ALIGN * ALIGN
    else:
        p = p // ALIGN * ALIGN
    AXIS: tl.constexpr = 0 if PIXELS else 1
    STEP: tl.constexpr = R if PIXELS else F
    COLUMNS: tl.constexpr = F if PIXELS else 1
    sample, segment, channel, plane, live, base = _spot(n, c, p, segments, tiles, PIXELS, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    k_strength = _strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, R, COLUMNS)
    k_bias = _small(bias, channel, live, 0.0, S, R, COLUMNS)
    row, rows, numbers = _row(plane, channel, n, c, p, BATCH)
    mean = _small(statistics, row, live, 0.0, S, R, COLUMNS)
    if BATCH:
        inverse = _small(statistics, rows + row, live, 0.0, S, R, COLUMNS)
        factor = _small(style_scale, row, live, 1.0, S, R, COLUMNS) * inverse
        shift = _small(style_bias, row, live, 0.0, S, R, COLUMNS)
    zeros = tl.full([R, F], 0.0, S)
    total, total_products, total_distances = zeros, zeros, zeros
    begin = segment * steps * STEP
    for start in range(begin, tl.minimum(begin + steps * STEP, p), STEP):
        position, at, mask = _at(start, c, p, base, live, PIXELS, R, F)
        v_noise = _noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, PIXELS, S)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
        if BATCH:
            z = v_x
            _, after = piecewise_linear((z - mean) * factor + shift, slope, gain)
            v_dy *= after
        else:
            z, _ = _activated(v_x, v_noise, k_strength, k_bias, slope, gain)
        distance = z - mean
        total_distances += tl.where(mask, distance, 0.0)
        total_products += v_dy * distance
        total += v_dy
    of_piece = (sample * segments + segment) * c + channel
    tl.store(sums + of_piece, tl.sum(total, AXIS, keep_dims=True), mask=live)
    tl.store(products + of_piece, tl.sum(total_products, AXIS, keep_dims=True), mask=live)
    tl.store(distances + of_piece, tl.sum(total_distances, AXIS, keep_dims=True), mask=live)


@triton.jit(do_not_specialize=["n", "c", "p", "segments"])
def _merge_sums(
    totals,  # [3, N, C]: T1, T2, T3 / P
    dstyle_scale, dstyle_bias, sums, products, distances, statistics,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int64,
    S: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64) * F + tl.arange(0, F)
    live = plane < n * c
    at = plane // c * segments * c + plane % c
    zeros = tl.full([F], 0.0, S)
    total, total_products, rest = zeros, zeros, zeros
    for segment in range(0, segments):
        total += tl.load(sums + at + segment * c, mask=live, other=0.0)
        total_products += tl.load(products + at + segment * c, mask=live, other=0.0)
        rest += tl.load(distances + at + segment * c, mask=live, other=0.0)
    rest /= p.to(S)  # what rounding left of the mean
    total_products -= rest * total
    tl.store(totals + plane, total, mask=live)
    tl.store(totals + n * c + plane, total_products, mask=live)
    tl.store(totals + 2 * n * c + plane, rest, mask=live)
    if dstyle_bias is not None:
        tl.store(dstyle_bias + plane, total, mask=live)
    if dstyle_scale is not None:
        inverse = tl.load(statistics + n * c + plane, mask=live, other=0.0)
        tl.store(dstyle_scale + plane, total_products * inverse, mask=live)


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def _gradients(
    dx, dstrength, dbias,
    dy, x, statistics, totals, noise, strength, bias, style_scale, style_bias,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int32, steps: tl.int64, tiles: tl.int32,
    PIXELS: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    if PIXELS:
        c = c // ALIGN * ALIGN
    else:
        p = p // ALIGN * ALIGN
    AXIS: tl.constexpr = 0 if PIXELS else 1
    STEP: tl.constexpr = R if PIXELS else F
    COLUMNS: tl.constexpr = F if PIXELS else 1
    sample, segment, channel, plane, live, base = _spot(n, c, p, segments, tiles, PIXELS, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    k_strength = _strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, R, COLUMNS)
    k_bias = _small(bias, channel, live, 0.0, S, R, COLUMNS)
    row, rows, numbers = _row(plane, channel, n, c, p, BATCH)
    mean = _small(statistics, row, live, 0.0, S, R, COLUMNS)
    inverse = _small(statistics, rows + row, live, 0.0, S, R, COLUMNS)
    factor = _small(style_scale, row, live, 1.0, S, R, COLUMNS) * inverse
    if BATCH:
        shift = _small(style_bias, row, live, 0.0, S, R, COLUMNS)
    tilt = _small(totals, rows + row, live, 0.0, S, R, COLUMNS) / numbers.to(S) * inverse * inverse
    level = _small(totals, row, live, 0.0, S, R, COLUMNS) / numbers.to(S)
    level -= _small(totals, 2 * rows + row, live, 0.0, S, R, COLUMNS) * tilt
    sum_bias, sum_strength = tl.full([R, F], 0.0, S), tl.full([R, F], 0.0, S)
    begin = segment * steps * STEP
    for start in range(begin, tl.minimum(begin + steps * STEP, p), STEP):
        position, at, mask = _at(start, c, p, base, live, PIXELS, R, F)
        v_noise = _noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, PIXELS, S)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
        if BATCH:
            z = v_x
            _, after = piecewise_linear((z - mean) * factor + shift, slope, gain)
            du = factor * (v_dy * after - level - (z - mean) * tilt)
        else:
            z, first = _activated(v_x, v_noise, k_strength, k_bias, slope, gain)
            du = first * (factor * (v_dy - level - (z - mean) * tilt))
        if dx is not None:
            tl.store(dx + at, du.to(dx.dtype.element_ty), mask=mask)
        if dbias is not None or dstrength is not None:
            du = tl.where(mask, du, 0.0)
            sum_bias += du
            if dstrength is not None:
                sum_strength += du * v_noise
    _leave(
        dstrength, dbias, sum_strength, sum_bias, sample, segment, channel, segments, c, live,
        STRENGTH_PER_CHANNEL, AXIS,
    )  # fmt: skip


# Launching -----------------------------------------------------------------------------------------------------------

_FLAT = 128  # channels of a program that merges segments


class _Whole(NamedTuple):
    """A tile that holds all positions; names as in the kernels."""

    pixels: bool
    align: int
    rows: int
    columns: int
    tiles: int
    programs: int
    warps: int


@lru_cache(maxsize=4096)
def _whole_of(view: View, element_size: int, tensors: int) -> _Whole | None:
    """The tile of a kernel that reads `tensors` activations once; None where registers do not suffice for that."""
    n, c, p, pixels = view
    pixels = pixels and p > 1
    fast = c if pixels else p
    align = min(fast & -fast, 16)
    most = 8192 // tensors  # elements: 32 a thread of all tensors, with 8 warps
    all_positions = triton.next_power_of_2(p)
    if pixels:
        rows, narrowest = all_positions, 32 // element_size  # bytes that memory delivers at once
        columns = min(triton.next_power_of_2(c), max(narrowest, 1024 // rows))
        tiles = triton.cdiv(c, columns)
        programs = n * tiles
    else:
        columns, rows = all_positions, max(1, 1024 // all_positions)
        programs = tiles = triton.cdiv(n * c, rows)
    if rows * columns > most:
        return None
    return _Whole(pixels, align, rows, columns, tiles, programs, 8 if rows * columns > 1024 else 4)


def _compiled(warps: int) -> dict:
    return {"num_warps": warps, "enable_fp_fusion": False}


def _kinds(x, noise, strength):
    return {
        "NOISE_PER_SAMPLE": noise is not None and noise.shape[0] > 1,
        "STRENGTH_PER_CHANNEL": strength is not None and strength.dim() > 0,
        "S": tl.float64 if x.dtype == torch.float64 else tl.float32,
    }


def _tile(plan) -> dict:
    return {"PIXELS": plan.pixels, "ALIGN": plan.align, "R": plan.rows, "F": plan.columns}


def forward(view, y, statistics, x, noise, strength, bias, style_scale, style_bias, slope, gain, eps):
    if not y.numel():
        return
    n, c, p, _ = view
    before, kinds = (noise, strength, bias), _kinds(x, noise, strength)
    with torch.cuda.device_of(x):
        if whole := _whole_of(view, x.element_size(), 1):
            _whole_forward[(whole.programs,)](
                y, statistics, x, *before, style_scale, style_bias, slope, gain, eps, n, c, p, whole.tiles,
                **kinds, **_tile(whole), **_compiled(whole.warps),
            )  # fmt: skip
            return
        plan = plan_of(view, x.element_size(), False)
        means, squares = statistics.new_empty(2, n * plan.segments, c)
        cut = (n, c, p, plan.segments, plan.steps, plan.tiles)
        options = {**kinds, **_tile(plan), **_compiled(WARPS)}
        _moments[(plan.programs,)](means, squares, x, *before, slope, gain, *cut, **options)
        _merge_moments[(triton.cdiv(n * c, _FLAT),)](
            statistics, means, squares, eps, n, c, p, plan.segments, _positions(plan),
            S=kinds["S"], F=_FLAT, **_compiled(WARPS),
        )  # fmt: skip
        _normalise[(plan.programs,)](
            y, x, statistics, *before, style_scale, style_bias, slope, gain, *cut, BATCH=False, **options
        )  # fmt: skip


def backward(
    view, dx, dstrength, dbias, dstyle_scale, dstyle_bias, dy, x, statistics,
    noise, strength, bias, style_scale, slope, gain, eps,
):  # fmt: skip
    if not x.numel():
        return zero(dstrength, dbias, dstyle_scale, dstyle_bias)
    n, c, p, _ = view
    before, kinds = (noise, strength, bias), _kinds(x, noise, strength)
    whole = _whole_of(view, x.element_size(), 2)
    plan = plan_of(view, x.element_size(), True)
    segments, programs, tiles = (
        (1, whole.programs, whole.tiles) if whole else (plan.segments, plan.programs, plan.tiles)
    )
    # The sums over samples in two stages.
    table = lambda total, size: None if total is None else total.new_empty(size)
    biases = table(dbias, n * segments * c)
    strengths = table(dstrength, n * segments * c if kinds["STRENGTH_PER_CHANNEL"] else programs)
    with torch.cuda.device_of(x):
        if whole:
            _whole_backward[(programs,)](
                dx, strengths, biases, dstyle_scale, dstyle_bias, dy, x, statistics, *before, style_scale,
                slope, gain, n, c, p, tiles, **kinds, **_tile(whole), **_compiled(whole.warps),
            )  # fmt: skip
        else:
            sums, products, distances = statistics.new_empty(3, n * segments, c)
            totals = statistics.new_empty(3, n, c)
            cut = (n, c, p, segments, plan.steps, tiles)
            options = {**kinds, **_tile(plan), **_compiled(WARPS)}
            _sums[(programs,)](
                sums, products, distances, dy, x, statistics, *before, None, None, slope, gain, *cut,
                BATCH=False, **options,
            )  # fmt: skip
            _merge_sums[(triton.cdiv(n * c, _FLAT),)](
                totals, dstyle_scale, dstyle_bias, sums, products, distances, statistics, n, c, p, segments,
                S=kinds["S"], F=_FLAT, **_compiled(WARPS),
            )  # fmt: skip
            if dx is not None or biases is not None or strengths is not None:
                _gradients[(programs,)](
                    dx, strengths, biases, dy, x, statistics, totals, *before, style_scale, None,
                    slope, gain, *cut, BATCH=False, **options,
                )  # fmt: skip
        if biases is not None or strengths is not None:
            add_pieces[(triton.cdiv(c, 16),)](
                strengths, biases, None, None, dstrength, dbias, None, None,
                n, c, segments, triton.cdiv(c, 16), programs,
                STRENGTH_PER_CHANNEL=kinds["STRENGTH_PER_CHANNEL"], R=128, F=16, **_compiled(WARPS),
            )  # fmt: skip


def _positions(plan) -> int:
    """Of a segment."""
    return plan.steps * (plan.rows if plan.pixels else plan.columns)
