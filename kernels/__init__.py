"""Launchers of the compiled kernels, without autograd, checks or allocation of results.

`BACKENDS` names the backends. Each says why it cannot serve an operation, and gives the launchers of an operation: an
object with one function a kernel, with the same names on every backend. A launcher takes one argument, a call of
`fastgan_kernels.calls`: validated tensors and preallocated outputs.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, SimpleNamespace

import torch

from fastgan_kernels import extension
from fastgan_kernels.calls import device_of
from fastgan_kernels.launches import observed

Launchers = SimpleNamespace
"""The launchers of an operation on a backend: one attribute a kernel, a function that takes a call.

`of(NAME)` gives those of another operation on the same backend.
"""


@dataclass(frozen=True)
class Backend:
    """A set of launchers, and where they can be used."""

    why_not: Callable[[str, torch.device], str | None]  # (operation, device) -> why it cannot serve, or None
    launchers: Callable[[str], Launchers]  # operation -> its launchers


def _why_not_cpp(operation: str, device: torch.device) -> str | None:
    if device.type != "cpu":
        return "serves CPU tensors only"
    return extension.why_no_part("cpu") or _why_no_kernel(operation in extension.kernels("cpu"))


def _why_not_cuda(operation: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "serves CUDA tensors only"
    reason = extension.why_no_part("cuda") or extension.why_not_on_card(device.index)
    return reason or _why_no_kernel(operation in extension.kernels("cuda"))


def _why_not_triton(operation: str, device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not Path(__file__).with_name("triton").joinpath(f"{operation}.py").is_file():
        return _why_no_kernel(False)
    if device.type == "cuda":
        return None
    if device.type != "cpu":
        return "serves CUDA tensors only"
    # As triton.knobs.runtime.interpret reads it; only some releases have that name.
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
    return None if interpreted else "serves CPU tensors only under TRITON_INTERPRET=1"


def _why_no_kernel(exists: bool) -> str | None:
    return None if exists else "has no kernel for it"


@cache
def _cpp_launchers(operation: str) -> Launchers:
    return extension.launchers(extension.kernels("cpu"), operation)


@cache
def _cuda_launchers(operation: str) -> Launchers:
    return extension.launchers(extension.kernels("cuda"), operation, extension.on_gpu)


@cache
def _triton_launchers(operation: str) -> Launchers:
    module = import_module(f"fastgan_kernels.triton.{operation}")
    functions = {name: each for name, each in vars(module).items() if isinstance(each, FunctionType)}
    own = {name: each for name, each in functions.items() if each.__module__ == module.__name__ and name[0] != "_"}
    checked = {name: observed(partial(_run_checked, launch)) for name, launch in own.items()}
    return SimpleNamespace(of=_triton_launchers, **checked)


def _run_checked(launch: Callable[[tuple], None], call: tuple) -> None:
    device_of(call)
    launch(call)


BACKENDS = {
    "cpp": Backend(_why_not_cpp, _cpp_launchers),
    "cuda": Backend(_why_not_cuda, _cuda_launchers),
    "triton": Backend(_why_not_triton, _triton_launchers),
}
