"""Random transformations of all images that the discriminator sees, against overfitting on small data."""

from fastgan.augment.ada import AdaptiveStrength, Augment
from fastgan.augment.augmented import Augmented
from fastgan.augment.diffaug import DiffAugment

__all__ = ["AdaptiveStrength", "Augment", "Augmented", "DiffAugment"]
