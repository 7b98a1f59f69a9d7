"""bare_loop.cpp, compiled for this very CPU at first use."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@cache
def build() -> tuple[ctypes.CDLL | None, str]:
    """The compiled loops, or None and the reason why there are none."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        return None, "no C++ compiler found"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "bare_loop.so"
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return None, f"{compiler} failed: {done.stderr.strip()[-200:] or done.returncode}"
            return ctypes.CDLL(str(library)), ""  # stays loaded when the file is gone
        except OSError as error:
            return None, f"{compiler}: {error}"


def forward_backward(loops: ctypes.CDLL, x: Tensor, dy: Tensor, from_output: bool) -> Tensor:
    """Allocates, reads and writes what an operation and its backward pass must; returns dx, of no meaning.

    `from_output` says whether the backward pass reads y, or else x, beside dy.
    """
    words = ctypes.c_int64(x.numel() * x.element_size() // 4)
    threads = torch.get_num_threads()
    y, dx = torch.empty_like(x), torch.empty_like(x)
    kept = y if from_output else x
    loops.forward(words, threads, _pointer(y), _pointer(x))
    loops.backward(words, threads, _pointer(dx), _pointer(dy), _pointer(kept))
    return dx


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
