"""Launchers of instance_norm (the basis of adain and style_epilogue), and its own Triton kernels.

If a tile holds all positions of some channels, one program does everything and reads once (`_whole_forward`,
`_whole_backward`). Otherwise the positions are cut into segments: the kernels of norm.py process them, and
`_merge_moments` and `_merge_sums` combine their results.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import NormCall, View
from fastgan_kernels.triton.norm import (
    COMPILED_UNFUSED,
    activated,
    aligned,
    input_gradients,
    load_noise,
    load_small,
    load_strength,
    normalise,
    options_of,
    positions_of_segment,
    segment_moments,
    segment_sums,
    sizes_of,
    store_sums,
    tile_place,
    tile_positions,
)
from fastgan_kernels.triton.tiles import Plan, add_pieces, plan_of

# Whole planes ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n", "c", "p", "tiles"])
def _whole_forward(
    y, statistics, x, noise, strength, bias, style_scale, style_bias,
    slope: tl.float64, gain: tl.float64, eps: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, tiles: tl.int32,
    NHWC: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    c, p = aligned(c, p, NHWC, ALIGN)
    AXIS: tl.constexpr = 0 if NHWC else 1
    ROWS: tl.constexpr = 1 if NHWC else R
    COLUMNS: tl.constexpr = F if NHWC else 1
    sample, _, channel, plane, live, base = tile_place(n, c, p, 1, tiles, NHWC, R, F)
    position, at, mask = tile_positions(tl.full([1, 1], 0, tl.int64), c, p, base, live, NHWC, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    v_noise = load_noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, NHWC, S)
    k_strength = load_strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, ROWS, COLUMNS)
    k_bias = load_small(bias, channel, live, 0.0, S, ROWS, COLUMNS)
    v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
    z, _ = activated(v_x, v_noise, k_strength, k_bias, slope, gain)

    # Two-step mean: of the elements, then of the deviations, which rounds little.
    mean = tl.sum(tl.where(mask, z, 0.0), AXIS, keep_dims=True) / p.to(S)
    mean += tl.sum(tl.where(mask, z - mean, 0.0), AXIS, keep_dims=True) / p.to(S)
    centred = tl.where(mask, z - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, AXIS, keep_dims=True) / p.to(S) + tl.full([1, 1], eps, S))
    tl.store(statistics + plane, mean, mask=live)
    tl.store(statistics + n * c + plane, inverse, mask=live)
    factor = load_small(style_scale, plane, live, 1.0, S, ROWS, COLUMNS) * inverse
    v_y = centred * factor + load_small(style_bias, plane, live, 0.0, S, ROWS, COLUMNS)
    tl.store(y + at, v_y.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n", "c", "p", "tiles"])
def _whole_backward(
    dx, dstrength, dbias, dstyle_scale, dstyle_bias,
    dy, x, statistics, noise, strength, bias, style_scale,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, tiles: tl.int32,
    NHWC: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    c, p = aligned(c, p, NHWC, ALIGN)
    AXIS: tl.constexpr = 0 if NHWC else 1
    ROWS: tl.constexpr = 1 if NHWC else R
    COLUMNS: tl.constexpr = F if NHWC else 1
    sample, segment, channel, plane, live, base = tile_place(n, c, p, 1, tiles, NHWC, R, F)
    position, at, mask = tile_positions(tl.full([1, 1], 0, tl.int64), c, p, base, live, NHWC, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    v_noise = load_noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, NHWC, S)
    k_strength = load_strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, ROWS, COLUMNS)
    k_bias = load_small(bias, channel, live, 0.0, S, ROWS, COLUMNS)
    v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
    v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
    mean = load_small(statistics, plane, live, 0.0, S, ROWS, COLUMNS)
    inverse = load_small(statistics, n * c + plane, live, 0.0, S, ROWS, COLUMNS)
    z, first = activated(v_x, v_noise, k_strength, k_bias, slope, gain)
    centred = tl.where(mask, z - mean, 0.0)
    centred -= tl.sum(centred, AXIS, keep_dims=True) / p.to(S)  # rounding error of the mean

    sums = tl.sum(v_dy, AXIS, keep_dims=True)
    products = tl.sum(v_dy * centred, AXIS, keep_dims=True)
    if dstyle_bias is not None:
        tl.store(dstyle_bias + plane, sums, mask=live)
    if dstyle_scale is not None:
        tl.store(dstyle_scale + plane, products * inverse, mask=live)
    factor = load_small(style_scale, plane, live, 1.0, S, ROWS, COLUMNS) * inverse
    du = first * (factor * (v_dy - sums / p.to(S) - centred * (products / p.to(S) * inverse * inverse)))
    if dx is not None:
        tl.store(dx + at, du.to(dx.dtype.element_ty), mask=mask)
    if dbias is not None or dstrength is not None:
        du = tl.where(mask, du, 0.0)
        store_sums(
            dstrength, dbias, du * v_noise, du, sample, segment, channel, 1, c, live, STRENGTH_PER_CHANNEL, AXIS
        )  # fmt: skip


# Merging segments ---------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "positions"])
def _merge_moments(
    statistics, means, squares, eps: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int64,
    positions: tl.int64,  # positions in a segment
    S: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64) * F + tl.arange(0, F)
    live = plane < n * c
    at = plane // c * segments * c + plane % c
    mean, square, count = tl.full([F], 0.0, S), tl.full([F], 0.0, S), tl.full([F], 0.0, S)
    for segment in range(0, segments):
        more = tl.load(means + at + segment * c, mask=live, other=0.0)
        added = tl.maximum(tl.minimum(p - segment * positions, positions), 0).to(S)
        deviation, share = more - mean, added / (count + added)
        mean += deviation * share
        square += tl.load(squares + at + segment * c, mask=live, other=0.0) + deviation * deviation * (count * share)
        count += added
    tl.store(statistics + plane, mean, mask=live)
    tl.store(statistics + n * c + plane, 1.0 / tl.sqrt(square / p.to(S) + tl.full([1], eps, S)), mask=live)


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
    total, total_products, mean_error = zeros, zeros, zeros
    for segment in range(0, segments):
        total += tl.load(sums + at + segment * c, mask=live, other=0.0)
        total_products += tl.load(products + at + segment * c, mask=live, other=0.0)
        mean_error += tl.load(distances + at + segment * c, mask=live, other=0.0)
    mean_error /= p.to(S)
    total_products -= mean_error * total
    tl.store(totals + plane, total, mask=live)
    tl.store(totals + n * c + plane, total_products, mask=live)
    tl.store(totals + 2 * n * c + plane, mean_error, mask=live)
    if dstyle_bias is not None:
        tl.store(dstyle_bias + plane, total, mask=live)
    if dstyle_scale is not None:
        inverse = tl.load(statistics + n * c + plane, mask=live, other=0.0)
        tl.store(dstyle_scale + plane, total_products * inverse, mask=live)


# Launching -----------------------------------------------------------------------------------------------------------

_FLAT = 128  # channels in a program that merges segments


@lru_cache(maxsize=4096)
def _whole_of(view: View, element_size: int, tensors: int) -> Plan | None:
    """The plan of a kernel that keeps `tensors` activations in registers; None if their positions do not fit."""
    n, c, p, nhwc = view
    nhwc = nhwc and p > 1
    fast = c if nhwc else p
    align = min(fast & -fast, 16)
    max_elements = 8192 // tensors  # 32 per thread over all tensors, with 8 warps
    all_positions = triton.next_power_of_2(p)
    if nhwc:
        rows, narrowest = all_positions, 32 // element_size  # one sector of memory
        columns = min(triton.next_power_of_2(c), max(narrowest, 1024 // rows))
        tiles = triton.cdiv(c, columns)
        programs = n * tiles
    else:
        columns, rows = all_positions, max(1, 1024 // all_positions)
        programs = tiles = triton.cdiv(n * c, rows)
    if rows * columns > max_elements:
        return None
    return Plan(nhwc, align, rows, columns, tiles, 1, 1, programs)


def forward(call: NormCall) -> None:
    n, c, p, x = call.n, call.c, call.p, call.x
    before = call.noise, call.strength, call.bias
    with torch.cuda.device_of(x):
        if whole := _whole_of(call[:4], call.dtype.itemsize, 1):
            _whole_forward[(whole.programs,)](
                call.y, call.statistics, x, *before, call.style_scale, call.style_bias, call.slope, call.gain, call.eps,
                n, c, p, whole.tiles, **options_of(call, whole),
            )  # fmt: skip
            return
        plan = plan_of(call[:4], call.dtype.itemsize, False)
        means, squares = call.statistics.new_empty(2, n * plan.segments, c)
        sizes, options = sizes_of(call, plan), options_of(call, plan)
        segment_moments[(plan.programs,)](means, squares, x, *before, call.slope, call.gain, *sizes, **options)
        _merge_moments[(triton.cdiv(n * c, _FLAT),)](
            call.statistics, means, squares, call.eps, n, c, p, plan.segments, positions_of_segment(plan),
            S=options["S"], F=_FLAT, **COMPILED_UNFUSED,
        )  # fmt: skip
        normalise[(plan.programs,)](
            call.y, x, call.statistics, *before, call.style_scale, call.style_bias, call.slope, call.gain, *sizes,
            BATCH=False, **options,
        )  # fmt: skip


def backward(call: NormCall) -> None:
    n, c, p, x, statistics = call.n, call.c, call.p, call.x, call.statistics
    before = call.noise, call.strength, call.bias
    whole = _whole_of(call[:4], call.dtype.itemsize, 2)
    plan = whole or plan_of(call[:4], call.dtype.itemsize, True)
    segments, programs = plan.segments, plan.programs
    sizes, options = sizes_of(call, plan), options_of(call, plan)
    # Partial sums, added up over samples in a second stage.
    table = lambda total, size: None if total is None else total.new_empty(size)
    biases = table(call.dbias, n * segments * c)
    strengths = table(call.dstrength, n * segments * c if call.strength_per_channel else programs)
    with torch.cuda.device_of(x):
        if whole:
            _whole_backward[(programs,)](
                call.dx, strengths, biases, call.dstyle_scale, call.dstyle_bias, call.dy, x, statistics, *before,
                call.style_scale, call.slope, call.gain, n, c, p, plan.tiles, **options,
            )  # fmt: skip
        else:
            rows = statistics.new_empty(3, n * segments, c)  # sums, products and distances
            totals = statistics.new_empty(3, n, c)
            segment_sums[(programs,)](
                *rows, call.dy, x, statistics, *before, None, None, call.slope, call.gain, *sizes,
                BATCH=False, **options,
            )  # fmt: skip
            _merge_sums[(triton.cdiv(n * c, _FLAT),)](
                totals, call.dstyle_scale, call.dstyle_bias, *rows, statistics, n, c, p, segments,
                S=options["S"], F=_FLAT, **COMPILED_UNFUSED,
            )  # fmt: skip
            if call.dx is not None or biases is not None or strengths is not None:
                input_gradients[(programs,)](
                    call.dx, strengths, biases, call.dy, x, statistics, totals, *before, call.style_scale, None,
                    call.slope, call.gain, *sizes, BATCH=False, **options,
                )  # fmt: skip
        if biases is not None or strengths is not None:
            tiles = triton.cdiv(c, 16)
            add_pieces[(tiles,)](
                strengths, biases, None, None, call.dstrength, call.dbias, None, None, n, c, segments, tiles, programs,
                STRENGTH_PER_CHANNEL=call.strength_per_channel, R=128, F=16, **COMPILED_UNFUSED,
            )  # fmt: skip
