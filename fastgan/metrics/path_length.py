"""Perceptual path length of a generator: how far its images change along a short way through the latents.

Karras et al. 2019, "A Style-Based Generator Architecture for GANs", arXiv 1812.04948, section 4.1. Images at a place t
between two latents, and a step of EPSILON further, are compared; the metric is the mean of distance / EPSILON^2,
without the smallest and largest hundredth. A generator whose images change evenly has short paths.

- z: along the arc between latents; w: straight between their styles, of a style-based generator.
- full: t anywhere on the way; end: t = 0.

Distances are perceptual (`fastgan.metrics.perceptual`): by LPIPS, as in papers, or by features of EfficientNet-Lite0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-4
DROPPED = 0.01  # of the path lengths at either end
METRICS = {"ppl-z": ("z", False), "ppl-z-end": ("z", True), "ppl-w": ("w", False), "ppl-w-end": ("w", True)}

Distance = Callable[[Tensor, Tensor], Tensor]


def draw_paths(count: int, z_dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents at both ends of `count` paths, [2, count, z_dim], and places on them, [count] from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, z_dim, generator=generator), torch.rand(count, generator=generator)


@torch.no_grad()
def path_lengths(
    generator: nn.Module, ends: Tensor, places: Tensor, label: Tensor | None, metric: str, distance: Distance
) -> Tensor:
    """distance / EPSILON^2 of each path, fp64 [N] on the CPU.

    Args:
        generator: in eval mode; its noise is constant.
        ends: latents [2, N, z_dim].
        places: [N], for the metrics that are not of the end.
        label: [N], or None.
        metric: a key of `METRICS`.
        distance: of images [N, C, H, W], twice, to [N].
    """
    space, at_end = METRICS[metric]
    t = torch.zeros_like(places) if at_end else places
    t = torch.stack([t, t + EPSILON])[:, :, None].double()  # fp32 would round EPSILON
    network: Any = generator
    device = next(generator.parameters()).device
    label = None if label is None else label.to(device)
    if space == "w":
        first, second = (network.mapping(z.to(device), label).double() for z in ends)
        points = torch.lerp(first, second, t.to(device)).float()
        draw = lambda w: network.synthesize(w[:, None].expand(-1, network.num_ws, -1), noise="const")
    else:
        points = arc(ends[0].double(), ends[1].double(), t).float().to(device)
        options = {"noise": "const"} if "noise" in network.supports else {}
        draw = lambda z: network(z, label, **options)
    images, others = (draw(each) for each in points)
    return (distance(images, others).double() / EPSILON**2).cpu()


def arc(first: Tensor, second: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation between the directions of vectors [..., D], of length sqrt(D), as latents have it."""
    first, second = (each / each.norm(dim=-1, keepdim=True) for each in (first, second))
    cosine = (first * second).sum(-1, keepdim=True)
    across = second - cosine * first
    across = across / across.norm(dim=-1, keepdim=True)
    angle = t * torch.acos(cosine.clamp(-1, 1))
    return first.shape[-1] ** 0.5 * (first * angle.cos() + across * angle.sin())


def summary(lengths: Tensor) -> float:
    """The mean without the extremes."""
    ordered = lengths.sort().values
    dropped = int(DROPPED * len(ordered))
    return float(ordered[dropped : len(ordered) - dropped].mean())
