"""The strip, shared by the Triton kernels that filter: separable filters of 4 taps in NHWC.

A program has tiles of strips x channels. A strip is two outputs (RUN) wide and some rows high; the program walks down
its strips, filters each row of inputs along x once, and keeps the sums of the unfinished rows of outputs in registers
(the transposed form of an FIR filter). The strips of a tile are adjacent, so that the L1 serves the columns that they
share.
"""

from functools import lru_cache
from typing import NamedTuple

import triton
import triton.language as tl

from fastgan_kernels.calls import Upfirdn2dCall
from fastgan_kernels.triton.curves import curve
from fastgan_kernels.triton.tiles import WARPS

RUN = 2
_MOST_STEPS, _FEWEST_STEPS = 64, 8  # a strip reads up to three rows of its neighbours
_PROGRAMS = 1024  # about 8 for each of an H100's multiprocessors: strips are as long as leaves so many


class Plan(NamedTuple):
    """Tile sizes and grid, from the shape alone; names as in `place`."""

    align: int
    lanes: int  # strips in a tile
    channels: int  # channels in a tile
    runs: int  # strips side by side
    strips: int  # strips of a sample
    steps: int  # steps down a strip; one makes a row of outputs, or two with up by 2
    shift_x: int  # 1 if the first output lies before the image
    shift_y: int
    first_x: int  # first input of the first strip
    first_y: int
    tiles_c: int
    tiles: int  # tiles of a sample: of channels times of strips
    segments: int  # tiles of a sample for each tile of channels
    programs: int


GEOMETRY = [
    "c", "h", "w", "oh", "ow", "first_x", "first_y", "shift_x", "shift_y", "runs", "strips", "steps", "tiles_c", "tiles"
]  # fmt: skip
"""The first arguments of `place`, which a kernel has as well."""


def geometry(call: Upfirdn2dCall, plan: Plan) -> tuple[int, ...]:
    """The values of `GEOMETRY`."""
    return (
        call.c, call.h, call.w, call.oh, call.ow, plan.first_x, plan.first_y, plan.shift_x, plan.shift_y, plan.runs,
        plan.strips, plan.steps, plan.tiles_c, plan.tiles,
    )  # fmt: skip


def fits(call: Upfirdn2dCall) -> bool:
    """Whether a call can be served in strips: its factors are 1 and 1, 2 and 1 or 1 and 2."""
    vectors = call.c * call.dtype.itemsize % 16 == 0
    return (
        call.channels_last and vectors and call.separable and call.kw == 4
        and call.up_x == call.up_y and call.down_x == call.down_y and call.up_x * call.down_x <= 2
        and max(call.h, call.w, call.oh, call.ow) < 1 << 28
    )  # fmt: skip


def plan_of(call: Upfirdn2dCall, many_registers: bool = False) -> Plan:
    """The plan for a filter. A kernel with `many_registers` gets fewer elements per thread."""
    width = 16 // call.dtype.itemsize
    width = min(width, 4) if many_registers else width
    return _plan(call.n, call.c, call.oh, call.ow, call.up_x, call.left, call.top, call.dtype.itemsize, width)


@lru_cache(maxsize=4096)
def _plan(n: int, c: int, oh: int, ow: int, up: int, left: int, top: int, element_size: int, width: int) -> Plan:
    shift_x, shift_y = (1 - (left & 1), 1 - (top & 1)) if up == 2 else (0, 0)
    first_x, first_y = (-(left >> 1), -(top >> 1)) if up == 2 else (-left, -top)
    runs, rows = triton.cdiv(ow + shift_x, RUN), triton.cdiv(oh + shift_y, up)
    size = WARPS * 32 * width  # elements in a tile
    line = 128 // element_size
    channels = min(triton.next_power_of_2(c), max(line, size // triton.next_power_of_2(runs)))
    if triton.cdiv(c, channels // 2) % 2:  # half of the last tile would be idle
        channels //= 2
    lanes, tiles_c = size // channels, triton.cdiv(c, channels)

    def tiles(steps: int) -> int:
        return triton.cdiv(runs * triton.cdiv(rows, steps), lanes) * tiles_c

    steps = _MOST_STEPS
    while steps > _FEWEST_STEPS and n * tiles(steps) < _PROGRAMS:
        steps //= 2
    steps = triton.cdiv(rows, triton.cdiv(rows, steps))
    return Plan(
        min(c & -c, 16), lanes, channels, runs, runs * triton.cdiv(rows, steps), steps, shift_x, shift_y,
        first_x, first_y, tiles_c, tiles(steps), tiles(steps) // tiles_c, n * tiles(steps),
    )  # fmt: skip


@triton.jit
def taps_of(taps, gain, FLIP: tl.constexpr, S: tl.constexpr):
    """The taps along x, as they are correlated, and those along y times the gain."""
    t0 = tl.load(taps + (0 if FLIP else 3))
    t1 = tl.load(taps + (1 if FLIP else 2))
    t2 = tl.load(taps + (2 if FLIP else 1))
    t3 = tl.load(taps + (3 if FLIP else 0))
    gain = tl.full([1, 1], gain, S)
    return (t0, t1, t2, t3), (t0 * gain, t1 * gain, t2 * gain, t3 * gain)


@triton.jit
def place(
    c, h, w, oh, ow, first_x, first_y, shift_x, shift_y, runs, strips, steps, tiles_c, tiles,
    UP: tl.constexpr, DOWN: tl.constexpr, EARLY: tl.constexpr, L: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Where a program begins, EARLY steps before its first output.

    Returns the sample, the channels [1, F], column and row [L, 1] and address [L, F] of the first inputs, the same of
    the left outputs, and the mask [L, F] of strips and channels.
    """
    pid = tl.program_id(0)
    sample = (pid // tiles).to(tl.int64)
    channel = pid % tiles_c * F + tl.arange(0, F)[None, :]
    strip = pid % tiles // tiles_c * L + tl.arange(0, L)[:, None]
    run, step = strip % runs, strip // runs * steps
    ix, iy = first_x + run * (1 if UP == 2 else 2 * DOWN), first_y + step * DOWN
    ox, oy = run * 2 - shift_x, (step - EARLY) * UP - shift_y
    at_x = ((sample * h + iy) * w + ix) * c + channel
    at_y = ((sample * oh + oy) * ow + ox) * c + channel
    return sample, channel, ix, iy, at_x, ox, oy, at_y, (strip < strips) & (channel < c)


@triton.jit
def along_x(
    p_in, column, w, c, there, taps, UP: tl.constexpr, DOWN: tl.constexpr, S: tl.constexpr,
    bias=None, slope=None, gain=None, clamp=None,
):  # fmt: skip
    """A row of inputs, filtered at the two outputs of each strip.

    p_in, column: pointer and column of the first input; there: mask of rows, strips and channels. With `slope`, the
    inputs are clamp(gain * lrelu(x + bias)).
    """
    left, right = tl.full(there.shape, 0.0, S), tl.full(there.shape, 0.0, S)
    for i in tl.static_range(2 if UP == 2 else DOWN + 4):
        inside = (column >= -i) & (column < w - i)
        value = tl.load(p_in + i * c, mask=there & inside, other=0.0).to(S)
        if slope is None:
            here = taps
        else:
            value, _, _ = curve(value + bias, slope, gain, clamp, "lrelu")
            # Zero outside of the image, where the activation may not be: there are fewer taps than values.
            here = where(inside, taps)
        if UP == 2:
            left += here[2 * i + 1] * value
            right += here[2 * i] * value
        else:
            if i < 4:
                left += here[i] * value
            if i >= DOWN:
                right += here[i - DOWN] * value
    return left, right


@triton.jit
def where(mask, taps):
    """Zeros in place of the taps where `mask` is false."""
    return (
        tl.where(mask, taps[0], 0.0), tl.where(mask, taps[1], 0.0),
        tl.where(mask, taps[2], 0.0), tl.where(mask, taps[3], 0.0),
    )  # fmt: skip


@triton.jit
def along_y(sums, rows, taps, UP: tl.constexpr, DOWN: tl.constexpr):
    """The UP rows of outputs that DOWN rows of inputs finish, and the sums that the next rows continue."""
    if UP == 2:
        row, before = rows[0], sums[0]
        return (taps[1] * before + taps[3] * row, taps[0] * before + taps[2] * row), (row,)
    elif DOWN == 2:
        return (sums[0] + taps[2] * rows[0] + taps[3] * rows[1],), (taps[0] * rows[0] + taps[1] * rows[1],)
    else:
        row = rows[0]
        return (sums[0] + taps[3] * row,), (sums[1] + taps[2] * row, sums[2] + taps[1] * row, taps[0] * row)
