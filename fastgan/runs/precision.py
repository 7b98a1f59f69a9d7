"""Where and how networks compute: device, dtype under `--amp`, and torch.compile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from fastgan.distributed import Ranks
from fastgan.errors import UserError

Autocast = Callable[[], contextlib.AbstractContextManager]


@dataclass(frozen=True)
class Precision:
    """The dtype of activations in the networks, on which device, and why. Parameters and losses are fp32 always."""

    dtype: torch.dtype
    device: torch.device
    reason: str

    @property
    def scaled(self) -> bool:
        """Whether gradients need a scaled loss, lest the small ones be lost."""
        return self.dtype == torch.float16

    def autocast(self) -> torch.autocast:
        """A fresh autocast context; it does nothing in fp32."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if enabled else torch.bfloat16, enabled=enabled)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} ({self.reason})"


def choose(amp: bool, device: torch.device) -> Precision:
    """The precision that is fastest on `device` if `amp`, else fp32.

    bf16 where there is a choice: a discriminator's gradient penalty overflows fp16 easily, which takes a scaled loss.
    On a CPU bf16 pays only where there are instructions for it (AVX512-BF16, AMX); elsewhere it is emulated and slower
    than fp32.
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


def cpu_bf16_features() -> list[str]:
    """Which bf16 instructions the CPU reports: a list out of "AVX512-BF16", "AMX"."""
    # torch has asked these questions since 2.4 but keeps the names private; a torch without them answers no.
    questions = {"AVX512-BF16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
    return [name for name, question in questions.items() if getattr(torch.cpu, question, lambda: False)()]


def choose_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """The device for `--device`: "auto" is the first GPU if there is one. Raises UserError if it is not usable.

    Of several processes of a machine each has a GPU of its own.
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


def compiler(device: torch.device, option: str = "--compile") -> Callable[..., Callable]:
    """What `torch.compile`s a network, for its first derivatives. Raises UserError, naming what asked for it, if that
    does not work here."""
    try:
        torch.compile(torch.exp2, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # a compiler, its headers, a GPU that is too old: it fails in as many ways
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"{option}: torch.compile does not work here ({line}); leave it out") from None
    return partial(torch.compile, dynamic=False)
