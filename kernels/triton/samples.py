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
    """The sample, the indices [B] within all rows of the piece of this program, and which of them are of the sample."""
    pid = tl.program_id(0)
    sample = (pid // pieces).to(tl.int64)
    size = size // ALIGN * ALIGN
    within = (pid % pieces).to(tl.int64) * B + tl.arange(0, B)
    return sample, sample * size + within, within < size


class Pieces(NamedTuple):
    """How rows are cut up, from their size alone."""

    size: int
    count: int  # of a sample
    align: int  # divides the size: the compiler must see it to make wide accesses
    numbers: int  # of a piece: 4 accesses of 16 bytes for each thread

    @staticmethod
    def of(x: torch.Tensor) -> "Pieces":
        size = x.numel() // x.shape[0]
        numbers = min(WARPS * 32 * 4 * 16 // x.element_size(), triton.next_power_of_2(size))
        return Pieces(size, triton.cdiv(size, numbers), min(size & -size, 16), numbers)
