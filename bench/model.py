"""Predicts what the CUDA kernels take on an H100, from their machine code, beside what a card measured.

    python -m bench.model [CUBIN ...] [--json RESULTS ...]

For each case of `bench.operations` with one large pass a direction: time and share of copy bandwidth. The inputs are
bytes and launches by the operation's formula, and instructions, registers and shared memory by `bench.sass`, of the
compiled extension or of cubins. A launch takes its fixed time and the longest of four: memory at copy bandwidth, the
L2, issue of instructions, and the latency that the resident warps hide. `measured` is filled from results of a card in
bench/results, or from the files given.
"""

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench import sass
from bench.forms import FORMS
from fastgan_kernels import extension


@dataclass(frozen=True)
class Card:
    """An H100 (SXM). Bandwidths are those that copies reach, not those of data sheets. Times are in seconds."""

    multiprocessors: int = 132
    clock: float = 1.75e9
    copy: float = 3.0e12  # bytes per second, read and written
    l2: float = 5.5e12
    latency: float = 700e-9  # latency of a load from memory
    launch: float = 3.0e-6  # overhead of a kernel in a stream: start, ramp and end
    start: float = 1.3e-6  # start-up of a block: indices and small tensors
    barrier: float = 45e-9


CARD = Card()
BLOCKS = 2112  # minimum number of blocks of a launch: MAX_BLOCKS in csrc/common/gpu_plan.h
ISSUE = 0.85  # share of the four instructions per cycle that kernels reach
CYCLES = 2  # cycles of an instruction that depends on others of its warp
REACHED = 0.93  # share of copy bandwidth that kernels with arithmetic reach


class Pass(NamedTuple):
    """A large pass over activations.

    kernel: name by `sass.read_kernels`.
    moved: tensors of the size of x that it reads and writes.
    served: tensors that the L2 serves, repeated reads included.
    second_stage: whether a launch of sums follows.
    shared: bytes of dynamic shared memory of a block.
    threads: threads of a block.
    """

    kernel: str
    moved: float
    served: float
    second_stage: bool = False
    shared: int = 0
    threads: int = sass.BLOCK


def _norm(batch: str) -> tuple[list[Pass], list[Pass]]:
    forward = [Pass("forward<bf16, 8, true, false>", 1, 1, True), Pass(f"normalise<bf16, 8, true, {batch}>", 2, 2)]
    backward = [
        Pass(f"backward<bf16, 8, true, false, {batch}>", 2, 2, True),
        Pass(f"gradients<bf16, 8, true, {batch}>", 3, 3, batch == "false"),
    ]
    return forward, backward


def _strips(v: int, load: str, store: str) -> str:
    return f"filter_strips<bf16, {v}, 1, 1, {load}, {store}>"


BLUR = Pass(_strips(8, "PlainLoad<bf16, 8>", "PlainStore<bf16, 8>"), 2, 2.3)
ACTIVATED = Pass(_strips(8, "ActivatedLoad<bf16, 8, false>", "PlainStore<bf16, 8>"), 2, 2.3, threads=128)
ACTIVATED_BACKWARD = Pass(_strips(8, "PlainLoad<bf16, 8>", "DerivativeStore<bf16, 8, false>"), 3, 3.3, True, 0, 128)
FILTERED = Pass(_strips(8, "PlainLoad<bf16, 8>", "EpilogueStore<bf16, 8, false>"), 2, 2.3, threads=128)
FILTERED_BACKWARD = Pass(_strips(4, "PlainLoad<bf16, 4>", "GradientStore<bf16, 4, false>"), 3, 3.3, True)
# Form -> passes of forward and of backward, of sizes that do not fit on chip.
PASSES: dict[str, tuple[list[Pass], list[Pass]]] = {
    "bias": ([Pass("nhwc<Element<0, 0, bf16, 8>, 8>", 2, 2)], [Pass("nhwc<Element<1, 0, bf16, 8>, 8>", 3, 3, True)]),
    "residual": (
        [Pass("nhwc<Element<5, 0, bf16, 8>, 8>", 3, 3)],
        [Pass("nhwc<Element<6, 0, bf16, 8>, 8>", 3, 3, True)],
    ),
    "noise": ([Pass("nhwc<Element<0, 0, bf16, 8>, 8>", 2, 2)], [Pass("nhwc<Element<1, 0, bf16, 8>, 8>", 3, 3, True)]),
    "synthesis": (
        [Pass("nhwc<Element<0, 0, bf16, 8>, 8>", 2, 2)],
        [Pass("nhwc<Element<2, 0, bf16, 4>, 4>", 3, 3, True)],
    ),
    "blur": ([BLUR], [BLUR]),
    "act_blur": ([ACTIVATED], [ACTIVATED_BACKWARD]),
    "filtered": ([FILTERED], [FILTERED_BACKWARD, BLUR]),
    "batch_norm_act": _norm("true"),
    "adain": _norm("false"),
    "style_epilogue": _norm("false"),
    "pixel_norm": ([Pass("nhwc<0, bf16, 8>", 2, 2)], [Pass("nhwc<1, bf16, 8>", 3, 3)]),
    "lerp_samples": ([Pass("map<1, bf16, 8>", 3, 3)], [Pass("map<2, bf16, 8>", 3, 3)]),
    "squared_norm": ([Pass("sum_of_squares<bf16, 8>", 1, 1, True)], [Pass("map<0, bf16, 8>", 2, 2)]),
}


class Prediction(NamedTuple):
    seconds: float
    limit: str  # limit of the longest launch


def passes_of(form: str, shape: tuple[int, ...], backward: bool) -> list[Pass]:
    """The passes of a direction. A norm takes one if a row of 32 bytes of channels fits on chip (csrc/norm/cuda.cu)."""
    positions = math.prod(shape[2:])
    on_chip = 32 * positions * (1 + backward)
    if form in ("adain", "style_epilogue") and on_chip <= 88 * 1024:
        name = "backward<bf16, 8, true, true, false>" if backward else "forward<bf16, 8, true, true>"
        return [Pass(name, 3 if backward else 2, 3 if backward else 2, backward, on_chip)]
    return PASSES[form][backward]


def predict(kernel: sass.Kernel, one: float, work: Pass, card: Card = CARD) -> Prediction:
    """Time of a pass; `one` is the bytes of an activation."""
    total, served = one * work.moved, one * work.served
    resident = kernel.blocks(work.threads, work.shared) * work.threads / sass.BLOCK
    blocks = max(1, min(BLOCKS, total // (4 * 16 * sass.BLOCK)))
    share = min(resident, blocks / card.multiprocessors) * card.multiprocessors  # blocks at work
    # What a warp has in flight, and how long it takes until it asks again.
    loaded = sum(width * count for width, count in kernel.widths("LDG").items() if width >= 8)
    moved = sass.wide_bytes(kernel.hot) or 1
    round_trip = card.latency + CYCLES * len(kernel.hot) / card.clock
    rounds = math.ceil(total / blocks / (moved * sass.BLOCK))
    block = card.start + kernel.barriers % 1000 * card.barrier + rounds * round_trip
    times = {
        "memory": total / (REACHED * card.copy),
        "L2": served / card.l2,
        "issue": total / 16 * kernel.cost / 32 / (4 * ISSUE * card.clock * card.multiprocessors),
        "latency": blocks / share * block if loaded else 0.0,
    }
    limit = max(times, key=times.__getitem__)
    # The second stage reads a few MB from the L2.
    return Prediction(times[limit] + card.launch * (1 + work.second_stage) + 3e-6 * work.second_stage, limit)


class Row(NamedTuple):
    form: str
    shape: tuple[int, ...]
    direction: str
    launches: int
    seconds: float
    share: float  # share of copy bandwidth, counting the bytes that the formula needs
    limit: str


def rows(kernels: dict[str, sass.Kernel], card: Card = CARD) -> list[Row]:
    found = []
    for form in FORMS:
        for shape in form.shapes["cuda"] if form.name in PASSES else ():
            one = 2.0 * math.prod(shape)
            for direction in ("forward", "backward"):
                passes = passes_of(form.name, shape, direction == "backward")
                each = [predict(kernels[work.kernel], one, work, card) for work in passes]
                seconds = sum(prediction.seconds for prediction in each)
                needed = one * NEEDED.get(form.name, (2, 3))[direction == "backward"]
                launches = len(passes) + sum(work.second_stage for work in passes)
                limit = max(each).limit
                found.append(Row(form.name, shape, direction, launches, seconds, needed / card.copy / seconds, limit))
    return found


# Tensors of the size of x that each direction needs to read and write, where it is not (2, 3).
NEEDED = {"blur": (2, 2), "lerp_samples": (3, 3), "squared_norm": (1, 2)}


def measured(paths: Iterable[Path]) -> dict[tuple[str, str, str], float]:
    """Seconds by (form, shape, direction), of the CUDA backend. Backward is what it adds to forward."""
    found = {}
    for path in paths:
        for benchmark in json.loads(path.read_text())["benchmarks"]:
            row = benchmark.get("extra_info", {})
            if row.get("backend") == "cuda" and row.get("dtype") == "bf16":
                both, forward = row["fastgan_ms"] / 1e3, row["forward_ms"] / 1e3
                found[row["form"], row["shape"], "forward"] = forward
                found[row["form"], row["shape"], "backward"] = both - forward
    return found


def table(predicted: list[Row], on_card: dict[tuple[str, str, str], float]) -> str:
    """A table in markdown."""
    lines = ["| operation | shape | direction | launches | predicted, us | share of copy | limit | measured, us |"]
    lines += ["| --- | --- | --- | --: | --: | --: | --- | --: |"]
    for row in predicted:
        shape = "x".join(map(str, row.shape))
        seconds = on_card.get((row.form, shape, row.direction))
        seen = f"{seconds * 1e6:.0f}" if seconds else ""
        lines.append(
            f"| {row.form} | {shape} | {row.direction} | {row.launches} | {row.seconds * 1e6:.0f} | {row.share:.0%} "
            f"| {row.limit} | {seen} |"
        )
    return "\n".join(lines)


def read(paths: list[Path]) -> dict[str, sass.Kernel]:
    """Kernels for sm_90 by name, of these files or of the compiled extension."""
    if not paths:
        if reason := extension.why_no_part("cuda"):
            raise SystemExit(f"no machine code to read: {reason}")
        paths = [Path(extension.module().__file__)]
    return {kernel.name: kernel for path in paths for kernel in sass.read_kernels(path) if kernel.arch == 90}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubin", nargs="*", type=Path, help="cubins for sm_90 (default: the compiled extension)")
    results = sorted((Path(__file__).parent / "results").glob("operations_*.json"))
    parser.add_argument("--json", nargs="*", type=Path, default=results, metavar="RESULTS", help="results of a card")
    arguments = parser.parse_args()
    print(table(rows(read(arguments.cubin)), measured(arguments.json)))


if __name__ == "__main__":
    main()
