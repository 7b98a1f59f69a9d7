"""Launchers of the compiled kernels: no autograd, no allocation of results, no checking.

`BACKENDS` names the backends. Each says what it cannot serve, and hands out the launchers of an operation: an object
with one function a kernel, of the same names and signatures on every backend (`fastgan_kernels.signatures`). They
receive validated tensors and preallocated outputs, and only launch.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

from fastgan_kernels import extension


@dataclass(frozen=True)
class Backend:
    """A set of launchers."""

    why_not: Callable[[str, torch.device], str | None]  # (operation, device) -> why it cannot serve, or None
    launchers: Callable[[str], object]  # operation -> object with one launcher a kernel


def _why_not_cpp(operation: str, device: torch.device) -> str | None:
    if device.type != "cpu":
        return "serves CPU tensors only"
    return extension.why_no_part("cpu")


def _why_not_cuda(operation: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "serves CUDA tensors only"
    return extension.why_no_part("cuda") or extension.why_not_on_card(device.index)


def _why_not_triton(operation: str, device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda":
        return None
    if device.type != "cpu":
        return "serves CUDA tensors only"
    # As triton.knobs.runtime.interpret reads it; that name is of some releases only.
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
    return None if interpreted else "serves CPU tensors only under TRITON_INTERPRET=1"


@cache
def _extension_launchers(operation: str) -> object:
    return import_module(f"fastgan_kernels.{operation}_extension").Launchers(extension.module())


@cache
def _triton_launchers(operation: str) -> object:
    return import_module(f"fastgan_kernels.{operation}_triton")


BACKENDS = {
    "cpp": Backend(_why_not_cpp, _extension_launchers),
    "cuda": Backend(_why_not_cuda, _extension_launchers),
    "triton": Backend(_why_not_triton, _triton_launchers),
}
