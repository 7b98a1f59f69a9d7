"""Runs benchmarks: `python -m bench.run [BENCHMARK[:CASE] ...] [--json FILE]`.

Prints a table for each benchmark. Without BENCHMARK, those run that take minutes. CASE is a case's name, or part of
several: `operations:adain`, `training_step:pggan`. `pytest bench/ --benchmark-only` runs the default ones under
pytest-benchmark.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path

from bench import data_path, measure, memory, operations, penalties, report, training_step, weight_gradient
from bench.forms import FORMS, key_cases

Case = Callable[[], Iterable[dict]]  # measures, and yields rows for the report

NAMED_BY = ("form", "arch", "discriminator", "shape", "dtype", "backend")


def _operations(cases: list[tuple[operations.Case, str]]) -> dict[str, Case]:
    def rows(case: operations.Case, backend: str) -> list[dict]:
        found, _ = operations.run(case)
        return [found[backend]] if backend in found else []

    return {f"{case}-{backend}": partial(rows, case, backend) for case, backend in cases}


def _rows(run: Callable[..., Iterable[tuple[dict, Callable]]], *arguments) -> Iterable[dict]:
    """The rows of a benchmark that also returns the calls it timed, for pytest-benchmark."""
    return (row for row, _ in run(*arguments))


BENCHMARKS: dict[str, Callable[[], dict[str, Case]]] = {
    "operations": lambda: _operations(operations.cases(FORMS)),
    "key_operations": lambda: _operations(key_cases()),
    "penalties": lambda: {
        "-".join(pair): partial(_rows, penalties.run, *pair)
        for pair in product(penalties.DISCRIMINATORS, penalties.DTYPES)
    },
    "training_step": lambda: {arch: partial(_rows, training_step.run, arch) for arch in training_step.CASES},
    "image_batch": lambda: {
        f"{form}-{'x'.join(map(str, shape))}-{dtype}": partial(_rows, data_path.run_operation, form, shape, dtype)
        for form, shape, dtype in data_path.cases()
    },
    "loader": lambda: {name: partial(_rows, data_path.run_loader, name) for name in data_path.STEPS},
    "memory": lambda: {arch: partial(memory.run, arch) for arch in training_step.CASES},
    "weight_gradient": weight_gradient.cases,
}


def _default() -> list[str]:
    """Benchmarks that finish within minutes."""
    steps = [f"training_step:{arch}" for arch in training_step.quick_cases()]
    return ["operations", "penalties", *steps, "image_batch", "loader"]


def chosen(names: list[str]) -> dict[str, Case]:
    """The cases that `names` ask for, by "BENCHMARK CASE". Raises ValueError for a name that matches none."""
    found = {}
    for name in names:
        benchmark, _, part = name.partition(":")
        if benchmark not in BENCHMARKS:
            raise ValueError(f"no benchmark {benchmark!r}; there are: {', '.join(BENCHMARKS)}")
        cases = BENCHMARKS[benchmark]()
        matching = {f"{benchmark} {case}": run for case, run in cases.items() if part == case}
        matching = matching or {f"{benchmark} {case}": run for case, run in cases.items() if part in case}
        if not matching:
            raise ValueError(f"{benchmark} has no case with {part!r} in its name; there are: {', '.join(cases)}")
        found |= matching
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Time fastgan beside PyTorch.")
    parser.add_argument("benchmark", nargs="*", metavar="BENCHMARK[:CASE]", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--list", action="store_true", help="print the names of the cases instead")
    arguments = parser.parse_args()
    try:
        cases = chosen(arguments.benchmark or _default())
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        print(*cases, sep="\n")
        return
    rows: list[dict] = []
    try:
        for name, run in cases.items():
            print(name, flush=True)
            rows += run()
    except KeyboardInterrupt:
        print("interrupted: the table has what was measured until then")
    print("", *report.lines(rows), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(_as_pytest_benchmark(rows), indent=1) + "\n")


def _as_pytest_benchmark(rows: list[dict]) -> dict:
    """The fields of a `--benchmark-json` file that readers of ours need."""
    benchmarks = [
        {
            "name": "-".join(str(row[key]) for key in NAMED_BY if key in row),
            "group": row["operation"],
            "stats": {"median": row["fastgan_ms"] * 1e-3, "rounds": row["rounds"]} if "fastgan_ms" in row else {},
            "extra_info": row,
        }
        for row in rows
    ]
    return {"machine_info": measure.machine(), "benchmarks": benchmarks}


if __name__ == "__main__":
    main()
