"""fastgan: a GAN engine for PyTorch on fused Triton, CUDA and C++ kernels."""

__version__ = "0.1.0"
