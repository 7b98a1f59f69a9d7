"""Faults in the middle of a command: at its n-th call that opens, writes, flushes, renames or removes a file of a
folder, the process is killed, gets a signal, or the call fails. Each number is tried, in children of one process."""

import builtins
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import traceback
from typing import NamedTuple

BY_PATH = ("open", "replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir", "truncate")
BY_DESCRIPTOR = ("fsync", "write", "ftruncate", "copy_file_range", "sendfile")
FAULTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGHUP": lambda: os.kill(os.getpid(), signal.SIGHUP),
    "full disk": lambda: _fail(errno.ENOSPC),
    "broken disk": lambda: _fail(errno.EIO),
}


def _fail(code):
    raise OSError(code, os.strerror(code))


class Outcome(NamedTuple):
    """End of one child. call: at which the fault came; None if it ended before. state: folder with what it left."""

    number: int
    call: str | None
    status: int
    output: str
    state: str


class _Calls:
    """Counts calls on files in `folder`; the fault comes within the one of that number."""

    def __init__(self, folder, number, fault, report):
        self._folder, self._number, self._fault, self._report = str(folder), number, fault, report
        self._count = 0

    def install(self):
        """Replace the functions, for the rest of this process."""
        for name in (*BY_PATH, *BY_DESCRIPTOR):
            setattr(os, name, self._counted(name, getattr(os, name)))
        builtins.open = io.open = self._counting_writes(builtins.open)

    def _is_ours(self, path):
        return path == self._folder or path.startswith(self._folder + os.sep)

    def seen(self, name, before=lambda fault: None):
        self._count += 1
        if self._count == self._number:
            if not self._fault.startswith("SIG"):
                before(self._fault)
            self._report.write(name)
            self._report.close()
            FAULTS[self._fault]()

    def _counted(self, name, function):
        def call(*arguments, **named):
            path = os.readlink(f"/proc/self/fd/{arguments[0]}") if name in BY_DESCRIPTOR else str(arguments[0])
            if self._is_ours(path):
                self.seen(name)
            return function(*arguments, **named)

        return call

    def _counting_writes(self, function):
        def call(file, mode="r", *arguments, **named):
            ours = not isinstance(file, int) and self._is_ours(os.fspath(file)) and not mode.startswith("r")
            if ours:
                self.seen("open")
            opened = function(file, mode, *arguments, **named)
            return _Written(opened, self) if ours else opened

        return call


class _Written:
    """A file whose writes are counted. A fault that ends one leaves half of it."""

    def __init__(self, file, calls):
        self._file, self._calls = file, calls

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content):
        def half(fault):
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            if fault != "kill":  # the rest stays in the buffer, and is written if the disk has room again
                self._file.write(content[len(content) // 2 :])

        self._calls.seen("write", half)
        return self._file.write(content)


def each_fault(fault, folder, results, most=1000):
    """Fork a child for each call number from 1 on, until one ends before the fault comes. Returns in each child, which
    goes on within `run`. Puts the folder back in between, and ends this process after the last child.

    results: gets a copy of each different state of the folder, and outcomes.json. most: number of calls to try.
    """
    before, outcomes = _content(folder), []
    for number in range(1, most + 1):
        reading, writing = os.pipe()
        output = results / "output.txt"
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            with open(output, "wb") as file:
                for descriptor in (1, 2):
                    os.dup2(file.fileno(), descriptor)
            report = os.fdopen(writing, "w")
            _Calls(folder, number, fault, report).install()
            return
        os.close(writing)
        with os.fdopen(reading) as told:
            call = told.read() or None
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        state = results / _digest(folder)
        if not state.exists():
            shutil.copytree(folder, state) if folder.exists() else state.mkdir()
        outcomes.append(Outcome(number, call, status, output.read_text(errors="replace"), state.name))
        _put_back(folder, before)
        if call is None:
            break
    (results / "outcomes.json").write_text(json.dumps(outcomes))
    os._exit(0)


def run(command):
    """End this process with the status of a command."""
    status = 1
    try:
        status = command()
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status or 0)


def read_outcomes(results):
    return [Outcome(*each) for each in json.loads((results / "outcomes.json").read_text())]


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


def _put_back(folder, before):
    """The log stays the same file: this process has it open."""
    if before is None:
        return shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name != "log.jsonl" or path.name not in before:
            path.unlink()
    for name, content in before.items():
        with open(folder / name, "r+b" if (folder / name).exists() else "wb") as file:
            file.truncate(0)
            file.write(content)


def _digest(folder):
    """Digest of a run's folder, without what differs from one run to the next: speeds in the log."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        content = path.read_bytes()
        if path.name == "log.jsonl":
            content = re.sub(rb', "(images_per_second|peak_memory_gib)": [\d.]+', b"", content)
        found.update(path.name.encode() + content)
    return found.hexdigest()[:16]
