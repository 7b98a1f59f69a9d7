"""Progressive growing: networks that learn level by level of resolution (Karras et al. 2018, arXiv 1710.10196, sec. 2).

A level that has just been reached is faded in: what the network does is the blend of what it did before and what it
does with the new level, by a weight alpha that the training raises from 0 to 1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.models.gradient_checkpointing import GradientCheckpointing
from fastgan.ops import lerp_samples
from fastgan.ops.layout import channels_last


class ProgressiveGrowing(GradientCheckpointing):
    """Base of generators and discriminators that grow.

    All parameters of all levels are there from the start, those of levels not in use get no gradient. The stage is no
    part of the state dictionary: it follows from the images seen (`fastgan.training.growth`).

    Attributes:
        resolutions: of all levels, 4 and up.
        stage_resolution: of the images drawn or judged now; at first the highest.
        grown_from: resolution of the first stage of the training. Layers to and from images of lower ones have never
            been trained.
        alpha: 0-dim fp32 buffer, weight of the newest level. It is set in place: a captured graph sees changes.
        fading: whether it is below 1. What is computed depends on this and on `stage_resolution`.
    """

    supports = frozenset({"growth"})

    def __init__(self, resolutions: Sequence[int]):
        super().__init__()
        self.resolutions = tuple(resolutions)
        self.stage_resolution = self.resolutions[-1]
        self.grown_from = self.resolutions[0]
        self.fading = False
        self.register_buffer("alpha", torch.ones(()), persistent=False)

    @property
    def level(self) -> int:
        """Index of the stage among `resolutions`."""
        return self.resolutions.index(self.stage_resolution)

    def grow_to(self, resolution: int, alpha: float = 1.0) -> None:
        """From now on draw or judge images of this resolution, the newest level having weight `alpha` in 0..1.

        Raises ValueError if there is no such level, or none below it to fade in from.
        """
        if resolution not in self.resolutions:
            levels = ", ".join(map(str, self.resolutions))
            raise ValueError(f"grow_to: resolution is {resolution}, must be one of {levels}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"grow_to: alpha is {alpha}, must be from 0 to 1")
        if alpha < 1 and resolution == self.resolutions[0]:
            raise ValueError(f"grow_to: alpha is {alpha}, must be 1 at {resolution}, the first level")
        self.stage_resolution = resolution
        self.fading = alpha < 1
        self.alpha.fill_(alpha)

    def fade(self, old: Tensor, new: Tensor) -> Tensor:
        """Two tensors [N, C, H, W] of a dtype, blended by `alpha`: `old` at 0."""
        return lerp_samples(old, new, self.alpha.expand(old.shape[0]))


def upsample_nearest(images: Tensor) -> Tensor:
    """Nearest-neighbour upsampling of [N, C, H, W]."""
    return F.interpolate(images, scale_factor=2, mode="nearest")


def average_pool(images: Tensor) -> Tensor:
    """2x2 average pooling of [N, C, H, W]."""
    return channels_last(F.avg_pool2d(images, 2))


def fade_reals(images: Tensor, resolution: int, alpha: float | Tensor = 1.0) -> Tensor:
    """Real images as the discriminator is to see them at a stage: of its resolution, and no sharper than the generated
    ones.

    Args:
        images: [N, C, R, R], floating-point.
        resolution: of the stage; it divides R.
        alpha: weight of the newest level, a number or a 0-dim tensor on the device of the images. Below 1 they are
            blended with themselves at half the resolution, as the generator's are.

    Returns:
        [N, C, resolution, resolution]; `images` itself where there is nothing to do.

    Raises ValueError if the resolution does not divide R.
    """
    size = images.shape[-1]
    if resolution < 1 or size % resolution:
        raise ValueError(f"fade_reals: resolution is {resolution}, must divide that of the images, {size}")
    if size != resolution:
        images = F.avg_pool2d(images, size // resolution)
    if not isinstance(alpha, Tensor):
        if alpha == 1:
            return images
        alpha = torch.full((), alpha, device=images.device)
    return lerp_samples(upsample_nearest(average_pool(images)), images, alpha.expand(len(images)))
