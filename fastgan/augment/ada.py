"""Adaptive discriminator augmentation (ADA): random transformations of all images that the discriminator sees.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B: pixel blitting, general
geometric transformations and colour. Real and generated images pass through it, and gradients flow back through it.
Each transformation is applied with probability p. While p is below about 0.8, augmentations do not leak into generated
images (section 2.2). `AdaptiveStrength` controls p by the discriminator's logits of real images.

Flips, quarter turns and whole-pixel translations only move pixels. Other geometric transformations resample: the image
is upsampled by 2 with an orthogonal low-pass filter, sampled bilinearly at the inverse of all transformations at once,
and downsampled by 2 with the same filter. Images are mirrored at their borders.

Differences from the paper:
- The paper mirrors within a margin that depends on the batch, and pads black beyond it. An infinitely mirrored image is
  periodic; here one period is upsampled, twice the image in each direction, and coordinates wrap around. So there is
  no margin, no black, and no shape that depends on random values.
- The paper puts the filter's origin on a pixel. Here it is at the filter's centroid, a fifth of a pixel away, so that
  rotations and flips are about the middle of the image.
- The paper resamples every image. Here images whose pixels only move keep their values, and images without a
  transformation are unchanged.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.augment.sampling import BILINEAR, NEAREST, sample
from fastgan.ops import upfirdn2d
from fastgan.ops.arguments import DTYPES
from fastgan.ops.arithmetic import to_arithmetic
from fastgan.ops.layout import channels_last, dense, is_channels_last
from fastgan.ops.recordable import recordable
from fastgan.ops.upfirdn2d import taps
from fastgan.penalties.rules import Affine, require_only_first, rule

# Low-pass filter of the "least asymmetric" orthogonal wavelet with 6 vanishing moments, "sym6" in PyWavelets.
# Daubechies 1992, "Ten Lectures on Wavelets", table 6.3; computed with 50 digits from the roots of its polynomial.
SYM6 = (
    0.015404109327044824, 0.0034907120842221625, -0.11799011114852003, -0.048311742585698055,
    0.49105594192797373, 0.78764114102865100, 0.33792942172816583, -0.072637522786376583,
    -0.021060292512370848, 0.044724901770781385, 0.0017677118642540077, -0.0078007083250323804,
)  # fmt: skip
BEFORE = len(SYM6) // 2 - 1  # taps before the middle pair
# Position of pixel 0 in the upsampled image, between its pixels 0 and 1.
ORIGIN = sum(k * tap for k, tap in enumerate(SYM6)) / sum(SYM6) - BEFORE

# Groups of transformations that are switched on and off together, and their parameters.
GROUPS = {
    "xflip": ("flip",),
    "rotate90": ("turns",),
    "translate": ("shift_x", "shift_y"),
    "geometry": ("scale", "angle_before", "stretch", "angle_after", "move_x", "move_y", "resampled"),
    "color": ("brightness", "contrast", "luma_flip", "hue", "saturation"),
}


class Parameters(NamedTuple):
    """Transformations of each image, in order of application: tensors [N], fp32; `resampled` is bool."""

    flip: Tensor  # 1: mirror left and right
    turns: Tensor  # quarter turns, counter-clockwise
    shift_x: Tensor  # to the right, as a fraction of the width; rounded to whole pixels
    shift_y: Tensor  # down, as a fraction of the height
    scale: Tensor  # zoom factor
    angle_before: Tensor  # radians, counter-clockwise
    stretch: Tensor  # factor of the width, divisor of the height
    angle_after: Tensor  # as angle_before
    move_x: Tensor  # as shift_x, not rounded
    move_y: Tensor
    resampled: Tensor  # whether scale to move_y are applied; if not, they are ignored
    brightness: Tensor  # added to all channels
    contrast: Tensor  # factor
    luma_flip: Tensor  # 1: invert the brightness, keep the hue
    hue: Tensor  # rotation about the grey axis, radians
    saturation: Tensor  # factor of the distance from grey

    @staticmethod
    def identity(n: int, device: torch.device | str = "cpu") -> Parameters:
        """Parameters that change nothing, for n images."""
        values = dict.fromkeys(Parameters._fields, torch.zeros(n, device=device))
        values |= dict.fromkeys(("scale", "stretch", "contrast", "saturation"), torch.ones(n, device=device))
        return Parameters(**values | {"resampled": torch.zeros(n, dtype=torch.bool, device=device)})


class Augment(nn.Module):
    """Random transformations, each applied to each image with probability `p`.

        discriminator(augment(images), label)

    x-flip, quarter turns and luma flip are uniform choices that include the identity: where applied, they flip half of
    the images and turn three quarters.

    There are no device synchronizations and no data-dependent shapes. A captured CUDA graph draws new parameters at
    every replay, with the current `p`.

    Args:
        p: initial probability, from 0 to 1. It is stored in the buffer `p`, 0-dim fp32, to be changed in place.
        groups: of transformations: "xflip", "rotate90", "translate" (whole pixels), "geometry" (scale, rotation,
            stretch, fractional translation) and "color".

    Raises:
        ValueError: p is not a probability, or a group is unknown.
    """

    p: Tensor

    def __init__(self, p: float = 0.0, *, groups: tuple[str, ...] = tuple(GROUPS)):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"Augment: p is {p}, must be from 0 to 1")
        for group in groups:
            if group not in GROUPS:
                raise ValueError(f"Augment: groups has {group!r}, must be of {', '.join(GROUPS)}")
        self.groups = tuple(groups)
        self.register_buffer("p", torch.full((), float(p), dtype=torch.float32))
        self.register_buffer("filter", taps(SYM6), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] in [-1, 1] to the same shape; see `transform`. Values may leave the range."""
        return self.transform(images, self.draw(len(images)))

    def draw(self, n: int) -> Parameters:
        """Draws parameters for n images from the default generator of the device of `p`."""
        device = self.p.device

        def heads(count: int, p: Tensor) -> Tensor:
            return (torch.rand(count, n, device=device) < p).float()

        flip, turns, shift, scale, stretch, move, brightness, contrast, luma_flip, hue, saturation = heads(11, self.p)
        # With probability p at least one of the two rotations is applied.
        angle_before, angle_after = heads(2, 1 - (1 - self.p).sqrt())
        u = torch.rand(8, n, device=device)
        g = torch.randn(7, n, device=device)
        # Where a transformation is not applied, its factor 0 makes it exactly the identity.
        drawn = Parameters(
            flip=flip * (u[0] * 2).floor(),
            turns=turns * (u[1] * 4).floor(),
            shift_x=shift * (u[2] * 2 - 1) / 8,
            shift_y=shift * (u[3] * 2 - 1) / 8,
            scale=torch.exp2(scale * g[0] * 0.2),
            angle_before=angle_before * (u[4] * 2 - 1) * math.pi,
            stretch=torch.exp2(stretch * g[1] * 0.2),
            angle_after=angle_after * (u[5] * 2 - 1) * math.pi,
            move_x=move * g[2] / 8,
            move_y=move * g[3] / 8,
            resampled=scale + angle_before + stretch + angle_after + move > 0,
            brightness=brightness * g[4] * 0.2,
            contrast=torch.exp2(contrast * g[5] * 0.5),
            luma_flip=luma_flip * (u[6] * 2).floor(),
            hue=hue * (u[7] * 2 - 1) * math.pi,
            saturation=torch.exp2(saturation * g[6]),
        )
        wanted = {name: getattr(drawn, name) for group in self.groups for name in GROUPS[group]}
        return Parameters.identity(n, device)._replace(**wanted)

    def transform(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Applies the transformations of the active groups.

        Args:
            images: [N, C, H, W]; fp32, bf16, fp16 or fp64. C is 1 (grey; without hue and saturation), 3 (RGB) or 4
                (RGBA; colour leaves alpha unchanged), or any number without "color".
            parameters: for N images, on the same device.

        Returns:
            [N, C, H, W] in the memory format of the images; fp32, fp64 for fp64. Affine in the images, and
            differentiable in them any number of times, but not in the parameters. The gradient is deterministic on a
            CPU, not on a GPU.

        Raises:
            ValueError: a shape, dtype or device does not fit.
        """
        self._check(images)
        return _transform(images, parameters, self.filter, self.groups)

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4:
            raise ValueError(f"Augment: images have shape {list(images.shape)}, must be [N, C, H, W]")
        if images.dtype not in DTYPES:
            raise ValueError(f"Augment: images have dtype {images.dtype}, must be fp32, bf16, fp16 or fp64")
        if images.device != self.p.device:
            raise ValueError(f"Augment: images are on {images.device}, p is on {self.p.device}")
        if "color" in self.groups and images.shape[1] not in (1, 3, 4):
            raise ValueError(
                f"Augment: images have {images.shape[1]} channels, must have 1, 3 or 4; "
                "for others leave out group 'color'"
            )

    def extra_repr(self) -> str:
        return f"groups={self.groups}"


class AdaptiveStrength(nn.Module):
    """ADA's controller: adjusts p so that the discriminator's overfitting stays at a target.

        strength.update(discriminator(augment(real), label), augment.p)  # in every step

    Every `interval` steps, with r the mean sign of the logits of real images since the last adjustment,

        p = clamp(p + sign(r - target) * images / (1000 * adjust_kimg), 0, 1),   images = number of these images

    Karras et al. 2020, section 3, r_t of equation 1. Runs on the device without synchronization; its state is in
    buffers.

    Args:
        target: of r, which approaches 1 as the discriminator overfits.
        adjust_kimg: thousands of images in which p can go from 0 to 1.
        interval: steps between adjustments.

    Attributes:
        r: at the last adjustment, 0-dim, for logging.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, target: float = 0.6, adjust_kimg: float = 500.0, interval: int = 4):
        super().__init__()
        if not -1 <= target <= 1:
            raise ValueError(f"AdaptiveStrength: target is {target}, must be from -1 to 1, a mean of signs")
        if not adjust_kimg > 0:
            raise ValueError(f"AdaptiveStrength: adjust_kimg is {adjust_kimg}, must be more than 0")
        if interval < 1:
            raise ValueError(f"AdaptiveStrength: interval is {interval}, must be 1 step or more")
        self.target, self.adjust_kimg, self.interval = target, adjust_kimg, interval
        for name in ("r", "signs", "images", "steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def update(self, real_logits: Tensor, p: Tensor) -> None:
        """Counts a step's logits of real images, of any shape, and adjusts `p`, 0-dim, in place if due."""
        self.signs += real_logits.nan_to_num(0.0).sign().sum(dtype=torch.float32)  # a NaN would stay in the sum
        self.images += real_logits.numel()
        self.steps += 1
        due = self.steps >= self.interval
        r = self.signs / self.images.clamp_min(1)
        change = (r - self.target).sign() * self.images / (1000 * self.adjust_kimg)
        p.copy_(torch.where(due, (p + change).clamp(0, 1), p))
        self.r.copy_(torch.where(due, r, self.r))
        for count in (self.signs, self.images, self.steps):
            count.masked_fill_(due, 0)

    def extra_repr(self) -> str:
        return f"target={self.target}, adjust_kimg={self.adjust_kimg}, interval={self.interval}"


# All transformations ------------------------------------------------------------------------------------------------


@recordable
def _transform(images: Tensor, parameters: Parameters, filter: Tensor, groups: tuple[str, ...]) -> Tensor:
    """Applies the transformations of `groups`; `filter` is `taps(SYM6)`."""
    images = dense(images)
    x = to_arithmetic(images)
    if x.numel() == 0:
        return x
    with torch.autocast(x.device.type, enabled=False):
        x = _move(x, parameters, filter, groups)
        if "color" in groups:
            x = _recolor(x, parameters)
    return channels_last(x) if is_channels_last(images) else x.contiguous()


@rule(_transform)
def _(images, parameters, filter, groups):
    """Linear in images and brightness together."""

    def transform(x: Tensor, filter: Tensor, *values: Tensor) -> Tensor:
        *others, brightness = values
        known = dict(zip(names, others, strict=True))
        return _transform(x, Parameters(**known, brightness=brightness.flatten()), filter, groups)

    names = [name for name in Parameters._fields if name != "brightness"]
    weights = [getattr(parameters, name) for name in names]
    brightness = parameters.brightness[:, None, None, None]
    return Affine(transform, (require_only_first(images),), (filter, *weights), (brightness,))


# Geometry ---------------------------------------------------------------------------------------------------------
#
# A matrix [N, 3, 3] maps homogeneous coordinates (x, y, 1), in pixels from the middle of the image, from a pixel of the
# output to its source in the input. It is the product of the inverse transformations, the first one leftmost.


def _move(x: Tensor, parameters: Parameters, filter: Tensor, groups: tuple[str, ...]) -> Tensor:
    """Applies all transformations except colour."""
    blits, resamples = bool({"xflip", "rotate90", "translate"} & set(groups)), "geometry" in groups
    if not (blits or resamples):
        return x
    h, w = x.shape[2:]
    source = _blit_source(parameters, h, w)
    moved = _blit(x, source) if blits else x
    if not resamples:
        return moved
    resampled = _resample(x, _product(source, _geometry_source(parameters, h, w)), filter)
    return torch.where(parameters.resampled[:, None, None, None], resampled, moved)


def _blit_source(parameters: Parameters, height: int, width: int) -> Tensor:
    """Source matrix of flip, quarter turns and whole-pixel translation."""
    turns = parameters.turns
    cos, sin = (turns - 2).abs() - 1, 1 - (turns - 1).abs()  # 1 0 -1 0 and 0 1 0 -1, without rounding
    return _product(
        _scaling(1 - 2 * parameters.flip, torch.ones_like(parameters.flip)),
        _linear(cos, -sin, sin, cos),
        _translation(-(parameters.shift_x * width).round(), -(parameters.shift_y * height).round()),
    )


def _geometry_source(parameters: Parameters, height: int, width: int) -> Tensor:
    """Source matrix of scale, rotations, stretch and fractional translation."""
    return _product(
        _scaling(1 / parameters.scale, 1 / parameters.scale),
        _rotation(parameters.angle_before),
        _scaling(1 / parameters.stretch, parameters.stretch),
        _rotation(parameters.angle_after),
        _translation(-parameters.move_x * width, -parameters.move_y * height),
    )


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _linear(cos, -sin, sin, cos)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    zero = torch.zeros_like(x)
    return _linear(x, zero, zero, y)


def _linear(xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    zero, one = torch.zeros_like(xx), torch.ones_like(xx)
    return torch.stack([xx, xy, zero, yx, yy, zero, zero, zero, one], 1).reshape(-1, 3, 3)


def _translation(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack([one, zero, x, zero, one, y, zero, zero, one], 1).reshape(-1, 3, 3)


def _product(*matrices: Tensor) -> Tensor:
    """Product of [N, 3, 3]. Not by matmul: a GPU may use TF32, whose error of 1e-3 is a pixel in a large image."""
    return reduce(lambda a, b: (a[:, :, :, None] * b[:, None]).sum(2), matrices)


def _places(source: Tensor, down: Tensor, across: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """source(across[i], down[j]) as rows and columns of `x`, [N, len(down), len(across)] each; may be outside of it."""
    h, w = x.shape[2:]
    down, across = down[:, None] - (h - 1) / 2, across - (w - 1) / 2
    matrix = source.to(x.dtype)[:, :, :, None, None]
    columns, rows = (
        matrix[:, i, 0] * across + matrix[:, i, 1] * down + (matrix[:, i, 2] + (size - 1) / 2)
        for i, size in enumerate((w, h))
    )
    return rows, columns


def _resample(x: Tensor, source: Tensor, filter: Tensor) -> Tensor:
    """The image whose pixel z is `x` at source(z), computed at twice the resolution."""
    h, w = x.shape[2:]
    # One period of the mirrored image, with the image in the middle. The filter needs 3 pixels more before it, and
    # 4 after it, where interpolation reaches the first pixel again.
    top, high = _period(h)
    left, wide = _period(w)
    around = (top + 3, high + 4 - top - h), (left + 3, wide + 4 - left - w)
    large = upfirdn2d(_mirror_around(x, *around), filter, up=2, padding=(0, -1, 0, -1), gain=4)

    # The input of the downsampling filter: twice the image, and 5 pixels more on each side.
    down, across = (torch.arange(-BEFORE, 2 * size + BEFORE, dtype=x.dtype, device=x.device) for size in (h, w))
    rows, columns = _places(source, (down - ORIGIN) / 2, (across - ORIGIN) / 2, x)
    rows = 2 * (rows + top).remainder(high) + ORIGIN
    columns = 2 * (columns + left).remainder(wide) + ORIGIN
    return upfirdn2d(sample(large, rows, columns, BILINEAR), filter, down=2, flip=True)


def _blit(x: Tensor, source: Tensor) -> Tensor:
    """The image whose pixel z is pixel source(z) of `x`."""
    h, w = x.shape[2:]
    down, across = (torch.arange(size, dtype=x.dtype, device=x.device) for size in (h, w))
    rows, columns = _places(source, down, across, x)
    return sample(x, _mirrored(rows, h), _mirrored(columns, w), NEAREST)


def _period(size: int) -> tuple[int, int]:
    """Period of an infinitely mirrored axis: pixels from its start to the image, and its length."""
    return (size - 1) // 2, max(2 * (size - 1), 1)


def _mirrored(place: Tensor, size: int) -> Tensor:
    """Coordinates reflected at 0 and size - 1 until they are in between."""
    span = size - 1
    return span - (place.remainder(2 * span) - span).abs() if span else torch.zeros_like(place)


def _mirror_around(x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Reflection padding by (before, after) pixels of each axis, which may exceed the size of `x`."""
    h, w = x.shape[2:]
    if max(rows) < h and max(columns) < w:
        return F.pad(x, (*columns, *rows), mode="reflect")
    for dim, (before, after) in ((2, rows), (3, columns)):
        size = x.shape[dim]
        x = x.index_select(dim, _mirrored(torch.arange(-before, size + after, device=x.device), size))
    return x


# Colour -------------------------------------------------------------------------------------------------------------


def _recolor(x: Tensor, parameters: Parameters) -> Tensor:
    """Brightness, contrast, luma flip, hue and saturation of x [N, 1, 3 or 4, H, W], in this order.

    All act along or across the grey axis v = (1, 1, 1) / sqrt(3). Their product, with brightness b and hue t, is

        x -> l v v'(x + b) + k cos(t) (1 - v v') x + k sin(t) v × x

    with the factor along v, l = contrast, negated by the luma flip, and the factor across v, k = contrast * saturation.
    """
    flipped, contrast, brightness, saturation, hue = (
        value.to(x.dtype)[:, None, None, None]
        for value in (
            1 - 2 * parameters.luma_flip,
            parameters.contrast,
            parameters.brightness,
            parameters.saturation,
            parameters.hue,
        )
    )
    if x.shape[1] == 4:
        return torch.cat([_recolor(x[:, :3], parameters), x[:, 3:]], 1)
    along = contrast * flipped
    if x.shape[1] == 1:
        return along * x + along * brightness
    across, turned = contrast * saturation * hue.cos(), contrast * saturation * hue.sin() / math.sqrt(3)
    others = (along - across) / 3
    # Each channel with the next and the previous one: row i of v × x is (x[i - 1] - x[i + 1]) / sqrt(3).
    y = (across + others) * x + (others - turned) * x.roll(-1, 1) + (others + turned) * x.roll(1, 1)
    return y + along * brightness
