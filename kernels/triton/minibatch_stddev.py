"""Triton kernels of minibatch_stddev.

Samples n = g * groups + m, g = 0 .. size-1, are the members of group m. With v = x - mean over the members and
s = sqrt(mean of v^2 + 1e-8) at every place, the maps appended are means of s over the channels of a feature and all
positions.

A program takes some places of a feature, in all members of a group. Sums are taken in two stages, each in a fixed
order: no atomics, the same bits every time. csrc/minibatch_stddev/arithmetic.h derives the formulas.
"""

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import MinibatchStddevCall
from fastgan_kernels.triton.tiles import COMPILED, arithmetic

_EPS = tl.constexpr(1e-8)


@triton.jit(do_not_specialize=["n", "c", "p", "size", "features", "pieces"])
def _walk(
    partial,  # partial sums
    dx, x,
    d,  # dy; with ORDER 2 gx
    k,  # [groups, features]: coefficient of v / s in dx
    n: tl.int64, c: tl.int64, p: tl.int64, size: tl.int64, features: tl.int64,
    pieces: tl.int32,  # pieces of a feature's places
    ORDER: tl.constexpr,  # 0 forward, 1 backward, 2 double backward
    NHWC: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic
    B: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    which = (pid // pieces).to(tl.int64)
    groups = n // size
    group, feature, channels = which // features, which % features, c // features
    i = (pid % pieces).to(tl.int64) * B + tl.arange(0, B)
    mask = i < channels * p
    x_member = groups * c * p
    at = i // channels * c + feature * channels + i % channels if NHWC else feature * channels * p + i
    p_x = x + group * c * p + at
    d_all = c + features if ORDER == 1 else c  # channels of d
    d_member = groups * d_all * p
    at_d = at
    if NHWC and ORDER == 1:
        at_d = at + i // channels * features
    share = 1.0 / size.to(S)

    mean = tl.full([B], 0.0, S)
    for g in range(0, size):
        mean += tl.load(p_x + g * x_member, mask=mask, other=0.0).to(S)
    mean *= share
    # The rounding error of the mean matters where the members are nearly equal: it is subtracted as well.
    rest = tl.full([B], 0.0, S)
    for g in range(0, size):
        rest += tl.load(p_x + g * x_member, mask=mask, other=0.0).to(S) - mean
    rest *= share
    square = tl.full([B], 0.0, S)
    for g in range(0, size):
        v = tl.load(p_x + g * x_member, mask=mask, other=0.0).to(S) - mean - rest
        square += v * v
    square = square * share + tl.full([1], _EPS, S)
    r = tl.rsqrt(square)
    if ORDER == 0:
        tl.store(partial + pid, tl.sum(tl.where(mask, square * r, 0.0)))
    else:
        p_d = d + group * d_all * p + at_d
        p_dx = dx + group * c * p + at
        factor = tl.load(k + which) * r
        if ORDER == 1:
            for g in range(0, size):
                v = tl.load(p_x + g * x_member, mask=mask, other=0.0).to(S) - mean - rest
                v_d = tl.load(p_d + g * d_member, mask=mask, other=0.0).to(S)
                tl.store(p_dx + g * x_member, (v_d + factor * v).to(dx.dtype.element_ty), mask=mask)
        else:
            d_mean = tl.full([B], 0.0, S)
            for g in range(0, size):
                d_mean += tl.load(p_d + g * d_member, mask=mask, other=0.0).to(S)
            d_mean *= share
            product = tl.full([B], 0.0, S)
            for g in range(0, size):
                v = tl.load(p_x + g * x_member, mask=mask, other=0.0).to(S) - mean - rest
                product += (tl.load(p_d + g * d_member, mask=mask, other=0.0).to(S) - d_mean) * v
            tl.store(partial + pid, tl.sum(product * r))
            along = product * share * r * r
            for g in range(0, size):
                v = tl.load(p_x + g * x_member, mask=mask, other=0.0).to(S) - mean - rest
                v_d = tl.load(p_d + g * d_member, mask=mask, other=0.0).to(S)
                v_dx = factor * (v_d - d_mean - along * v)
                tl.store(p_dx + g * x_member, v_dx.to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pieces"])
def _add_pieces(sums, partial, pieces: tl.int32, factor: tl.float64, B: tl.constexpr):
    which = tl.program_id(0).to(tl.int64)
    total = tl.full([B], 0.0, sums.dtype.element_ty)
    for start in range(0, pieces, B):
        piece = start + tl.arange(0, B)
        total += tl.load(partial + which * pieces + piece, mask=piece < pieces, other=0.0)
    tl.store(sums + which, tl.sum(total) * factor)


@triton.jit(do_not_specialize=["n", "c", "p", "size", "features"])
def _gradient_of_maps(
    k, dy, n: tl.int64, c: tl.int64, p: tl.int64, size: tl.int64, features: tl.int64, share: tl.float64,
    NHWC: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0).to(tl.int64)
    groups = n // size
    all_channels = c + features
    channel = c + which % features
    total = tl.full([B], 0.0, k.dtype.element_ty)
    for start in range(0, size * p, B):
        i = start + tl.arange(0, B)
        sample, position = i // p * groups + which // features, i % p
        at = position * all_channels + channel if NHWC else channel * p + position
        total += tl.load(dy + sample * all_channels * p + at, mask=i < size * p, other=0.0).to(total.dtype)
    tl.store(k + which, tl.sum(total) * share)


@triton.jit(do_not_specialize=["n", "c", "p", "size", "features", "tiles"])
def _append(
    out, x, maps, n: tl.int64, c: tl.int64, p: tl.int64, size: tl.int64, features: tl.int64,
    tiles: tl.int32,  # tiles along the elements of a sample of `out`
    NHWC: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    sample = (pid // tiles).to(tl.int64)
    i = (pid % tiles).to(tl.int64) * B + tl.arange(0, B)
    all_channels = c + features
    mask = i < all_channels * p
    channel = i % all_channels if NHWC else i // p
    at = i // all_channels * c + channel if NHWC else i
    old = tl.load(x + sample * c * p + at, mask=mask & (channel < c), other=0.0)
    of_map = sample % (n // size) * features + channel - c
    new = tl.load(maps + of_map, mask=mask & (channel >= c), other=0.0)
    value = tl.where(channel < c, old, new.to(old.dtype))
    tl.store(out + sample * all_channels * p + i, value, mask=mask)


_BLOCK = 512


def run(call: MinibatchStddevCall) -> None:
    x, order = call.x, call.order
    sums, elements = call.groups * call.features, call.c // call.features * call.p
    pieces, tiles = triton.cdiv(elements, _BLOCK), triton.cdiv((call.c + call.features) * call.p, _BLOCK)
    kind = torch.float64 if call.dtype == torch.float64 else torch.float32
    k, maps = x.new_empty(2, sums, dtype=kind)
    partial = x.new_empty(sums * pieces, dtype=kind)
    sizes = call.n, call.c, call.p, call.size, call.features
    options = {"NHWC": call.channels_last, "B": _BLOCK, **COMPILED}
    with torch.cuda.device_of(x):
        if order > 0:
            _gradient_of_maps[(sums,)](k, call.dy, *sizes, call.share, **options)
        _walk[(sums * pieces,)](
            partial, call.dx, x, call.dy if order == 1 else call.gx, k, *sizes, pieces,
            ORDER=order, S=arithmetic(call.dtype), **options,
        )  # fmt: skip
        if order != 1:
            factor = 1 / elements if order == 0 else call.share
            _add_pieces[(sums,)](maps, partial, pieces, factor, B=128, **COMPILED)
            _append[(call.n * tiles,)](call.appended, x if order == 0 else call.gx, maps, *sizes, tiles, **options)
