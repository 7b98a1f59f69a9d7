"""Checks of the values that the controls of the page send. The page itself never sends others."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from fastgan.errors import UserError

Check = Callable[[Any], Any]  # returns the value; raises ValueError


def number(low: float, high: float) -> Check:
    """A number from `low` to `high`, or None: it is being typed."""

    def check(value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError
        return value

    return check


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`, or None: it is being typed."""
    in_range = number(low, high)

    def check(value: Any) -> int | None:
        value = in_range(value)
        if value is not None and not math.isclose(value, round(value)):
            raise ValueError
        return None if value is None else round(value)

    return check


def one_of(allowed: Collection[Any]) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, str | bool) or value not in allowed:
            raise ValueError
        return value

    return check


def text(value: Any) -> str | None:
    """A name, or None where there is none to choose."""
    if not isinstance(value, str | None):
        raise ValueError
    return value


def sides(value: Any) -> tuple[int, ...]:
    """Resolutions of layers."""
    if not isinstance(value, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in value):
        raise ValueError
    return tuple(value)


def checked(check: Check, label: str, value: Any) -> Any:
    """The value, if it is one that the control may send. Raises UserError."""
    try:
        return check(value)
    except ValueError:
        raise UserError(f"{label}: invalid value") from None
