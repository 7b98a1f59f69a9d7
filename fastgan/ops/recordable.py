"""Recording of operations as single calls, for `fastgan.penalties.one_pass`.

A `torch.overrides.TorchFunctionMode` sees the functions of PyTorch. It does not see a fused operation, whose kernels
are no functions of PyTorch. This module reports those calls.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch.compiler import is_compiling

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Recorder = Callable[[Callable, Callable, tuple, dict], Any]

_recorder: ContextVar[Recorder | None] = ContextVar("fastgan_recorder", default=None)


def recordable(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator: the active recorder receives each call as (decorated function, `function`, args, kwargs)."""
    return _recordable(function, None)


def recordable_in_parts(
    split: Callable[..., Any],
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """`recordable` for a fused operation that no single rule describes.

    `split` takes the same arguments and computes the same by several recordable calls. It returns NotImplemented for a
    call that one rule does describe.
    """
    return lambda function: _recordable(function, split)


def _recordable(
    function: Callable[Parameters, Result], split: Callable[..., Any] | None
) -> Callable[Parameters, Result]:
    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if is_compiling() or (recorder := _recorder.get()) is None:  # the compiler cannot read context variables
            return function(*args, **kwargs)
        if split is not None and (result := split(*args, **kwargs)) is not NotImplemented:
            return result
        return recorder(call, function, args, kwargs)

    return call


@contextmanager
def recorded_by(recorder: Recorder | None) -> Iterator[None]:
    """Makes `recorder` active within the block, in this thread only; None for no recorder."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def splits_again(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`function`, whose calls are split later as they are now, with a recorder or without.

    Gradient checkpointing calls it again without the recorder, and needs the same saved tensors.
    """
    if is_compiling() or _recorder.get() is None:
        return function

    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with recorded_by(_recorder.get() or _run):
            return function(*args, **kwargs)

    return call


def _run(name: Callable, function: Callable, args: tuple, kwargs: dict) -> Any:
    """A recorder that records nothing."""
    return function(*args, **kwargs)
