"""Shared by the Triton kernels of squared_norm, lerp_samples and image_batch: a program takes a piece of a sample.

A sample is a row of elements, whatever the order of its dimensions in memory.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

WARPS = 4


@triton.jit
def where_of_piece(size, pieces, ALIGN: tl.constexpr, B: tl.constexpr):
    """The program's sample, the indices [B] of its elements in all rows, and the mask of those within the sample."""
    pid = tl.program_id(0)
    sample = (pid // pieces).to(tl.int64)
    size = size // ALIGN * ALIGN
    within = (pid % pieces).to(tl.int64) * B + tl.arange(0, B)
    return sample, sample * size + within, within < size


class Pieces(NamedTuple):
    """Division of rows into pieces, from their size alone."""

    size: int
    count: int  # pieces of a sample
    align: int  # divides the size; the compiler needs it for wide accesses
    numbers: int  # elements of a piece: 4 accesses of 16 bytes a thread

    @staticmethod
    def of(x: torch.Tensor) -> "Pieces":
        size = x.numel() // x.shape[0]
        numbers = min(WARPS * 32 * 4 * 16 // x.element_size(), triton.next_power_of_2(size))
        return Pieces(size, triton.cdiv(size, numbers), min(size & -size, 16), numbers)
