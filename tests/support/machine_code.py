"""Machine code of the compiled extension, disassembled once for all test processes: it takes 15 CPU seconds."""

import hashlib
import pickle
from functools import cache
from pathlib import Path

import pytest

from bench import sass
from fastgan_kernels import extension
from tests.emulation import build as emulation


@cache
def kernels() -> list[sass.Kernel]:
    """As `sass.read_kernels` reads them. Skips the test if there are none, or no tools to read them."""
    if reason := extension.why_no_part("cuda") or sass.why_unavailable():
        pytest.skip(reason)
    library, reader = Path(extension.module().__file__), Path(sass.__file__)
    digest = hashlib.sha256(library.read_bytes() + reader.read_bytes()).hexdigest()
    write = lambda file: file.write_bytes(pickle.dumps(sass.read_kernels(library)))
    return pickle.loads(emulation.kept(digest, "machine_code.pickle", write).read_bytes())
