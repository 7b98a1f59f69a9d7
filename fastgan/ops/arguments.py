"""Argument checks shared by all operations. Errors name the operation and the argument."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops.arithmetic import arithmetic_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_activation(operation: str, x: Tensor, name: str = "x") -> None:
    """Raises ValueError unless `x` is [N, C, ...] in one of `DTYPES`."""
    if x.dim() < 2:
        raise ValueError(f"{operation}: {name} has shape {list(x.shape)}, must be [N, C, ...]")
    if x.dtype not in DTYPES:
        raise ValueError(f"{operation}: {name} has dtype {x.dtype}, must be fp32, bf16, fp16 or fp64")


def check_parameter(operation: str, name: str, tensor: Tensor, x: Tensor) -> None:
    """Raises ValueError unless `tensor` is floating-point, not empty and on the device of `x`."""
    if not tensor.is_floating_point():
        raise ValueError(f"{operation}: {name} has dtype {tensor.dtype}, must be floating-point")
    if tensor.device != x.device:
        raise ValueError(f"{operation}: {name} is on {tensor.device}, x on {x.device}")
    if not tensor.numel():
        raise ValueError(f"{operation}: {name} has shape {list(tensor.shape)}, must not be empty")


def prepare(
    operation: str, name: str, tensor: Tensor | None, shapes: Sequence[tuple[int, ...]], x: Tensor
) -> Tensor | None:
    """Converts a small tensor for the kernels: contiguous, in the precision of arithmetic. None stays None.

    Raises ValueError unless `tensor` has one of `shapes`, is floating-point and on the device of `x`.
    """
    if tensor is None:
        return None
    if tensor.shape not in shapes:
        fits = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{operation}: {name} has shape {list(tensor.shape)}, must be {fits} for x {list(x.shape)}")
    dtype, arithmetic = tensor.dtype, arithmetic_dtype(x.dtype)
    if dtype != arithmetic or tensor.device != x.device:
        if tensor.numel():
            check_parameter(operation, name, tensor, x)
        tensor = tensor.to(arithmetic)
    return tensor if tensor.is_contiguous() else tensor.contiguous()
