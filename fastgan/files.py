"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fastgan.errors import UserError

TEMPORARY_SUFFIX = ".unfinished"


def write_atomically(path: Path, content: bytes | memoryview, option: str = "--out") -> None:
    """Put `content` at `path` so that at any moment, also after a crash, `path` holds the old or the new content whole.

    A temporary file in the same directory is written, flushed to the disk and renamed over `path`; then the directory
    itself is flushed. The temporary's name is fixed, so one left by a killed process is overwritten by the next write.
    Raises UserError naming the file, and the option that says where, if the disk is full or not writable; the old
    content is then untouched.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _refused(path, error, option) from error


def _refused(path: Path, error: OSError, option: str) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; make room or choose another place with {option}")


def prepare_to_write(path: Path, option: str = "--out") -> None:
    """Make the folder of `path`, and try whether a file could be put there: called before the work for it.

    Raises UserError as `write_atomically`.
    """
    trial = path.with_name(f"{path.name}.{os.getpid():010}")  # of this process alone, as long as the temporary's
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise _refused(path, error, option) from None


def link(path: Path, name: Path) -> None:
    """Give a file another name, in the place of what had it. What is put at `path` later has nothing to do with it.

    Raises OSError; nothing half-written has the name then.
    """
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:  # a file system without links
        temporary = name.with_name(name.name + TEMPORARY_SUFFIX)
        try:
            shutil.copyfile(path, temporary)
            os.replace(temporary, name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def one_writer(directory: Path) -> Iterator[None]:
    """Within the block, no other process gets here with the same directory. The system keeps watch: whoever is killed
    lets go of it.

    Raises UserError if another has it. Where the file system knows no locks, nothing is watched.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        fcntl = None
    if fcntl is None or not directory.is_dir():
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory}: another training writes there; wait until it has ended, or choose another folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def remove_unfinished(directory: Path) -> None:
    """Remove the temporaries that a killed process left in `directory`."""
    for left_over in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        left_over.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # a directory cannot be opened, and a rename is not flushed, elsewhere
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
