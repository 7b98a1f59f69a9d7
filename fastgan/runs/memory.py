"""Memory in use, memory available, and out-of-memory errors as UserErrors. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastgan.errors import UserError

if TYPE_CHECKING:
    import torch

# torch.OutOfMemoryError is for GPUs only; errors of the CPU's allocator, cuBLAS and C++ are known by their text.
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")
_AMOUNT = re.compile(r"(?:tried to|unable to) allocate ([\d.]+) ?(bytes|[KMG]i?B)", re.IGNORECASE)


def peak(device: torch.device) -> float | None:
    """Peak memory of this process so far, in GiB: reserved by PyTorch if `device` is a GPU, else resident.

    None where the system does not report it.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def total() -> float:
    """Memory of this machine or container, in bytes; infinite where the system does not report it."""
    found = math.inf
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as file:
        found = min(found, float(file.read()))  # "max" raises ValueError
    return found


def require(needed: float, what: str, remedy: str, there: float | None = None) -> None:
    """Raise UserError if fewer than `needed` bytes exist: Linux would grant them, and kill the process that uses them.

    what: needs the memory, for the message. there: bytes of the device; None: of the machine.
    """
    there = total() if there is None else there
    if needed > there:
        raise UserError(
            f"out of memory: {what} would take {_readable(str(int(needed)), 'bytes')} at least, and there are "
            f"{_readable(str(int(there)), 'bytes')}; {remedy}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch, NumPy or Python means out of memory, on the CPU or a GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


@contextlib.contextmanager
def out_of_memory_is_user_error(remedy: str) -> Iterator[None]:
    """Within the block, an out-of-memory error becomes a UserError that ends in `remedy`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        found = _AMOUNT.search(str(error))
        asked = f" ({_readable(*found.groups())} more asked for)" if found else ""
        raise UserError(f"out of memory{asked}; {remedy}") from error


def _readable(amount: str, unit: str) -> str:
    return f"{int(amount) / 2**20:,.0f} MiB" if unit.lower() == "bytes" else f"{amount} {unit}"
