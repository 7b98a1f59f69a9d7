"""Noise maps of a single image, in place of a style-based generator's own, as a projection finds them.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958, appendix D.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.models.style_based import StyleBasedGenerator

SMALLEST = 8  # side of the coarsest maps that are checked for patterns


def own_maps(generator: StyleBasedGenerator) -> list[Tensor]:
    """The generator's fixed noise, [1, 1, H, W] for each layer of the current stage; empty if it has none."""
    return [layer.noise_const for layer in generator.noisy_layers]


@contextlib.contextmanager
def with_maps(generator: StyleBasedGenerator, maps: Sequence[Tensor]) -> Iterator[None]:
    """Within the block the fixed noise of the layers is `maps`, [N or 1, 1, H, W] each.

    In all threads: no other one may draw with this generator meanwhile.
    """
    layers, own = generator.noisy_layers, own_maps(generator)
    try:
        for layer, given in zip(layers, maps, strict=True):
            layer.noise_const = given
        yield
    finally:
        for layer, given in zip(layers, own, strict=True):
            layer.noise_const = given


def pattern(maps: Sequence[Tensor]) -> Tensor:
    """How far maps [N, 1, H, W] are from white noise, [N]: 0 if no pixel tells about its neighbours.

    The sum of squared autocorrelations, one pixel to the right and one down, of each map and of smaller ones made of it
    by averaging, down to SMALLEST (the appendix's L_{i,j}).
    """
    total = maps[0].new_zeros(len(maps[0]))
    for noise in maps:
        while True:
            for axis in (2, 3):
                total = total + (noise * noise.roll(1, axis)).mean((1, 2, 3)).square()
            if min(noise.shape[2:]) <= SMALLEST:
                break
            noise = 2 * F.avg_pool2d(noise, 2)  # keeps the variance of white noise
    return total


@torch.no_grad()
def normalize(maps: Sequence[Tensor], like: Sequence[Tensor]) -> None:
    """Gives each map [N, 1, H, W] mean and standard deviation of that of the same layer in `like`, in place.

    The paper's are 0 and 1, which a network's own small maps do not have.
    """
    for noise, own in zip(maps, like, strict=True):
        scale = own.std(correction=0) / noise.std((1, 2, 3), correction=0, keepdim=True).clamp(min=1e-8)
        noise.sub_(noise.mean((1, 2, 3), keepdim=True)).mul_(scale).add_(own.mean())


class GeneratorWithMaps(StyleBasedGenerator):
    """A generator whose ws carry the noise maps of their image: [N, num_ws, w_dim + P], for maps of up to P pixels.

    So a study that interpolates or mixes ws does the same with the maps: those of a layer go with its style.
    """

    def __init__(self, generator: StyleBasedGenerator):
        super().__init__()
        self.plain = generator
        self.z_dim, self.num_ws, self.supports = generator.z_dim, generator.num_ws, generator.supports
        self.noise_resolutions = generator.noise_resolutions
        self.sizes = [tuple(noise.shape[2:]) for noise in own_maps(generator)]

    @property
    def mapping(self):
        return self.plain.mapping

    @property
    def w_dim(self) -> int:
        return self.plain.w_dim + max(height * width for height, width in self.sizes)

    def packed(self, ws: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """ws [N, num_ws, w_dim] and their maps, [N, 1, H, W] each, as one tensor."""
        carried = ws.new_zeros(*ws.shape[:2], self.w_dim - self.plain.w_dim)
        for layer, noise in enumerate(maps):
            carried[:, layer, : noise[0].numel()] = noise.flatten(1)
        return torch.cat([ws, carried], 2)

    def styles(self, z: Tensor, label: Tensor | None = None, **options) -> Tensor:
        """z: packed ws, of which `options` change the ws; see `StyleBasedGenerator.styles`."""
        ws, carried = z.tensor_split([self.plain.w_dim], 2)
        ws = torch.cat([self.plain.styles(ws, label, **options), carried], 2)
        return ws if self.style_offset is None else ws + self.style_offset

    def synthesize(self, ws: Tensor, *, noise: str | Sequence[str] = "random") -> Tensor:
        ws, carried = ws.tensor_split([self.plain.w_dim], 2)
        maps = [
            carried[:, layer, : height * width].reshape(-1, 1, height, width)
            for layer, (height, width) in enumerate(self.sizes)
        ]
        with with_maps(self.plain, maps):
            return self.plain.synthesize(ws, noise=noise)
