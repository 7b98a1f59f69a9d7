"""Timing on a machine that also does other work.

Contestants run in turn, A B C A B C ..., in one process, so that other work on the machine hits all of them alike.
Ratios are taken within a round, and the median over rounds is reported.
"""

import gc
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Protocol

import torch

from fastgan.runs import precision

SHORTEST = 5e-3  # seconds per turn, at least
SETTLED = 10e-3  # seconds of warm-up calls per turn; a call that takes longer needs none
ROUNDS = (12, 200)  # at least, at most
COMPILE = os.environ.get("FASTGAN_BENCH_COMPILE") != "0"  # whether to time torch.compile, which takes most of the time


@dataclass(frozen=True)
class Timing:
    """Seconds per call of a contestant, for each round."""

    rounds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.rounds)

    def times_faster_than(self, other: "Timing") -> float:
        """Median ratio over rounds: 2 if `other`, timed in the same rounds, took twice as long."""
        return median(theirs / ours for theirs, ours in zip(other.rounds, self.rounds, strict=True))


class Clock(Protocol):
    """Measures a call in seconds, from a state that does not depend on what ran before."""

    def __call__(self, call: Callable[[], object]) -> float: ...


class WallClock:
    """Wall-clock time. Short calls are repeated until caches hold this contestant's data, and count from then on."""

    def __init__(self, device: torch.device):
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def __call__(self, call: Callable[[], object]) -> float:
        taken = self._repeat(call, SETTLED)
        return taken if taken >= SETTLED else self._repeat(call, SHORTEST)

    def _repeat(self, call: Callable[[], object], seconds: float) -> float:
        """Seconds per call, over about `seconds` of calls."""
        count, start = 0, time.perf_counter()
        while True:
            call()
            self.wait()
            count += 1
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return elapsed / count


class L2Eviction:
    """Evicts the L2 of a GPU, by reading a tensor much larger than it.

    It must not write: lines that are left dirty would be written back while the next operation is measured.
    """

    def __init__(self, device: torch.device, size: int = 2 << 30):
        self._filler = torch.zeros(size // 4, device=device)
        self._sum = torch.zeros((), device=device)

    def __call__(self) -> None:
        torch.sum(self._filler, dim=0, out=self._sum)


class GpuClock:
    """GPU time of a call's kernels, with a cold L2.

    Evicting the L2 also keeps the GPU busy while the host enqueues the call, so that gaps caused by the host do not
    count.
    """

    def __init__(self):
        self._evict_l2 = L2Eviction(torch.device("cuda"))
        self.start, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def __call__(self, call: Callable[[], object]) -> float:
        self._evict_l2()
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) * 1e-3


def alternate(
    contestants: dict[str, Callable[[], object]], clock: Clock, seconds: float, rounds: tuple[int, int] = ROUNDS
) -> dict[str, Timing]:
    """Times contestants in turn for about `seconds`, with a number of rounds within the limits."""
    for call in contestants.values():
        clock(call)
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    least, most = rounds
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        deadline, done = time.perf_counter() + seconds, 0
        while done < least or (done < most and time.perf_counter() < deadline):
            for name, call in contestants.items():
                taken[name].append(clock(call))
            done += 1
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(times)) for name, times in taken.items()}


def problem(call: Callable[[], object]) -> str | None:
    """The error of a call in one line, or None. For `torch.compile`, which needs a compiler."""
    try:
        call()
    except Exception as error:  # any failure: the other contestants are still timed
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}"
    return None


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16() -> bool:
    """Whether `--amp` means bf16 on this machine."""
    return precision.choose(True, device()).dtype == torch.bfloat16


@cache
def copy_bandwidth() -> float:
    """Bytes per second read and written by `copy_` of a tensor larger than any cache: the limit of a single pass."""
    on = device()
    size = 1 << 30 if on.type == "cuda" else 256 << 20
    source = torch.ones(size, dtype=torch.uint8, device=on)
    target = torch.empty_like(source)
    clock = GpuClock() if on.type == "cuda" else WallClock(on)
    timing = alternate({"copy": lambda: target.copy_(source)}, clock, seconds=1.0)["copy"]
    return 2 * size / timing.seconds


@cache
def matrix_rate(dtype: torch.dtype, clock: Clock | None = None) -> float:
    """Floating-point operations per second of a large matrix product: the limit of a convolution.

    clock: the device's, if None.
    """
    on = device()
    size = 8192 if on.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=on).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    clock = clock or (GpuClock() if on.type == "cuda" else WallClock(on))
    timing = alternate({"product": lambda: torch.mm(a, b, out=out)}, clock, seconds=1.0)["product"]
    return 2 * size**3 / timing.seconds


@cache
def machine() -> dict[str, str | int]:
    """Device, instruction set, threads and versions, for a row."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (model := re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE)):
        cpu = model[1]
    instructions = precision.cpu_bf16_features() or [torch.backends.cpu.get_cpu_capability()]
    about = {"device": cpu, "instructions": ", ".join(instructions), "threads": torch.get_num_threads()}
    if device().type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        about |= {"device": torch.cuda.get_device_name(), "instructions": f"sm_{major}{minor}"}
    return about | {"torch": torch.__version__, "python": platform.python_version()}
