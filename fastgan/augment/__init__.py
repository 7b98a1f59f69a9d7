"""Transformations of all images that the discriminator sees: random ones against overfitting, and blur."""

from fastgan.augment.ada import AdaptiveStrength, Augment
from fastgan.augment.augmented import Augmented
from fastgan.augment.blur import Blur
from fastgan.augment.diffaug import DiffAugment

__all__ = ["AdaptiveStrength", "Augment", "Augmented", "Blur", "DiffAugment"]
