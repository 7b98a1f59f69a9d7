"""All benchmarks without pytest: `python -m bench.run [--json FILE]`."""

import argparse
import json
from pathlib import Path

from bench import data_path, measure, operations, penalties, report, training_step
from bench.forms import FORMS


def main() -> None:
    """Runs every case, prints the table, and writes a file with the fields of --benchmark-json that a reader needs."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Times fastgan beside PyTorch.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    path = parser.parse_args().json
    rows: list[dict] = []
    try:
        _measure_into(rows)
    except KeyboardInterrupt:
        print("interrupted: the table holds what has been measured")
    named_by = ("form", "arch", "discriminator", "shape", "dtype", "backend")
    print("", *report.lines(rows), sep="\n")
    if path:
        benchmarks = [
            {
                "name": "-".join(str(row[key]) for key in named_by if key in row),
                "group": row["operation"],
                "stats": {"median": row["fastgan_ms"] * 1e-3, "rounds": row["rounds"]},
                "extra_info": row,
            }
            for row in rows
        ]
        path.write_text(json.dumps({"machine_info": measure.machine(), "benchmarks": benchmarks}, indent=1) + "\n")


def _measure_into(rows: list[dict]) -> None:
    for case, backend in operations.cases(FORMS):
        print(f"{case} {backend}", flush=True)
        found, _ = operations.run(case)
        rows += [found[backend]] if backend in found else []
    for discriminator in penalties.DISCRIMINATORS:
        for dtype in penalties.DTYPES:
            print(f"penalties {discriminator} {dtype}", flush=True)
            rows += [row for row, _ in penalties.run(discriminator, dtype)]
    for arch in training_step.quick_cases():
        print(f"training step {arch}", flush=True)
        rows += [row for row, _ in training_step.run(arch)]
    for form, shape, dtype in data_path.cases():
        print(f"image_batch {form} {'x'.join(map(str, shape))} {dtype}", flush=True)
        rows += [row for row, _ in data_path.run_operation(form, shape, dtype)]
    for name in data_path.STEPS:
        print(f"loader {name}", flush=True)
        rows += [row for row, _ in data_path.run_loader(name)]


if __name__ == "__main__":
    main()
