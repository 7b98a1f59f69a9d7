"""How much memory is in use, and running out of it told in one line. Imports no torch."""

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

# torch.OutOfMemoryError is a RuntimeError of GPUs only; the CPU's allocator, cuBLAS and C++ have none but the text.
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")
_AMOUNT = re.compile(r"(?:tried to|unable to) allocate ([\d.]+) ?(bytes|[KMG]i?B)", re.IGNORECASE)


def peak(device: torch.device) -> float | None:
    """The most memory, in GiB, that this process has ever held: of a GPU, or if `device` is none, of the machine.

    Of a GPU it is what PyTorch has taken from it. None where the system does not say.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def total() -> float:
    """Bytes of memory of this machine, or of the container; infinite where the system does not say."""
    found = math.inf
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as file:
        found = min(found, float(file.read()))  # "max" is no number
    return found


def require(needed: float, what: str, remedy: str, there: float | None = None) -> None:
    """Raises UserError if so many bytes, at least, cannot be had: Linux would hand them out, and kill who uses them.

    what: needs them. there: bytes of the device; None: of the machine.
    """
    there = total() if there is None else there
    if needed > there:
        raise UserError(
            f"out of memory: {what} would take {_readable(str(int(needed)), 'bytes')} at least, and there are "
            f"{_readable(str(int(there)), 'bytes')}; {remedy}"
        )


def is_shortage(error: BaseException) -> bool:
    """Whether an exception of torch, NumPy or Python means that memory, of the CPU or of a GPU, did not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


@contextlib.contextmanager
def shortage_is_a_mistake(remedy: str) -> Iterator[None]:
    """Within the block, running out of memory is a UserError that says what to do about it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        found = _AMOUNT.search(str(error))
        asked = f" ({_readable(*found.groups())} more asked for)" if found else ""
        raise UserError(f"out of memory{asked}; {remedy}") from error


def _readable(amount: str, unit: str) -> str:
    return f"{int(amount) / 2**20:,.0f} MiB" if unit.lower() == "bytes" else f"{amount} {unit}"
