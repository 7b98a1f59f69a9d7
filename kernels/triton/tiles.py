"""Shared by the Triton kernels: partition of the work into programs, and the second stage of sums.

A kernel walks memory in tiles of rows x columns, columns being adjacent in memory: channels in NHWC, positions in NCHW.

Prefixes of names in all kernels: `v_` value of an activation at the elements of a tile, `k_` value of a small tensor
(a constant of the loop over positions), `g_` cotangent of a small tensor, `p_` pointer.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan_kernels.calls import NoiseBiasActCall, View

WARPS = 4
COMPILED = {"num_warps": WARPS, "enable_fp_fusion": True}  # compiler options; for normalisation, norm.COMPILED_UNFUSED
MAX_PROGRAMS = 2112  # 16 for each of an H100's 132 multiprocessors; programs loop over any further work
MIN_STEPS = 4  # iterations of a program: fewer do not pay for its start and its sums


class Plan(NamedTuple):
    """Tile sizes and grid of a kernel, from the shape alone; names as in the kernels."""

    nhwc: bool
    align: int
    rows: int
    columns: int
    tiles: int
    segments: int
    steps: int
    programs: int


def arithmetic(dtype: torch.dtype) -> tl.dtype:
    """The dtype that kernels compute in for activations of `dtype`."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@lru_cache(maxsize=4096)
def plan_of(view: View, element_size: int, many_registers: bool) -> Plan:
    """The plan for an activation. A kernel with `many_registers` gets fewer elements per thread."""
    n, c, p, nhwc = view
    nhwc = nhwc and p > 1  # both layouts of one position are the same, and NCHW fills tiles better
    fast = c if nhwc else p
    align = min(fast & -fast, 16)
    width = min(16 // element_size, max(align, 4))  # elements per thread: 16 bytes, or 4 scalar accesses
    if many_registers and nhwc:
        width = min(width, 4)  # second derivatives of 8 channels need too many registers
    size = WARPS * 32 * width  # elements in a tile
    columns = _columns(fast, min(size, 256) if nhwc else size)
    rows = size // columns
    if nhwc:
        tiles = triton.cdiv(c, columns)
        tiles_of_all, steps = tiles * n, triton.cdiv(p, rows)
    else:
        tiles_of_all = tiles = triton.cdiv(n * c, rows)
        steps = triton.cdiv(p, columns)
    segments = max(1, min(triton.cdiv(MAX_PROGRAMS, tiles_of_all), triton.cdiv(steps, MIN_STEPS)))
    steps = triton.cdiv(steps, segments)
    return Plan(nhwc, align, rows, columns, tiles, segments, steps, tiles_of_all * segments)


def _columns(fast: int, limit: int) -> int:
    """Number of columns of a tile, a power of two: the fewest idle lanes at the end of a row, then the widest tile."""
    widest = min(triton.next_power_of_2(fast), limit)
    widths = [widest]
    while widths[-1] > 64:
        widths.append(widths[-1] // 2)
    return min(widths, key=lambda width: triton.cdiv(fast, width) * width)


@triton.jit
def add_rows(table, rows, c, channel, R: tl.constexpr, F: tl.constexpr):
    """Sums the rows of a table [rows, C] for the channels [1, F]."""
    total = tl.full([R, F], 0.0, table.dtype.element_ty)
    row = tl.arange(0, R)[:, None]
    for start in range(0, rows, R):
        at = start + row
        total += tl.load(table + at * c + channel, mask=(at < rows) & (channel < c), other=0.0)
    return tl.sum(total, 0, keep_dims=True)


@triton.jit(do_not_specialize=["n", "c", "segments", "tiles", "programs"])
def add_pieces(
    strengths, biases, scales, posts,  # tables [pieces, C] of partial sums, or None
    dstrength, dbias, dscale, dpost,
    n: tl.int64, c: tl.int64, segments: tl.int64, tiles: tl.int32,
    programs: tl.int64,  # number of partial sums of a shared strength
    STRENGTH_PER_CHANNEL: tl.constexpr,
    R: tl.constexpr,
    F: tl.constexpr,
):  # fmt: skip
    """Second stage of the sums. Group 0 sums over all samples, group 1 + n over sample n."""
    pid = tl.program_id(0)
    group = (pid // tiles).to(tl.int64)
    channel = (pid % tiles).to(tl.int64) * F + tl.arange(0, F)[None, :]  # [1, F]
    if group == 0:
        if biases is not None:
            tl.store(dbias + channel, add_rows(biases, n * segments, c, channel, R, F), mask=channel < c)
        if strengths is not None:
            if STRENGTH_PER_CHANNEL:
                tl.store(dstrength + channel, add_rows(strengths, n * segments, c, channel, R, F), mask=channel < c)
            elif pid == 0:
                one = tl.full([1, 1], 0, tl.int64)
                tl.store(dstrength, tl.sum(add_rows(strengths, programs, 1, one, R * F, 1)))
    else:
        sample = group - 1
        rows = sample * segments * c  # first row of the sample
        to = sample * c + channel
        if scales is not None:
            tl.store(dscale + to, add_rows(scales + rows, segments, c, channel, R, F), mask=channel < c)
        if posts is not None:
            tl.store(dpost + to, add_rows(posts + rows, segments, c, channel, R, F), mask=channel < c)


def tables_of(call: NoiseBiasActCall, segments: int, programs: int) -> tuple[Tensor | None, ...]:
    """Tables for the partial sums of dstrength, dbias, dscale and dpost, where they are wanted.

    A gradient that has only one partial sum is its own table.

    Args:
        segments: rows of a table for each sample.
        programs: of the launch.
    """
    pieces = call.n * segments
    parts = pieces if call.strength_per_channel else programs
    return tuple(
        total if total is None or count == 1 else total.new_empty(size)
        for total, count, size in (
            (call.dstrength, parts, pieces * call.c if call.strength_per_channel else parts),
            (call.dbias, pieces, pieces * call.c),
            (call.dscale, segments, pieces * call.c),
            (call.dpost, segments, pieces * call.c),
        )
    )


def add_tables(call: NoiseBiasActCall, tables: tuple[Tensor | None, ...], segments: int, programs: int) -> None:
    """Launches the second stage of the sums, for the result of `tables_of`."""
    sums = call.dstrength, call.dbias, call.dscale, call.dpost
    left = [None if table is total else table for table, total in zip(tables, sums, strict=True)]
    if all(table is None for table in left):
        return
    tiles = triton.cdiv(call.c, 16)
    groups = 1 if left[2] is None and left[3] is None else 1 + call.n
    add_pieces[(groups * tiles,)](
        *left, *sums, call.n, call.c, segments, tiles, programs, STRENGTH_PER_CHANNEL=call.strength_per_channel,
        R=128, F=16, **COMPILED,
    )  # fmt: skip
