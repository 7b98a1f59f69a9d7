"""How far generated images are from real ones: distances between features of a pretrained network."""

from fastgan.metrics.distances import KernelDistance, frechet_distance, kernel_distance, squared_mmd

__all__ = ["KernelDistance", "frechet_distance", "kernel_distance", "squared_mmd"]
