"""How far generated images are from real ones: what features of a pretrained network say."""

from fastgan.metrics.distances import (
    KernelDistance,
    PrecisionRecall,
    frechet_distance,
    kernel_distance,
    precision_recall,
    squared_mmd,
)

__all__ = [
    "KernelDistance",
    "PrecisionRecall",
    "frechet_distance",
    "kernel_distance",
    "precision_recall",
    "squared_mmd",
]
