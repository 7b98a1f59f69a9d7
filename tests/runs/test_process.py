"""Settings of the process: threads, malloc, signals."""

import os
import signal
import subprocess
import sys

import pytest

from fastgan.runs import process


def test_threads_come_from_the_option_or_the_environment_or_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert process.choose_threads(5)[0] == 5
    assert process.choose_threads(0)[0] == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert process.choose_threads(0)[0] == process.usable_cores() >= 1


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


def test_a_signal_of_another_process_stops_this_one_too():
    """A later signal of its own still counts as its first, and does not end the process at once."""
    with process.finish_step_on_signal() as interrupt:
        interrupt.received = signal.SIGUSR1
        assert interrupt and interrupt.exit_code == 128 + signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.exit_code == 128 + signal.SIGTERM
