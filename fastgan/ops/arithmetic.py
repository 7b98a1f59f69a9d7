"""The precision of arithmetic: fp64 for fp64 activations, fp32 for all others."""

import torch
from torch import Tensor


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_arithmetic(x: Tensor) -> Tensor:
    """`x` in the precision of arithmetic; `x` itself if it is in that precision."""
    return x.to(arithmetic_dtype(x.dtype))


def update_average(average: Tensor, value: Tensor, share: float | Tensor) -> None:
    """Updates an average in place: average += share * (value - average), where `value` is finite.

    An overflow would stay for ever.
    """
    value = value.detach().to(average.dtype)
    average.lerp_(value.where(value.isfinite(), average), share)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which convolutions and matrix products of `x` run: autocast's if that is on. fp64 stays."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def computes_in_fp16(x: Tensor) -> bool:
    """Whether a convolution or matrix product of `x` runs in fp16, where large sums overflow."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return dtype == torch.float16
