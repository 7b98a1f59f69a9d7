"""Images of a scene that is moved at the generator's input, as the equivariance of Karras et al. 2021 is defined.

A transform is a matrix [3, 3], or [N, 3, 3] with one for each image. It maps a place of the image to the place of the
scene that appears there: the inverse of the movement. Places are (x, y, 1) with the image's centre at (0, 0) and its
width 1.
"""

import math

import torch
from torch import Tensor
from torch.func import functional_call

from fastgan.models import stylegan2, stylegan3
from fastgan.models.style_based import StyleBasedGenerator

MOVABLE = (stylegan2.Generator, stylegan3.Generator)


def translation(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Transforms [..., 3, 3] that move the scene right by x [...] and down by y [...], in widths of the image."""
    right, down = torch.broadcast_tensors(torch.as_tensor(x), torch.as_tensor(y))
    matrix = torch.eye(3, dtype=torch.result_type(right, 1.0), device=right.device).repeat(*right.shape, 1, 1)
    matrix[..., 0, 2], matrix[..., 1, 2] = -right, -down
    return matrix


def rotation(angle: Tensor | float) -> Tensor:
    """Transforms [..., 3, 3] that rotate the scene counterclockwise, as seen, by angles [...] in radians."""
    angle = torch.as_tensor(angle)
    matrix = torch.eye(3, dtype=torch.result_type(angle, 1.0), device=angle.device).repeat(*angle.shape, 1, 1)
    cosine, sine = angle.cos(), angle.sin()
    matrix[..., 0, 0], matrix[..., 0, 1] = cosine, -sine  # y points down
    matrix[..., 1, 0], matrix[..., 1, 1] = sine, cosine
    return matrix


def synthesize_moved(generator: StyleBasedGenerator, ws: Tensor, transform: Tensor) -> Tensor:
    """`generator.synthesize(ws, noise="const")` of a moved scene.

    StyleGAN3 moves its Fourier features. StyleGAN2 moves its learned constant, interpolated by the ideal filter of a
    periodic signal: a movement by whole pixels of the constant rolls it. Its noise maps stay. Raises TypeError for
    other generators.
    """
    if isinstance(generator, stylegan3.Generator):
        return functional_call(generator.synthesis, {"input.transform": transform.to(ws.device)}, (ws,))
    if isinstance(generator, stylegan2.Generator):
        const = moved_constant(generator.synthesis.const, transform.to(ws.device))
        return functional_call(generator.synthesis, {"const": const}, (ws,), {"noise": "const"})
    raise TypeError(f"generator is a {type(generator).__module__}.{type(generator).__name__}, whose input cannot move")


def moved_constant(const: Tensor, transform: Tensor) -> Tensor:
    """A periodic image [C, H, W] in place of a transformed one: [N, C, H, W], or [C, H, W] for one transform."""
    height, width = const.shape[1:]
    across = torch.arange(width, device=const.device) + 0.5 - width / 2
    down = torch.arange(height, device=const.device) + 0.5 - height / 2
    y, x = torch.meshgrid(down / width, across / width, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], 2).to(transform.dtype)  # [H, W, 3]
    found = (transform[..., None, None, :2, :] @ places[..., None]).squeeze(-1) * width  # [..., H, W, 2]
    columns = _periodic_sinc(found[..., 0, None] - across, width)  # [..., H, W, W]
    rows = _periodic_sinc(found[..., 1, None] - down, height)  # [..., H, W, H]
    return torch.einsum("...yxj,...yxi,cji->...cyx", rows.to(const), columns.to(const), const)


def _periodic_sinc(distance: Tensor, period: int) -> Tensor:
    """The ideal interpolation filter of a periodic signal; 1 at multiples of the period."""
    angle = math.pi * distance
    share = angle / period
    value = angle.sin() / (period * (share.sin() if period % 2 else share.tan()))
    return torch.where(share.sin().abs() < 1e-6, 1.0, value)
