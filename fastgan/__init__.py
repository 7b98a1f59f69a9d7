"""fastgan: a GAN engine for PyTorch on fused Triton, CUDA and C++ kernels."""

__version__ = "0.1.0"

_FROM = {"patch": "fastgan.patching", "patch_ops": "fastgan.patching"}  # imported when they are asked for


def __getattr__(name: str):
    if name not in _FROM:
        raise AttributeError(f"module 'fastgan' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_FROM[name]), name)
