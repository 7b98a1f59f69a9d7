"""Metrics of generated images: distances between the features that a pretrained network extracts from two sets."""

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
