"""Launchers of batch_norm_act, and its own Triton kernels.

    v = weight[c] * (x - mean[c]) * inverse[c] + bias[c],   y = v * (v > 0 ? gain : gain * slope)

The kernels of norm.py process the activations in segments. The results of the segments of all samples are then merged,
many at a time; instance_norm.py merges those of each sample.
"""

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import NormCall
from fastgan_kernels.triton.norm import (
    COMPILED_UNFUSED,
    input_gradients,
    normalise,
    options_of,
    positions_of_segment,
    segment_moments,
    segment_sums,
    sizes_of,
)
from fastgan_kernels.triton.tiles import add_rows, plan_of

_R, _F = 128, 16  # pieces and channels of a tile where pieces are merged


@triton.jit(do_not_specialize=["c", "p", "pieces", "segments", "positions", "numbers"])
def _merge_moments(
    statistics, means, squares, eps: tl.float64,  # tables [pieces, C]
    c: tl.int64, p: tl.int64, pieces: tl.int64, segments: tl.int64,
    positions: tl.int64,  # positions in a segment
    numbers: tl.int64,
    S: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * F + tl.arange(0, F)[None, :]  # [1, F]
    live = channel < c
    total = tl.full([R, F], 0.0, S)
    for start in range(0, pieces, R):
        piece = start + tl.arange(0, R)[:, None]
        count = tl.maximum(tl.minimum(p - piece % segments * positions, positions), 0).to(S)  # the last may be empty
        total += count * tl.load(means + piece * c + channel, mask=(piece < pieces) & live, other=0.0)
    mean = tl.sum(total, 0, keep_dims=True) / numbers.to(S)
    deviations, square = tl.full([R, F], 0.0, S), tl.full([R, F], 0.0, S)
    for start in range(0, pieces, R):
        piece = start + tl.arange(0, R)[:, None]
        mask = (piece < pieces) & live
        count = tl.maximum(tl.minimum(p - piece % segments * positions, positions), 0).to(S)
        deviation = tl.where(mask, tl.load(means + piece * c + channel, mask=mask, other=0.0) - mean, 0.0)
        deviations += deviation * count
        square += tl.load(squares + piece * c + channel, mask=mask, other=0.0) + deviation * deviation * count
    # Two-step mean: of all elements, then of the deviations, which rounds little.
    mean += tl.sum(deviations, 0, keep_dims=True) / numbers.to(S)
    total_square = tl.sum(square, 0, keep_dims=True)
    tl.store(statistics + channel, mean, mask=live)
    inverse = 1.0 / tl.sqrt(total_square / numbers.to(S) + tl.full([1, 1], eps, S))
    tl.store(statistics + c + channel, inverse, mask=live)
    tl.store(statistics + 2 * c + channel, total_square / (numbers - 1).to(S), mask=live)


@triton.jit(do_not_specialize=["c", "pieces", "numbers"])
def _merge_sums(
    totals,  # [3, C]: T1, T2, T3 / P
    dweight, dbias, sums, products, distances, statistics,
    c: tl.int64, pieces: tl.int64, numbers: tl.int64,
    R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * F + tl.arange(0, F)[None, :]  # [1, F]
    live = channel < c
    total = add_rows(sums, pieces, c, channel, R, F)
    mean_error = add_rows(distances, pieces, c, channel, R, F) / numbers.to(distances.dtype.element_ty)
    total_products = add_rows(products, pieces, c, channel, R, F) - mean_error * total
    tl.store(totals + channel, total, mask=live)
    tl.store(totals + c + channel, total_products, mask=live)
    tl.store(totals + 2 * c + channel, mean_error, mask=live)
    if dbias is not None:
        tl.store(dbias + channel, total, mask=live)
    if dweight is not None:
        inverse = tl.load(statistics + c + channel, mask=live, other=0.0)
        tl.store(dweight + channel, total_products * inverse, mask=live)


def forward(call: NormCall) -> None:
    x, c, statistics = call.x, call.c, call.statistics
    plan = plan_of(call[:4], call.dtype.itemsize, False)
    sizes, options = sizes_of(call, plan), options_of(call, plan)
    pieces = call.n * plan.segments
    means, squares = statistics.new_empty(2, pieces, c)
    with torch.cuda.device_of(x):
        segment_moments[(plan.programs,)](means, squares, x, None, None, None, 1.0, 1.0, *sizes, **options)
        _merge_moments[(triton.cdiv(c, _F),)](
            statistics, means, squares, call.eps, c, call.p, pieces, plan.segments, positions_of_segment(plan),
            call.n * call.p, S=options["S"], R=_R, F=_F, **COMPILED_UNFUSED,
        )  # fmt: skip
        style = (None, None, None, call.style_scale, call.style_bias)
        normalise[(plan.programs,)](
            call.y, x, statistics, *style, call.slope, call.gain, *sizes, **options, BATCH=True
        )  # fmt: skip


def backward(call: NormCall) -> None:
    x, c, statistics = call.x, call.c, call.statistics
    plan = plan_of(call[:4], call.dtype.itemsize, True)
    sizes, options = sizes_of(call, plan), options_of(call, plan)
    pieces = call.n * plan.segments
    rows = statistics.new_empty(3, pieces, c)  # sums, products and distances
    totals = statistics.new_empty(3, c)
    style = (None, None, None, call.style_scale, call.style_bias)
    with torch.cuda.device_of(x):
        segment_sums[(plan.programs,)](
            *rows, call.dy, x, statistics, *style, call.slope, call.gain, *sizes, **options, BATCH=True
        )  # fmt: skip
        _merge_sums[(triton.cdiv(c, _F),)](
            totals, call.dstyle_scale, call.dstyle_bias, *rows, statistics, c, pieces, call.n * call.p,
            R=_R, F=_F, **COMPILED_UNFUSED,
        )  # fmt: skip
        if call.dx is not None:
            input_gradients[(plan.programs,)](
                call.dx, None, None, call.dy, x, statistics, totals, *style, call.slope, call.gain, *sizes, **options,
                BATCH=True,
            )  # fmt: skip
