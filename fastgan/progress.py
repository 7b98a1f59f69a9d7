"""Progress bars of all commands: a bar in a terminal, a line every 15 seconds in a file. Imports no torch."""

from __future__ import annotations

import math
import sys
import time

from tqdm import tqdm

INTERVAL = 15.0  # seconds between lines in a file


class ProgressBar(tqdm):
    """`tqdm`, with the same arguments, on stderr. Updates beyond `total` are cut off, so the end is 100 %.

    A file always gets the last line, except of a bar with `leave=False` that took less than 15 seconds.
    """

    def __init__(self, *arguments, **options):
        self._in_file = not sys.stderr.isatty()
        self._closing, self._written = False, time.monotonic()
        options.setdefault("dynamic_ncols", not self._in_file)
        super().__init__(*arguments, mininterval=INTERVAL if self._in_file else 0.5, **options)

    def update(self, n: float = 1):
        return super().update(n if self.total is None else min(n, self.total - self.n))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if not self._in_file:
            super().display(msg, pos)
        elif msg is None and (self._closing or time.monotonic() - self._written >= INTERVAL):
            self._written = time.monotonic()
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def clear(self, *arguments, **options) -> None:
        if not self._in_file:
            super().clear(*arguments, **options)

    def close(self) -> None:
        if self._in_file and not self.disable:
            self._closing = self.leave or time.monotonic() - self.start_t >= INTERVAL
            if self._closing:
                self.display()
            self.delay = math.inf  # tqdm prints nothing more
        super().close()
