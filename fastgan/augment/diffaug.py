"""Differentiable augmentation (DiffAugment): colour, translation and cutout of every image that the discriminator sees.

Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", arXiv 2006.10738, section 3.2 and its
published settings. Unlike ADA it has no probability to control, and it costs a small part of ADA's transformations.

Transparent images are premultiplied (`fastgan.transparency`). Their colours change where there is something to see,
alpha only moves, and what translation and cutout leave empty is transparent. Other images are grey (0) there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.ops.arguments import DTYPES
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.constants import constant
from fastgan.ops.layout import channels_last, dense, is_channels_last
from fastgan.ops.recordable import recordable
from fastgan.ops.transforms import backward_must_use_reference
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
        if x.shape[1] == 4:
            x = _recolor_premultiplied(x, parameters) - EMPTY
            x = _apply(_linear(x, parameters, cutout, recolors=False), x) + EMPTY
        else:
            x = _apply(_linear(x, parameters, cutout), x, parameters.brightness.to(x.dtype))
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


# The linear part ------------------------------------------------------------------------------------------------------


class _Linear(NamedTuple):
    """Linear part of the transformation of images [N, C, H, W]: colours, then translation, then cutout.

    With saturation s, contrast k, the mean over colours of each pixel, m, and the mean of the image, M, colours become

        x -> k s x + k (1 - s) m + (1 - k) M

    which is its own adjoint. Translation is by whole pixels. In rows of pixels [H * W, C], with a margin of zeros, it
    is a copy from another start; only columns that wrap around are wrong, and set to zero with those that are cut.
    """

    mix: Tensor | None  # [N, C, C]: of the colours of a pixel; None to leave colours as they are
    mean: Tensor | None  # [N, 1]: factor of M
    kept: Tensor  # [N, H, W * C]: 0 for what is empty, else 1
    forth: Tensor  # [N] int64: first pixel of each moved image, among the rows of all images
    back: Tensor  # the same for the adjoint


def _linear(x: Tensor, parameters: Parameters, cutout: float, recolors: bool = True) -> _Linear:
    """The linear part for images of the shape, dtype and device of x."""
    n, c, h, w = x.shape
    mix = mean = None
    if recolors:
        contrast = parameters.contrast.to(x.dtype)[:, None]
        mean = 1 - contrast
        mix = contrast[:, :, None]
        if c > 1:
            own = contrast * parameters.saturation.to(x.dtype)[:, None]
            mix = torch.diag_embed(own.expand(n, c)) + ((contrast - own) / c)[:, :, None]
    counts, first, reach = _positions(h, w, cutout, x.device)
    centres = (torch.stack(parameters[3:]) * counts).floor_() + first  # [4, N]: moved image y, x; cut y, x
    rows, columns = _places(h, 1, x.device), _places(w, c, x.device)
    cut_rows = ((rows - centres[2, :, None]).abs_() <= reach[2]).to(x.dtype)
    seen, cut = ((columns - centres[1::2, :, None]).abs_() <= reach[1::2, :, None]).to(x.dtype)
    kept = torch.addcmul(seen[:, None], cut_rows[:, :, None], (cut * seen)[:, None], value=-1)
    shift = ((centres[0] - (h - 1) / 2) * w + (centres[1] - (w - 1) / 2)).long()
    stride = h * w + 2 * _margin(h, w)
    starts = torch.arange(_margin(h, w), n * stride, stride, device=x.device)
    return _Linear(mix, mean, kept, starts - shift, starts + shift)


@constant
def _positions(h: int, w: int, cutout: float, device: torch.device) -> Tensor:
    """Number of positions, centre at the first one, and distance from the centre to the outermost pixel: [3, 4, 1], for
    the moved image along y and x, then for the cut."""
    found = []
    for size in (h, w):
        most = _largest_shift(size)
        found.append((2 * most + 1, (size - 1) / 2 - most, (size - 1) / 2))
    for size in (h, w):
        length = _rounded(size * cutout)
        reach = (length - 1) / 2
        found.append((size + 1 - length % 2, reach - length // 2, reach))
    return torch.tensor(found, dtype=torch.float32, device=device).T[:, :, None].contiguous()


@constant
def _places(size: int, repeats: int, device: torch.device) -> Tensor:
    """0 to size - 1, each `repeats` times: fp32 [size * repeats]."""
    return torch.arange(size, dtype=torch.float32, device=device).repeat_interleave(repeats)


def _margin(h: int, w: int) -> int:
    """Pixels by which an image can be moved."""
    return _largest_shift(h) * w + _largest_shift(w)


def _largest_shift(size: int) -> int:
    return _rounded(size * LARGEST_SHIFT)


def _rounded(length: float) -> int:
    """The nearest whole number, up from halves."""
    return int(length + 0.5)


def _apply(linear: _Linear, x: Tensor, brightness: Tensor | None = None, adjoint: bool = False) -> Tensor:
    """The linear part, or its adjoint, of x [N, C, H, W]. brightness: [N], added to the colours."""
    if backward_must_use_reference((x,)):
        return _compute(linear, x, brightness, adjoint, differentiable=True)
    return _Apply.apply(x, brightness, adjoint, *linear)


class _Apply(torch.autograd.Function):
    """`_apply`, differentiable any number of times in x alone."""

    @staticmethod
    def forward(ctx, x, brightness, adjoint, *linear):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*linear)
        ctx.adjoint = adjoint
        return _compute(_Linear(*linear), x, brightness, adjoint)

    @staticmethod
    def backward(ctx, grad):
        back = None if grad is None else _apply(_Linear(*ctx.saved_tensors), grad, adjoint=not ctx.adjoint)
        return back, *[None] * (2 + len(_Linear._fields))


def _compute(
    linear: _Linear, x: Tensor, brightness: Tensor | None, adjoint: bool, differentiable: bool = False
) -> Tensor:
    """`_apply` by operations of PyTorch. They are faster if they need not be differentiable."""
    n, c, h, w = x.shape
    size, margin = h * w, _margin(h, w)
    starts = linear.back if adjoint else linear.forth
    pixels = x.permute(0, 2, 3, 1).reshape(n, size, c)
    inner = None
    if not differentiable:
        padded = pixels.new_empty(n, margin + size + margin, c)
        padded[:, :margin].zero_()
        padded[:, margin + size :].zero_()
        inner = padded[:, margin : margin + size]
    pixels = _kept(linear, pixels, h, inner) if adjoint else _recolored(linear, pixels, brightness, inner)
    if differentiable:
        padded = F.pad(pixels, (0, 0, margin, margin)).reshape(-1, c)
        pixels = padded[starts[:, None] + torch.arange(size, device=x.device)]
    else:  # whole images are copied at once
        pixels = padded.view(-1).unfold(0, size * c, c).index_select(0, starts).view(n, size, c)
    pixels = _recolored(linear, pixels, brightness) if adjoint else _kept(linear, pixels, h)
    return pixels.view(n, 1, h, w) if c == 1 else pixels.view(n, h, w, c).permute(0, 3, 1, 2)


def _recolored(linear: _Linear, pixels: Tensor, brightness: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Colours of pixels [N, H * W, C]."""
    if linear.mix is None or linear.mean is None:
        return pixels if out is None else out.copy_(pixels)
    offset = linear.mean * pixels.reshape(len(pixels), -1).mean(1, keepdim=True)
    if brightness is not None:
        offset = offset + brightness[:, None]
    product = torch.bmm if pixels.shape[2] > 1 else torch.mul
    return product(pixels, linear.mix, out=out).add_(offset[:, :, None])


def _kept(linear: _Linear, pixels: Tensor, height: int, out: Tensor | None = None) -> Tensor:
    """Zeros for what is empty of pixels [N, H * W, C]."""
    lines = len(pixels), height, -1
    kept = torch.mul(pixels.reshape(lines), linear.kept, out=None if out is None else out.view(lines))
    return kept.view(pixels.shape)


# Transparent images ---------------------------------------------------------------------------------------------------


def _recolor_premultiplied(x: Tensor, parameters: Parameters) -> Tensor:
    """Colours of premultiplied RGBA [N, 4, H, W] change as those of the straight image do.

    There x + 1 = coverage * (colour + 1), so constants count by coverage, and the mean of the image is that of what can
    be seen.
    """
    brightness, saturation, contrast = (value.to(x.dtype)[:, None, None, None] for value in parameters[:3])
    colours, coverage = x[:, :3] - EMPTY, (x[:, 3:] - EMPTY) / 2
    pixel_mean = colours.mean(1, keepdim=True)
    mixed = contrast * saturation * colours + contrast * (1 - saturation) * pixel_mean
    visible = coverage.sum((2, 3), keepdim=True).clamp_min(1)  # one pixel or more
    mean = pixel_mean.sum((2, 3), keepdim=True) / visible
    return torch.cat([mixed + coverage * ((1 - contrast) * mean + brightness) + EMPTY, x[:, 3:]], 1)
