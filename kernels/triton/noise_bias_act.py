"""Triton kernels of noise_bias_act.

    u = scale[n,c] * x + strength[c] * noise + bias[c],   z = clamp(gain * act(u)),   y = z * post[n,c] + residual

One kernel reads memory in tiles of rows x columns (see tiles.py). Backward passes sum in two stages, each in a fixed
order: no atomics, and the same bits every time. The formulas are those of csrc/noise_bias_act/arithmetic.h.

Triton's interpreter truncates bf16 results instead of rounding them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan_kernels.calls import NoiseBiasActCall, View
from fastgan_kernels.triton.curves import curve, slope_from_output
from fastgan_kernels.triton.noise_gradient import launch_noise_gradient
from fastgan_kernels.triton.tiles import COMPILED, add_tables, arithmetic, plan_of, tables_of


@triton.jit(do_not_specialize=["n", "c", "p", "segments", "steps", "tiles"])
def _elements(
    out,  # y, dx or ddy, by PASS
    out_dx,  # double_backward: the gradient of x
    dstrength, dbias, dscale, dpost,  # tables [pieces, C] of partial sums; a shared strength: [programs]
    reference,  # x, or y with FROM_OUTPUT
    dy, gx, residual,
    noise, strength, bias, scale, post,
    gstrength, gbias, gscale, gpost,
    slope: tl.float64, gain: tl.float64, clamp: tl.float64,
    n: tl.int64, c: tl.int64, p: tl.int64,
    segments: tl.int32,  # segments of a sample's positions
    steps: tl.int64,  # loop steps in a segment
    tiles: tl.int32,  # tiles along the channels (NHWC), or along samples and channels (NCHW)
    PASS: tl.constexpr,  # "forward", "backward", "double_backward"
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
    pid = tl.program_id(0)
    tile = (pid % tiles).to(tl.int64)
    outer = pid // tiles
    row = tl.arange(0, R)[:, None]  # [R, 1]
    column = tl.arange(0, F)[None, :]  # [1, F]
    if NHWC:
        c = c // ALIGN * ALIGN
        sample, segment = (outer // segments).to(tl.int64), (outer % segments).to(tl.int64)
        channel = tile * F + column  # [1, F]
        live = channel < c
    else:
        p = p // ALIGN * ALIGN
        segment = outer.to(tl.int64)
        plane = tile * R + row  # [R, 1]
        sample, channel = plane // c, plane % c
        live = plane < n * c
    STEP: tl.constexpr = R if NHWC else F
    AXIS: tl.constexpr = 0 if NHWC else 1  # axis of a channel's elements

    slope, gain, clamp = tl.full([1, 1], slope, S), tl.full([1, 1], gain, S), tl.full([1, 1], clamp, S)
    # In NHWC a thread has several channels. Small tensors are loaded as whole tiles, and so have the layout of the
    # activations. Loaded as one row, they would be converted to it in every step, through shared memory.
    WIDTH: tl.constexpr = F if NHWC else 1
    k_live = tl.broadcast_to(live, [R, WIDTH])
    at_channel = tl.broadcast_to(channel, [R, WIDTH])
    at_sample = tl.broadcast_to(sample * c + channel, [R, WIDTH])
    k_bias = tl.load(bias + at_channel, mask=k_live, other=0.0) if bias is not None else 0.0
    k_scale = tl.load(scale + at_sample, mask=k_live, other=0.0) if scale is not None else 1.0
    k_post = tl.load(post + at_sample, mask=k_live, other=0.0) if post is not None else 1.0
    g_bias = tl.load(gbias + at_channel, mask=k_live, other=0.0) if gbias is not None else 0.0
    g_scale = tl.load(gscale + at_sample, mask=k_live, other=0.0) if gscale is not None else 0.0
    g_post = tl.load(gpost + at_sample, mask=k_live, other=0.0) if gpost is not None else 0.0
    if STRENGTH_PER_CHANNEL:
        k_strength = tl.load(strength + at_channel, mask=k_live, other=0.0)
        g_strength = tl.load(gstrength + at_channel, mask=k_live, other=0.0) if gstrength is not None else 0.0
    else:
        k_strength = tl.load(strength) if strength is not None else 1.0
        g_strength = tl.load(gstrength) if gstrength is not None else 0.0
    zeros = tl.full([R, F], 0.0, S)
    sum_bias, sum_strength, sum_scale, sum_post = zeros, zeros, zeros, zeros

    begin = segment * steps * STEP
    for start in range(begin, tl.minimum(begin + steps * STEP, p), STEP):
        if NHWC:
            position = start + row  # [R, 1]
            at = (sample * p + position) * c + channel  # [R, F]
        else:
            position = start + column  # [1, F]
            at = plane * p + position  # [R, F]
        mask = live & (position < p)
        mask_noise = position < p if NHWC else mask
        noise_at = sample * p + position if NOISE_PER_SAMPLE else position
        v_noise = tl.load(noise + noise_at, mask=mask_noise, other=0.0) if noise is not None else 0.0
        v_reference = tl.load(reference + at, mask=mask, other=0.0).to(S)
        v_out = v_reference

        if FROM_OUTPUT:  # there is neither scale nor post
            first = slope_from_output(v_reference, slope, gain, clamp, ACT)
            if PASS == "backward":
                du = tl.load(dy + at, mask=mask, other=0.0).to(S) * first
                v_out = du
                sum_bias += du
                if dstrength is not None:
                    sum_strength += du * v_noise
            else:
                v_gx = tl.load(gx + at, mask=mask, other=0.0).to(S)
                v_out = first * (v_gx + (g_strength * v_noise + g_bias))
        else:
            u = k_scale * v_reference + (k_strength * v_noise + k_bias)
            value, first, second = curve(u, slope, gain, clamp, ACT)
            if PASS == "forward":
                v_out = value * k_post
                if residual is not None:
                    v_out += tl.load(residual + at, mask=mask, other=0.0).to(S)
            else:
                v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
                du = v_dy * k_post * first
                if PASS == "backward":
                    q = du  # the gradient of u
                    v_out = k_scale * du
                    sum_scale += du * v_reference
                    sum_post += v_dy * value
                else:
                    # The inner product of the cotangents g with the results of backward is, per element,
                    # dy * (post * f' * v + f * gpost),  v = scale * gx + gbias + gstrength * noise + gscale * x.
                    v_gx = tl.load(gx + at, mask=mask, other=0.0).to(S)
                    v = k_scale * v_gx + (g_strength * v_noise + g_bias)
                    if gscale is not None:
                        v += g_scale * v_reference
                    q = v_dy * (k_post * second * v + first * g_post)
                    v_out = k_post * first * v
                    if gpost is not None:
                        v_out += value * g_post
                    v_dx = k_scale * q + g_scale * du
                    tl.store(out_dx + at, v_dx.to(out_dx.dtype.element_ty), mask=mask)
                    sum_scale += q * v_reference + du * v_gx
                    sum_post += v_dy * first * v
                sum_bias += q
                if dstrength is not None:
                    sum_strength += q * v_noise
        tl.store(out + at, v_out.to(out.dtype.element_ty), mask=mask)

    of_piece = (sample * segments + segment) * c + channel
    if dbias is not None:
        tl.store(dbias + of_piece, tl.sum(sum_bias, AXIS, keep_dims=True), mask=live)
    if dstrength is not None:
        if STRENGTH_PER_CHANNEL:
            tl.store(dstrength + of_piece, tl.sum(sum_strength, AXIS, keep_dims=True), mask=live)
        else:
            tl.store(dstrength + pid, tl.sum(sum_strength))
    if dscale is not None:
        tl.store(dscale + of_piece, tl.sum(sum_scale, AXIS, keep_dims=True), mask=live)
    if dpost is not None:
        tl.store(dpost + of_piece, tl.sum(sum_post, AXIS, keep_dims=True), mask=live)


def _launch(kernel_pass: str, call: NoiseBiasActCall, out: Tensor | None, reference: Tensor | None) -> None:
    second = kernel_pass == "double_backward"
    plan = plan_of(call[:4], call.dtype.itemsize, second and call.dx is not None)
    tables = tables_of(call, plan.segments, plan.programs)
    with torch.cuda.device_of(out):
        _elements[(plan.programs,)](
            out, call.dx if second else None, *tables, reference, call.dy, call.gx, call.residual, call.noise,
            call.strength, call.bias, call.scale, call.post, call.gstrength, call.gbias, call.gscale, call.gpost,
            call.slope, call.gain, call.clamp, call.n, call.c, call.p, plan.segments, plan.steps, plan.tiles,
            PASS=kernel_pass, FROM_OUTPUT=call.from_output, ACT=call.act, NHWC=plan.nhwc,
            NOISE_PER_SAMPLE=call.noise_per_sample, STRENGTH_PER_CHANNEL=call.strength_per_channel,
            S=arithmetic(call.dtype), ALIGN=plan.align, R=plan.rows, F=plan.columns, **COMPILED,
        )  # fmt: skip
        add_tables(call, tables, plan.segments, plan.programs)


def forward(call: NoiseBiasActCall) -> None:
    _launch("forward", call, call.y, call.x)


def backward(call: NoiseBiasActCall) -> None:
    _launch("backward", call, call.dx, call.reference)
    launch_noise_gradient(
        call, View(*call[:4]), call.reference, act=call.act, from_output=call.from_output,
        strength_per_channel=call.strength_per_channel,
    )  # fmt: skip


def double_backward(call: NoiseBiasActCall) -> None:
    _launch("double_backward", call, call.ddy, call.reference)
