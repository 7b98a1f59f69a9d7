"""Objects in a child process.

Libraries that map files into memory and follow what they find there, LMDB and Arrow, end the process on damaged files.
The child ends then, and the parent raises UserError.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import signal
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection

from fastgan.data.images import UnusableImage
from fastgan.errors import UserError

START_METHOD = "spawn"  # after a fork the threads of this process would be missing


class Isolated:
    """An object that is made and used in a child process.

    Args:
        damaged: beginning of the message if the child ends, such as "set.lmdb is a damaged LMDB".
        make: a class or function of a module; called in the child with `arguments`, which can be pickled.

    Raises the UserError of `make`, or one that says how the child ended.
    """

    def __init__(self, damaged: str, make: Callable, *arguments: object):
        self._damaged = damaged
        context = multiprocessing.get_context(START_METHOD)
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, arguments), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        there.close()
        self.close = weakref.finalize(self, _end, self._process, self._connection)
        self._answer("it")

    def call(self, method: str, *arguments: object, reading: str = "it"):
        """Result of a method. Raises its UserError or UnusableImage, or a UserError that says how the child ended.

        reading: what the method reads, for that message.
        """
        with contextlib.suppress(OSError):  # the child has ended, as is found when its answer is read
            self._connection.send((method, arguments))
        return self._answer(reading)

    def _answer(self, reading: str):
        try:
            found, error = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            status = self._process.exitcode or 0
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            raise UserError(f"{self._damaged}: reading {reading} ended a process by {how}") from None
        if error is not None:
            raise error
        return found


def _end(process, connection: Connection) -> None:
    connection.close()
    process.kill()
    process.join()


def _serve(connection: Connection, make: Callable, arguments: tuple) -> None:
    """The child: make the object, then answer calls until the parent closes the connection or ends."""
    faulthandler.disable()  # the parent says how this process ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    target, method, parameters = None, "", arguments
    while True:
        try:
            if target is None:
                target, found = make(*parameters), None
            else:
                found = getattr(target, method)(*parameters)
            connection.send((found, None))
        except (UserError, UnusableImage) as error:
            connection.send((None, error))
        try:
            method, parameters = connection.recv()
        except EOFError:
            return
