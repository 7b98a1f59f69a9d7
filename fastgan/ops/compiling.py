"""Hints to torch.compile."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def constant_to_compiler(function: Function) -> Function:
    """Decorator: torch.compile calls the function while it traces and treats the result as a constant.

    It sets the mark of `torch.compiler.assume_constant_result`, without importing the compiler, which takes a second or
    more. The mark is internal to torch. A release that ignores it traces the function instead: slower to compile, with
    the same result. torch reads the mark from plain functions only, not from cached ones.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
