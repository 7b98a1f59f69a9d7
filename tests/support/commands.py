"""Helpers for tests of command lines: their one-line errors, and functions that fail at a given call."""

import re

import torch


def error_of(command, argv, capsys):
    """The one error line, without "error: ", of a command that must fail with exit status 2."""
    capsys.readouterr()
    assert command(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    lines = [line for line in lines if not re.search(r"(images|img)/s", line)]  # of progress bars
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


SHORTAGES = {  # by kind of memory: the error of PyTorch or Python, and the message for it
    "GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        "out of memory (20.00 GiB more asked for); ",
    ),
    "CPU": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "out of memory (4,096 MiB more asked for); ",
    ),
    "Python": (MemoryError(), "out of memory; "),
}


def failing(error, calls_before, then):
    """A function that calls `then` for the first `calls_before` calls, and raises `error` afterwards."""
    calls = iter(range(calls_before))

    def function(*arguments, **named):
        if next(calls, None) is None:
            raise error
        return then(*arguments, **named)

    return function
