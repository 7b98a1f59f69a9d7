"""Measurements of bench/gpu_measure.sh on a GPU: the step, its convolutions, kernels to profile, the official code.

python -m bench.gpu_measure step [--fp32] | convolutions | kernels | official FOLDER    [--json FILE]
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from bench import budget, measure
from bench.convolutions import Bare
from bench.forms import key_cases
from bench.official_step import OfficialStep
from bench.operations import Inputs
from fastgan import models
from fastgan.ops import backends
from fastgan.runs.config import pyramid
from fastgan.runs.graphs import WARM_UPS
from fastgan.training.averages import Averages
from fastgan.training.state import new_state
from fastgan.training.step import Step

CASE = budget.CASES["stylegan2-256"]
KINDS = {1: 12 / 16, 4: 3 / 16, 16: 1 / 16}  # number of a step of each kind, and the share of that kind
TOP = 30


class TrainingStep:
    """fastgan's step; called with a number, makes the step of that number on random images."""

    def __init__(self, case: budget.Case, *, bf16: bool, captured: bool):
        device, config = measure.device(), case.config(capture_steps="auto" if captured else "off")
        square, _ = pyramid(case.resolution)
        model = models.ModelConfig(**vars(config.network), resolution=square, channels=3)
        torch.manual_seed(0)
        self.state = new_state(model, config, device)
        autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=bf16)
        self.step = Step(self.state, config, model.z_dim, autocast, Averages())
        images = torch.rand(case.batch, 3, case.resolution, case.resolution, device=device) * 2 - 1
        self.real = images.to(memory_format=torch.channels_last)

    def __call__(self, number: int) -> None:
        self.state.step = number
        self.step(self.real, None)


def seconds_per_kind(step: Callable[[int], None], rounds: int = 8) -> dict[int, float]:
    """Median seconds of a step of each kind, after warm-ups that capture it."""
    found = {}
    for number in KINDS:
        for _ in range(WARM_UPS + 1):
            step(number)
        taken = []
        for _ in range(rounds):
            _synchronize()
            start = time.perf_counter()
            step(number)
            _synchronize()
            taken.append(time.perf_counter() - start)
        found[number] = median(taken)
    return found


def _synchronize() -> None:
    if measure.device().type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def cudnn_benchmark(on: bool):
    """`torch.backends.cudnn.benchmark` within the block."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def measure_step(case: budget.Case, bf16: bool) -> list[dict]:
    """The step captured and launched, with cudnn.benchmark on and off; and the profiler's table."""
    rows = []
    for captured in (True, False):
        for benchmark in (False, True) if bf16 else (True,):
            step = None  # frees the memory of its graphs before the next one captures
            gc.collect()
            with cudnn_benchmark(benchmark):
                step = TrainingStep(case, bf16=bf16, captured=captured)
                seconds = seconds_per_kind(step)
            mean = sum(share * seconds[number] for number, share in KINDS.items())
            what = f"step {'captured' if captured else 'launched'}, cudnn.benchmark {'on' if benchmark else 'off'}"
            row = {"what": what, "dtype": "bf16" if bf16 else "fp32", "fastgan_ms": mean * 1e3}
            row |= {"images_per_s": case.batch / mean, "kinds_ms": {n: t * 1e3 for n, t in seconds.items()}}
            rows.append(row | {"notes": step.step.failure or ""})
            print(_line(rows[-1]), flush=True)
    if bf16:
        print(_profiled(step))
    return rows


def _profiled(step: Callable[[int], None]) -> str:
    """The kernels that a launched plain step spends most time in."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (measure.device().type == "cuda")
    with profile(activities=activities) as profiled:
        step(1)
        _synchronize()
    return profiled.key_averages().table(sort_by="self_device_time_total", row_limit=TOP, max_name_column_width=60)


def measure_convolutions(case: budget.Case) -> list[dict]:
    """TFLOP/s of every convolution of a step with all penalties, by shape, slowest first."""
    with cudnn_benchmark(True):
        step = TrainingStep(case, bf16=True, captured=False)
        step(1)
        bare = Bare(lambda: step(16))
        rows = []
        for name, flops, call in bare.calls():
            seconds = measure.alternate({"": call}, _clock(), seconds=0.2, rounds=(5, 30))[""].seconds
            rows.append({"what": name, "fastgan_ms": seconds * 1e3, "tflop_per_s": flops / seconds / 1e12})
    rows.sort(key=lambda row: -row["fastgan_ms"])
    for row in rows[:40]:
        print(_line(row))
    return rows


def _clock() -> measure.Clock:
    return measure.GpuClock() if measure.device().type == "cuda" else measure.WallClock(measure.device())


def run_kernels() -> list[dict]:
    """Forward and backward of each key operation, once on the preferred backend, in NVTX ranges for the profiler."""
    for case, backend in key_cases():
        preferred = backends.choose(case.form.operation, measure.device()) if case.form.operation else "torch"
        if backend != preferred:
            continue
        inputs = Inputs(case)
        inputs.train(case.form.fused)  # builds what is built at first use
        _synchronize()
        with _range("measured"):
            inputs.train(case.form.fused)
            _synchronize()
        print(f"{case}-{backend}", flush=True)
    return []


@contextmanager
def _range(name: str):
    if measure.device().type == "cuda":
        torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        if measure.device().type == "cuda":
            torch.cuda.nvtx.range_pop()


def measure_official(folder: Path, case: budget.Case) -> list[dict]:
    """The official code's step on this card, launched, as it trains by default."""
    with cudnn_benchmark(True):
        seconds = seconds_per_kind(OfficialStep(folder, case.resolution, case.batch), rounds=5)
    mean = sum(share * seconds[number] for number, share in KINDS.items())
    row = {"what": "official code", "dtype": "fp16", "fastgan_ms": mean * 1e3, "images_per_s": case.batch / mean}
    print(_line(row))
    return [row]


def _line(row: dict) -> str:
    numbers = [f"{row[key]:.4g} {unit}" for key, unit in _UNITS.items() if key in row]
    return f"{row['what']}, {row.get('dtype', 'bf16')}: {', '.join(numbers)} {row.get('notes', '')}".rstrip()


_UNITS = {"fastgan_ms": "ms", "images_per_s": "images/s", "tflop_per_s": "TFLOP/s"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_measure", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("step", "convolutions", "kernels", "official"):
        command = commands.add_parser(name)
        command.add_argument("--json", type=Path, metavar="FILE", help="add the results to FILE")
        if name == "step":
            command.add_argument("--fp32", action="store_true", help="in fp32, with cudnn.benchmark on")
        if name == "official":
            command.add_argument("folder", type=Path, help="a clone of stylegan2-ada-pytorch")
    return parser.parse_args(argv)


def main() -> None:
    options = parse()
    runs = {
        "step": lambda: measure_step(CASE, not options.fp32),
        "convolutions": lambda: measure_convolutions(CASE),
        "kernels": run_kernels,
        "official": lambda: measure_official(options.folder, CASE),
    }
    rows = runs[options.what]()
    if options.json:
        add_rows(options.json, rows)


def add_rows(file: Path, rows: list[dict]) -> None:
    """Add rows to a file with the fields of pytest-benchmark."""
    content = json.loads(file.read_text()) if file.exists() else {"machine_info": measure.machine(), "benchmarks": []}
    content["benchmarks"] += [{"name": row["what"], "group": "gpu", "stats": {}, "extra_info": row} for row in rows]
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
