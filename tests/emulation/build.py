"""Builds test variants of the kernels as Python extension modules: CUDA sources that run on the CPU, and CPU kernels
under a sanitizer.

`build` compiles sources with cuda_emulation.h and links them with the scheduler. `build_fastgan` does so for the
project's CUDA kernels; `build_cpu_kernels` builds its CPU kernels. A cache holds objects and modules, keyed by all of
their inputs, so that a second test run compiles nothing and parallel test workers share one compilation. Sanitizers
apply to kernels only: all variants share bindings and scheduler. "address" is AddressSanitizer, for CUDA kernels with
UBSan. "traffic" is no sanitizer, but counts accesses to memory (traffic.h).

FASTGAN_TEST_CACHE sets the folder of the cache, CXX the compiler.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Literal

from fastgan.cores import usable_cpus

Sanitizer = Literal["address", "traffic"]

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SCHEDULER = HERE / "scheduler.cpp"
TRAFFIC = HERE / "traffic.cpp"

FLAGS = [
    # -Wmaybe-uninitialized reports paths that the instantiation never takes.
    *("-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Wno-maybe-uninitialized"),
    # Kernels view memory as vectors, which violates type-based aliasing. No contraction to fused multiply-add, so that
    # results do not depend on the host compiler's flags.
    *("-fno-strict-aliasing", "-ffp-contract=off"),
    "-DFASTGAN_EMULATE",
]
SANITIZER_FLAGS = {
    None: ["-O0"],  # kernels take longer to compile than to run
    # Recoverable: the scheduler turns a report into an exception, and the tests continue. The tests under it use fp32
    # and bf16.
    "address": [
        *("-O0", "-g1", "-fsanitize=address", "-fsanitize-recover=address", "-fno-omit-frame-pointer"),
        "-DFASTGAN_FEW_DTYPES",
    ],
    # Answered by traffic.cpp, not by libtsan. Optimised, so that variables in registers make no accesses.
    "traffic": ["-O1", "-g1", "-fsanitize=thread", "-DFASTGAN_FEW_DTYPES"],
}
# UBSan for CUDA kernels, whose reports handlers in scheduler.cpp answer.
UNDEFINED = ["-fsanitize=alignment,bounds,signed-integer-overflow,shift"]
# As in setup.py, by the names of processors: the sanitized module has one variant, for the CPU it runs on.
ISA_FLAGS = {"baseline": [], "avx2": ["-march=x86-64-v3"], "avx512": ["-march=cooperlake"]}
# Instrumented code compiles in half the time if each check is a call.
CALLED_CHECKS = {
    "gcc": ["--param", "asan-instrumentation-with-call-threshold=0"],
    "clang": ["-mllvm", "-asan-instrumentation-with-call-threshold=0"],
}
# Each fiber would get a fake stack, at a great cost, to detect use after return.
NO_FAKE_STACK = {"gcc": ["--param", "asan-use-after-return=0"], "clang": ["-fsanitize-address-use-after-return=never"]}


def why_unavailable(sanitizer: Sanitizer | None = None) -> str | None:
    """Reason why this machine cannot run the emulation, for pytest.skip; None if it can."""
    if os.name != "posix":
        return "the CUDA emulation needs a POSIX system"
    if not _compiler():
        return "no C++ compiler: neither $CXX nor c++ nor g++"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python headers"
    if sanitizer == "address" and len(_preloads()) < 2:
        return "the compiler has no shared AddressSanitizer library"
    return None


def build(
    sources: Sequence[Path],
    name: str,
    *,
    sanitizer: Sanitizer | None = None,
    defines: Sequence[str] = (),
    cpu_flags: Sequence[str] = (),
) -> Path:
    """Compile and link C++ and .cu `sources` into the extension module `name`, and return its path.

    `defines` are macros, "NAME" or "NAME=value", for all sources, `cpu_flags` are for CPU kernels. FASTGAN_MODULE is
    the module's name. Raises RuntimeError with the compiler's messages if it refuses, and if `why_unavailable`.
    """
    if reason := why_unavailable(sanitizer):
        raise RuntimeError(reason)
    import pybind11

    includes = [CSRC, HERE, Path(pybind11.get_include()), Path(sysconfig.get_path("include"))]
    macros = [f"-D{define}" for define in (f"FASTGAN_MODULE={name}", *defines)]
    common = [*FLAGS, *macros, *(f"-I{path}" for path in includes)]
    if _family() == "gcc":
        common.append("-fno-gnu-unique")  # else modules loaded side by side would share variables of templates
    address = sanitizer == "address"
    kernel_flags = [*SANITIZER_FLAGS[sanitizer], *(NO_FAKE_STACK[_family()] if address else [])]
    cpu_kernel_flags = [*kernel_flags, *(CALLED_CHECKS[_family()] if address else []), *cpu_flags]
    kernel_flags += UNDEFINED if address else []
    macro = {"address": ["-DEMULATION_ADDRESS"], "traffic": ["-DEMULATION_TRAFFIC"]}
    scheduler_flags = ["-O2", *macro.get(sanitizer, [])]

    def compile_one(source: Path) -> Path:
        if source in (SCHEDULER, TRAFFIC):
            flags = scheduler_flags
        else:
            # pybind11 hides its types, and gcc warns about every type that contains one.
            flags = kernel_flags if source.suffix == ".cu" else ["-O0", "-Wno-attributes", "-Wno-unused-parameter"]
            flags = cpu_kernel_flags if source.name == "cpu.cpp" else flags
        # As in setup.py.
        headers = [CSRC / "common/bindings.h", *sorted(CSRC.glob("*/call.h"))] if source.name == "module.cpp" else []
        included = [word for header in headers for word in ("-include", str(header))]
        arguments = [*common, *flags, *included, "-x", "c++", "-c", str(source)]
        read = _headers_of([source, *headers, HERE / "cuda_emulation.h"])
        return _cached(arguments, [source, *read, pybind11.__version__], f"{source.stem}.o")

    with ThreadPoolExecutor(usable_cpus()) as pool:
        emulator = [SCHEDULER] if any(source.suffix == ".cu" for source in sources) else []
        emulator += [TRAFFIC] if sanitizer == "traffic" else []
        objects = list(pool.map(compile_one, [*map(Path, sources), *emulator]))
    link = ["-shared", *map(str, objects)]
    if sys.platform == "darwin":
        link += ["-undefined", "dynamic_lookup"]
    else:
        link += ["-Wl,-Bsymbolic", "-ldl"]
    if address:
        link += ["-fsanitize=address", *(["-shared-libasan"] if _family() == "clang" else [])]
    return _cached(link, objects, name + sysconfig.get_config_var("EXT_SUFFIX"))


def build_fastgan(sanitizer: Sanitizer | None = None) -> Path:
    """Build the project's own extension with its CUDA kernels emulated and without its CPU kernels.

    Load it by `load(path, "_emulated")`.
    """
    sources = [CSRC / "common/module.cpp", *sorted(CSRC.glob("*/cuda.cu"))]
    return build(sources, "_emulated", sanitizer=sanitizer, defines=["FASTGAN_WITH_CUDA"])


def build_cpu_kernels(isa: str, sanitizer: Sanitizer | None = None) -> Path:
    """Build the project's own extension with its CPU kernels for one instruction set, and nothing else.

    Load it by `load(path, "_one_isa")`. With a sanitizer a bad access ends the process: there is no scheduler to turn
    it into an exception.
    """
    sources = [*sorted(CSRC.glob("common/*.cpp")), *sorted(CSRC.glob("*/cpu.cpp"))]
    # "baseline" is here just a name for the code that these flags give.
    flags = [*ISA_FLAGS[isa], "-DFASTGAN_ISA=baseline", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
    flags += ["-fno-sanitize-recover=all"] if sanitizer else []
    defines = ["FASTGAN_WITH_CPU", "FASTGAN_WITH_BASELINE"]
    return build(sources, "_one_isa", sanitizer=sanitizer, defines=defines, cpu_flags=flags)


@functools.cache
def load(path: Path, name: str) -> ModuleType:
    """Import the extension module `name` from `path`. Variants of one module can be loaded side by side."""
    # pybind11 identifies modules by their full name and would return the first variant again. The part before the last
    # dot is free.
    full_name = f"emulated_{path.parent.name}.{name}"
    loader = importlib.machinery.ExtensionFileLoader(full_name, str(path))
    spec = importlib.util.spec_from_file_location(full_name, path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def run_under_address_sanitizer(python_args: Sequence[str], **options) -> subprocess.CompletedProcess:
    """Run this Python with `python_args` such that modules built with sanitizer="address" can be loaded.

    A bad access in a kernel raises RuntimeError there, any other ends the process. The full reports of both are
    appended to `stderr`, since a test runner that captures output would lose them. `options` go to subprocess.run.
    """
    with tempfile.TemporaryDirectory() as folder:
        asan_options = {
            "detect_leaks": 0,  # Python leaks by design
            "detect_stack_use_after_return": 0,
            "halt_on_error": 0,  # the scheduler raises
            "suppress_equal_pcs": 0,  # else the second bad access at a place would pass
            "log_path": f"{folder}/report",
        }
        environment = {
            **os.environ,
            **options.pop("env", {}),
            "LD_PRELOAD": ":".join(_preloads()),
            "ASAN_OPTIONS": ":".join(f"{key}={value}" for key, value in asan_options.items()),
        }
        result = subprocess.run(
            [sys.executable, *python_args], env=environment, capture_output=True, text=True, check=False, **options
        )
        result.stderr += "".join(path.read_text(errors="replace") for path in sorted(Path(folder).iterdir()))
    return result


@functools.cache
def _compiler() -> tuple[str, ...]:
    """Command of the C++ compiler; empty if there is none."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++"]
    for candidate in candidates:
        words = shlex.split(candidate)
        if words and shutil.which(words[0]):
            return tuple(words)
    return ()


@functools.cache
def _compiler_version() -> str:
    return _compile(["--version"])


def _family() -> Literal["gcc", "clang"]:
    return "clang" if "clang" in _compiler_version() else "gcc"


@functools.cache
def _preloads() -> list[str]:
    """Shared libraries to load before Python: the sanitizer, and the C++ library whose exceptions it intercepts."""
    names = ["libasan.so" if _family() == "gcc" else "libclang_rt.asan-x86_64.so", "libstdc++.so"]
    found = []
    for name in names:
        path = Path(_compile([f"-print-file-name={name}"]).strip())
        if path.is_absolute() and path.exists():
            found.append(str(path.resolve()))
    return found


def _headers_of(sources: Sequence[Path]) -> list[Path]:
    """Headers of the project that these files include, directly or not, and those among the files themselves."""
    found: dict[Path, None] = {}
    waiting = list(sources)
    while waiting:
        source = waiting.pop()
        for name in re.findall(r'^#include "(.+)"', source.read_text(), re.M):
            header = next(path for folder in (CSRC, HERE) if (path := folder / name).exists())
            if header not in found:
                found[header] = None
                waiting.append(header)
    return sorted({*found, *(source for source in sources if source.suffix == ".h")})


def _cache() -> Path:
    if chosen := os.environ.get("FASTGAN_TEST_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastgan-tests"


def _compile(arguments: Sequence[str]) -> str:
    """Run the compiler, without the sanitizer that this process may run under, and return its output."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    command = [*_compiler(), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{result.stderr}")
    if result.stderr:
        print(result.stderr, file=sys.stderr)
    return result.stdout


def _cached(arguments: Sequence[str], inputs: Sequence[Path | str], name: str) -> Path:
    """Compile, unless the cache has the output of the same arguments and `inputs`; return the output, a file `name`."""
    digest = hashlib.sha256(repr((_compiler(), _compiler_version(), sys.version, arguments)).encode())
    for item in inputs:
        digest.update(item.read_bytes() if isinstance(item, Path) else item.encode())
    return kept(digest.hexdigest(), name, lambda output: _compile([*arguments, "-o", str(output)]))


def kept(digest: str, name: str, write: Callable[[Path], object]) -> Path:
    """A file `name` in the cache, which `write` writes unless it is there: `digest` is that of its inputs.

    The file is moved to its final name when it is complete. A lock makes a second process wait for the first.
    """
    folder = _cache() / digest[:32]
    output = folder / name
    if output.exists():
        return output
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if output.exists():
            return output
        unfinished = folder / f"unfinished-{name}"
        write(unfinished)
        os.replace(unfinished, output)
    return output


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
