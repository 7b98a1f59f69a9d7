"""The gradient of the noise in Triton: one launch behind backward of noise_bias_act and noise_bias_act_to_rgb.

    dnoise[n] = sum over c of strength[c] * du[n,c]

It reads what the backward pass reads, in tiles of rows x columns (see tiles.py), and walks over the channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan_kernels.calls import NoiseBiasActCall, NoiseBiasActToRGBCall, View
from fastgan_kernels.triton.curves import curve, slope_from_output
from fastgan_kernels.triton.tiles import COMPILED, arithmetic, plan_of


@triton.jit(do_not_specialize=["c", "p", "tiles"])
def _noise_gradient(
    dnoise, dy, reference,  # reference: x, or y with FROM_OUTPUT
    drgb, to_rgb,  # of noise_bias_act_to_rgb; there dy may be None
    noise, strength, bias, scale, post,
    slope: tl.float64, gain: tl.float64, clamp: tl.float64,
    c: tl.int64, p: tl.int64,
    tiles: tl.int64,  # tiles along the positions of a sample
    K: tl.constexpr,  # channels of the image, 0 without drgb
    FROM_OUTPUT: tl.constexpr,
    ACT: tl.constexpr,
    NHWC: tl.constexpr,
    NOISE_PER_SAMPLE: tl.constexpr,
    STRENGTH_PER_CHANNEL: tl.constexpr,
    S: tl.constexpr,  # precision of the arithmetic and of the small tensors
    ALIGN: tl.constexpr,  # divides the number of columns; the compiler needs it for wide accesses
    R: tl.constexpr,  # rows in a tile
    F: tl.constexpr,  # columns in a tile
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    sample, tile = pid // tiles, pid % tiles
    row, column = tl.arange(0, R)[:, None], tl.arange(0, F)[None, :]
    if NHWC:
        c = c // ALIGN * ALIGN
        position, of_step = tile * R + row, column
    else:
        p = p // ALIGN * ALIGN
        position, of_step = tile * F + column, row
    STEP: tl.constexpr = F if NHWC else R  # channels in a step
    WIDTH: tl.constexpr = F if NHWC else 1  # columns of a small tensor's tile
    there = position < p
    slope, gain, clamp = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S), tl.full([1, 1], clamp, S)
    v_noise = tl.load(noise + (sample * p if NOISE_PER_SAMPLE else 0) + position, mask=there, other=0.0)
    if not STRENGTH_PER_CHANNEL:
        k_strength = tl.load(strength) if strength is not None else tl.full([], 1.0, S)
    total = tl.full([R, F], 0.0, S)
    for start in range(0, c, STEP):
        channel = start + of_step
        live = channel < c
        mask = live & there
        at = (sample * p + position) * c + channel if NHWC else (sample * c + channel) * p + position
        # As whole tiles in NHWC, see noise_bias_act._elements.
        k_live = tl.broadcast_to(live, [R, WIDTH])
        at_channel = tl.broadcast_to(channel, [R, WIDTH])
        at_sample = sample * c + at_channel
        if STRENGTH_PER_CHANNEL:
            k_strength = tl.load(strength + at_channel, mask=k_live, other=0.0)
        v_reference = tl.load(reference + at, mask=mask, other=0.0).to(S)
        dz = tl.full([R, F], 0.0, S)
        if dy is not None:
            dz += tl.load(dy + at, mask=mask, other=0.0).to(S)
        if FROM_OUTPUT:  # there is neither scale nor post
            first = slope_from_output(v_reference, slope, gain, clamp, ACT)
        else:
            if post is not None:
                dz *= tl.load(post + at_sample, mask=k_live, other=0.0)
            for k in tl.static_range(K):
                v_pixel = tl.load(drgb + (sample * p + position) * K + k, mask=there, other=0.0)
                dz += v_pixel * tl.load(to_rgb + (sample * K + k) * c + at_channel, mask=k_live, other=0.0)
            u = v_reference
            if scale is not None:
                u *= tl.load(scale + at_sample, mask=k_live, other=0.0)
            k_bias = tl.load(bias + at_channel, mask=k_live, other=0.0) if bias is not None else 0.0
            _, first, _ = curve(u + (k_strength * v_noise + k_bias), slope, gain, clamp, ACT)
        total += tl.where(mask, k_strength * (dz * first), 0.0)
    tl.store(dnoise + sample * p + position, tl.sum(total, 1 if NHWC else 0, keep_dims=True), mask=there)


def launch_noise_gradient(
    call: NoiseBiasActCall | NoiseBiasActToRGBCall, view: View, reference: Tensor | None, *, act: str,
    from_output: bool = False, strength_per_channel: bool = False, drgb: Tensor | None = None,
    to_rgb: Tensor | None = None, k: int = 0,
) -> None:  # fmt: skip
    """Fills `dnoise` of a backward pass, if it is wanted. The other arguments are what only one kind of call has."""
    if call.dnoise is None:
        return
    plan = plan_of(view, call.dtype.itemsize, False)
    # In NCHW the grid has positions alone: a program takes few of them and many channels.
    columns = plan.columns if plan.nhwc else min(plan.columns, 64)
    rows = plan.rows * plan.columns // columns
    tiles = triton.cdiv(call.p, rows if plan.nhwc else columns)
    with torch.cuda.device_of(call.dnoise):
        _noise_gradient[(call.n * tiles,)](
            call.dnoise, call.dy, reference, drgb, to_rgb, call.noise, call.strength, call.bias, call.scale, call.post,
            call.slope, call.gain, call.clamp, call.c, call.p, tiles, K=k, FROM_OUTPUT=from_output, ACT=act,
            NHWC=plan.nhwc, NOISE_PER_SAMPLE=call.noise_per_sample, STRENGTH_PER_CHANNEL=strength_per_channel,
            S=arithmetic(call.dtype), ALIGN=plan.align, R=rows, F=columns, **COMPILED,
        )  # fmt: skip
