"""Triton kernels of normalisation in tiles, used by instance_norm.py and batch_norm_act.py (BATCH).

    u = x + strength[c] * noise + bias[c],   z = u * (u > 0 ? gain : gain * slope)
    y = style_scale[n,c] * (z - mean[n,c]) * inverse[n,c] + style_bias[n,c]

With BATCH, z is x, all samples share mean, inverse and style, and the activation is applied to y instead.

The positions of a sample are cut into segments. `segment_moments` and `segment_sums` store a row of results for each
segment, the operations merge the rows, and `normalise` and `input_gradients` read the activations again. The formulas
are those of csrc/norm/arithmetic.h.

Products are not contracted with sums (COMPILED_UNFUSED): all passes must compute the same z.
"""

import triton
import triton.language as tl

from fastgan_kernels.calls import NormCall
from fastgan_kernels.triton.tiles import WARPS, Plan, arithmetic

# Tiles, small tensors and the activation ------------------------------------------------------------------------------


@triton.jit
def aligned(c, p, NHWC: tl.constexpr, ALIGN: tl.constexpr):
    """C and P, with the size of a row in memory known to the compiler as a multiple of ALIGN."""
    if NHWC:
        c = c // ALIGN * ALIGN
    else:
        p = p // ALIGN * ALIGN
    return c, p


@triton.jit
def tile_place(n, c, p, segments, tiles, NHWC: tl.constexpr, R: tl.constexpr, F: tl.constexpr):
    """Sample, segment, channel, plane (sample * C + channel), mask of existing planes, and where they begin."""
    pid = tl.program_id(0)
    tile = (pid % tiles).to(tl.int64)
    outer = pid // tiles
    if NHWC:
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
def tile_positions(start, c, p, base, live, NHWC: tl.constexpr, R: tl.constexpr, F: tl.constexpr):
    """The positions of a tile, its addresses and its mask."""
    if NHWC:
        position = start + tl.arange(0, R)[:, None]  # [R, 1]
        at = base + position * c
    else:
        position = start + tl.arange(0, F)[None, :]  # [1, F]
        at = base + position
    return position, at, live & (position < p)


@triton.jit
def load_small(table, at, live, absent: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Value of a small tensor at channels or planes [1, F] or [R, 1], as [ROWS, COLUMNS]."""
    if table is None:
        value = tl.full([1, 1], absent, S)
    else:
        at, live = tl.broadcast_to(at, [ROWS, COLUMNS]), tl.broadcast_to(live, [ROWS, COLUMNS])
        value = tl.load(table + at, mask=live, other=0.0)
    return value


@triton.jit
def load_strength(
    table, channel, live, PER_CHANNEL: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    if PER_CHANNEL:
        value = load_small(table, channel, live, 1.0, S, ROWS, COLUMNS)
    elif table is None:
        value = tl.full([1, 1], 1.0, S)
    else:
        value = tl.full([1, 1], 0.0, S) + tl.load(table)
    return value


@triton.jit
def load_noise(noise, sample, position, p, mask, PER_SAMPLE: tl.constexpr, NHWC: tl.constexpr, S: tl.constexpr):
    if noise is None:
        value = tl.full([1, 1], 0.0, S)
    else:
        at = sample * p + position if PER_SAMPLE else position
        value = tl.load(noise + at, mask=position < p if NHWC else mask, other=0.0)
    return value


@triton.jit
def activated(x, noise, strength, bias, slope, gain):
    """gain * act(u), and its derivative."""
    return piecewise_linear(x + (strength * noise + bias), slope, gain)


@triton.jit
def piecewise_linear(u, slope, gain):
    """gain * act(u), and its derivative."""
    first = tl.where(u > 0, gain, gain * slope)
    return u * first, first


@triton.jit
def normalised_row(plane, channel, n, c, p, BATCH: tl.constexpr):
    """Index and number of normalised rows, and elements in one: a plane, or with BATCH all planes of a channel."""
    if BATCH:
        row, rows, numbers = channel, c, n * p
    else:
        row, rows, numbers = plane, n * c, p
    return row, rows, numbers


@triton.jit
def store_sums(
    dstrength, dbias, sum_strength, sum_bias, sample, segment, channel, segments, c, live,
    PER_CHANNEL: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """Stores a program's partial sums: tables [pieces, C], or [programs] for a shared strength."""
    of_piece = (sample * segments + segment) * c + channel
    if dbias is not None:
        tl.store(dbias + of_piece, tl.sum(sum_bias, AXIS, keep_dims=True), mask=live)
    if dstrength is not None:
        if PER_CHANNEL:
            tl.store(dstrength + of_piece, tl.sum(sum_strength, AXIS, keep_dims=True), mask=live)
        else:
            tl.store(dstrength + tl.program_id(0), tl.sum(sum_strength))


# Passes over segments -------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def segment_moments(
    means, squares,  # tables [pieces, C]
    x, noise, strength, bias,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int32, steps: tl.int64, tiles: tl.int32,
    NHWC: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each segment (Welford 1962; Chan et al. 1983)."""
    c, p = aligned(c, p, NHWC, ALIGN)
    AXIS: tl.constexpr = 0 if NHWC else 1
    STEP: tl.constexpr = R if NHWC else F
    COLUMNS: tl.constexpr = F if NHWC else 1
    sample, segment, channel, plane, live, base = tile_place(n, c, p, segments, tiles, NHWC, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    # In NHWC small tensors are loaded as whole tiles, in the layout of the activations (see noise_bias_act).
    k_strength = load_strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, R, COLUMNS)
    k_bias = load_small(bias, channel, live, 0.0, S, R, COLUMNS)
    mean, square, count = tl.full([R, F], 0.0, S), tl.full([R, F], 0.0, S), tl.full([R, F], 0.0, S)
    begin = segment * steps * STEP
    end = tl.minimum(begin + steps * STEP, p)
    for start in range(begin, end, STEP):
        position, at, mask = tile_positions(start, c, p, base, live, NHWC, R, F)
        v_noise = load_noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, NHWC, S)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        z, _ = activated(v_x, v_noise, k_strength, k_bias, slope, gain)
        share = 1.0 / ((start - begin) // STEP + 1).to(S)  # weight of one element in the mean so far
        distance = tl.where(mask, z - mean, 0.0)
        mean += distance * share
        square += distance * tl.where(mask, z - mean, 0.0)
        count += tl.where(mask, 1.0, 0.0).to(S)
    numbers = tl.maximum(end - begin, 1).to(S)  # the last segment may be empty
    of_segment = tl.sum(mean * count, AXIS, keep_dims=True) / numbers
    of_segment += tl.sum(tl.where(count > 0, mean - of_segment, 0.0) * count, AXIS, keep_dims=True) / numbers
    deviation = tl.where(count > 0, mean - of_segment, 0.0)
    total = tl.sum(square + deviation * deviation * count, AXIS, keep_dims=True)
    of_piece = (sample * segments + segment) * c + channel
    tl.store(means + of_piece, of_segment, mask=live)
    tl.store(squares + of_piece, total, mask=live)


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def normalise(
    y, x, statistics, noise, strength, bias, style_scale, style_bias,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int32, steps: tl.int64, tiles: tl.int32,
    NHWC: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    c, p = aligned(c, p, NHWC, ALIGN)
    STEP: tl.constexpr = R if NHWC else F
    COLUMNS: tl.constexpr = F if NHWC else 1
    sample, segment, channel, plane, live, base = tile_place(n, c, p, segments, tiles, NHWC, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    k_strength = load_strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, R, COLUMNS)
    k_bias = load_small(bias, channel, live, 0.0, S, R, COLUMNS)
    row, rows, numbers = normalised_row(plane, channel, n, c, p, BATCH)
    mean = load_small(statistics, row, live, 0.0, S, R, COLUMNS)
    inverse = load_small(statistics, rows + row, live, 0.0, S, R, COLUMNS)
    factor = load_small(style_scale, row, live, 1.0, S, R, COLUMNS) * inverse
    shift = load_small(style_bias, row, live, 0.0, S, R, COLUMNS)
    begin = segment * steps * STEP
    for start in range(begin, tl.minimum(begin + steps * STEP, p), STEP):
        position, at, mask = tile_positions(start, c, p, base, live, NHWC, R, F)
        v_noise = load_noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, NHWC, S)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        if BATCH:
            v_y, _ = piecewise_linear((v_x - mean) * factor + shift, slope, gain)
        else:
            z, _ = activated(v_x, v_noise, k_strength, k_bias, slope, gain)
            v_y = (z - mean) * factor + shift
        tl.store(y + at, v_y.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def segment_sums(
    sums, products, distances,  # tables [pieces, C]
    dy, x, statistics, noise, strength, bias, style_scale, style_bias,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int32, steps: tl.int64, tiles: tl.int32,
    NHWC: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """Sums of dy, dy * (z - mean) and z - mean over each segment."""
    c, p = aligned(c, p, NHWC, ALIGN)
    AXIS: tl.constexpr = 0 if NHWC else 1
    STEP: tl.constexpr = R if NHWC else F
    COLUMNS: tl.constexpr = F if NHWC else 1
    sample, segment, channel, plane, live, base = tile_place(n, c, p, segments, tiles, NHWC, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    k_strength = load_strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, R, COLUMNS)
    k_bias = load_small(bias, channel, live, 0.0, S, R, COLUMNS)
    row, rows, numbers = normalised_row(plane, channel, n, c, p, BATCH)
    mean = load_small(statistics, row, live, 0.0, S, R, COLUMNS)
    if BATCH:
        inverse = load_small(statistics, rows + row, live, 0.0, S, R, COLUMNS)
        factor = load_small(style_scale, row, live, 1.0, S, R, COLUMNS) * inverse
        shift = load_small(style_bias, row, live, 0.0, S, R, COLUMNS)
    zeros = tl.full([R, F], 0.0, S)
    total, total_products, total_distances = zeros, zeros, zeros
    begin = segment * steps * STEP
    for start in range(begin, tl.minimum(begin + steps * STEP, p), STEP):
        position, at, mask = tile_positions(start, c, p, base, live, NHWC, R, F)
        v_noise = load_noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, NHWC, S)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
        if BATCH:
            z = v_x
            _, after = piecewise_linear((z - mean) * factor + shift, slope, gain)
            v_dy *= after
        else:
            z, _ = activated(v_x, v_noise, k_strength, k_bias, slope, gain)
        distance = z - mean
        total_distances += tl.where(mask, distance, 0.0)
        total_products += v_dy * distance
        total += v_dy
    of_piece = (sample * segments + segment) * c + channel
    tl.store(sums + of_piece, tl.sum(total, AXIS, keep_dims=True), mask=live)
    tl.store(products + of_piece, tl.sum(total_products, AXIS, keep_dims=True), mask=live)
    tl.store(distances + of_piece, tl.sum(total_distances, AXIS, keep_dims=True), mask=live)


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def input_gradients(
    dx, dstrength, dbias,
    dy, x, statistics, totals, noise, strength, bias, style_scale, style_bias,
    slope: tl.float64, gain: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64, segments: tl.int32, steps: tl.int64, tiles: tl.int32,
    NHWC: tl.constexpr, NOISE_PER_SAMPLE: tl.constexpr, STRENGTH_PER_CHANNEL: tl.constexpr, S: tl.constexpr,
    ALIGN: tl.constexpr, R: tl.constexpr, F: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    c, p = aligned(c, p, NHWC, ALIGN)
    AXIS: tl.constexpr = 0 if NHWC else 1
    STEP: tl.constexpr = R if NHWC else F
    COLUMNS: tl.constexpr = F if NHWC else 1
    sample, segment, channel, plane, live, base = tile_place(n, c, p, segments, tiles, NHWC, R, F)
    slope, gain = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S)
    k_strength = load_strength(strength, channel, live, STRENGTH_PER_CHANNEL, S, R, COLUMNS)
    k_bias = load_small(bias, channel, live, 0.0, S, R, COLUMNS)
    row, rows, numbers = normalised_row(plane, channel, n, c, p, BATCH)
    mean = load_small(statistics, row, live, 0.0, S, R, COLUMNS)
    inverse = load_small(statistics, rows + row, live, 0.0, S, R, COLUMNS)
    factor = load_small(style_scale, row, live, 1.0, S, R, COLUMNS) * inverse
    if BATCH:
        shift = load_small(style_bias, row, live, 0.0, S, R, COLUMNS)
    grad_slope = load_small(totals, rows + row, live, 0.0, S, R, COLUMNS) / numbers.to(S) * inverse * inverse
    grad_mean = load_small(totals, row, live, 0.0, S, R, COLUMNS) / numbers.to(S)
    grad_mean -= load_small(totals, 2 * rows + row, live, 0.0, S, R, COLUMNS) * grad_slope
    sum_bias, sum_strength = tl.full([R, F], 0.0, S), tl.full([R, F], 0.0, S)
    begin = segment * steps * STEP
    for start in range(begin, tl.minimum(begin + steps * STEP, p), STEP):
        position, at, mask = tile_positions(start, c, p, base, live, NHWC, R, F)
        v_noise = load_noise(noise, sample, position, p, mask, NOISE_PER_SAMPLE, NHWC, S)
        v_x = tl.load(x + at, mask=mask, other=0.0).to(S)
        v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
        if BATCH:
            z = v_x
            _, after = piecewise_linear((z - mean) * factor + shift, slope, gain)
            du = factor * (v_dy * after - grad_mean - (z - mean) * grad_slope)
        else:
            z, first = activated(v_x, v_noise, k_strength, k_bias, slope, gain)
            du = first * (factor * (v_dy - grad_mean - (z - mean) * grad_slope))
        if dx is not None:
            tl.store(dx + at, du.to(dx.dtype.element_ty), mask=mask)
        if dbias is not None or dstrength is not None:
            du = tl.where(mask, du, 0.0)
            sum_bias += du
            if dstrength is not None:
                sum_strength += du * v_noise
    store_sums(
        dstrength, dbias, sum_strength, sum_bias, sample, segment, channel, segments, c, live,
        STRENGTH_PER_CHANNEL, AXIS,
    )  # fmt: skip


# Launching -----------------------------------------------------------------------------------------------------------

COMPILED_UNFUSED = {"num_warps": WARPS, "enable_fp_fusion": False}  # compiler options of all kernels of normalisation


def options_of(call: NormCall, plan: Plan) -> dict[str, object]:
    """Constants and compiler options of a kernel that walks activations in tiles."""
    return {
        "NOISE_PER_SAMPLE": call.noise_per_sample, "STRENGTH_PER_CHANNEL": call.strength_per_channel,
        "S": arithmetic(call.dtype), "NHWC": plan.nhwc, "ALIGN": plan.align, "R": plan.rows, "F": plan.columns,
        **COMPILED_UNFUSED, "num_warps": 8 if plan.rows * plan.columns > 1024 else WARPS,
    }  # fmt: skip


def sizes_of(call: NormCall, plan: Plan) -> tuple[int, ...]:
    """Size arguments of the kernels above: the activation's, then those of the partition into programs."""
    return call.n, call.c, call.p, plan.segments, plan.steps, plan.tiles


def positions_of_segment(plan: Plan) -> int:
    return plan.steps * (plan.rows if plan.nhwc else plan.columns)
