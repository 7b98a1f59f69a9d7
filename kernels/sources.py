"""Digest of csrc/: tells whether a compiled extension was built from the sources beside it. setup.py runs this file."""

import hashlib
from pathlib import Path


def digest(csrc: Path) -> str:
    """SHA-256 of the names and contents of all C++ and CUDA sources, in hex."""
    found = hashlib.sha256()
    for path in sorted(path for path in csrc.rglob("*") if path.suffix in (".h", ".cpp", ".cu")):
        found.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()
