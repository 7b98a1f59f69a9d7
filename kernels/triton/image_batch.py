"""Triton kernels of image_batch.

y[n, h, w] = p / 127.5 - 1,   p = pixels[index[n], h, mirrored[n] ? W - 1 - w : w]     (each with C channels)
"""

import torch
import triton
import triton.language as tl

from fastgan_kernels.calls import ImageBatchCall
from fastgan_kernels.triton.samples import RowPlan, where_of_piece


@triton.jit(do_not_specialize=["images", "size", "row", "channels", "pieces"])
def _image_batch(
    y, pixels, index, mirrored,  # index and mirrored may be None
    images: tl.int64, size: tl.int64, row: tl.int64, channels: tl.int64, pieces: tl.int32,
    I: tl.constexpr, S: tl.constexpr, ALIGN: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """`I` is the type of indices within an image: 32 bits where they suffice, since the division by a row is slow."""
    sample, at, mask = where_of_piece(size, pieces, ALIGN, B)
    size = size // ALIGN * ALIGN  # tells the compiler that ALIGN divides it
    image = sample
    if index is not None:
        image = tl.load(index + sample)
    exists = (image >= 0) & (image < images)
    mirror = False
    if mirrored is not None:
        mirror = tl.load(mirrored + sample) != 0
    within = at - sample * size
    x = pixels + image * size
    mask_x = within < tl.where(exists, size, 0)
    if mirror:
        i, of_row, of_pixel = within.to(I), row.to(I), channels.to(I)
        first = i // of_row * of_row
        column = i - first
        channel = column % of_pixel
        p = tl.load(x + first + of_row - of_pixel - (column - channel) + channel, mask=mask_x, other=0)
    else:
        p = tl.load(x + within, mask=mask_x, other=0)
    # An image that does not exist becomes NaN: to raise an error, the host would have to wait for the device.
    scale = tl.where(exists, tl.full([], 1 / 255, S), float("nan"))
    v = p.to(S)
    tl.store(y + at, ((v + v - 255.0) * scale).to(y.dtype.element_ty), mask=mask)


def run(call: ImageBatchCall) -> None:
    size = call.h * call.w * call.c
    plan = RowPlan.of(size, call.dtype)
    index_type = tl.int32 if size < 1 << 31 else tl.int64
    mirrored = None if call.mirrored is None else call.mirrored.view(torch.uint8)
    with torch.cuda.device_of(call.y):
        _image_batch[(call.n * plan.pieces,)](
            call.y, call.pixels, call.index, mirrored, call.images, size, call.w * call.c, call.c, plan.pieces,
            I=index_type, **plan.options(call.dtype),
        )  # fmt: skip
