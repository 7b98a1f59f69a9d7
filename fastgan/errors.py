"""The one exception that stands for a mistake of the person at the keyboard rather than of the program."""

import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A wrong option, file or environment. The message is one line: what was wrong, where, and what would be right.

    Command lines print it as `error: ...` and exit with status 2; library users catch it like any exception.
    """


def command_line(main: Callable[..., int]) -> Callable[..., int]:
    """Decorator of a command line's `main`: a mistake is printed and becomes its exit status 2, Ctrl-C becomes 130."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except UserError as error:
            rank = os.environ.get("RANK", "0")  # set by torchrun
            where = "" if rank == "0" else f"process {rank}: "
            print(f"{where}error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130

    return run
