"""A discriminator behind an augmentation, as one module."""

from __future__ import annotations

from torch import Tensor, nn


class Augmented(nn.Module):
    """`discriminator(augment(images), ...)`. Gradient penalties of it are with respect to `images`."""

    def __init__(self, augment: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.augment, self.discriminator = augment, discriminator

    def forward(self, images: Tensor | tuple[Tensor, ...], *labels: Tensor | None, **options) -> Tensor:
        """images: [N, C, H, W], or several sets of them, each augmented by itself."""
        images = tuple(map(self.augment, images)) if isinstance(images, tuple) else self.augment(images)
        return self.discriminator(images, *labels, **options)
