"""Backends of operations, each under the name that the tests give it, and which of them this machine can test.

`cpp-avx2` is the C++ backend held to that instruction set. `cpp-baseline` is compiled anew if the extension lacks it.
With FASTGAN_TEST_SANITIZER=address all are compiled anew, under AddressSanitizer, which must be preloaded
(test_tables_elsewhere.py). `emulated` is the CUDA backend's own source, executed on the CPU (tests/emulation), `triton`
runs on a GPU, or on CPU tensors where TRITON_INTERPRET=1 is set.
"""

import os
import platform
from contextlib import contextmanager, nullcontext
from functools import cache

import pytest
import torch

import fastgan_kernels
from fastgan.ops import use_backend
from fastgan_kernels import extension
from tests.emulation import build as emulation

SANITIZER = os.environ.get("FASTGAN_TEST_SANITIZER")  # "address" or None
NAMES = ("torch", "cpp-baseline", "cpp-avx2", "cpp-avx512", "emulated", "triton", "cuda")


def device(name: str) -> str:
    return "cuda" if torch.cuda.is_available() and name in ("triton", "cuda") else "cpu"


@cache
def emulated_module():
    return emulation.load(emulation.build_fastgan(SANITIZER), "_emulated")


def _register_emulation() -> None:
    def why_not(operation, device):
        if device.type != "cpu":
            return "serves CPU tensors only"
        return None if operation in emulated_module().cuda else "has no kernel for it"

    @cache
    def launchers(operation):
        return extension.launchers(emulated_module().cuda, operation, extension.emulated)

    fastgan_kernels.BACKENDS.setdefault("emulated", fastgan_kernels.Backend(why_not, launchers))


@contextmanager
def _instruction_set(isa: str):
    module = extension.module()
    if SANITIZER or isa not in module.isas:
        with _compiled_anew(isa):
            yield
        return
    before = module.cpu_isa()
    module.set_cpu_isa(isa)
    try:
        yield
    finally:
        module.set_cpu_isa(before)


@contextmanager
def _compiled_anew(isa: str):
    """In place of the extension, its CPU kernels for an instruction set, without OpenMP."""
    module = emulation.load(emulation.build_cpu_kernels(isa, SANITIZER), "_one_isa")
    module.cpu_isa = lambda: isa  # it has but one variant, whose name is "baseline"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "_load", lambda: (module, None))
        fastgan_kernels._cpp_launchers.cache_clear()
        yield
    fastgan_kernels._cpp_launchers.cache_clear()


def why_not(name: str) -> str | None:
    """Why this machine cannot test a backend, or None."""
    if name == "torch":
        return None
    if name == "emulated":
        return emulation.why_unavailable()
    kind, _, isa = name.partition("-")
    reason = fastgan_kernels.BACKENDS[kind].why_not("noise_bias_act", torch.device(device(name)))
    if reason is None and isa:
        module = extension.module()
        if isa not in module.isas:
            every_cpu = isa == "baseline" and platform.machine() == "x86_64"
            return emulation.why_unavailable() if every_cpu else f"the extension has no {isa} kernels"
        before = module.cpu_isa()
        try:
            module.set_cpu_isa(isa)
        except ValueError as error:
            return str(error)
        module.set_cpu_isa(before)
    return reason


# If set, tests of all backends are collected (not run), to list what a GPU would run.
_EVERY_BACKEND = "FASTGAN_TEST_EVERY_BACKEND" in os.environ
AVAILABLE = tuple(name for name in NAMES if _EVERY_BACKEND or why_not(name) is None)
KERNELS = AVAILABLE[1:]  # without plain PyTorch
*SLOWER_CPP, FASTEST_CPP = [name for name in AVAILABLE if name.startswith("cpp")] or [None]
# A graph of torch.compile calls the same operators, whatever the backend and the instruction set.
COMPILED = [name for name in (FASTEST_CPP or "torch", "cuda") if name in AVAILABLE]

# Decorators of tests with a parameter `backend`, which otherwise run on all of AVAILABLE.
every_kernel = pytest.mark.parametrize("backend", KERNELS, indirect=True)
every_cpp = pytest.mark.parametrize("backend", [name for name in AVAILABLE if name.startswith("cpp")], indirect=True)
one_instruction_set = pytest.mark.parametrize(  # for tests of autograd, not of arithmetic
    "backend", [name for name in AVAILABLE if name not in SLOWER_CPP], indirect=True
)


@contextmanager
def forced(name: str):
    """Every operation runs on the backend of this name."""
    reason = why_not(name)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    if name == "emulated":
        _register_emulation()
    kind, _, isa = name.partition("-")
    with use_backend(kind), _instruction_set(isa) if isa else nullcontext():
        yield
