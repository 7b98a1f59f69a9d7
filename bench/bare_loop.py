"""Python side of bare_loop.cpp, which is compiled for this CPU at first use."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@cache
def build() -> tuple[ctypes.CDLL | None, str]:
    """The compiled loops; or None, and the reason."""
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
            return ctypes.CDLL(str(library)), ""  # stays loaded after the file is deleted
        except OSError as error:
            return None, f"{compiler}: {error}"


def forward_backward(loops: ctypes.CDLL, x: Tensor, dy: Tensor, from_output: bool) -> Tensor:
    """Allocates, reads and writes what an operation and its backward must. Returns dx, whose values mean nothing.

    `from_output`: backward reads y beside dy; else x.
    """
    y = _forward(loops, x)
    return _backward(loops, dy, y if from_output else x)


def in_autograd(loops: ctypes.CDLL, from_output: bool) -> Callable[..., Tensor]:
    """The same as a differentiable function: the speed of a fused operation whose kernels are as fast as the loops."""
    return lambda x, **others: _InAutograd.apply(loops, from_output, x, *others.values())


def copies_in_autograd(loops: ctypes.CDLL) -> Callable[..., Tensor]:
    """Differentiable function that copies x to y, then dy to dx, by plain loops. No operation reads and writes less."""
    return lambda x, **others: _InAutograd.apply(loops, None, x, *others.values())


class _InAutograd(torch.autograd.Function):
    """`from_output` is None if backward reads dy only."""

    @staticmethod
    def forward(ctx, loops, from_output, x, *others):
        y = _forward(loops, x)
        ctx.save_for_backward(None if from_output is None else y if from_output else x, *others)
        ctx.loops = loops
        return y

    @staticmethod
    def backward(ctx, dy):
        saved, *others = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        grads = [torch.empty_like(t) if need else None for t, need in zip(others, needed, strict=True)]
        dx = _forward(ctx.loops, dy) if saved is None else _backward(ctx.loops, dy, saved)
        return None, None, dx, *grads


def _forward(loops: ctypes.CDLL, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    loops.forward(_words(x), torch.get_num_threads(), _pointer(y), _pointer(x))
    return y


def _backward(loops: ctypes.CDLL, dy: Tensor, saved: Tensor) -> Tensor:
    dx = torch.empty_like(saved)
    loops.backward(_words(dx), torch.get_num_threads(), _pointer(dx), _pointer(dy), _pointer(saved))
    return dx


def _words(x: Tensor) -> ctypes.c_int64:
    return ctypes.c_int64(x.numel() * x.element_size() // 4)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
