"""image_batch: a batch of network inputs from a data set of bytes.

    y[n, :, h, w] = p / 127.5 - 1,   p = pixels[index[n], h, mirrored[n] ? W - 1 - w : w]

Gathers, mirrors, converts and changes the layout, in one pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import backends
from fastgan.ops.arguments import DTYPES
from fastgan.ops.arithmetic import arithmetic_dtype
from fastgan.ops.fused import FusedOperation, register
from fastgan.ops.layout import empty_nhwc
from fastgan.ops.transforms import transforms_active
from fastgan_kernels.calls import ImageBatchCall


class Options(NamedTuple):
    """The arguments that are no tensors."""

    dtype: torch.dtype  # dtype of the result


def image_batch(
    pixels: Tensor, index: Tensor | None = None, mirrored: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Gathers images of bytes and maps 0..255 to -1..1, in one pass. Not differentiable.

    Args:
        pixels: [M, H, W, C], uint8; copied if it is not contiguous.
        index: [N], int64: the images to take, from 0..M-1. None: all of them, in order.
        mirrored: [N], bool or uint8: the images of the batch to mirror left to right. None: no image.
        dtype: dtype of the result: fp32, bf16, fp16 or fp64.

    Returns:
        [N, C, H, W] in channels_last, also in its strides if C is 1. A byte p becomes p / 127.5 - 1, rounded once
        in fp32 (fp64 for fp64) and once more to a 16-bit `dtype`: the same bits on every backend.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
        IndexError: `index` is out of range, on a CPU. A GPU does not synchronize to check: there the kernels fill
            images out of range with NaN, and the reference triggers PyTorch's device-side assertion.
        BackendUnavailable: none of the requested backends can serve.
    """
    if pixels.dim() != 4:
        raise ValueError(f"image_batch: pixels has shape {list(pixels.shape)}, must be [M, H, W, C]")
    if pixels.dtype != torch.uint8:
        raise ValueError(f"image_batch: pixels has dtype {pixels.dtype}, must be uint8")
    if dtype not in DTYPES:
        raise ValueError(f"image_batch: dtype is {dtype}, must be fp32, bf16, fp16 or fp64")
    if index is not None and (index.dim() != 1 or index.dtype != torch.int64):
        raise ValueError(f"image_batch: index is {list(index.shape)} of {index.dtype}, must be [N] of int64")
    count = len(pixels if index is None else index)
    if mirrored is not None and (list(mirrored.shape) != [count] or mirrored.dtype not in (torch.bool, torch.uint8)):
        raise ValueError(
            f"image_batch: mirrored is {list(mirrored.shape)} of {mirrored.dtype}, must be {[count]} of bool or uint8"
        )
    for name, tensor in (("index", index), ("mirrored", mirrored)):
        if tensor is not None and tensor.device != pixels.device:
            raise ValueError(f"image_batch: {name} is on {tensor.device}, pixels on {pixels.device}")
    inputs = [None if tensor is None else tensor.contiguous() for tensor in (pixels, index, mirrored)]
    return ImageBatch.apply(backends.choose("image_batch", pixels.device), inputs, Options(dtype))


def _require_images(index: Tensor | None, count: int) -> None:
    """Raises IndexError if an index on a CPU is not in range(count)."""
    if index is None or index.device.type != "cpu" or not len(index):
        return
    low, high = (bound.item() for bound in index.aminmax())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise IndexError(f"image_batch: index has {wrong}, must be from 0 to {count - 1}, the last image of pixels")


@register
class ImageBatch(FusedOperation):
    """The operation; it has no backward pass."""

    name = "image_batch"
    inputs = ("pixels", "index", "mirrored")
    Options = Options
    has_backward = False

    @staticmethod
    def reference(inputs, options):
        images, index, mirrored = inputs
        if index is not None:
            if not (torch.compiler.is_compiling() or transforms_active()):  # compiled code has a check of its own
                _require_images(index, len(images))
            images = images.index_select(0, index)
        if mirrored is not None:
            images = torch.where(mirrored.bool().reshape(-1, 1, 1, 1), images.flip(2), images)
        converted = images.to(arithmetic_dtype(options.dtype))
        # The formula above, with less rounding error near 0.
        return ((converted + converted - 255) * (1 / 255)).to(options.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def allocate_output(inputs, options):
        pixels, index, _ = inputs
        height, width, channels = pixels.shape[1:]
        shape = len(pixels if index is None else index), channels, height, width
        return empty_nhwc(pixels, shape, options.dtype)

    @staticmethod
    def launch_forward(launchers, output, inputs, options):
        pixels, index, _ = inputs
        _require_images(index, len(pixels))
        n, c, h, w = output.shape
        launchers.run(ImageBatchCall(len(pixels), n, h, w, c, output.dtype, output, *inputs))
