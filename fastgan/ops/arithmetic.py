"""The precision that fastgan computes in: fp32 for activations of any dtype, fp64 for fp64."""

import torch
from torch import Tensor


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_arithmetic(x: Tensor) -> Tensor:
    """`x` in the precision of arithmetic; `x` itself where it has that."""
    return x.to(arithmetic_dtype(x.dtype))
