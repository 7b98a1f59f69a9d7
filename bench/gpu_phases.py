"""Runs the phases of bench/gpu_check.sh and bench/gpu_measure.sh: each with a time limit, none stopping the next.

    python bench/gpu_phases.py check|measure [FOLDER] [--dry-run] [--stand-in] [--total SECONDS] [--only PHASE,...]

Needs the standard library alone, since nothing is installed at first. docs/gpu.md describes the phases and the report.
`--dry-run` prints the phases. `--stand-in` runs them without a card: tests are collected, benchmarks are listed.
"""

import argparse
import csv
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 560  # seconds for all phases of a script
GRACE = 8  # seconds between the interrupt and the kill of a phase that runs too long
SCRATCH = ".scratch"  # folder in the output folder for files whose content goes into the report
SHOWN = 11_000  # characters of the report that are printed: some machines return no more than the last 12,000
TABLE = "test_values_and_derivatives_are_as_good_as_plain_pytorch"  # the test over every case of every operation
GRAPHS = "tests/ops/test_every_operation.py::test_a_cuda_graph_replays_forward_and_backward"


@dataclass
class Phase:
    """A command with a time limit.

    Attributes:
        name: shown in the report.
        seconds: limit.
        command: program and arguments.
        log: file in the output folder, without ".log", to which the output is appended.
        stand_in: command without a card; by default `command` with --collect-only.
        needs: programs without which the phase is not run.
        environment: variables to set.
        together: whether it starts together with the phase before it.
    """

    name: str
    seconds: int
    command: list[str]
    log: str
    stand_in: list[str] | None = None
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    together: bool = False


# Phases ---------------------------------------------------------------------------------------------------------------


def check_phases(out: Path, capability: str) -> list[Phase]:
    """Build, correctness, the step, 12 key operations, then the rest."""
    selected = [*_pytest(), "-p", "tests.support.selection"]
    table = [*selected, "--test", TABLE, "tests/ops"]
    sanitized = [*_pytest(workers=False), "-x", "-p", "tests.support.selection", "--test", TABLE, "tests/ops"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "86", "--print-limit", "20"]
    sanitized += ["--backend", "cuda", "--dtype", "bf16"]
    no_cache = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # the allocator's blocks would hide overruns
    captured = [
        "tests/training/test_captured_steps.py",
        "tests/runs/test_graphs.py",
        "tests/ops/test_every_operation.py",
    ]
    return [
        *_install(out, capability),
        Phase("capture", 110, [*_pytest(), "-m", "gpu", *captured], "tests"),
        Phase("CUDA kernels", 70, [*table, "--backend", "cuda", "--dtype", "bf16", "--each", "16"], "tests"),
        Phase("Triton kernels", 90, [*table, "--backend", "triton", "--dtype", "bf16", "--each", "4"], "tests"),
        _benchmark("step", 80, out, "training_step:stylegan2"),
        _benchmark("key operations", 60, out, "key_operations"),
        *(
            Phase(
                tool, 80, [*sanitizer, "--tool", tool, *sanitized, "--in-all", "8"], "sanitizers",
                [*sanitized, "--in-all", "8", "--collect-only"], ("compute-sanitizer",), no_cache, tool == "racecheck",
            )
            for tool in ("memcheck", "racecheck")
        ),
        Phase("all CUDA tests", 100, [*selected, "--backend", "cuda", "tests"], "tests"),
        _benchmark("all operations", 120, out, "operations"),
        Phase("all Triton tests", 120, [*selected, "--backend", "triton", "--dtype", "bf16", "tests"], "tests"),
        Phase("other tests", 120, [*_pytest(), "-m", "not gpu and not slow", "tests"], "tests"),
    ]  # fmt: skip


def measure_phases(out: Path, capability: str) -> list[Phase]:
    """The 256x256 step, convolutions, the profiler of kernels, fp32, and the official code."""
    python = sys.executable

    def measured(name: str, seconds: int, *arguments: str) -> Phase:
        command = [python, "-m", "bench.gpu_measure", *arguments]
        return Phase(name, seconds, command, "measured", [*command, "--help"])

    file = str(out / SCRATCH / "measured.json")
    counters = ",".join(
        [
            "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_bytes.sum",
            "smsp__issue_active.avg.pct_of_peak_sustained_active", "sm__warps_active.avg.pct_of_peak_sustained_active",
        ]
    )  # fmt: skip
    profiler = (
        "ncu",
        "--csv",
        "--metrics",
        counters,
        "--nvtx",
        "--nvtx-include",
        "measured/",
        "--target-processes",
        "all",
    )
    kernels = measured("kernels", 130, "kernels")
    kernels.command, kernels.needs, kernels.log = [*profiler, *kernels.command], ("ncu",), "profiler"
    phases = [
        *_install(out, capability),
        measured("step", 150, "step", "--json", file),
        measured("convolutions", 70, "convolutions", "--json", file),
        kernels,
        measured("fp32", 50, "step", "--fp32", "--json", file),
    ]
    if os.environ.get("FASTGAN_OFFICIAL"):
        phases.append(measured("official code", 110, "official", os.environ["FASTGAN_OFFICIAL"], "--json", file))
    return phases


def _heed_interrupt() -> None:
    """Restores SIGINT, which a shell ignores in the commands that it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _pytest(workers: bool = True) -> list[str]:
    has_xdist = find_spec("xdist") or any(Path(folder, "xdist").is_dir() for folder in _carried())
    parallel = ["-n", str(min(14, os.cpu_count() or 1))] if workers and has_xdist else []
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *parallel]


def _benchmark(name: str, seconds: int, out: Path, which: str) -> Phase:
    command = [sys.executable, "-m", "bench.run", which]
    file = str(out / SCRATCH / f"{which.replace(':', '_')}.json")
    no_compile = {"FASTGAN_BENCH_COMPILE": "0"}
    return Phase(name, seconds, [*command, "--json", file], "benchmarks", [*command, "--list"], environment=no_compile)


def _install(out: Path, capability: str) -> list[Phase]:
    """Installs the wheel that an earlier call has kept, or builds one into the output folder."""
    pip = [sys.executable, "-m", "pip"]
    nothing = [*pip, "--version"]
    kept = _kept_wheel()
    environment = {"FASTGAN_CUDA": "1", "FASTGAN_CUDA_ARCHS": capability}
    build = [*pip, "wheel", "-v", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(out), "."]
    wheel = shlex.quote(kept) if kept else f"{shlex.quote(str(out))}/fastgan*.whl"
    install = f"{shlex.join(pip)} install --no-deps --no-index --force-reinstall {wheel}"
    about = f"{shlex.quote(sys.executable)} -m fastgan.doctor; nvidia-smi; nvcc --version; {shlex.join(pip)} list"
    built = [] if kept else [Phase("build", 200, build, "build", nothing, environment=environment)]
    return [
        *built,
        Phase("install", 40, ["bash", "-c", install], "build", nothing, environment={"PIP_BREAK_SYSTEM_PACKAGES": "1"}),
        Phase("environment", 30, ["bash", "-c", about], "build", nothing),
    ]


def _kept_wheel() -> str | None:
    """The wheel that FASTGAN_WHEEL names, a pattern at times, or that is carried along.

    Raises SystemExit if FASTGAN_WHEEL names no file.
    """
    if pattern := os.environ.get("FASTGAN_WHEEL"):
        found = sorted(glob.glob(pattern))
        if not found:
            raise SystemExit(f"error: FASTGAN_WHEEL={pattern}: there is no such file")
        return os.path.abspath(found[-1])
    return next((wheel for folder in _carried() for wheel in sorted(glob.glob(f"{folder}/fastgan*.whl"))), None)


def _carried() -> list[str]:
    """Folders with packages for a machine without a network: $FASTGAN_CARRIED, or `carried` beside or in shared/."""
    candidates = [os.environ.get("FASTGAN_CARRIED"), ROOT / "carried", ROOT / "shared" / "carried"]
    return [str(each) for each in candidates if each and Path(each).is_dir()]


# Running --------------------------------------------------------------------------------------------------------------


class Runner:
    """Runs phases within a total time, and records the result of each.

    Attributes:
        results: name, seconds and result ("ok" or the reason of a failure) of each phase.
    """

    def __init__(self, out: Path, total: float = TOTAL):
        self.out, self.results = out, []
        self._end = time.monotonic() + total
        self._environment = {**os.environ, "FASTGAN_TEST_BARE": "1"}  # packages of some tests may be missing
        self._environment.pop("PYTEST_ADDOPTS", None)  # the output that is read must be pytest's own
        self._search_first(_carried())

    def _search_first(self, folders: list[str]) -> None:
        """Python searches these folders before all others."""
        before = self._environment.get("PYTHONPATH")
        if paths := [*folders, *([before] if before else [])]:
            self._environment["PYTHONPATH"] = os.pathsep.join(paths)

    def use_sources(self) -> None:
        """The phases that follow import the checkout, without compiled kernels, where no wheel is installed."""
        link = self.out / SCRATCH / "sources" / "fastgan_kernels"
        if not link.exists():
            link.parent.mkdir(parents=True)
            link.symlink_to(ROOT / "kernels", target_is_directory=True)
        self._search_first([str(link.parent)])

    def run(self, phases: list[Phase]) -> None:
        """Run all, in order; those that belong together at once."""
        groups: list[list[Phase]] = []
        for phase in phases:
            if phase.together and groups:
                groups[-1].append(phase)
            else:
                groups.append([phase])
        for group in groups:
            running = [self._start(phase) for phase in group]
            for each in filter(None, running):
                self._finish(*each)
            last = self.results[-1]
            if last["phase"] == "install" and last["result"] != "ok":
                self.use_sources()

    def _start(self, phase: Phase) -> tuple | None:
        limit = min(phase.seconds, self._end - time.monotonic() - GRACE)
        missing = [program for program in phase.needs if shutil.which(program) is None]
        if missing or limit < 5:
            reason = f"{missing[0]} not found" if missing else "no time left"
            self._keep(phase, 0, f"not run: {reason}")
            return None
        print(f"== {phase.name} (at most {limit:.0f} s)", flush=True)
        # Each phase has an output file of its own while it runs: those that run together must not mix.
        part = self.out / SCRATCH / f"{phase.name}.log"
        start = time.monotonic()
        try:
            with part.open("wb") as output:
                output.write(f"== {phase.name}: {' '.join(phase.command)}\n".encode())
                output.flush()
                process = subprocess.Popen(
                    phase.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
                    env={**self._environment, **phase.environment}, start_new_session=True, preexec_fn=_heed_interrupt,
                )  # fmt: skip
        except OSError as error:
            self._keep(phase, 0, f"failed: {error.strerror}")
            return None
        return phase, part, process, start, limit

    def _finish(self, phase: Phase, part: Path, process, start: float, limit: float) -> None:
        result = self._wait(process, start + limit)
        text = part.read_bytes()
        part.unlink()
        try:
            with (self.out / f"{phase.log}.log").open("ab") as log:
                log.write(text.rstrip(b"\n") + b"\n")
        except OSError as error:  # a full disk: the end of the output is printed all the same
            result += f", its log is lost: {error.strerror}"
        for line in text.decode(errors="replace").rstrip().splitlines()[-3:]:
            print(f"{phase.name}: {line[:160]}", flush=True)
        self._keep(phase, time.monotonic() - start, result)

    def _wait(self, process: subprocess.Popen, deadline: float) -> str:
        """Result of a process, which is interrupted at the deadline, so that pytest prints its summary, then killed."""
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
            return "ok" if status == 0 else f"failed, status {status}"
        except subprocess.TimeoutExpired:
            pass
        for number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(GRACE)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:  # even of a kill: a process may hang within the driver
                continue
        return "stopped at its limit"

    def _keep(self, phase: Phase, seconds: float, result: str) -> None:
        self.results.append({"phase": phase.name, "seconds": round(seconds), "result": result})


# The report -----------------------------------------------------------------------------------------------------------


def summarize(out: Path, results: list[dict], card: str) -> dict:
    """Everything in the report, as plain data."""
    logs = "\n".join(path.read_text(errors="replace") for path in sorted(out.glob("*.log")))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    versions = [re.search(rf"^{name}\s+\S.*", logs, re.M) for name in ("torch", "triton", "compiler", "cuda kernels")]
    rows = []
    for path in sorted((out / SCRATCH).glob("*.json")):
        try:
            rows += [entry["extra_info"] for entry in json.loads(path.read_text())["benchmarks"]]
        except ValueError:  # the phase was killed while it wrote the file
            continue
    return {
        "card": card,
        "commit": commit or "unknown",
        "versions": [found[0] for found in versions if found],
        "phases": results,
        "pytest": re.findall(r"^=* ?(\d+ (?:passed|failed|skipped|error|tests collected).* in .*s.*?)=*$", logs, re.M),
        "failures": sorted(set(re.findall(r"^(?:FAILED|ERROR) .*", logs, re.M))),
        "sanitizers": re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", logs),
        "benchmarks": rows,
        "kernels": profiled_kernels(logs),
    }


def profiled_kernels(text: str) -> list[dict[str, str]]:
    """Kernels and their metrics from the CSV lines that ncu prints: one for each kernel and metric."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines[start:]):
        kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"][:60]})
        kernel[row["Metric Name"].partition(".")[0]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(kernels.values())


_SHOWN_COLUMNS = (
    "form",
    "arch",
    "what",
    "shape",
    "dtype",
    "backend",
    "fastgan_ms",
    "launched_ms",
    "eager_ms",
    "gb_per_s",
)
_SHOWN_COLUMNS += ("share_of_copy", "images_per_s", "tflop_per_s")


def describe(summary: dict, measured: str = "") -> str:
    """The report, which ends with the verdict: figures, failures, phases. No more than `SHOWN` characters."""
    rows = [[_cell(row.get(name)) for name in _SHOWN_COLUMNS] for row in summary["benchmarks"]]
    figures = _table([list(_SHOWN_COLUMNS), *rows]) if rows else []
    if kernels := summary["kernels"]:
        names = list(dict.fromkeys(name for kernel in kernels for name in kernel))
        figures += ["", *_table([names, *([kernel.get(name, "-") for name in names] for kernel in kernels)])]
    failed = [each for each in summary["phases"] if each["result"] != "ok"]
    end = [
        "", f"card: {summary['card']}; commit {summary['commit'][:12]}", *summary["versions"], "",
        *(f"pytest: {line.strip()}" for line in summary["pytest"]),
        *(f"sanitizer: {line}" for line in summary["sanitizers"]),
        *(line[:200] for line in summary["failures"][:15]),
        *([f"... and {len(summary['failures']) - 15} more"] if len(summary["failures"]) > 15 else []), "",
        *(f"{each['phase']:18} {each['seconds']:>4} s  {each['result']}" for each in summary["phases"]), "",
        f"verdict: {'FAILED: ' + ', '.join(each['phase'] for each in failed) if failed else 'ok'}",
    ]  # fmt: skip
    text = "\n".join(end)
    before = "\n".join([measured.strip(), *figures]).strip()
    room = max(0, SHOWN - len(text) - 20)
    if len(before) > room:
        before = before[:room].rpartition("\n")[0] + "\n[cut]"
    return (before + "\n" + text).strip()


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: list[list[str]]) -> list[str]:
    columns = [column for column in zip(*rows, strict=True) if any(cell != "-" for cell in column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _card() -> str | None:
    """Name, compute capability and driver of the first card; None without one."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return lines[0] if lines else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/gpu_check.sh", description=__doc__.partition("\n")[0])
    parser.add_argument("script", choices=("check", "measure"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path(os.environ.get("OUT", ROOT / "bench" / "results")))
    parser.add_argument("--dry-run", action="store_true", help="print the phases and their limits")
    parser.add_argument("--stand-in", action="store_true", help="run without a card: collect tests, list benchmarks")
    parser.add_argument("--total", type=float, default=TOTAL, metavar="SECONDS")
    parser.add_argument("--only", metavar="PHASE,...", help="run these phases only")
    options = parser.parse_args(argv)
    card = "stand-in, 9.0, none" if options.stand_in or options.dry_run else _card()
    if card is None:
        print("error: no NVIDIA GPU found (nvidia-smi names none)", file=sys.stderr)
        return 2
    capability = card.split(",")[1].strip().replace(".", "")
    out = options.folder.resolve()
    phases = {"check": check_phases, "measure": measure_phases}[options.script](out, capability)
    if options.only:
        phases = [phase for phase in phases if phase.name in options.only.split(",")]
    if options.dry_run:
        for phase in phases:
            print(f"{phase.name} (at most {phase.seconds} s): {' '.join(phase.command)}")
        return 0
    if options.stand_in:
        for phase in phases:
            phase.command = phase.stand_in or [*phase.command, "--collect-only"]
            phase.environment = {**phase.environment, "FASTGAN_TEST_EVERY_BACKEND": "1"}
            phase.needs = ()
    (out / SCRATCH).mkdir(parents=True, exist_ok=True)
    report = out / f"gpu_{options.script}"
    earlier = [*{out / f"{phase.log}.log" for phase in phases}, report.with_suffix(".txt"), report.with_suffix(".json")]
    if any(phase.name == "build" for phase in phases) and not options.stand_in:
        earlier += out.glob("fastgan*.whl")  # pip would refuse to choose among several
    for path in earlier:
        path.unlink(missing_ok=True)
    runner = Runner(out, options.total)
    if options.stand_in and find_spec("fastgan_kernels") is None:
        runner.use_sources()
    runner.run(phases)
    summary = summarize(out, runner.results, card)
    measured = out / "measured.log"
    text = describe(summary, measured.read_text(errors="replace") if measured.exists() else "")
    shutil.rmtree(out / SCRATCH)
    try:
        report.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
        report.with_suffix(".txt").write_text(text + "\n")
    except OSError as error:
        print(f"error: the report is not kept: {error}", file=sys.stderr)
    print(text)
    return int(any(each["result"] != "ok" for each in runner.results))


if __name__ == "__main__":
    sys.exit(main())
