"""User errors, reported by command lines in one line with exit status 2."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import NoReturn

BROKEN_PIPE = 141  # exit status that shells give to a process killed by SIGPIPE


class UserError(Exception):
    """Raised for a wrong option, file or environment. The message is one line: what is wrong, where, and the remedy.

    Unprintable characters in it, as names in archives may have, are escaped. Command lines print it as `error: ...` and
    exit with status 2; library users catch it like any exception.
    """

    def __init__(self, message: str):
        super().__init__(escaped(message))


def escaped(text: str) -> str:
    """The text in one line: unprintable characters as Python's escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def readable(value: object, most: int = 80) -> str:
    """Text of a value for a message: shortened to `most` characters, unprintable ones escaped."""
    text = escaped(str(value))
    return text if len(text) <= most else f"{text[: most - 12]}...{text[-9:]}"


def nearest(name: str, names: Collection[str]) -> str:
    """A hint for a misspelt or cut-off name, "did you mean NAME? ", or "" if none of `names` is close."""
    import difflib  # here: a Ctrl-C while Python imports what stands above ends in a traceback

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
    gone. Characters that the output's encoding lacks are escaped.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        _prepare_streams()
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
            return BROKEN_PIPE
        except OSError as error:
            if error.strerror is None:  # not of the operating system
                raise
            where = "" if error.filename is None else f"{readable(error.filename)}: "
            return _report(f"{where}{error.strerror}")
        finally:
            _discard_unwritten()

    return run


def run_module(name: str) -> NoReturn:
    """Run the command line of a module as this process: `main()` gives its exit status, which is 130 for a Ctrl-C while
    modules are imported as well."""
    try:
        sys.exit(import_module(name).main())
    except KeyboardInterrupt:
        sys.exit(130)


def _prepare_streams() -> None:
    """Open streams that the caller has closed (`>&-`) on the null device, and let the output take every character.

    The next file to be opened would get the number of a closed stream, and messages would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # has that number, or another file has taken it already
            stream = open(descriptor, "w" if number else "r", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        elif number and stream is getattr(sys, f"__{name}__") and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError):  # another file has got its number since
                stream.reconfigure(errors="backslashreplace")


def _discard_unwritten() -> None:
    """Drop text that cannot be written: Python would try again at its end, print a traceback and change the status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _report(message: str) -> int:
    rank = os.environ.get("RANK", "0")  # set by torchrun
    where = "" if rank == "0" else f"process {rank}: "
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"{where}error: {readable(message, 2000)}", file=sys.stderr)
    return 2
