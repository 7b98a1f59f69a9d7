"""What torch.compile has to be told."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def constant_to_compiler(function: Function) -> Function:
    """Decorator: torch.compile calls the function while it traces, and takes the result as a constant.

    `torch.compiler.assume_constant_result` would do the same, but imports the compiler, which takes a second or more.
    The mark that it leaves is the compiler's own: a release of torch that reads another one traces the function
    instead, which is slower to compile and gives the same. It is read off plain functions only, not off cached ones.
    """
    function._dynamo_marked_constant = True
    return function
