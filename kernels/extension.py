"""The compiled extension: loaded once, checked against this Python code, described for people."""

import json
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType

import torch  # before the extension, whose OpenMP then resolves to the copy that torch has loaded
from torch import Tensor

from fastgan_kernels.abi import ABI


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        from fastgan_kernels import _C
    except ImportError as error:
        return None, f"the compiled extension is missing or does not load ({error}): run `pip install .` again"
    if _C.abi != ABI:
        return None, (
            f"the compiled extension is of another version (ABI {_C.abi}, this code needs {ABI}): "
            "run `pip install .` again"
        )
    return _C, None


def module() -> ModuleType | None:
    """The extension module, or None where it cannot be used (`load_error` says why)."""
    return _load()[0]


def load_error() -> str | None:
    """Why there is no extension module, or None if there is one."""
    return _load()[1]


@cache
def build_info() -> dict:
    """What the build recorded: compilers found, instruction sets, CUDA targets, and the reason for each part left out.

    Empty if nothing was recorded.
    """
    path = Path(__file__).with_name("_build.json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def why_no_part(part: str) -> str | None:
    """Why the extension lacks its "cpu" or "cuda" kernels, or None if it has them."""
    extension = module()
    if extension is None:
        return build_info().get(part, {}).get("reason") or load_error()
    if getattr(extension, f"has_{part}"):
        return None
    return build_info().get(part, {}).get("reason") or f"the extension was built without its {part} kernels"


def why_not_on_card(index: int | None) -> str | None:
    """Why the CUDA kernels cannot run on the GPU of this number (None: the current one), or None if they can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    major, minor = torch.cuda.get_device_capability(index)
    built = build_info().get("cuda", {}).get("archs", [])
    card = major * 10 + minor
    if built and card < min(built):  # PTX is there for all later cards
        remedy = f"reinstall with FASTGAN_CUDA_ARCHS={card}"
        return f"compiled for cards from sm_{min(built)} on, this is sm_{card}: {remedy}"
    return None


DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}  # as in csrc/common/types.h


def _stream_getter() -> Callable[[int], int]:
    """From a GPU's number to its current stream: torch's own short cut, or the long way where it has none."""
    short_cut = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return short_cut or (lambda index: torch.cuda.current_stream(index).cuda_stream)


_raw_stream = _stream_getter()


def place(x: Tensor, emulated: bool) -> tuple[int, int]:
    """Device and stream of a call on `x`: -1 and 0 for the CPU; for `emulated` CUDA kernels on CPU tensors 0 and 0."""
    if x.is_cuda:
        device = x.device.index
        return device, _raw_stream(device)
    return (0, 0) if emulated else (-1, 0)


class Workspace:
    """What the kernels of an operation work in, by place and sizes of a call: a tensor, or on a CPU, where they have
    memory of their own, None. `needed` tells the bytes.

    The tensor may die when the call returns: the allocator keeps its memory for the stream until then.
    """

    def __init__(self, needed: Callable[..., int]):
        self._needed = lru_cache(maxsize=4096)(needed)

    def __call__(self, x: Tensor, device: int, *sizes: int) -> Tensor | None:
        if device < 0:
            return None
        return torch.empty(self._needed(device, *sizes), dtype=torch.uint8, device=x.device)


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data lies; 0 for an absent one."""
    return 0 if tensor is None else tensor.data_ptr()


def zero(*sums: Tensor | None) -> None:
    """Sums over no elements."""
    for tensor in sums:
        if tensor is not None:
            tensor.zero_()
