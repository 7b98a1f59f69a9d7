"""Progressive growing: training starts at a low resolution and adds one level after another.

Karras et al. 2018, arXiv 1710.10196, section 2. A new level is faded in: the network's result is a blend of the result
without the new level and the one with it, whose weight alpha rises from 0 to 1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.models.gradient_checkpointing import GradientCheckpointing
from fastgan.ops import lerp_samples
from fastgan.ops.layout import channels_last


class ProgressiveGrowing(GradientCheckpointing):
    """Base class of generators and discriminators that grow.

    The parameters of all levels exist from the start; levels not in use get no gradient. The stage is not part of the
    state dict: it follows from the number of images seen (`fastgan.training.growth`).

    Attributes:
        resolutions: resolutions of all levels, from 4 up.
        stage_resolution: resolution of the images generated or judged now; the highest at first.
        grown_from: resolution of the first stage of training. The input and output layers of lower levels are
            untrained.
        alpha: 0-dim fp32 buffer, weight of the newest level. Set in place, so that a captured graph sees the change.
        fading: whether alpha is below 1. `fading` and `stage_resolution` decide which layers run.
    """

    supports = frozenset({"growth"})
    alpha: Tensor

    def __init__(self, resolutions: Sequence[int]):
        super().__init__()
        self.resolutions = tuple(resolutions)
        self.stage_resolution = self.resolutions[-1]
        self.grown_from = self.resolutions[0]
        self.fading = False
        self.register_buffer("alpha", torch.ones(()), persistent=False)

    @property
    def level(self) -> int:
        """Index of the stage in `resolutions`."""
        return self.resolutions.index(self.stage_resolution)

    def grow_to(self, resolution: int, alpha: float = 1.0) -> None:
        """Sets the stage: resolution of the images, and the weight of its level, from 0 to 1.

        Raises ValueError if there is no such level, or alpha is below 1 at the lowest level.
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
        """Blends two tensors [N, C, H, W] of equal dtype: `old` at alpha 0, `new` at alpha 1."""
        return lerp_samples(old, new, self.alpha.expand(old.shape[0]))


def upsample_nearest(images: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by 2, [N, C, H, W] to [N, C, 2H, 2W]."""
    return F.interpolate(images, scale_factor=2, mode="nearest")


def average_pool(images: Tensor) -> Tensor:
    """2x2 average pooling, [N, C, H, W] to [N, C, H/2, W/2]."""
    return channels_last(F.avg_pool2d(images, 2))


def fade_reals(images: Tensor, resolution: int, alpha: float | Tensor = 1.0) -> Tensor:
    """Real images for the discriminator of a stage: at its resolution, and blurred as generated ones are in a fade.

    Args:
        images: [N, C, R, R], floating-point.
        resolution: resolution of the stage; divides R.
        alpha: weight of the newest level, a number or a 0-dim tensor on the device of the images. Below 1, the images
            are blended with themselves at half the resolution.

    Returns:
        [N, C, resolution, resolution]; `images` itself if nothing is to be done.

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
