"""The precision that fastgan computes in: fp32 for activations of any dtype, fp64 for fp64."""

import torch
from torch import Tensor


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_arithmetic(x: Tensor) -> Tensor:
    """`x` in the precision of arithmetic; `x` itself where it has that."""
    return x.to(arithmetic_dtype(x.dtype))


def average_in(average: Tensor, value: Tensor, share: float) -> None:
    """Moves a running average in place, by this share of the way to `value`, where that is finite: one overflow would
    stay in it for ever."""
    value = value.detach().to(average.dtype)
    average.lerp_(value.where(value.isfinite(), average), share)


def computes_in_fp16(x: Tensor) -> bool:
    """Whether a convolution or matrix product of `x` is one in fp16, whose range large sums leave."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return dtype == torch.float16
