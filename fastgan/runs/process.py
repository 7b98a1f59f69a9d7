"""Process settings: malloc, OpenMP threads, output that may end, and stopping cleanly on a signal.

Imports no torch: OpenMP reads its environment only when torch loads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator

from fastgan import environment
from fastgan.cores import usable_cores

# Parameters of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

_UNLIMITED = 2**31 - 1

MOST_THREADS = 1024  # OpenMP ends the process with many more
PATIENCE = 5.0  # seconds
ENDS_WITH_STDIN = "FASTGAN_ENDS_WITH_STDIN"  # environment variable of background processes


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
    is_list = "," in os.environ.get("OMP_NUM_THREADS", "")  # for nested loops, which there are none of
    if not is_list and (given := environment.number("OMP_NUM_THREADS", 0, 1, MOST_THREADS)):
        return given, "OMP_NUM_THREADS"
    cores = max(1, usable_cores() // processes)
    return cores, f"one for each of {cores} physical cores this process may use" if cores > 1 else "one core"


def is_first() -> bool:
    """Whether this is the first process that torchrun has started, or the only one."""
    return count() == 1 or os.environ.get("RANK", "0") == "0"


def count() -> int:
    """Number of processes that torchrun has started for this training; 1 without it."""
    return environment.process_count()


def end_with_stdin() -> None:
    """End this process when its stdin ends, if the environment asks for it: the process at the other end is gone.

    A training that is killed cannot end its background evaluation itself.
    """
    if not os.environ.pop(ENDS_WITH_STDIN, ""):
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
    """A text stream that discards what cannot be written; everything else is the given stream's.

    A pipe or terminal whose reader has stopped without closing it, as Ctrl-S does, is waited for once, up to `PATIENCE`
    seconds; then text is discarded until it is read again.
    """

    def __init__(self, stream):
        self._stream, self._unwritten, self._patience = stream, "", PATIENCE
        self._descriptor = _descriptor_of_reader(stream)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._unwritten += text
        if "\n" in text or "\r" in text or self._descriptor is None:
            self.flush()
        return len(text)

    def flush(self) -> None:
        text, self._unwritten = self._unwritten, ""
        try:
            if self._descriptor is None:
                self._stream.write(text)
                self._stream.flush()
            else:
                self._write_in_parts(text.encode(self._stream.encoding, "backslashreplace"))
        except BlockingIOError:  # the stream does not wait for its reader
            pass
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in {self._stream.fileno(), self._descriptor} - {None}:
                os.dup2(nowhere, descriptor)
            os.close(nowhere)

    def _write_in_parts(self, content: bytes) -> None:
        while content:
            ready = _is_ready(self._descriptor, self._patience)
            self._patience = PATIENCE if ready else 0.0
            if not ready:
                return
            content = content[os.write(self._descriptor, content[: select.PIPE_BUF]) :]


def _descriptor_of_reader(stream) -> int | None:
    """Descriptor of a pipe, terminal or socket, which somebody reads; None for anything else."""
    try:
        kind = os.fstat(stream.fileno()).st_mode
        if os.name != "posix" or not (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind) or stat.S_ISSOCK(kind)):
            return None
        stream.flush()
        return _without_waiting(stream.fileno())
    except (OSError, ValueError):  # a stream in memory, or one that has failed already
        return None


def _without_waiting(descriptor: int) -> int:
    """A terminal opened once more: it may be ready for less than is written, and then waits. Others as they are."""
    try:
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # a pipe or socket
        return descriptor


def _is_ready(descriptor: int, seconds: float) -> bool:
    """Whether `select.PIPE_BUF` bytes can be written without waiting, within so many seconds."""
    return bool(select.select([], [descriptor], [], seconds)[1])


@contextlib.contextmanager
def output_may_end() -> Iterator[None]:
    """Within the block, printing never fails, and never waits for long: once the terminal, or the reader of a pipe, has
    gone or stopped, text is discarded.

    What takes hours must not end because nobody reads its progress any more.
    """
    with contextlib.ExitStack() as redirected:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            redirected.enter_context(redirect(_Lasting(getattr(sys, name))))
        yield


def _tell_at_once(text: str) -> None:
    """Write to stderr from a signal's handler, unless nobody reads it.

    Not by print: the signal may have come while stderr is written, which cannot be entered twice.
    """
    with contextlib.suppress(OSError, ValueError):  # there may be no terminal any more, or no file at all
        descriptor = getattr(sys.stderr, "_descriptor", None)  # of `_Lasting`: does not wait
        descriptor = sys.stderr.fileno() if descriptor is None else descriptor
        if os.name != "posix" or _is_ready(descriptor, 0.0):
            os.write(descriptor, text.encode())


@contextlib.contextmanager
def finish_step_on_signal(echo: float = 0.0) -> Iterator[Interrupt]:
    """Turn the first Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 into a request that the loop polls; a second ends the process.

    The first restores the signals' default action, so a second one ends even a long operation in C; but not SIGHUP: a
    closed terminal sends it, and the shell in it once more. It stays ignored where it is, as by nohup. Handlers are
    restored on exit.

    echo: seconds in which another signal counts as the same request. Ctrl-C may reach a process of torchrun twice: from
        the terminal, and from torchrun.
    """
    interrupt = Interrupt()
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN:
        signals.remove(hangup)
    asked = 0.0

    def request(signum, frame):
        nonlocal asked
        if interrupt.signum:
            if signum != hangup and time.monotonic() - asked > echo:
                signal.signal(signum, signal.SIG_DFL)
                signal.raise_signal(signum)
            return
        interrupt.signum, asked = signum, time.monotonic()
        if not echo:
            for each in signals:
                signal.signal(each, signal.SIG_DFL if each != hangup else signal.SIG_IGN)
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        _tell_at_once(f"\n{name}: finishing this step and saving; once more to stop at once\n")

    before = {each: signal.signal(each, request) for each in signals}
    try:
        yield interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
