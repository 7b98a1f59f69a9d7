"""Which backend serves an operation: the one place where that is decided.

The rule: of the backends that can serve the tensor's device, the first in `PREFERENCE`. A list set by
`FASTGAN_BACKEND` or by `use_backend` replaces the preference, and is searched in the same way.

    FASTGAN_BACKEND=triton,torch python -m fastgan.train      # for a process
    with fastgan.ops.use_backend("torch"): ...                # for a block of code
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

import fastgan_kernels
from fastgan.errors import UserError

OPERATIONS = ("noise_bias_act", "pixel_norm", "squared_norm", "lerp_samples", "minibatch_stddev")

# Fastest first. On a GPU the hand-written kernels lead; Triton serves cards they were not compiled for.
PREFERENCE = {
    "cpu": ("cpp", "torch"),
    "cuda": ("cuda", "triton", "torch"),
}
ANY_DEVICE = ("torch",)


class BackendUnavailable(UserError):
    """None of the backends asked for can serve an operation on this device; the message names each reason."""


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


_seen_by_compiler = _from_environment()  # the same as below: torch.compile cannot read a context variable
_forced: ContextVar[tuple[str, ...] | None] = ContextVar("fastgan_backend", default=_seen_by_compiler)


@contextmanager
def use_backend(names: str | Sequence[str]) -> Iterator[None]:
    """Within the block, every fused operation uses the first backend of `names` that can serve it.

    `names` is a list or a comma-separated string of "cpp", "cuda", "triton", "torch". What was in force before is
    restored at the end of the block, also after an exception. A backward pass uses the backend of its forward pass,
    wherever it runs.

    Raises ValueError for an unknown name; the operation itself raises BackendUnavailable if none can serve.
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


def why_not(backend: str, operation: str, device_type: str) -> str | None:
    """The reason why `backend` cannot serve `operation` on tensors of `device_type`, or None if it can."""
    if backend == "torch":
        return None
    return fastgan_kernels.BACKENDS[backend].why_not(operation, device_type)


def explain(operation: str, device_type: str) -> list[tuple[str, str | None]]:
    """The backends for `operation` on `device_type` in order of preference, each with the reason it cannot serve.

    A reason of None means that it can; the first such backend is the one in use.
    """
    names = _forced.get() or PREFERENCE.get(device_type, ANY_DEVICE)
    return [(name, why_not(name, operation, device_type)) for name in names]


def choose(operation: str, device_type: str) -> str:
    """The name of the backend that serves `operation` on tensors of `device_type`.

    Raises BackendUnavailable, with the reason for each backend, if none of those asked for can.
    """
    forced = _seen_by_compiler if torch.compiler.is_compiling() else _forced.get()
    return _choose(operation, device_type, forced)


@cache
def _first_that_can(operation: str, device_type: str, names: tuple[str, ...]) -> str:
    asked = [(name, why_not(name, operation, device_type)) for name in names]
    for name, reason in asked:
        if reason is None:
            return name
    reasons = "; ".join(f"{name}: {reason}" for name, reason in asked)
    raise BackendUnavailable(f"no backend can serve {operation} on a {device_type} tensor ({reasons})")


def _choose(operation: str, device_type: str, forced: tuple[str, ...] | None) -> str:
    return _first_that_can(operation, device_type, forced or PREFERENCE.get(device_type, ANY_DEVICE))


# torch.compile calls this function instead of tracing it, as torch.compiler.assume_constant_result would arrange; but
# that imports the compiler, which takes a second or more.
_choose._dynamo_marked_constant = True
