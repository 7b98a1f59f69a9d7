"""Predicts what the GPU kernels take on an H100, from counters, beside what a card measured.

    python -m bench.model [CUBIN ...] [--dtype DTYPE] [--layout LAYOUT] [--only FORM,...] [--json RESULTS ...]
    python -m bench.model --preference      which of CUDA and Triton is faster, by operation

Rows are the forms of `tests.support.traffic.FORMS` at the shapes of `bench.forms`, in each direction. No GPU is needed.
Counters of a launch:

- CUDA: blocks, and bytes that reach memory and the L2, by the emulation, which executes some blocks at the ends of a
  launch; instructions, registers and barriers, by the machine code (`bench.sass`) of the extension or of cubins for
  sm_90.
- Triton: programs and bytes of tensors, by the launch; the rest, by the machine code that it compiles for sm_90.

A launch takes its fixed time and the longest of four: memory at copy bandwidth, the L2, issue of instructions, and the
latency that the resident warps hide. `measured` is filled from results of a card in bench/results, or from the files
given.
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

import fastgan_kernels
from bench import sass
from bench.operations import Form, Shape
from fastgan_kernels import extension
from tests.support import traffic


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
ISSUE = 0.85  # share of the four instructions per cycle that kernels reach
CYCLES = 2  # cycles of an instruction that depends on others of its warp
REACHED = 0.93  # share of copy bandwidth that kernels with arithmetic reach
ENDS = 4  # blocks at each end of a launch that the emulation executes
DIRECTIONS = ("forward", "backward", "double backward")


class Work(NamedTuple):
    """A launch of a kernel.

    blocks, threads: blocks of the launch, threads of a block.
    shared: bytes of dynamic shared memory of a block.
    memory: bytes of its tensors that it touches, each once.
    l2: bytes that the L2 serves, each once a block.
    requested: bytes of all loads and stores.
    barriers: that a block meets, where they have been counted.
    """

    kernel: sass.Kernel
    blocks: int
    threads: int
    shared: int
    memory: float
    l2: float
    requested: float
    barriers: float = 0.0


class Prediction(NamedTuple):
    seconds: float
    limit: str  # limit of the longest launch


def predict(work: Work, card: Card = CARD) -> Prediction:
    """Time of a launch."""
    kernel = work.kernel
    step = _step(kernel)
    steps = max(1.0, _steps(work, step))
    resident = max(1, kernel.blocks(work.threads, work.shared))
    at_work = min(work.blocks, resident * card.multiprocessors)
    block = card.start + kernel.barriers % 1000 * card.barrier
    block += math.ceil(steps) * (card.latency + CYCLES * len(step) / card.clock)
    instructions = work.blocks * work.threads / 32 * steps * len(step)
    times = {
        "memory": work.memory / (REACHED * card.copy),
        "L2": work.l2 / card.l2,
        "issue": instructions / (4 * ISSUE * card.clock * card.multiprocessors),
        "latency": work.blocks / at_work * block,
    }
    limit = max(times, key=times.__getitem__)
    return Prediction(times[limit] + card.launch, limit)


def _steps(work: Work, step: list[sass.Instruction]) -> float:
    """Steps of a block: by its barriers if a step has one, else by the bytes that its threads load and store."""
    if work.barriers and (in_step := sum(i.opcode.startswith("BAR") for i in step)) and work.kernel.loops:
        return (work.barriers - work.kernel.barriers % 1000) / in_step
    return work.requested / work.blocks / (work.threads * _moved(step, ("LDG", "STG")) or 1)


def _step(kernel: sass.Kernel) -> list[sass.Instruction]:
    """The loop that moves the most bytes, 16 at a time if there is one; without a loop, the whole kernel."""
    if sass.wide_bytes(kernel.hot):
        return kernel.hot
    return max(kernel.loops, key=lambda body: _moved(body, ("LDG", "STG")), default=kernel.instructions)


def _moved(body: list[sass.Instruction], spaces: str | tuple[str, ...]) -> int:
    """Bytes that a thread loads ("LDG") or stores ("STG") in these instructions."""
    return sum(sass.width(i.opcode) for i in body if i.opcode.startswith(spaces))


# Counters of launches -------------------------------------------------------------------------------------------------


def cuda_work(
    form: Form, shape: Shape, dtype: torch.dtype, channels_last: bool, kernels: dict[str, sass.Kernel]
) -> tuple[dict[str, list[Work]], dict[str, float]]:
    """The launches of each direction on the CUDA kernels, and the bytes that its formula needs."""
    counted = traffic.count(form, shape, dtype, channels_last, ends=ENDS)
    offsets = list({each.kernel for found in counted.values() for each in found.launches})
    names = dict(zip(offsets, sass.plain_names(map(traffic.kernel_name, offsets)), strict=True))
    launches = {
        direction: [
            Work(
                kernels[names[each.kernel]],
                each.blocks,
                each.threads,
                each.shared,
                sum(each.unique.values()),
                sum(each.by_block.values()),
                sum(i.bytes for i in each.instructions if i.tensor != "shared"),
                each.barriers,
            )
            for each in found.launches
        ]
        for direction, found in counted.items()
    }
    return launches, {way: found.minimum_read + found.minimum_written for way, found in counted.items()}


def triton_work(form: Form, shape: Shape, dtype: torch.dtype, channels_last: bool) -> dict[str, list[Work]]:
    """The launches of each direction on the Triton kernels.

    Only kernels that filter load an element repeatedly: see `_filtering`.
    """
    from tests.support.compiled_triton import compiled_for, launches

    launched = [(way, each) for way, all_of in launches(form, shape, dtype, channels_last).items() for each in all_of]
    compiled = [compiled_for(90, each.kernel, each.arguments, each.named) for _, each in launched]
    kernels = sass.read_cubins(each.asm["cubin"] for each in compiled)
    found: dict[str, list[Work]] = {}
    for (direction, launch), binary, [kernel] in zip(launched, compiled, kernels, strict=True):
        # A launcher may pass tensors that a variant of the kernel does not read.
        widths = kernel.widths("LDG") + kernel.widths("STG")
        accesses = sum(count for size, count in widths.items() if size >= 8) or widths.total()
        sizes = sorted((t.nbytes for t in launch.tensors), reverse=True)
        memory = l2 = requested = float(sum(sizes[:accesses]))
        if "taps" in launch.kernel.arg_names:
            l2, requested = _filtering(launch, kernel, memory)
        threads, shared = 32 * binary.metadata.num_warps, binary.metadata.shared
        work = Work(kernel, launch.programs, threads, shared, memory, l2, requested)
        found.setdefault(direction, []).append(work)
    return found


def _filtering(launch, kernel: sass.Kernel, memory: float) -> tuple[float, float]:
    """Bytes that the L2 serves, and bytes of all loads and stores, of a Triton kernel that filters."""
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.named
    written = launch.arguments[0].nbytes
    loaded, stored = (_moved(_step(kernel), space) for space in ("LDG", "STG"))
    requested = written * (1 + loaded / stored)
    if "strips" not in values:  # a tile has one row of outputs; the L1 serves what is repeated along it
        return max(memory, written * (1 + math.sqrt(loaded / stored))), requested
    # A program reads the borders of its neighbours as well.
    up, down = values.get("UP", 1), values.get("DOWN", 1)
    border = 1 if up == 2 else 4 - down
    rows, columns = values["steps"] * down, values["L"] * (1 if up == 2 else 2 * down)
    image = values.get("image", values.get("x")).nbytes
    l2 = memory + image * ((1 + border / rows) * (1 + border / columns) - 1)
    return l2, requested * (1 + border / rows)


# The table ------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    form: str
    operation: str
    shape: str
    direction: str
    backend: str
    launches: int
    seconds: float
    share: float  # share of copy bandwidth, counting the bytes that the formula needs
    limit: str


def rows(
    kernels: dict[str, sass.Kernel],
    forms: Iterable[Form],
    dtype: torch.dtype,
    channels_last: bool,
    shapes: int | None = None,
    card: Card = CARD,
) -> Iterator[Row]:
    """Predictions for the forms at their shapes on GPUs, of which the first `shapes` (default: all)."""
    for form in forms:
        for shape in form.shapes.get("cuda", ())[:shapes]:
            work, needed = cuda_work(form, shape, dtype, channels_last, kernels)
            backends = {"cuda": work}
            if has_triton(form.operation):
                backends["triton"] = triton_work(form, shape, dtype, channels_last)
            for backend, launches in backends.items():
                for direction, each in launches.items():
                    yield _row(form, shape, direction, backend, [predict(work, card) for work in each], needed, card)


def has_triton(operation: str) -> bool:
    """Whether there are Triton kernels of an operation, wherever they can run."""
    return fastgan_kernels.BACKENDS["triton"].why_not(operation, torch.device("cpu")) != "has no kernel for it"


def _row(form, shape, direction, backend, predictions: list[Prediction], needed: dict[str, float], card: Card) -> Row:
    seconds = sum(prediction.seconds for prediction in predictions)
    share = needed[direction] / card.copy / seconds
    at = "x".join(map(str, shape))
    limit = max(predictions).limit
    return Row(form.name, form.operation, at, direction, backend, len(predictions), seconds, share, limit)


Measured = dict[tuple[str, str, str, str], float]  # seconds by (form, shape, direction, backend)


def measured(paths: Iterable[Path], dtype: str = "bf16") -> Measured:
    """What cards measured, in results of gpu_check.sh or of bench.run. Backward is what it adds to forward."""
    found = {}
    for path in paths:
        content = json.loads(path.read_text())
        entries = content["benchmarks"] if isinstance(content, dict) and "benchmarks" in content else []
        for row in (entry.get("extra_info", entry) for entry in entries):
            if row.get("backend") in ("cuda", "triton") and row.get("dtype") == dtype:
                both, forward = row["fastgan_ms"] / 1e3, row["forward_ms"] / 1e3
                found[row["form"], row["shape"], "forward", row["backend"]] = forward
                found[row["form"], row["shape"], "backward", row["backend"]] = both - forward
    return found


def table(predicted: list[Row], on_card: Measured) -> str:
    """Predicted beside measured, in markdown."""
    lines = ["| form | shape | direction | backend | launches | predicted, us | of copy | limit | measured, us |"]
    lines += ["| --- | --- | --- | --- | --: | --: | --: | --- | --: |"]
    for row in predicted:
        seconds = on_card.get((row.form, row.shape, row.direction, row.backend))
        seen = f"{seconds * 1e6:.0f}" if seconds else ""
        lines.append(
            f"| {row.form} | {row.shape} | {row.direction} | {row.backend} | {row.launches} | {row.seconds * 1e6:.0f} "
            f"| {row.share:.0%} | {row.limit} | {seen} |"
        )
    return "\n".join(lines)


# Which backend is faster ----------------------------------------------------------------------------------------------


MARGIN = 0.9  # Triton's launches cost more time on the host, and the model may be wrong: it must be so much faster


class Preference(NamedTuple):
    """The time on Triton by that on CUDA, by direction, of all forms and shapes together."""

    operation: str
    ratios: dict[str, float]
    from_card: bool  # measured on a card, else predicted
    faster: str


def preferences(predicted: list[Row], on_card: Measured) -> list[Preference]:
    """The backend to prefer for each operation: by what cards measured where they measured both, else as predicted."""
    forecast = {(row.form, row.shape, row.direction, row.backend): row.seconds for row in predicted}
    found = []
    for operation in dict.fromkeys(row.operation for row in predicted):
        cases = {(row.form, row.shape, row.direction) for row in predicted if row.operation == operation}
        from_card = [case for case in cases if all((*case, name) in on_card for name in ("cuda", "triton"))]
        times = on_card if from_card else forecast
        cases = from_card or [case for case in cases if (*case, "triton") in forecast]
        if not cases:  # no Triton kernel
            continue

        def ratio(cases: list, times: Measured = times) -> float:
            triton, cuda = (sum(times[(*case, name)] for case in cases) for name in ("triton", "cuda"))
            return triton / cuda

        ways = {way: [case for case in cases if case[2] == way] for way in DIRECTIONS}
        ratios = {way: ratio(chosen) for way, chosen in ways.items() if chosen}
        faster = "cuda" if ratio(cases) >= MARGIN else "triton"
        found.append(Preference(operation, ratios, bool(from_card), faster))
    return found


def preference_table(found: list[Preference]) -> str:
    """In markdown, sorted by operation."""
    cells = [["operation", *DIRECTIONS, "by", "preferred"], ["---", *["--:"] * len(DIRECTIONS), "---", "---"]]
    for each in sorted(found):
        ratios = [f"{each.ratios[way]:.2f}" if way in each.ratios else "" for way in DIRECTIONS]
        cells.append([each.operation, *ratios, "card" if each.from_card else "model", each.faster])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def read(paths: list[Path]) -> dict[str, sass.Kernel]:
    """Kernels for sm_90 by name, of these files or of the compiled extension."""
    if not paths:
        if reason := extension.why_no_part("cuda"):
            raise SystemExit(f"no machine code to read: {reason}")
        paths = [Path(extension.module().__file__)]
    return {kernel.name: kernel for path in paths for kernel in sass.read_kernels(path) if kernel.arch == 90}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.model", description=__doc__.partition("\n")[0])
    parser.add_argument("cubin", nargs="*", type=Path, help="cubins for sm_90 (default: the compiled extension)")
    parser.add_argument("--dtype", choices=traffic.DTYPES, default="bf16")
    parser.add_argument("--layout", choices=("NHWC", "NCHW"), default="NHWC")
    parser.add_argument("--only", metavar="FORM,...", help=", ".join(traffic.FORMS))
    parser.add_argument("--preference", action="store_true", help="print the faster backend of each operation")
    results = sorted((Path(__file__).parent / "results").glob("*.json"))
    parser.add_argument("--json", nargs="*", type=Path, default=results, metavar="RESULTS", help="results of a card")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else traffic.FORMS
    forms = [traffic.FORMS[name] for name in names]
    found = list(rows(read(options.cubin), forms, traffic.DTYPES[options.dtype], options.layout == "NHWC"))
    on_card = measured(options.json, options.dtype)
    print(preference_table(preferences(found, on_card)) if options.preference else table(found, on_card))


if __name__ == "__main__":
    main()
