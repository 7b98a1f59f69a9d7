"""Files on disk: atomic writes, flushes and locks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from fastgan.errors import UserError

TEMPORARY_SUFFIX = ".unfinished"
_CHUNK = 2**20


def write_atomically(path: Path, content: bytes | memoryview, option: str = "--out") -> None:
    """Write `content` to `path` so that at any moment, also after a crash, `path` holds all of the old or the new.

    Raises UserError naming the file and the option that sets it if the disk is full or read-only; the old content is
    then untouched.
    """
    with replacement(path, option) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacement(path: Path, option: str | None = "--out") -> Iterator[Path]:
    """The name of a temporary file to write within the block; after it, the file takes the place of `path`.

    It lies in the same directory, is flushed to the disk and renamed over `path`, and the directory is flushed. If the
    block raises, it is removed. Its name is fixed, so the next write overwrites one left by a killed process. An
    OSError within the block raises UserError as `write_atomically` does; without an `option` it stays an OSError.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                sync(file)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        if option is None:
            raise
        raise _cannot_write(path, error, option) from error


def _cannot_write(path: Path, error: OSError, option: str) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; make room or choose another place with {option}")


def require_other(path: Path, read: Iterable[Path], option: str = "--out") -> None:
    """Raise UserError if writing `path` would replace one of the files that are read."""
    for each in read:
        if path.exists() and each.exists() and path.samefile(each):
            raise UserError(f"{option} {path}: would replace {each}, which is read; give another name")


def prepare_to_write(path: Path, option: str = "--out") -> None:
    """Create the directory of `path` and check that a file can be written there, before the work for it starts.

    Raises UserError as `write_atomically` does.
    """
    trial = path.with_name(f"{path.name}.{os.getpid():010}")  # one a process, as long as the temporary's name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise _cannot_write(path, error, option) from None


def copy(path: Path, name: Path) -> None:
    """Copy the file `path` to `name`, atomically and flushed to the disk; replaces what was at `name`.

    A file system that can shares the blocks of both (a reflink). Raises OSError; `name` is then as it was.
    """
    with (
        replacement(name, option=None) as temporary,
        open(path, "rb") as source,
        open(temporary, "wb") as target,
    ):
        if not _copied_by_kernel(source, target):
            source.seek(0)
            target.seek(0)
            shutil.copyfileobj(source, target, _CHUNK)


def _copied_by_kernel(source: BinaryIO, target: BinaryIO) -> bool:
    """Copy a whole file by a system call that makes a reflink where it can. Returns False if it cannot."""
    if not hasattr(os, "copy_file_range"):
        return False
    left = os.fstat(source.fileno()).st_size
    try:
        while left and (done := os.copy_file_range(source.fileno(), target.fileno(), left)):
            left -= done
    except OSError:  # not between these file systems; any other reason stops the usual copy as well
        return False
    return left == 0


def remove_unfinished(directory: Path) -> None:
    """Remove the temporaries that a killed process left in `directory`."""
    for temporary in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        if not temporary.is_dir():
            temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # another process may remove it too
        if path.exists():
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(file) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Flush the names in `directory` to the disk. Does nothing outside of POSIX: a directory cannot be opened there."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(path: Path, *, waiting: str = "", refusal: str = "") -> Iterator[None]:
    """Exclusive lock on `path`, a directory or else a file, which is created. The system releases it if the process
    dies.

    While another process holds the lock: raises UserError with the text `refusal`; or, without one, prints `waiting` to
    stderr and waits. Does nothing on systems and file systems without locks (Windows, some network file systems).
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refusal:
                raise UserError(refusal) from None
            print(waiting, file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def is_unlocked(path: Path) -> bool:
    """Whether the lock on the file `path` is known to be free: False on systems and file systems without locks."""
    try:
        import fcntl

        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def one_writer(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Lock on `directory` for a training that writes there. Raises UserError if another training holds it; does
    nothing if there is no such directory."""
    if not directory.is_dir():
        return contextlib.nullcontext()
    refusal = f"{directory}: another training writes there; wait until it has ended, or choose another folder"
    return lock(directory, refusal=refusal)


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


def copy_and_digest(source: Readable, target: BinaryIO | None = None) -> str:
    """Read `source` to its end, write it to `target` if given, and return its SHA-256 in hex."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return copy_and_digest(file)
