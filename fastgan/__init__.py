"""fastgan: a GAN engine for PyTorch on fused Triton, CUDA and C++ kernels."""

from typing import TYPE_CHECKING

from fastgan.version import __version__ as __version__

if TYPE_CHECKING:
    from fastgan.patching import patch as patch
    from fastgan.patching import patch_ops as patch_ops
    from fastgan.sampler import load as load

# Imported where they are asked for: `import fastgan` alone imports not even torch.
_FROM = {"load": "fastgan.sampler", "patch": "fastgan.patching", "patch_ops": "fastgan.patching"}


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM})


def __getattr__(name: str):
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_FROM[name]), name)
