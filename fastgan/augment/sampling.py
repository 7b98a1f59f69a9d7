"""Twice differentiable sampling of images at given coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops.transforms import must_use_reference

BILINEAR, NEAREST = 0, 1  # interpolation_mode of torch.grid_sampler_2d
ZEROS, BORDER = 0, 1  # its padding_mode


def sample(x: Tensor, rows: Tensor, columns: Tensor, interpolation: int, padding: int = BORDER) -> Tensor:
    """Samples `x` [N, C, H, W] at (rows, columns) [N, H2, W2], in pixels: [N, C, H2, W2].

    interpolation: BILINEAR or NEAREST. padding: outside of the image: BORDER, its nearest pixel, or ZEROS. Twice
    differentiable in `x`, not in the coordinates.
    """
    places = (columns, x.shape[3]), (rows, x.shape[2])
    grid = torch.stack([place * (2 / max(size - 1, 1)) - 1 for place, size in places], -1)  # from -1 to 1
    if must_use_reference((x, grid)):
        return torch.grid_sampler_2d(x, grid, interpolation, padding, True)
    return _Sample.apply(x, grid, interpolation, padding)


class _Sample(torch.autograd.Function):
    """grid_sample at fixed coordinates, differentiable any number of times: it is linear in the image.

    PyTorch's grid_sample is twice differentiable only since 2.13.
    """

    @staticmethod
    def forward(ctx, x, grid, interpolation, padding):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grid)
        ctx.call = x.shape, interpolation, padding
        return torch.grid_sampler_2d(x, grid, interpolation, padding, True)

    @staticmethod
    def backward(ctx, grad):
        return None if grad is None else _SampleAdjoint.apply(grad, *ctx.saved_tensors, *ctx.call), None, None, None


class _SampleAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, grid, shape, interpolation, padding):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grid)
        ctx.call = interpolation, padding
        # The gradient with respect to the image depends only on the image's shape.
        image, mask = grad.new_zeros(()).expand(shape), (True, False)
        return torch.ops.aten.grid_sampler_2d_backward(grad, image, grid, interpolation, padding, True, mask)[0]

    @staticmethod
    def backward(ctx, cotangent):
        back = None if cotangent is None else _Sample.apply(cotangent, *ctx.saved_tensors, *ctx.call)
        return back, None, None, None, None
