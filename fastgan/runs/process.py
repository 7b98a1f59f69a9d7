"""What a training process asks of its operating system: memory that stays, threads, and a clean end on Ctrl-C.

Imports no torch: OpenMP reads its environment once, when torch loads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator

from fastgan.cores import usable_cores

# Parameters of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

_UNLIMITED = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next allocation instead of returning it to the system.

    By default every large CPU tensor is mapped and page-faulted anew, which on few cores costs more than the arithmetic
    on it. M_MMAP_MAX is set rather than M_MMAP_THRESHOLD because glibc caps that threshold at 32 MiB. Returns False
    where the C library is not glibc; nothing is changed there.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _UNLIMITED, _M_TOP_PAD: 64 << 20}
    return all([mallopt(parameter, value) == 1 for parameter, value in settings.items()])


def let_idle_threads_sleep_soon() -> None:
    """Have OpenMP's idle threads spin for some ten microseconds, then sleep, unless the environment says otherwise.

    A step of a small network has hundreds of short parallel loops. To wake a sleeping thread for each takes longer than
    the loop; a thread that spins for milliseconds, GNU OpenMP's default, takes the core from whoever else needs it. The
    default training on two idle cores: 120 images/s with threads that sleep at once, 190 with those that spin on, 210
    with this; on cores shared with other work, spinning on made a step three times slower. To be called before torch,
    and so OpenMP, is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def choose_threads(asked: int, processes: int = 1) -> tuple[int, str]:
    """Number of CPU threads and the reason for it. `asked` is the option's value, 0 for "choose". `processes`: how many
    of this training share the machine.

    Threads are not bound to cores: whatever else ran on such a core would hold up one thread, and with it all others,
    which wait for each other after every loop.
    """
    if asked:
        return asked, "asked for"
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"]), "OMP_NUM_THREADS"
    cores = max(1, usable_cores() // processes)
    return cores, f"one for each of {cores} physical cores this process may use" if cores > 1 else "one core"


def is_first() -> bool:
    """Whether this is the process that speaks for all that torchrun has started, or alone."""
    return os.environ.get("RANK", "0") == "0"


class Interrupt:
    """Whether a signal has asked the run to stop. Truthy once it has; `exit_code` is then 128 + the signal's number.

    Attributes:
        signum: of the signal that this process got, or 0.
        heard: of the one that any process of the run got, as far as is known here, or 0.
    """

    def __init__(self):
        self.signum = self.received = 0

    def __bool__(self) -> bool:
        return self.signum != 0 or self.received != 0

    @property
    def exit_code(self) -> int:
        return 128 + (self.signum or self.received) if self else 0


@contextlib.contextmanager
def finish_step_on_signal(echo: float = 0.0) -> Iterator[Interrupt]:
    """Turn the first Ctrl-C, SIGTERM or SIGUSR1 into a request that the loop polls; a second ends the process at once.

    The second needs no Python to run: the signals' default action is restored by the first, so that even a long
    operation in C ends. Handlers are put back on exit.

    echo: seconds in which another signal is the same request still. Ctrl-C may reach a process of torchrun twice: from
        the terminal, and from torchrun, which has got it as well.
    """
    interrupt = Interrupt()
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    asked = 0.0

    def request(signum, frame):
        nonlocal asked
        if interrupt.signum:
            if time.monotonic() - asked > echo:
                signal.signal(signum, signal.SIG_DFL)
                signal.raise_signal(signum)
            return
        interrupt.signum, asked = signum, time.monotonic()
        if not echo:
            for each in signals:
                signal.signal(each, signal.SIG_DFL)
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        print(f"\n{name}: finishing this step and saving; once more to stop at once", file=sys.stderr, flush=True)

    before = {each: signal.signal(each, request) for each in signals}
    try:
        yield interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
