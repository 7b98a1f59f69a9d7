"""User errors, reported by command lines in one line with exit status 2."""

import difflib
import functools
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path

BROKEN_PIPE = 141  # exit status that shells give to a process killed by SIGPIPE


class UserError(Exception):
    """Raised for a wrong option, file or environment. The message is one line: what is wrong, where, and the remedy.

    Command lines print it as `error: ...` and exit with status 2; library users catch it like any exception.
    """


def readable(value: object, most: int = 80) -> str:
    """Text of a value for a message: shortened to `most` characters, unprintable ones escaped."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))
    return text if len(text) <= most else f"{text[: most - 12]}...{text[-9:]}"


def nearest(name: str, names: Collection[str]) -> str:
    """A hint for a misspelt or cut-off name, "did you mean NAME? ", or "" if none of `names` is close."""
    close = difflib.get_close_matches(name, names, 1) or [each for each in names if each.startswith(name)]
    return f"did you mean {close[0]}? " if close else ""


def program(command: str = "") -> str:
    """The way to call `command`, or `fastgan` itself, in the form that this process was started with.

    `fastgan train` in the installed script, `python -m fastgan train` after `python -m fastgan`, and
    `python -m fastgan.train` everywhere else.
    """
    script = Path(sys.argv[0])
    if script.stem in ("fastgan", "fastgan-script"):
        return f"fastgan {command}".strip()
    if not command or (script.parent.name, script.name) == ("fastgan", "__main__.py"):
        return f"python -m fastgan {command}".strip()
    return f"python -m fastgan.{command}"


def command_line(main: Callable[..., int]) -> Callable[..., int]:
    """Decorator for a command line's `main`: prints errors in one line and turns them into the exit status.

    2 for a UserError or OSError, 130 for Ctrl-C, 141 without a message if the reader of the output, such as `head`, has
    gone.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            try:
                return main(argv)
            finally:
                sys.stdout.flush()  # here, not when Python ends: it would report a broken pipe
        except UserError as error:
            return _report(str(error))
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except OSError as error:
            if error.strerror is None:  # not of the operating system
                raise
            where = "" if error.filename is None else f"{readable(error.filename)}: "
            return _report(f"{where}{error.strerror}")

    return run


def _report(message: str) -> int:
    rank = os.environ.get("RANK", "0")  # set by torchrun
    where = "" if rank == "0" else f"process {rank}: "
    print(f"{where}error: {readable(message, 2000)}", file=sys.stderr)
    return 2
