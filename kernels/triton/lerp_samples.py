"""Triton kernels of lerp_samples.

y[n] = a[n] + t[n] * (b[n] - a[n]),   da[n] = (1 - t[n]) dy[n],   db[n] = t[n] dy[n]
"""

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import SamplesCall
from fastgan_kernels.triton.samples import RowPlan, where_of_piece


@triton.jit(do_not_specialize=["size", "pieces"])
def _lerp(y, a, b, t, size: tl.int64, pieces: tl.int32, S: tl.constexpr, ALIGN: tl.constexpr, B: tl.constexpr):
    sample, at, mask = where_of_piece(size, pieces, ALIGN, B)
    v_a = tl.load(a + at, mask=mask, other=0.0).to(S)
    v_b = tl.load(b + at, mask=mask, other=0.0).to(S)
    tl.store(y + at, (v_a + tl.load(t + sample) * (v_b - v_a)).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size", "pieces"])
def _split(da, db, dy, t, size: tl.int64, pieces: tl.int32, S: tl.constexpr, ALIGN: tl.constexpr, B: tl.constexpr):
    sample, at, mask = where_of_piece(size, pieces, ALIGN, B)
    v_dy = tl.load(dy + at, mask=mask, other=0.0).to(S)
    v_db = tl.load(t + sample) * v_dy
    tl.store(da + at, (v_dy - v_db).to(da.dtype.element_ty), mask=mask)
    if db is not None:
        tl.store(db + at, v_db.to(db.dtype.element_ty), mask=mask)


def _launch(kernel, call: SamplesCall, *tensors) -> None:
    plan = RowPlan.of(call.size, call.dtype)
    with torch.cuda.device_of(call.a):
        kernel[(call.n * plan.pieces,)](*tensors, call.weight, call.size, plan.pieces, **plan.options(call.dtype))


def forward(call: SamplesCall) -> None:
    _launch(_lerp, call, call.first, call.a, call.b)


def backward(call: SamplesCall) -> None:
    _launch(_split, call, call.first, call.second, call.a)
