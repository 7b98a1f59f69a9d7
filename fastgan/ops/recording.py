"""Lets the recorder of a forward pass (`fastgan.penalties.one_pass`) see a fused operation as one call.

Functions of PyTorch are seen by a `torch.overrides.TorchFunctionMode`; an operation of fastgan runs kernels of its own,
which no mode knows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from torch.compiler import is_compiling

Function = TypeVar("Function", bound=Callable)
Recorder = Callable[[Callable, Callable, tuple, dict], Any]

_recorder: ContextVar[Recorder | None] = ContextVar("fastgan_recorder", default=None)


def recordable(function: Function) -> Function:
    """Decorator: a recorder in force is handed each call as (the decorated function, `function`, args, kwargs)."""

    @wraps(function)
    def call(*args, **kwargs):
        if is_compiling() or (recorder := _recorder.get()) is None:  # the compiler cannot read context variables
            return function(*args, **kwargs)
        return recorder(call, function, args, kwargs)

    return call


@contextmanager
def recorded_by(recorder: Recorder | None) -> Iterator[None]:
    """Within the block, and in this thread alone, `recorder` is in force; none for None."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)
