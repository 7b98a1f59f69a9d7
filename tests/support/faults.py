"""Faults in the middle of a command: at its n-th call that opens, writes, flushes, renames or removes a file of a
folder, the process is killed, gets a signal, or the call fails. Each fault comes in a forked child."""

import builtins
import contextlib
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

EVENTS = {f"os.{name}" for name in ("rename", "link", "remove", "mkdir", "rmdir", "truncate")}  # of Python's audit
BY_DESCRIPTOR = ("fsync", "write", "ftruncate", "copy_file_range", "sendfile")
FAULTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGHUP": lambda: os.kill(os.getpid(), signal.SIGHUP),
    "full disk": lambda: _fail(errno.ENOSPC),
    "broken disk": lambda: _fail(errno.EIO),
}
FAILED = 70  # exit status of a command that ended by an exception


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
    """Counts calls on files in `folder`; the fault comes within the one of that number.

    A kill before a flush takes half of what was not flushed with it, as a power cut does.
    """

    def __init__(self, folder, number, fault, report):
        self._folder, self._number, self._fault, self._report = str(folder), number, fault, report
        self._count = 0
        files = [path.stat() for path in folder.rglob("*") if path.is_file()]
        self._flushed = {status.st_ino: status.st_size for status in files}  # bytes of each file, by inode

    def install(self):
        """Watch the calls, for the rest of this process."""
        for name in BY_DESCRIPTOR:
            setattr(os, name, self._counted(name, getattr(os, name)))
        builtins.open = io.open = self._counting_writes(builtins.open)
        sys.addaudithook(self._heard)

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

    def _heard(self, event, arguments):
        changes = event in EVENTS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and isinstance(arguments[0], str | os.PathLike) and self._is_ours(os.fspath(arguments[0])):
            self.seen(event.removeprefix("os."))

    def _counted(self, name, function):
        def call(descriptor, *arguments, **named):
            ours = self._is_ours(os.readlink(f"/proc/self/fd/{descriptor}"))
            if ours:
                self.seen(name, lambda fault: name == "fsync" and fault == "kill" and self._lose_half(descriptor))
            result = function(descriptor, *arguments, **named)
            if ours and name == "fsync":
                status = os.fstat(descriptor)
                self._flushed[status.st_ino] = status.st_size
            return result

        return call

    def _lose_half(self, descriptor):
        status = os.fstat(descriptor)
        kept = self._flushed.get(status.st_ino, 0)
        with contextlib.suppress(OSError):  # a folder, or a file that is open for reading
            os.ftruncate(descriptor, kept + (status.st_size - kept) // 2)

    def _counting_writes(self, function):
        def call(file, mode="r", *arguments, **named):
            opened = function(file, mode, *arguments, **named)
            ours = not isinstance(file, int) and self._is_ours(os.fspath(file)) and not mode.startswith("r")
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


def _fork(folder, number, fault, output):
    """Fork a child whose call of that number is a fault. Returns None in the child; and in this process, when the child
    has ended, the call at which the fault came, or None, and the exit status.

    output: file for what the child prints.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        with open(output, "wb") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        _Calls(folder, number, fault, os.fdopen(writing, "w")).install()
        return None
    os.close(writing)
    with os.fdopen(reading) as told:
        call = told.read() or None
    return call, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_with_fault(command, folder, number, fault):
    """Run `command`, as `run` does, in a child whose call of that number is a fault. Returns that call, or None if the
    child ended before, and its exit status."""
    ended = _fork(folder, number, fault, os.devnull)
    if ended is None:
        run(command)
    return ended


def each_fault(fault, folder, results, most=1000):
    """Fork a child for each call number from 1 on, until one ends before the fault comes. Returns in each child, which
    goes on within `run`. Puts the folder back in between, and ends this process after the last child.

    results: gets a copy of each different state of the folder, and outcomes.json. most: number of calls to try.
    """
    before, outcomes = _content(folder), []
    for number in range(1, most + 1):
        output = results / "output.txt"
        ended = _fork(folder, number, fault, output)
        if ended is None:
            return
        call, status = ended
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
    """End this process with the status of a command; with FAILED if it raises."""
    status = FAILED
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
