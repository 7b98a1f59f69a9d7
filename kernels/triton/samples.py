"""Partition of samples into pieces, for the Triton kernels of squared_norm, lerp_samples and image_batch.

A sample is a row of elements, whatever the order of its dimensions in memory. A program takes a piece of one row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastgan_kernels.triton.tiles import COMPILED, WARPS, arithmetic


@triton.jit
def where_of_piece(size, pieces, ALIGN: tl.constexpr, B: tl.constexpr):
    """The program's sample, the indices [B] of its elements in the tensor, and the mask of those within the sample."""
    pid = tl.program_id(0)
    sample = (pid // pieces).to(tl.int64)
    size = size // ALIGN * ALIGN
    within = (pid % pieces).to(tl.int64) * B + tl.arange(0, B)
    return sample, sample * size + within, within < size


class RowPlan(NamedTuple):
    """Partition of a row into pieces, from its size and dtype alone."""

    pieces: int  # number of pieces in a row
    align: int  # divides the size; the compiler needs it for wide accesses
    block: int  # elements in a piece: 4 accesses of 16 bytes per thread

    @staticmethod
    def of(size: int, dtype: torch.dtype) -> "RowPlan":
        block = min(WARPS * 32 * 4 * 16 // dtype.itemsize, triton.next_power_of_2(size))
        return RowPlan(triton.cdiv(size, block), min(size & -size, 16), block)

    def options(self, dtype: torch.dtype) -> dict[str, object]:
        """Constants and compiler options of a kernel on rows of `dtype`."""
        return {"S": arithmetic(dtype), "ALIGN": self.align, "B": self.block, **COMPILED}
