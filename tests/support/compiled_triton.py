"""Triton kernels compiled for cards that need not be there, as their launches would have compiled them."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import fastgan_kernels
from fastgan import ops
from tests.support import traffic


def on_cards(calls):
    """(call, compute capability) of every call on an H100; in bf16 and NHWC on the generations before and after too."""
    everywhere = lambda call: call.dtype == torch.bfloat16 and call.layout == "nhwc"
    return [(call, card) for call in calls for card in (90, 80, 100) if card == 90 or everywhere(call)]


class Recorder:
    """Stands in for a kernel and notes how it is launched."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.launches.append((self.kernel, arguments, named))


class Launch(NamedTuple):
    """A launch of a kernel: its arguments, the options and constants by name, and the number of its programs."""

    kernel: JITFunction
    arguments: tuple
    named: dict[str, Any]
    programs: int

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that it accesses, each once."""
        found = {t.data_ptr(): t for t in self.arguments if isinstance(t, torch.Tensor)}
        return list(found.values())


def launches(form: traffic.Form, shape: traffic.Shape, dtype: torch.dtype, channels_last: bool = True):
    """The launches of an operation by direction, as `traffic.count` has them of the CUDA kernels."""
    launchers = fastgan_kernels.BACKENDS["triton"].launchers(form.operation)
    directions = ["forward", "backward", "double backward"]
    if hasattr(launchers, "backward") and not hasattr(launchers, "double_backward"):
        directions.pop()  # it launches nothing, and plain PyTorch would take its time
    with _recorded_backend() as recorded:
        return traffic.run(form, shape, dtype, channels_last, recorded, directions)[0]


@contextmanager
def _recorded_backend() -> Iterator:
    """Every operation runs on Triton's launchers, which launch nothing. Yields `recorded(records, name)`."""
    noted: list[Launch] = []

    class Noting:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *arguments, **named: noted.append(Launch(self.kernel, arguments, named, *grid))

    @contextmanager
    def recorded(records, name):
        noted.clear()
        yield
        records[name] = [*noted]

    real = fastgan_kernels.BACKENDS["triton"]
    names = [path.stem for path in Path(fastgan_kernels.__file__).parent.glob("triton/[a-z]*.py")]
    modules = [import_module(f"fastgan_kernels.triton.{name}") for name in names]  # before any is changed
    with ExitStack() as stack:
        for module in modules:
            kernels = {name: Noting(each) for name, each in vars(module).items() if isinstance(each, JITFunction)}
            stack.enter_context(mock.patch.multiple(module, **kernels))
        fastgan_kernels.BACKENDS["noted"] = fastgan_kernels.Backend(lambda operation, device: None, real.launchers)
        try:
            with ops.use_backend("noted"):
                yield recorded
        finally:
            del fastgan_kernels.BACKENDS["noted"]


def compiled_for(capability, kernel, arguments, named):
    """The kernel as its launch on such a card would have compiled it, tensors being aligned to 16 bytes."""
    types = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64"}
    types |= {torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64"}
    options = {name: value for name, value in named.items() if name not in kernel.arg_names}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | named
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[(i,)] = types[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = parameter.annotation_type
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin, folder):
    """Registers of a thread, bytes of stack (where they are spilled to), of local and of shared memory."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"\b{name}:(\d+)", printed)[1]) for name in ("REG", "STACK", "LOCAL", "SHARED")}


def in_loops(ttgir, operation):
    """How often an operation occurs within the loops of a kernel."""
    count, indentation = 0, None
    for line in ttgir.splitlines():
        here = len(line) - len(line.lstrip())
        if indentation is None:
            indentation = here if "scf.for" in line else None
        elif line.lstrip().startswith("}") and here == indentation:
            indentation = None
        else:
            count += operation in line
    return count
