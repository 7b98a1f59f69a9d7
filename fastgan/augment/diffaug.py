"""Differentiable augmentation (DiffAugment): colour, translation and cutout of every image that the discriminator sees.

Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", arXiv 2006.10738, section 3.2 and its
published settings. Unlike ADA it has no probability to control, and it costs a small part of ADA's transformations.

Transparent images are premultiplied (`fastgan.transparency`). Their colours change where there is something to see,
alpha only moves, and what translation and cutout leave empty is transparent. Other images are grey (0) there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.augment.sampling import NEAREST, ZEROS, sample
from fastgan.ops.arguments import DTYPES
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last, dense, is_channels_last
from fastgan.ops.recordable import recordable
from fastgan.penalties.rules import Affine, NotPiecewiseLinear, require_only_first, rule

LARGEST_SHIFT = 1 / 8  # of the side
EMPTY = -1.0  # of premultiplied colours and alpha


class Parameters(NamedTuple):
    """Transformations of each image, in order of application: tensors [N], fp32.

    A position runs from 0 to below 1 through the whole pixels that it can be at.
    """

    brightness: Tensor  # added to the colours, -0.5 to 0.5
    saturation: Tensor  # factor of each pixel's distance from its mean over colours, 0 to 2
    contrast: Tensor  # factor of the distance from the mean of the image, 0.5 to 1.5
    shift_y: Tensor  # position: up to down by an eighth of the height
    shift_x: Tensor  # position: left to right by an eighth of the width
    cutout_y: Tensor  # position of the centre of the square that is cut out
    cutout_x: Tensor


class DiffAugment(nn.Module):
    """Random colour, translation and cutout of each image.

        discriminator(augment(images), label)

    There are no device synchronizations and no data-dependent shapes. A captured CUDA graph draws new parameters at
    every replay.

    Args:
        cutout: side of the square that is cut out, as a fraction of the image's, from 0 to 1; 1/2 in the paper.

    Raises:
        ValueError: `cutout` is out of range.
    """

    def __init__(self, *, cutout: float = 0.5):
        super().__init__()
        if not 0 <= cutout <= 1:
            raise ValueError(f"DiffAugment: cutout is {cutout}, must be from 0 to 1, a fraction of the image's side")
        self.cutout = cutout

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] in [-1, 1] to the same shape; see `transform`. Values may leave the range."""
        return self.transform(images, self.draw(len(images), images.device))

    @staticmethod
    def draw(n: int, device: torch.device | str = "cpu") -> Parameters:
        """Draws parameters for n images from the default generator of `device`."""
        u = torch.rand(len(Parameters._fields), n, device=device)
        return Parameters(u[0] - 0.5, u[1] * 2, u[2] + 0.5, *u[3:])

    def transform(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Applies the transformations.

        Args:
            images: [N, C, H, W]; fp32, bf16, fp16 or fp64. Four channels are premultiplied RGBA.
            parameters: for N images, on the same device.

        Returns:
            [N, C, H, W] in the memory format of the images; fp32, fp64 for fp64. Differentiable in the images any
            number of times, and affine in those without alpha; not differentiable in the parameters.

        Raises:
            ValueError: a shape or dtype does not fit.
        """
        if images.dim() != 4:
            raise ValueError(f"DiffAugment: images have shape {list(images.shape)}, must be [N, C, H, W]")
        if images.dtype not in DTYPES:
            raise ValueError(f"DiffAugment: images have dtype {images.dtype}, must be fp32, bf16, fp16 or fp64")
        return _transform(images, parameters, self.cutout)

    def extra_repr(self) -> str:
        return f"cutout={self.cutout}"


@recordable
def _transform(images: Tensor, parameters: Parameters, cutout: float) -> Tensor:
    images = dense(images)
    x = to_arithmetic(images)
    if x.numel() == 0:
        return x
    with torch.autocast(x.device.type, enabled=False):
        x = _recolor(x, parameters)
        x = _move(x, parameters, cutout) if x.shape[1] != 4 else _move(x - EMPTY, parameters, cutout) + EMPTY
    return channels_last(x) if is_channels_last(images) else x.contiguous()


@rule(_transform)
def _(images, parameters, cutout):
    """Linear in images and brightness together, without alpha."""
    if require_only_first(images).shape[1] == 4:
        raise NotPiecewiseLinear("is not linear in premultiplied images")

    def transform(x: Tensor, *values: Tensor) -> Tensor:
        *others, brightness = values
        return _transform(x, Parameters(brightness.flatten(), *others), cutout)

    return Affine(transform, (images,), parameters[1:], (parameters.brightness[:, None, None, None],))


def _move(x: Tensor, parameters: Parameters, cutout: float) -> Tensor:
    """Translation and cutout, which leave zeros."""
    h, w = x.shape[2:]
    down, across = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    rows = (down - _shift(parameters.shift_y, h))[:, :, None].to(x.dtype).expand(-1, h, w)
    columns = (across - _shift(parameters.shift_x, w))[:, None].to(x.dtype).expand(-1, h, w)
    x = sample(x, rows, columns, NEAREST, ZEROS)
    if not cutout:
        return x
    is_cut = _is_cut(down, parameters.cutout_y, cutout)[:, None, :, None]
    is_cut = is_cut & _is_cut(across, parameters.cutout_x, cutout)[:, None, None]
    return x.masked_fill(is_cut, 0.0)


def _is_cut(places: Tensor, position: Tensor, cutout: float) -> Tensor:
    """Whether each of the places [size] of an axis is within the cut of each image: [N, size]."""
    length = _rounded(len(places) * cutout)
    centre = (position[:, None] * (len(places) + 1 - length % 2)).floor()
    return (places >= centre - length // 2) & (places < centre - length // 2 + length)


def _shift(position: Tensor, size: int) -> Tensor:
    """Whole pixels [N, 1] by which an axis is moved."""
    most = _rounded(size * LARGEST_SHIFT)
    return (position[:, None] * (2 * most + 1)).floor() - most


def _rounded(length: float) -> int:
    """The nearest whole number, up from halves."""
    return int(length + 0.5)


def _recolor(x: Tensor, parameters: Parameters) -> Tensor:
    """Brightness b, saturation s and contrast k of x [N, C, H, W], in this order.

    With the mean over colours of each pixel, m, and the mean of the image, M, their product is

        x -> k s x + k (1 - s) m + (1 - k) M + b

    For premultiplied RGBA it is that of the straight colours. There x + 1 = coverage * (colour + 1), so the constants
    count by coverage, and M is the mean of what can be seen.
    """
    brightness, saturation, contrast = (value.to(x.dtype)[:, None, None, None] for value in parameters[:3])
    colours = x[:, :3] - EMPTY if x.shape[1] == 4 else x
    pixel_mean = colours.mean(1, keepdim=True)
    mixed = contrast * saturation * colours + contrast * (1 - saturation) * pixel_mean
    if x.shape[1] != 4:
        return mixed + ((1 - contrast) * pixel_mean.mean((2, 3), keepdim=True) + brightness)
    coverage = (x[:, 3:] - EMPTY) / 2
    visible = coverage.sum((2, 3), keepdim=True).clamp_min(1)  # one pixel or more
    mean = pixel_mean.sum((2, 3), keepdim=True) / visible
    return torch.cat([mixed + coverage * ((1 - contrast) * mean + brightness) + EMPTY, x[:, 3:]], 1)
