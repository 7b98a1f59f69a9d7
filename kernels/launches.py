"""Observation of launches: who captures work sees the kernels that Python starts, which PyTorch does not know of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

Launch = Callable[[tuple], None]

_observer: ContextVar[Callable[[Launch, tuple], None] | None] = ContextVar("fastgan_launches", default=None)


def observed(launch: Launch) -> Launch:
    """`launch`, of which the active observer is told."""

    @wraps(launch, assigned=("__doc__",))
    def call(fields: tuple) -> None:
        if (observer := _observer.get()) is not None:
            observer(launch, fields)
        launch(fields)

    return call


@contextmanager
def observed_by(observer: Callable[[Launch, tuple], None]) -> Iterator[None]:
    """Within the block, in this thread, every launch calls `observer(launch, call)` first."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
