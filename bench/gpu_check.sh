#!/usr/bin/env bash
# Builds, tests, checks and measures fastgan on a machine with an NVIDIA GPU, in one go and under 9 minutes.
#
#     bench/gpu_check.sh [FOLDER]        results go into FOLDER, by default bench/results
#
# Works without network. Required: setuptools, pybind11, ninja, nvcc, torch, triton, numpy and pytest, in the interpreter
# that PYTHON names. Captured steps and the training step's benchmark also need tyro and safetensors (`pip install
# --target FOLDER tyro` on another machine, and PYTHONPATH=FOLDER here, will do). A phase that fails or times out does
# not stop the next ones; the exit status is 1 if any did. Writes gpu_check.txt, gpu_check.json and a log per phase.
#
# Checks that only a GPU can do come first. Expected seconds on an H100 with 16 cores: 100 to build one card's code; 60
# for 1,300 tests of CUDA kernels; 120 for 600 tests of Triton kernels (bf16, and those without a dtype), nearly all
# compilation, with the sanitizers beside them; 140 for the benchmarks without torch.compile. What is left goes to
# Triton in other dtypes and to tests that need no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results}
mkdir -p "$out" && out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
readonly total=515  # seconds for all phases; a phase gets its own limit or the time left, whichever is less
SECONDS=0

card=$(nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
if [[ -z $card ]]; then
    echo "error: no NVIDIA GPU found (nvidia-smi names none)" >&2
    exit 2
fi
capability=$(cut -d, -f2 <<<"$card" | tr -d ' .')

logs=(environment install tests triton_tests memcheck racecheck benchmarks other_tests)
rm -f "$out"/gpu_check.{txt,json}
for log in "${logs[@]}"; do rm -f "$out/$log.log"; done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
phases=$work/phases

phase() { # name, limit in seconds, log, command...
    local name=$1 limit=$2 log=$out/$3 start=$SECONDS status=0
    shift 3
    ((limit = total - SECONDS < limit ? total - SECONDS : limit))
    if ((limit < 5)); then
        printf '%s\t%s\t%s\n' "$name" 0 "not run: no time left" >>"$phases"
        return
    fi
    echo "== $name (at most $limit s)"
    echo "== $name: $*" >>"$log"
    # An interrupt lets pytest close with its summary.
    timeout --signal=INT --kill-after=8 "$limit" "$@" >>"$log" 2>&1 || status=$?
    local verdict=ok
    case $status in
        0) ;;
        124 | 137) verdict="stopped after $limit s" ;;
        *) verdict="failed, status $status" ;;
    esac
    printf '%s\t%s\t%s\n' "$name" $((SECONDS - start)) "$verdict" >>"$phases"
    tail -n 3 "$log" | cut -c1-160 | sed "s/^/$name: /"
}

has() { "$python" -c "import $1" 2>/dev/null; }

workers=()
has xdist && workers=(-n "$(($(nproc) < 14 ? $(nproc) : 14))")
tests=("$python" -m pytest -q -p no:cacheprovider --tb=short)

phase install 170 install.log env FASTGAN_CUDA=1 FASTGAN_CUDA_ARCHS="$capability" \
    "$python" -m pip install -v --no-build-isolation --no-deps --force-reinstall .
phase doctor 30 environment.log "$python" -m fastgan.doctor
phase versions 20 environment.log bash -c "nvidia-smi; nvcc --version; '$python' -m pip list"

phase "CUDA tests" 100 tests.log "${tests[@]}" ${workers[@]+"${workers[@]}"} -m gpu -k "not triton"

# One case of each kernel, at awkward sizes. Torch's caching allocator would hide overruns within its blocks.
sanitized="cuda and values_and_derivatives and bf16 and (37x4x4 or 32x6x9 or test_filtered)"
sanitizers=()
set -m  # so that background jobs receive interrupts
for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        phase "$tool" 140 "$tool.log" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
            compute-sanitizer --tool "$tool" --error-exitcode 86 --print-limit 20 \
            "${tests[@]}" -x -m gpu -k "$sanitized" &
        sanitizers+=($!)
    else
        printf '%s\t%s\t%s\n' "$tool" 0 "not run: compute-sanitizer not found" >>"$phases"
    fi
done
set +m
in_tables="triton and (fp32 or fp16 or fp64) and not bf16"
phase "Triton tests" 150 triton_tests.log "${tests[@]}" ${workers[@]+"${workers[@]}"} \
    -m gpu -k "triton and not ($in_tables)"
wait ${sanitizers[@]+"${sanitizers[@]}"}

export FASTGAN_BENCH_COMPILE=0
if has pytest_benchmark; then
    phase benchmarks 170 benchmarks.log "${tests[@]}" bench/ --benchmark-only \
        --benchmark-json="$work/benchmarks.json"
else
    phase benchmarks 170 benchmarks.log "$python" -m bench.run --json "$work/benchmarks.json"
fi
phase "other Triton" 120 triton_tests.log "${tests[@]}" ${workers[@]+"${workers[@]}"} -m gpu -k "$in_tables"
phase "other tests" 120 other_tests.log "${tests[@]}" ${workers[@]+"${workers[@]}"} -m "not gpu and not slow"

"$python" - "$out" "$work" "$card" "$SECONDS" <<'PYTHON'
"""Summarises the logs in gpu_check.json and gpu_check.txt."""
import json
import re
import subprocess
import sys
from pathlib import Path

out, work, card, seconds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])


def read(path):
    return path.read_text(errors="replace") if path.exists() else ""


def log(name):
    return read(out / name)


def versions():
    code = "import torch, triton, platform; print(platform.python_version(), torch.__version__, triton.__version__)"
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    return dict(zip(("python", "torch", "triton"), words))


of_tests = "\n".join(log(f"{name}.log") for name in ("tests", "triton_tests", "memcheck", "racecheck", "other_tests"))
name, capability, driver = (word.strip() for word in card.split(","))
summary = {
    "card": name,
    "compute_capability": capability,
    "driver": driver,
    "nvcc": (re.findall(r"release [\d.]+", log("environment.log")) or ["?"])[0],
    "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    "seconds": seconds,
    **versions(),
    "phases": [dict(zip(("phase", "seconds", "result"), line.split("\t"))) for line in (work / "phases").read_text().splitlines()],
    "pytest": re.findall(r"^=* ?(\d+ (?:passed|failed|error).* in .*s)", of_tests, re.M),
    "failures": re.findall(r"^(?:FAILED|ERROR) .*", of_tests, re.M)[:50],
    "sanitizer": re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", of_tests),
    "benchmarks": [],
}
for entry in json.loads(read(work / "benchmarks.json") or "{}").get("benchmarks", []):
    stats = {"median_ms": entry["stats"]["median"] * 1e3, "rounds": entry["stats"]["rounds"]}
    summary["benchmarks"].append({"name": entry["name"], "group": entry["group"]} | stats | entry["extra_info"])
(out / "gpu_check.json").write_text(json.dumps(summary, indent=1) + "\n")

heads = ("card", "compute_capability", "driver", "python", "torch", "triton", "nvcc", "commit", "seconds")
lines = [f"{head:20} {summary.get(head, '?')}" for head in heads] + [""]
lines += [f"{p['phase']:12} {p['seconds']:>5} s  {p['result']}" for p in summary["phases"]] + [""]
lines += [f"pytest: {line}" for line in summary["pytest"]]
lines += [f"sanitizer: {line}" for line in summary["sanitizer"]]
lines += summary["failures"] + [""]
lines += [log("environment.log").split("== versions")[0].partition("\n")[2]]


def cell(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# One table for each set of columns.
tables = {}
for entry in summary["benchmarks"]:
    tables.setdefault(tuple(entry), []).append(entry)
for columns, entries in tables.items():
    rows = [columns] + [[cell(entry[column]) for column in columns] for entry in entries]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines += ["  ".join(f"{value:{width}}" for value, width in zip(row, widths)).rstrip() for row in rows] + [""]
text = "\n".join(lines)
(out / "gpu_check.txt").write_text(text)
print(text)
PYTHON
! grep -qv "$(printf '\tok$')" "$phases"
