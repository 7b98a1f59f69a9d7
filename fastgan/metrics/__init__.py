"""Metrics of generated images: distances between the features that a pretrained network extracts from two sets."""

from fastgan.metrics.distances import (
    KernelDistance,
    Memorisation,
    PrecisionRecall,
    frechet_distance,
    kernel_distance,
    memorisation,
    precision_recall,
    squared_mmd,
)

__all__ = [
    "KernelDistance",
    "Memorisation",
    "PrecisionRecall",
    "frechet_distance",
    "kernel_distance",
    "memorisation",
    "precision_recall",
    "squared_mmd",
]
