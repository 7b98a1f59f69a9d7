"""The compiled extension: loading, the check that it fits this Python code, its launchers and its build record."""

import json
import warnings
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch  # before the extension, whose OpenMP then resolves to the copy that torch has loaded
from torch import Tensor

from fastgan_kernels import calls
from fastgan_kernels.launches import observed
from fastgan_kernels.sources import digest

csrc: Path | None = None
"""The sources that the extension must have been built from, where they are at hand; set by `fastgan.ops`."""


# Not functools.cache: torch.compile ignores it and would trace the loading.
_loaded: tuple[ModuleType | None, str | None] | None = None


def _load() -> tuple[ModuleType | None, str | None]:
    """The extension module, or the reason why there is none. The first call loads it, and warns if it is no use."""
    global _loaded
    if _loaded is None:
        _loaded = _try_to_load()
    return _loaded


def _try_to_load() -> tuple[ModuleType | None, str | None]:
    try:
        extension = import_module("fastgan_kernels._C")
    except ModuleNotFoundError as error:
        return None, f"the compiled extension is missing ({error}): run `{_install_command()}` again"
    except ImportError as error:
        problem = f"does not load ({error})"
    else:
        difference = _why_stale(extension)
        if difference is None:
            return extension, None
        problem = f"is stale ({difference})"
    reason = f"the compiled extension {problem}: run `{_install_command()}` again"
    message = f"fastgan works without its C++ and CUDA kernels, on Triton and plain PyTorch: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return None, reason


def _install_command() -> str:
    """The command that builds the extension from the sources at hand."""
    if csrc is None or not csrc.is_dir():
        return "pip install ."
    is_editable = Path(__file__).resolve().parent == csrc.with_name("kernels").resolve()
    return f"pip install {'-e ' if is_editable else ''}{csrc.parent}"


def _why_stale(extension: ModuleType) -> str | None:
    """The first difference between the extension and this Python code or the sources at hand, or None."""
    built = getattr(extension, "calls", {})
    for call, fields in calls.fields().items():
        for here, there in zip_longest(fields, built.get(call, ())):
            if here != there:
                return f"{call} has the field `{there}` there, `{here}` here"
    if csrc is not None and csrc.is_dir() and digest(csrc) != extension.sources:
        return f"it was not built from the present {csrc}"
    return None


def module() -> ModuleType | None:
    """The extension module, or None where it cannot be used (`load_error` says why)."""
    return _load()[0]


def kernels(part: str) -> dict[str, dict[str, Callable]]:
    """The "cpu" or "cuda" kernels by operation, as functions by kernel; empty without an extension."""
    return getattr(module(), part, {})


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use; empty without an extension."""
    extension = module()
    return "" if extension is None else extension.cpu_isa()


def load_error() -> str | None:
    """Why there is no extension module, or None if there is one."""
    return _load()[1]


@cache
def build_info() -> dict:
    """The record of the build: compilers, instruction sets, CUDA targets, and the reason for each part left out.

    Empty if there is none.
    """
    path = Path(__file__).with_name("_build.json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def why_no_part(part: str) -> str | None:
    """Why the extension has no "cpu" or no "cuda" kernels that can run here, or None if it has some."""
    extension = module()
    if extension is None:
        return build_info().get(part, {}).get("reason") or load_error()
    if getattr(extension, f"has_{part}"):
        return None
    if part == "cpu" and extension.isas:
        lacking = " and ".join(extension.isas)
        return f"this CPU lacks {lacking}, which the kernels need: run `{_install_command()}` again on this machine"
    return build_info().get(part, {}).get("reason") or f"the extension was built without its {part} kernels"


def why_not_on_card(index: int | None) -> str | None:
    """Why the CUDA kernels cannot run on the GPU of this index (None: the current one), or None if they can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    major, minor = torch.cuda.get_device_capability(index)
    built = build_info().get("cuda", {}).get("archs", [])
    card = major * 10 + minor
    if built and card < min(built):  # PTX is there for all later cards
        remedy = f"reinstall with FASTGAN_CUDA_ARCHS={card}"
        return f"compiled for cards from sm_{min(built)} on, this is sm_{card}: {remedy}"
    return None


def _stream_getter() -> Callable[[int], int]:
    """A function from a GPU's index to its current stream: torch's own short cut, or the public way without it."""
    short_cut = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return short_cut or (lambda index: torch.cuda.current_stream(index).cuda_stream)


_raw_stream = _stream_getter()


def on_gpu(call: tuple, workspace: int) -> tuple[int, int, Tensor | None]:
    """Device, stream and a workspace of so many bytes for a call. Raises ValueError as `calls.device_of`.

    The stream is the current one of the tensors' device, on which torch's own operations would run. So the memory of a
    tensor that dies before the kernel has run is not used by another stream. The workspace may die when the call
    returns.
    """
    device = calls.device_of(call)
    return device.index, _raw_stream(device.index), _bytes(workspace, device)


def emulated(call: tuple, workspace: int) -> tuple[int, int, Tensor | None]:
    """The same for CUDA kernels that are emulated on the CPU (in tests)."""
    calls.device_of(call)
    return 0, 0, _bytes(workspace, None)


def _bytes(size: int, device: torch.device | None) -> Tensor | None:
    return torch.empty(size, dtype=torch.uint8, device=device) if size else None


def launchers(
    kernels: dict[str, dict[str, Callable]], operation: str, place: Callable | None = None
) -> SimpleNamespace:
    """The launchers of an operation: one function a kernel, which takes a call (`fastgan_kernels.calls`).

    `of(NAME)` gives those of another operation on the same backend.

    Args:
        kernels: kernels of the "cpu" or "cuda" part.
        place: `on_gpu` or `emulated`, for CUDA kernels.
    """
    functions = kernels.get(operation, {}).items()
    found = {name: observed(partial(run, place=place) if place else run) for name, run in functions}
    return SimpleNamespace(of=cache(partial(launchers, kernels, place=place)), **found)
