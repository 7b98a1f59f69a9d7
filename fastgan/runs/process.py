"""Process settings: malloc, OpenMP threads, output that may end, and stopping cleanly on a signal.

Imports no torch: OpenMP reads its environment only when torch loads it.
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
    """Make glibc keep freed memory for later allocations. Returns False, and does nothing, without glibc.

    By default every large CPU tensor is mapped and page-faulted anew, which on few cores costs more than the arithmetic
    on it. M_MMAP_MAX is set, not M_MMAP_THRESHOLD, which glibc caps at 32 MiB.
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
    """Let OpenMP's idle threads spin for about ten microseconds before they sleep, unless the environment sets it.

    A step of a small network has hundreds of short parallel loops. Waking a sleeping thread takes longer than such a
    loop, while spinning for milliseconds, GNU OpenMP's default, takes the core from other work. Call this before torch
    is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def choose_threads(asked: int, processes: int = 1) -> tuple[int, str]:
    """Number of CPU threads, and the reason for it.

    Threads are not bound to cores: other work on one core would delay its thread, and so all threads, which wait for
    each other after every loop.

    Args:
        asked: value of --threads; 0 to choose.
        processes: number of processes of this training that share the machine.
    """
    if asked:
        return asked, "asked for"
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"]), "OMP_NUM_THREADS"
    cores = max(1, usable_cores() // processes)
    return cores, f"one for each of {cores} physical cores this process may use" if cores > 1 else "one core"


def is_first() -> bool:
    """Whether this is the first process that torchrun has started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def count() -> int:
    """Number of processes that torchrun has started for this training; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Interrupt:
    """A request to stop: truthy once a signal has arrived; `exit_code` is then 128 + the signal's number.

    Attributes:
        signum: number of the signal that this process got; 0 for none.
        received: number of the signal that any process of the run got, as far as this one knows; 0 for none.
    """

    def __init__(self):
        self.signum = self.received = 0

    def __bool__(self) -> bool:
        return self.signum != 0 or self.received != 0

    @property
    def exit_code(self) -> int:
        return 128 + (self.signum or self.received) if self else 0


class _Lasting:
    """A text stream that discards what it can no longer write; everything else is the given stream's."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._discard_from_now_on()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._discard_from_now_on()

    def _discard_from_now_on(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def output_may_end() -> Iterator[None]:
    """Within the block, printing never fails: once the terminal, or the reader of a pipe, has gone, text is discarded.

    What takes hours must not end because nobody reads its progress any more.
    """
    with contextlib.ExitStack() as redirected:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            redirected.enter_context(redirect(_Lasting(getattr(sys, name))))
        yield


@contextlib.contextmanager
def finish_step_on_signal(echo: float = 0.0) -> Iterator[Interrupt]:
    """Turn the first Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 into a request that the loop polls; a second ends the process.

    The first restores the signals' default action, so a second one ends even a long operation in C. Handlers are
    restored on exit. SIGHUP, which a closed terminal sends, stays ignored where it is, as by nohup.

    echo: seconds in which another signal counts as the same request. Ctrl-C may reach a process of torchrun twice: from
        the terminal, and from torchrun.
    """
    interrupt = Interrupt()
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signals.remove(signal.SIGHUP)
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
        # Not print: the signal may have come while stderr is written, which cannot be entered twice.
        with contextlib.suppress(OSError):  # there may be no terminal any more
            os.write(2, f"\n{name}: finishing this step and saving; once more to stop at once\n".encode())

    before = {each: signal.signal(each, request) for each in signals}
    try:
        yield interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
