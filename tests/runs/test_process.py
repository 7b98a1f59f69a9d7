"""Settings of the process: threads, malloc, signals."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from fastgan.errors import UserError
from fastgan.runs import process
from tests.support.processes import LONG


def test_threads_come_from_the_option_or_the_environment_or_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert process.choose_threads(5)[0] == 5
    assert process.choose_threads(0)[0] == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert process.choose_threads(0)[0] == process.usable_cores() >= 1


@pytest.mark.parametrize("given", ["0", "-1", "x", "²", "1.5", "100000"])
def test_numbers_in_the_environment_are_checked(given, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    with pytest.raises(UserError, match=f"OMP_NUM_THREADS={given} in the environment: must be .* from 1 to 1024"):
        process.choose_threads(0)
    monkeypatch.setenv("WORLD_SIZE", f"{given}0000")
    with pytest.raises(UserError, match=f"WORLD_SIZE={given}0000 in the environment: must be a whole number"):
        process.count()


def test_variables_that_say_nothing_are_as_if_unset(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    monkeypatch.setenv("RANK", "7")  # of another program
    assert process.count() == 1 and process.is_first()
    for given in ("", "4,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert process.choose_threads(0)[0] == process.usable_cores()


@pytest.fixture
def full_pipe(monkeypatch):
    """A pipe whose reader has stopped: the number of its reading end, and a stream that writes."""
    reading, writing = os.pipe()
    monkeypatch.setattr(process, "PATIENCE", 0.05)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(writing, False)
            while True:
                os.write(writing, bytes(2**16))
        yield reading, stream
        os.close(reading)


@pytest.mark.skipif(os.name != "posix", reason="a pipe of POSIX")
@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_has_stopped_holds_nothing_up_and_reads_on_later(full_pipe, blocking):
    reading, stream = full_pipe
    os.set_blocking(stream.fileno(), blocking)
    with contextlib.redirect_stdout(stream), process.output_may_end():
        for number in range(5000):
            print(f"line {number} " + "x" * 100)
        os.read(reading, 2**16)
        print("read again")
        os.set_blocking(reading, False)
        assert os.read(reading, 2**16) == b"read again\n"


@pytest.mark.skipif(os.name != "posix", reason="a terminal of POSIX")
def test_a_terminal_that_has_gone_is_no_error():
    control, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        os.close(control)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(terminal, b"text")
        with contextlib.redirect_stdout(stream), process.output_may_end():
            for _ in range(3):
                print("text", flush=True)


@pytest.mark.skipif(os.name != "posix", reason="a pipe of POSIX")
def test_a_signal_is_heard_while_nobody_reads_stderr(full_pipe):
    _, stream = full_pipe
    os.set_blocking(stream.fileno(), True)
    with contextlib.redirect_stderr(stream), process.finish_step_on_signal() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt


@pytest.mark.skipif(sys.platform != "linux", reason="a glibc setting")
def test_freed_memory_is_kept_by_the_process():
    code = """
import resource
import numpy as np
from fastgan.runs.process import keep_freed_memory
assert keep_freed_memory()
np.ones(10_000_000).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(10_000_000).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert faults < 1000  # 195,000 pages otherwise


def test_a_signal_echo_counts_as_the_same_request():
    """Processes of torchrun that share its terminal get Ctrl-C from both."""
    with process.finish_step_on_signal(echo=60.0) as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.exit_code == 128 + signal.SIGTERM


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
@pytest.mark.parametrize("first", ["SIGHUP", "SIGTERM"])
@pytest.mark.parametrize("echo", [0.0, 1e-9])
def test_a_closed_terminal_does_not_end_a_process_that_saves(first, echo):
    """The terminal sends SIGHUP, and so does the shell in it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    try:
        with process.finish_step_on_signal(echo) as interrupt:
            signal.raise_signal(getattr(signal, first))
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.exit_code == 128 + getattr(signal, first)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_of_another_process_stops_this_one_too():
    """A later signal of its own still counts as its first, and does not end the process at once."""
    with process.finish_step_on_signal() as interrupt:
        interrupt.received = signal.SIGUSR1
        assert interrupt and interrupt.exit_code == 128 + signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.exit_code == 128 + signal.SIGTERM


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals")
def test_a_terminal_that_nobody_reads_stops_nothing(tmp_path):
    """It counts as ready when there is room for less than a line."""
    reader, terminal = os.openpty()
    code = """
import signal, sys
from fastgan.runs import process
process.PATIENCE = 0.1
with process.output_may_end(), process.finish_step_on_signal() as interrupt:
    for number in range(3000):
        print("x" * (number % 1000), file=sys.stderr)
    signal.raise_signal(signal.SIGTERM)
    raise SystemExit(interrupt.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", code], stderr=terminal, timeout=LONG)
    os.close(terminal), os.close(reader)
    assert done.returncode == 128 + signal.SIGTERM
