"""Launchers of batch_norm_act in Triton. The signatures are those of `fastgan_kernels.signatures.BatchNormAct`.

    v = weight[c] * (x - mean[c]) * inverse[c] + bias[c],   y = v * (v > 0 ? gain : gain * slope)

The positions are cut into segments, as instance_norm's of many positions are, and what passes over activations are its
kernels. Only the merging of what they leave is another: it goes over the segments of all samples, of which there are
many, with many rows of them at a time.
"""

import torch
import triton
import triton.language as tl

from fastgan_kernels.extension import zero
from fastgan_kernels.instance_norm_triton import _gradients, _moments, _normalise, _sums
from fastgan_kernels.signatures import View
from fastgan_kernels.tiles_triton import WARPS, add_rows, plan_of

_R, _F = 128, 16  # pieces and channels of a tile where pieces are merged


@triton.jit(do_not_specialize=["c", "p", "pieces", "segments", "positions", "numbers"])
def _merge_moments(
    statistics, means, squares, eps: tl.float64,  # tables [pieces, C]
    c: tl.int64, p: tl.int64, pieces: tl.int64, segments: tl.int64,
    positions: tl.int64,  # of a segment
    numbers: tl.int64,
    S: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * F + tl.arange(0, F)[None, :]  # [1, F]
    live = channel < c
    total = tl.full([R, F], 0.0, S)
    for start in range(0, pieces, R):
        piece = start + tl.arange(0, R)[:, None]
        count = tl.maximum(tl.minimum(p - piece % segments * positions, positions), 0).to(S)  # a last one may be empty
        total += count * tl.load(means + piece * c + channel, mask=(piece < pieces) & live, other=0.0)
    mean = tl.sum(total, 0, keep_dims=True) / numbers.to(S)
    left, square = tl.full([R, F], 0.0, S), tl.full([R, F], 0.0, S)
    for start in range(0, pieces, R):
        piece = start + tl.arange(0, R)[:, None]
        mask = (piece < pieces) & live
        count = tl.maximum(tl.minimum(p - piece % segments * positions, positions), 0).to(S)
        apart = tl.where(mask, tl.load(means + piece * c + channel, mask=mask, other=0.0) - mean, 0.0)
        left += apart * count
        square += tl.load(squares + piece * c + channel, mask=mask, other=0.0) + apart * apart * count
    # The mean in two steps: of the numbers, then of what is left of them, whose sum hardly rounds.
    mean += tl.sum(left, 0, keep_dims=True) / numbers.to(S)
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
    rest = add_rows(distances, pieces, c, channel, R, F) / numbers.to(distances.dtype.element_ty)
    total_products = add_rows(products, pieces, c, channel, R, F) - rest * total
    tl.store(totals + channel, total, mask=live)
    tl.store(totals + c + channel, total_products, mask=live)
    tl.store(totals + 2 * c + channel, rest, mask=live)
    if dbias is not None:
        tl.store(dbias + channel, total, mask=live)
    if dweight is not None:
        inverse = tl.load(statistics + c + channel, mask=live, other=0.0)
        tl.store(dweight + channel, total_products * inverse, mask=live)


def _one_sample(view: View) -> View:
    """In NHWC the positions of all samples lie as those of a single one do."""
    return View(1, view.c, view.n * view.p, True) if view.pixels else view


def _cut(view: View, x: torch.Tensor, twice: bool) -> tuple:
    """How the work is cut up, and what the kernels that walk by it are told: sizes and options."""
    plan = plan_of(view, x.element_size(), twice)
    kind = tl.float64 if x.dtype == torch.float64 else tl.float32
    options = {
        "NOISE_PER_SAMPLE": False, "STRENGTH_PER_CHANNEL": False, "S": kind, "PIXELS": plan.pixels,
        "ALIGN": plan.align, "R": plan.rows, "F": plan.columns, "num_warps": WARPS, "enable_fp_fusion": False,
    }  # fmt: skip
    return plan, (view.n, view.c, view.p, plan.segments, plan.steps, plan.tiles), options


def forward(view, y, statistics, x, weight, bias, slope, gain, eps):
    if not y.numel():
        return
    view = _one_sample(view)
    n, c, p, _ = view
    plan, sizes, options = _cut(view, x, False)
    pieces, positions = n * plan.segments, plan.steps * (plan.rows if plan.pixels else plan.columns)
    means, squares = statistics.new_empty(2, pieces, c)
    with torch.cuda.device_of(x):
        _moments[(plan.programs,)](means, squares, x, None, None, None, 1.0, 1.0, *sizes, **options)
        _merge_moments[(triton.cdiv(c, _F),)](
            statistics, means, squares, eps, c, p, pieces, plan.segments, positions, n * p,
            S=options["S"], R=_R, F=_F, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
        _normalise[(plan.programs,)](
            y, x, statistics, None, None, None, weight, bias, slope, gain, *sizes, **options, BATCH=True
        )


def backward(view, dx, dweight, dbias, dy, x, statistics, weight, bias, slope, gain):
    if not x.numel():
        return zero(dweight, dbias)
    view = _one_sample(view)
    plan, sizes, options = _cut(view, x, True)
    pieces, c = view.n * plan.segments, view.c
    tables = statistics.new_empty(3, pieces, c)  # of sums, products and distances
    totals = statistics.new_empty(3, c)
    style = (None, None, None, weight, bias)
    with torch.cuda.device_of(x):
        _sums[(plan.programs,)](*tables, dy, x, statistics, *style, slope, gain, *sizes, **options, BATCH=True)
        _merge_sums[(triton.cdiv(c, _F),)](
            totals, dweight, dbias, *tables, statistics, c, pieces, view.n * view.p,
            R=_R, F=_F, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
        if dx is not None:
            _gradients[(plan.programs,)](
                dx, None, None, dy, x, statistics, totals, *style, slope, gain, *sizes, **options, BATCH=True
            )
