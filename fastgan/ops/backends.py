"""Choice of the backend of an operation.

The rule: the first backend in `PREFERENCE` that can serve the tensor's device. The answer may differ between two GPUs
of one machine, since one may be too old for the kernels. A list set by `FASTGAN_BACKEND` or `use_backend` replaces the
preference and is searched in the same way.

    FASTGAN_BACKEND=triton,torch python -m fastgan.train      # for a process
    with fastgan.ops.use_backend("torch"): ...                # for a block of code
"""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch.compiler import is_compiling

import fastgan_kernels
from fastgan.errors import UserError
from fastgan.ops.compiling import constant_to_compiler
from fastgan_kernels import extension

extension.csrc = Path(__file__).parents[2] / "csrc"

# Fastest first. On a GPU the hand-written kernels lead; Triton serves cards they were not compiled for.
PREFERENCE = {
    "cpu": ("cpp", "torch"),
    "cuda": ("cuda", "triton", "torch"),
}
ANY_DEVICE = ("torch",)
_CPU = torch.device("cpu")


class BackendUnavailable(UserError):
    """None of the requested backends can serve an operation on this device; the message gives each reason."""


def _parse(names: str | Sequence[str]) -> tuple[str, ...]:
    parts = names.split(",") if isinstance(names, str) else names
    chosen = tuple(part.strip() for part in parts if part.strip())
    known = ("torch", *fastgan_kernels.BACKENDS)
    for name in chosen:
        if name not in known:
            raise ValueError(f"unknown backend {name!r}: choose from {', '.join(known)}")
    if not chosen:
        raise ValueError(f"no backend named: give a list such as 'cuda,triton,torch' (known: {', '.join(known)})")
    return chosen


def _from_environment() -> tuple[str, ...] | None:
    try:
        return _parse(os.environ["FASTGAN_BACKEND"]) if os.environ.get("FASTGAN_BACKEND") else None
    except ValueError as error:
        raise UserError(f"FASTGAN_BACKEND={os.environ['FASTGAN_BACKEND']}: {error}") from None


_seen_by_compiler = _from_environment()  # a copy of `_forced`: torch.compile cannot read a context variable
_forced: ContextVar[tuple[str, ...] | None] = ContextVar("fastgan_backend", default=_seen_by_compiler)


@contextmanager
def use_backend(names: str | Sequence[str]) -> Iterator[None]:
    """Makes every fused operation within the block use the first backend of `names` that can serve it.

    A backward pass uses the backend of its forward pass, wherever it runs. The end of the block restores the setting
    before it, also after an exception.

    Args:
        names: a sequence or a comma-separated string of "cpp", "cuda", "triton", "torch".

    Raises:
        ValueError: a name is unknown.
        BackendUnavailable: raised by an operation that no backend of `names` can serve.
    """
    global _seen_by_compiler
    chosen, before = _parse(names), _seen_by_compiler
    token = _forced.set(chosen)
    _seen_by_compiler = chosen
    try:
        yield
    finally:
        _forced.reset(token)
        _seen_by_compiler = before


def why_not(backend: str, operation: str, device: torch.device | str) -> str | None:
    """The reason why `backend` cannot serve `operation` on tensors of `device`, or None if it can.

    A device without an index is the current one of its type, here and below.
    """
    if backend == "torch":
        return None
    return fastgan_kernels.BACKENDS[backend].why_not(operation, _with_index(device))


def explain(operation: str, device: torch.device | str) -> list[tuple[str, str | None]]:
    """The backends for `operation` on `device` in order of preference, each with the reason why it cannot serve.

    The first backend without a reason (None) is the one in use.
    """
    device = _with_index(device)
    names = _forced.get() or PREFERENCE.get(device.type, ANY_DEVICE)
    return [(name, why_not(name, operation, device)) for name in names]


def choose(operation: str, device: torch.device | str) -> str:
    """The name of the backend that serves `operation` on tensors of `device`.

    Raises BackendUnavailable, with the reason for each backend, if none of the requested ones can.
    """
    if is_compiling():
        return _constant_choice(operation, device, _seen_by_compiler)
    if device != _CPU and (device.__class__ is str or device.index is None):  # never so for the device of a tensor
        device = _with_index(device)
    return _first_that_can(operation, device, _forced.get())


def has_kernels(backend: str, operation: str, device: torch.device) -> bool:
    """Whether `backend`, which was chosen for one operation, also has kernels of another on tensors of `device`."""
    first = _constant_choice if is_compiling() else _first_that_can
    return backend != "torch" and first(operation, device, (backend, "torch")) == backend


@constant_to_compiler
def _constant_choice(operation: str, device: torch.device | str, forced: tuple[str, ...] | None) -> str:
    return _first_that_can(operation, _with_index(device), forced)


@cache
def _first_that_can(operation: str, device: torch.device, forced: tuple[str, ...] | None) -> str:
    names = forced or PREFERENCE.get(device.type, ANY_DEVICE)
    asked = [(name, why_not(name, operation, device)) for name in names]
    for name, reason in asked:
        if reason is None:
            return name
    reasons = "; ".join(f"{name}: {reason}" for name, reason in asked)
    raise BackendUnavailable(f"no backend can serve {operation} on a {device.type} tensor ({reasons})")


class Replacement:
    """A C++ kernel that replaces PyTorch's own on a CPU where it is faster.

    PyTorch serves all other calls, so an unavailable kernel is no error.

    Args:
        name: name of the kernel's folder in csrc/.
        isas: instruction sets for which it was measured to be faster; None for all.
    """

    def __init__(self, name: str, isas: Collection[str] | None = None):
        self.name, self.isas = name, isas
        REPLACEMENTS[name] = self

    def why_not(self, device: torch.device) -> str | None:
        """Why PyTorch's own kernel serves all calls on `device`, or None if this one serves some."""
        if device.type != "cpu":
            return "the kernel is for CPUs"
        if "cpp" not in (_forced.get() or PREFERENCE["cpu"]):
            return "not asked for"
        if reason := why_not("cpp", self.name, device):
            return reason
        isa = extension.cpu_isa()
        if self.isas is None or isa in self.isas:
            return None
        return f"measured to be faster with {', '.join(self.isas)} only, not with {isa}"

    def run(self, call: NamedTuple) -> None:
        """Runs the kernel on a call of `fastgan_kernels.calls`."""
        fastgan_kernels.BACKENDS["cpp"].launchers(self.name).run(call)


REPLACEMENTS: dict[str, Replacement] = {}
"""Every replacement by its name."""


def _with_index(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device
