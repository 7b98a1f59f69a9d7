"""Checks of arguments that several operations make, at their boundary."""

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_activation(operation: str, name: str, x: Tensor) -> None:
    """Raises ValueError, naming the argument, if `x` is not [N, C, ...] in fp32, bf16, fp16 or fp64."""
    if x.dim() < 2:
        raise ValueError(f"{operation}: {name} has shape {list(x.shape)}, must be [N, C, ...]")
    if x.dtype not in _DTYPES:
        raise ValueError(f"{operation}: {name} has dtype {x.dtype}, must be fp32, bf16, fp16 or fp64")
