"""A discriminator behind an augmentation, as one module."""

from __future__ import annotations

from torch import Tensor, nn


class Augmented(nn.Module):
    """`discriminator(augment(images), ...)`. Gradient penalties of it are with respect to `images`."""

    def __init__(self, augment: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.augment, self.discriminator = augment, discriminator

    def forward(self, images: Tensor, *labels: Tensor | None) -> Tensor:
        return self.discriminator(self.augment(images), *labels)
