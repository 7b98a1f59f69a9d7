"""Device, dtype under `--amp`, and torch.compile of networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from fastgan.distributed import Ranks
from fastgan.errors import UserError

Autocast = Callable[[], contextlib.AbstractContextManager]


@dataclass(frozen=True)
class Precision:
    """Dtype of the networks' activations on a device, and why. Parameters and losses are always fp32."""

    dtype: torch.dtype
    device: torch.device
    reason: str

    @property
    def scaled(self) -> bool:
        """Whether the loss must be scaled so that small gradients do not underflow."""
        return self.dtype == torch.float16

    def autocast(self) -> torch.autocast:
        """A new autocast context, disabled for fp32."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if enabled else torch.bfloat16, enabled=enabled)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} ({self.reason})"


def choose(amp: bool, device: torch.device) -> Precision:
    """The fastest precision on `device` if `amp`, else fp32.

    bf16 is preferred to fp16, which a discriminator's gradient penalty overflows easily. A CPU without bf16
    instructions (AVX512-BF16, AMX) emulates bf16, slower than fp32, so it computes in fp32.
    """
    if not amp:
        return Precision(torch.float32, device, "without --amp")
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8:
            return Precision(torch.bfloat16, device, "--amp: this GPU has bf16 tensor cores")
        if major == 7:
            return Precision(
                torch.float16, device, "--amp, with a scaled loss: this GPU has tensor cores for fp16 only"
            )
        return Precision(torch.float32, device, "--amp does nothing here: this GPU has no tensor cores")
    if device.type == "cpu":
        features = cpu_bf16_features()
        if features:
            return Precision(torch.bfloat16, device, f"--amp: this CPU has {' and '.join(features)}")
        return Precision(torch.float32, device, "--amp does nothing here: without bf16 instructions, fp32 is faster")
    return Precision(torch.float32, device, f"--amp does nothing on {device.type}")


class GpuSettings(NamedTuple):
    """Process-wide settings of a training on a GPU. `docs/gpu.md` says why."""

    benchmark: bool = True  # cuDNN times its algorithms for every new shape of a convolution, and keeps the fastest
    fp32_convolutions: str = "tf32"
    fp32_products: str = "ieee"  # full fp32: they are less than a hundredth of a step's FLOPs

    def apply(self) -> None:
        """Make torch use the settings."""
        torch.backends.cudnn.benchmark = self.benchmark
        torch.backends.cudnn.conv.fp32_precision = self.fp32_convolutions  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = self.fp32_products

    def __str__(self) -> str:
        names = {"tf32": "TF32", "ieee": "fp32"}
        chosen = "the fastest for each shape (cudnn.benchmark)" if self.benchmark else "by heuristics"
        fp32 = f"convolutions in {names[self.fp32_convolutions]}, matrix products in {names[self.fp32_products]}"
        return f"cuDNN algorithms: {chosen}; without --amp {fp32}"


GPU_TRAINING = GpuSettings()


def cpu_bf16_features() -> list[str]:
    """bf16 instruction sets of this CPU, among "AVX512-BF16" and "AMX"."""
    # Private functions of torch from 2.4 on; None is reported by a torch without them.
    checks = {"AVX512-BF16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
    return [name for name, check in checks.items() if getattr(torch.cpu, check, lambda: False)()]


def choose_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """Device for the value `name` of --device; "auto" is the first GPU if there is one.

    Several processes of a machine get a GPU each. Raises UserError if the device is not usable.
    """
    if ranks is not None and ranks.world_size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        if ranks.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"there are {torch.cuda.device_count()} GPUs here: give torchrun as many processes, at most"
            )
        return torch.device("cuda", ranks.local_rank)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; give cpu, cuda, cuda:0, ... or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this PyTorch finds no CUDA GPU; give --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    if device.type == "cuda" and ranks is not None and ranks.world_size > 1:
        raise UserError(
            f"--device {name}: {ranks.world_size} processes have a GPU each; give --device cuda, or leave it out"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: fastgan trains on cpu and cuda")
    return device


def gpu_memory(name: str) -> float:
    """Memory of the GPU that the value `name` of --device means, in bytes; 0 for a CPU. Raises as `choose_device`."""
    device = choose_device(name)
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0.0


def compiler(device: torch.device, option: str = "--compile") -> Callable[..., Callable]:
    """`torch.compile` with static shapes, checked to work on `device`. Raises UserError, naming `option`, if not."""
    try:
        torch.compile(torch.exp2, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # no compiler, no headers, an old GPU: each raises another type
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"{option}: torch.compile does not work here ({line}); leave it out") from None
    return partial(torch.compile, dynamic=False)
