"""Equivariance of a generator: whether the image moves as the scene does (Karras et al. 2021, appendix E).

Each metric compares two images: one of a scene that was moved at the generator's input, and the image of the scene at
rest, moved as an image. The result is a PSNR in dB for images of range [-1, 1], over the pixels that both determine:

- eqt: translations by whole pixels, up to an eighth of the image. Nothing is interpolated.
- eqt-frac: translations by fractions of a pixel as well. The image is interpolated by Lanczos' filter of reach 3.
- eqr: rotations by any angle. A rotated image has the frequencies that lie in its own band and in the rotated one. Both
  images are restricted to these, one while it is rotated, the other one at rest.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.models.moving import rotation, translation

METRICS = ("eqt", "eqt-frac", "eqr")
RANGE = 2.0  # of images
LARGEST_TRANSLATION = 1 / 8  # of the image's size
LANCZOS = 3
REACH = 2 * LANCZOS  # of the filter for rotations
FINE = 4  # samples of this filter, and of the image to be rotated, for each pixel
FREQUENCIES = 512  # samples of the frequency band along an axis

Moved = tuple[Tensor, Tensor]  # images [C, H, W], and bool [H, W]: which pixels are determined


def draw_movements(count: int, seed: int) -> Tensor:
    """Random numbers for `count` samples, [count, 5] from -1 to 1: two for each translation, one for the rotation."""
    return 2 * torch.rand(count, 5, generator=torch.Generator().manual_seed(seed)) - 1


def squared_errors(draw: Callable[[Tensor], Tensor], movements: Tensor, metrics: Sequence[str]) -> Tensor:
    """Sum of squared errors of each sample, and number of compared values: fp64 [N, len(metrics), 2].

    Args:
        draw: transforms [N, 3, 3] (see `fastgan.models.moving`) to images [N, C, H, W].
        movements: [N, 5], from `draw_movements`.
        metrics: some of `METRICS`.
    """
    still = draw(torch.eye(3).repeat(len(movements), 1, 1))
    height, width = still.shape[2:]
    size = torch.tensor([width, height])
    found = []
    for metric in metrics:
        if metric == "eqr":
            angles = math.pi * movements[:, 4]
            transforms = rotation(angles)
            matrices = transforms[:, :2, :2].to(still)
            moved = [restricted(*pair) for pair in zip(draw(transforms), matrices, strict=True)]
            expected = [rotated(*pair) for pair in zip(still, matrices, strict=True)]
        else:
            pixels = LARGEST_TRANSLATION * size * (movements[:, :2] if metric == "eqt" else movements[:, 2:4])
            pixels = pixels.round() if metric == "eqt" else pixels
            everywhere = torch.ones(height, width, dtype=torch.bool, device=still.device)
            moved = [(image, everywhere) for image in draw(translation(*(pixels / width).unbind(1)))]
            reach = 1 if metric == "eqt" else LANCZOS
            expected = [translated(image, x, y, reach) for image, (x, y) in zip(still, pixels.tolist(), strict=True)]
        found.append(torch.stack([_squared_error(*pair) for pair in zip(moved, expected, strict=True)]))
    return torch.stack(found, 1).cpu()


def psnr(errors: Tensor) -> float:
    """PSNR in dB of all samples together; infinite without an error. errors: [N, 2], from `squared_errors`."""
    squares, count = errors.sum(0).tolist()
    return 10 * math.log10(RANGE**2 * count / squares) if squares else math.inf


def _squared_error(moved: Moved, expected: Moved) -> Tensor:
    mask = moved[1] & expected[1]
    difference = (moved[0] - expected[0]).double()[:, mask]
    return torch.stack([difference.square().sum(), difference.new_tensor(difference.numel())])


# ---- translation ----------------------------------------------------------------------------------------------------


def translated(image: Tensor, x: float, y: float, reach: int = LANCZOS) -> Moved:
    """[C, H, W] moved right by x and down by y pixels. reach: of Lanczos' filter; 1 for whole pixels."""
    rows, row_is_determined = _shift(image.shape[1], y, reach, image)
    columns, column_is_determined = _shift(image.shape[2], x, reach, image)
    return rows @ image @ columns.t(), row_is_determined[:, None] & column_is_determined


def _shift(size: int, shift: float, reach: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix [size, size] that shifts a signal, and which of its results depend on no sample outside."""
    place = torch.arange(size, dtype=torch.float64) - shift
    taps = _lanczos(place[:, None] - torch.arange(size), reach)
    taps = torch.sinc(place[:, None] - torch.arange(size)) * taps
    offset = torch.arange(-reach, reach + 1) - (place[0] - place[0].floor())
    taps = taps / (torch.sinc(offset) * _lanczos(offset, reach)).sum()
    inside = (place.floor() - reach + 1 >= 0) & (place.ceil() + reach <= size)
    return taps.to(like), inside.to(like.device)


def _lanczos(x: Tensor, reach: int) -> Tensor:
    return torch.where(x.abs() < reach, torch.sinc(x / reach), 0)


# ---- rotation -------------------------------------------------------------------------------------------------------


def rotated(image: Tensor, matrix: Tensor) -> Moved:
    """[C, H, W] rotated about its centre. matrix: [2, 2], maps a place of the result to one of `image`."""
    height, width = image.shape[1:]
    filter = _common_band(matrix)
    # Phases of the filter: the image at FINE places of each pixel and axis.
    padded = F.pad(filter, (1, 0, 1, 0)).flip(0, 1)  # [2 * REACH * FINE] for each axis
    phases = padded.unflatten(1, (2 * REACH, FINE)).unflatten(0, (2 * REACH, FINE)).permute(1, 3, 0, 2)
    phases = phases.flip(0, 1).flatten(0, 1)
    phases = phases / phases.sum((1, 2), keepdim=True)
    around = F.pad(image[:, None], (REACH - 1, REACH, REACH - 1, REACH))
    fine = F.pixel_shuffle(F.conv2d(around, phases[:, None]), FINE)  # [C, 1, FINE * H, FINE * W]
    middle = torch.tensor([width - 1, height - 1], device=image.device) / 2
    found = _centred(height, width, image) @ matrix.t() + middle  # [H, W, 2], in pixels
    border = torch.minimum(found, 2 * middle - found).amin(2)
    last = torch.tensor([FINE * width - 1, FINE * height - 1], device=image.device)
    grid = (2 * FINE * found / last - 1).expand(len(fine), -1, -1, -1)
    return F.grid_sample(fine, grid, mode="bicubic", align_corners=True)[:, 0], border >= REACH + 0.5


def restricted(image: Tensor, matrix: Tensor) -> Moved:
    """[C, H, W] with the frequencies alone that are also in `rotated(image at rest, matrix)`."""
    filter = _common_band(matrix.t())[FINE - 1 :: FINE, FINE - 1 :: FINE]
    reach = len(filter) // 2
    result = F.conv2d(image[:, None], (filter / filter.sum())[None, None], padding=reach)[:, 0]  # point symmetric
    inside = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
    inside[reach:-reach, reach:-reach] = True
    return result, inside


def _centred(height: int, width: int, like: Tensor) -> Tensor:
    """Places (x, y) of pixels about the image's centre, [H, W, 2]."""
    x, y = (torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2 for size in (width, height))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), 2)


def _common_band(matrix: Tensor) -> Tensor:
    """The filter of frequencies in the band of an image and in that of its rotated version.

    Ideal, times the convolution of Lanczos' windows along the axes of both images. [T, T], T = 2 * REACH * FINE - 1, at
    offsets of 1 / FINE pixels.
    """
    offsets = (torch.arange(2 * REACH * FINE - 1, device=matrix.device) - REACH * FINE + 1).to(matrix) / FINE
    frequency = (torch.arange(FREQUENCIES, device=matrix.device).to(matrix) + 0.5) / FREQUENCIES - 0.5
    plane = torch.stack(torch.meshgrid(frequency, frequency, indexing="xy"), 2)
    inside = ((plane @ matrix).abs() <= 0.5).all(2).to(matrix)
    angles = 2 * math.pi * offsets[:, None] * frequency
    cosine, sine = angles.cos(), angles.sin()
    ideal = cosine @ inside @ cosine.t() - sine @ inside @ sine.t()  # the band is symmetric about zero
    windows = []
    for size, axes in ((LANCZOS, torch.eye(2).to(matrix)), (math.ceil(LANCZOS * math.sqrt(2)), matrix)):
        place = torch.arange(-size * FINE, size * FINE + 1, device=matrix.device).to(matrix) / FINE
        plane = torch.stack(torch.meshgrid(place, place, indexing="xy"), 2) @ axes
        windows.append(_lanczos(plane, LANCZOS).prod(2))
    first, second = windows
    whole = F.conv2d(second[None, None], first[None, None], padding=len(first) - 1)[0, 0]
    extra = (len(whole) - len(offsets)) // 2
    return ideal * whole[extra : extra + len(offsets), extra : extra + len(offsets)]
