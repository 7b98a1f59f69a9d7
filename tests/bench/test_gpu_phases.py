"""The scripts for a GPU, rehearsed without one: phases that fail or hang, missing tools, what they select and print."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu_measure, gpu_phases
from bench.gpu_phases import Phase, Runner

SLEEP = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('begun', flush=True); time.sleep(60)"


@pytest.fixture
def out(tmp_path):
    (tmp_path / gpu_phases.SCRATCH).mkdir()
    return tmp_path


def python(name, code, **options):
    return Phase(name, **{"seconds": 30, "command": [sys.executable, "-c", code], "log": "tests", **options})


def results(runner):
    return {each["phase"]: each["result"] for each in runner.results}


# Phases that go wrong ---------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_no_phase_stops_the_next_ones(out, monkeypatch):
    """One that heeds the interrupt may print its summary."""
    monkeypatch.setattr(gpu_phases, "GRACE", 2)
    heeds = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('5 passed in 3.00s')"
    runner = Runner(out)
    runner.run(
        [
            python("fails", "raise SystemExit(3)"),
            python("hangs", SLEEP, seconds=6),
            python("heeds", heeds, seconds=6, together=True),
            python("lacks a tool", "print('never')", needs=("no-such-profiler",)),
            Phase("lacks its program", 30, ["/no/such/program"], "tests"),
            python("works", "print('done')"),
        ]
    )
    assert results(runner) == {
        "fails": "failed, status 3",
        "hangs": "stopped at its limit",
        "heeds": "stopped at its limit",
        "lacks a tool": "not run: no-such-profiler not found",
        "lacks its program": "failed: No such file or directory",
        "works": "ok",
    }
    assert gpu_phases.summarize(out, runner.results, "none")["pytest"] == ["5 passed in 3.00s"]
    log = (out / "tests.log").read_text()
    assert "begun" in log and "never" not in log
    assert log.index("== fails") < log.index("== hangs") < log.index("== works") < log.index("done")


def test_a_process_that_outlives_its_kill_does_not_stop_the_next_ones(out, monkeypatch):
    """As one that waits for a driver which hangs."""
    monkeypatch.setattr(gpu_phases.os, "killpg", lambda group, number: signals.append(number.name))
    signals = []

    class Hanging:
        pid = 1

        def wait(self, seconds):
            raise subprocess.TimeoutExpired("hangs", seconds)

    assert Runner(out)._wait(Hanging(), deadline=0) == "stopped at its limit"
    assert signals == ["SIGINT", "SIGKILL"]


def test_a_full_disk_loses_logs_and_not_the_verdict(tmp_path, monkeypatch, capsys):
    def full(path, mode="r", *rest, **options):
        if mode in ("ab", "w"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *rest, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr(gpu_phases, "_card", lambda: "a card, 9.0, 570")
    monkeypatch.setattr(gpu_phases, "check_phases", lambda *_: [python("works", "print('42 passed')")])
    assert gpu_phases.main(["check", str(tmp_path)]) == 1
    shown, errors = capsys.readouterr()
    assert "works: 42 passed" in shown and "its log is lost: No space left on device" in shown
    assert shown.rstrip().endswith("verdict: FAILED: works") and "the report is not kept" in errors


def test_without_a_wheel_the_phases_use_the_checkout(out):
    """Triton and plain PyTorch need no compiled kernels."""
    found = python("imports", "import fastgan, fastgan_kernels; print(fastgan_kernels.__file__, fastgan.__file__)")
    runner = Runner(out)
    runner.run([python("install", "raise SystemExit(1)", log="build"), found])
    assert results(runner) == {"install": "failed, status 1", "imports": "ok"}
    kernels, fastgan = (out / "tests.log").read_text().split()[-2:]
    assert str(out) in kernels and Path(fastgan).parents[1] == gpu_phases.ROOT


def test_a_file_that_was_cut_off_does_not_spoil_the_report(out):
    (out / gpu_phases.SCRATCH / "measured.json").write_text('{"benchmarks": [{"extra')
    assert gpu_phases.summarize(out, [], "none")["benchmarks"] == []


def test_nothing_starts_when_the_total_time_is_over(out):
    runner = Runner(out, total=0)
    runner.run([python("late", "print('never')")])
    assert results(runner) == {"late": "not run: no time left"}


def test_phases_that_belong_together_run_at_once_and_do_not_mix_their_output(out):
    wait = "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\nprint(sys.argv[1])\n"
    wait += "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.05)\nprint(sys.argv[1])"
    one, two = str(out / "one"), str(out / "two")
    first, second = python("first", wait), python("second", wait, together=True)
    first.command, second.command = [*first.command, one, two], [*second.command, two, one]
    runner = Runner(out)
    runner.run([first, second])
    assert results(runner) == {"first": "ok", "second": "ok"}
    assert re.findall(r"^/.*", (out / "tests.log").read_text(), re.M) == [one, one, two, two]


# What the scripts run ---------------------------------------------------------------------------------------------


def names(phases):
    return [phase.name for phase in phases]


def test_what_matters_most_runs_first(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTGAN_WHEEL", raising=False)
    found = names(gpu_phases.check_phases(tmp_path, "90"))
    first = ["build", "install", "environment", "capture", "CUDA kernels", "Triton kernels", "step", "key operations"]
    assert found[: len(first)] == first
    assert names(gpu_phases.measure_phases(tmp_path, "90"))[3:] == ["step", "convolutions", "kernels", "fp32"]


def test_the_second_call_installs_the_wheel_of_the_first(tmp_path, monkeypatch):
    """A shell does not expand the pattern in an assignment, and phases run in another folder."""
    kept = tmp_path / "the results" / "fastgan-1.whl"
    kept.parent.mkdir()
    kept.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTGAN_WHEEL", "the results/fastgan-*.whl")
    phases = gpu_phases.measure_phases(tmp_path, "90")
    assert "build" not in names(phases)
    assert phases[0].command[-1].endswith(f"'{kept}'")
    monkeypatch.setenv("FASTGAN_WHEEL", "no/such.whl")
    with pytest.raises(SystemExit, match=r"FASTGAN_WHEEL=no/such.whl: there is no such file"):
        gpu_phases.measure_phases(tmp_path, "90")


def test_wheels_of_earlier_builds_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_phases, "_card", lambda: "a card, 9.0, 570")
    monkeypatch.setattr(gpu_phases, "check_phases", lambda *_: [python("build", "print('built')")])
    (tmp_path / "fastgan-0.0.1-py3-none-any.whl").touch()
    assert gpu_phases.main(["check", str(tmp_path)]) == 0
    assert not [*tmp_path.glob("*.whl")]


def test_the_official_code_is_timed_where_a_folder_holds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_OFFICIAL", str(tmp_path))
    assert names(gpu_phases.measure_phases(tmp_path, "90"))[-1] == "official code"


def test_carried_packages_are_found(out, monkeypatch):
    carried = out / "carried"
    carried.mkdir()
    (carried / "only_there.py").write_text("print('carried along')")
    monkeypatch.setenv("FASTGAN_CARRIED", str(carried))
    runner = Runner(out)
    runner.run([python("imports", "import only_there")])
    assert results(runner) == {"imports": "ok"}
    (carried / "xdist").mkdir()
    monkeypatch.setattr(gpu_phases, "find_spec", lambda name: None)
    assert "-n" in gpu_phases._pytest()


def test_the_scripts_can_be_dry_run(capsys):
    for script in ("check", "measure"):
        assert gpu_phases.main([script, "--dry-run"]) == 0
    assert "racecheck (at most 80 s): compute-sanitizer" in capsys.readouterr().out


def test_without_a_card_the_scripts_say_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu_phases, "_card", lambda: None)
    assert gpu_phases.main(["check"]) == 2
    assert "no NVIDIA GPU found" in capsys.readouterr().err


def stand_in(out, script, *phases):
    """Status and logs of these phases without a card: tests are collected, benchmarks listed."""
    status = gpu_phases.main([script, str(out), "--stand-in", "--only", ",".join(phases)])
    return status, {path.stem: path.read_text() for path in out.glob("*.log")}


@pytest.mark.slow
def test_the_sanitizers_take_eight_cases_of_the_cuda_kernels_in_bf16(tmp_path):
    status, logs = stand_in(tmp_path, "check", "racecheck")
    cases = re.findall(r"^tests/ops/(\S+)::(\w+)\[(.+)\]$", logs["sanitizers"], re.M)
    assert status == 0 and len(cases) == 8
    assert {name for _, name, _ in cases} == {gpu_phases.TABLE}
    assert all("cuda" in case.split("-") and "bf16" in case.split("-") for _, _, case in cases)
    assert len({file for file, _, _ in cases}) >= 5


@pytest.mark.slow
def test_capture_and_each_kernel_have_tests_and_benchmarks_have_cases(tmp_path, capsys):
    phases = "capture", "CUDA kernels", "step", "key operations"
    status, logs = stand_in(tmp_path, "check", *phases)
    assert status == 0, capsys.readouterr().out
    collected = [int(count) for count in re.findall(r"^(\d+)(?:/\d+)? tests collected", logs["tests"], re.M)]
    assert len(collected) == 2 and min(collected) > 50
    assert len(re.findall("^key_operations ", logs["benchmarks"], re.M)) == 12
    assert "training_step stylegan2" in logs["benchmarks"]
    assert len([*tmp_path.iterdir()]) <= 8
    assert capsys.readouterr().out.rstrip().endswith("verdict: ok")


@pytest.mark.slow
def test_every_measurement_has_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_OFFICIAL", str(tmp_path))
    program = "bench.gpu_measure"
    commands = [phase.command for phase in gpu_phases.measure_phases(tmp_path, "90") if program in phase.command]
    parsed = [gpu_measure.parse(command[command.index(program) + 1 :]) for command in commands]
    assert [each.what for each in parsed] == ["step", "convolutions", "kernels", "step", "official"]
    status, logs = stand_in(tmp_path, "measure", "kernels")
    assert status == 0 and f"usage: python -m {program}" in logs["profiler"]


# The report -------------------------------------------------------------------------------------------------------


def summary(**changes):
    phases = [
        {"phase": "capture", "seconds": 20, "result": "ok"},
        {"phase": "step", "seconds": 9, "result": "failed, status 1"},
    ]
    found = {"card": "a card", "commit": "0" * 40, "versions": [], "phases": phases, "pytest": [], "failures": []}
    return found | {"sanitizers": [], "benchmarks": [], "kernels": [], **changes}


def test_the_report_ends_with_the_verdict():
    text = gpu_phases.describe(summary())
    assert text.splitlines()[-1] == "verdict: FAILED: step"


def test_a_long_report_is_cut_before_failures_and_verdict():
    rows = [{"form": "blur", "shape": "32x64x256x256", "fastgan_ms": 1.234567, "share_of_copy": 0.912}] * 500
    failures = [f"FAILED tests/ops/test_{i}.py - AssertionError: {'x' * 500}" for i in range(300)]
    text = gpu_phases.describe(summary(benchmarks=rows, failures=failures), "measured\n" * 200)
    assert len(text) <= gpu_phases.SHOWN
    assert "[cut]" in text and "... and 285 more" in text and text.endswith("verdict: FAILED: step")


def test_metrics_of_the_profiler_become_a_row_for_each_kernel():
    text = """==PROF== Connected
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","nhwc","gpu__time_duration.sum","us","12.5"
"0","7","nhwc","dram__bytes_read.sum","Mbyte","33.6"
"1","7","add_pieces","gpu__time_duration.sum","us","3.1"
"""
    first, second = gpu_phases.profiled_kernels(text)
    assert first == {"kernel": "nhwc", "gpu__time_duration": "12.5 us", "dram__bytes_read": "33.6 Mbyte"}
    assert "add_pieces" in gpu_phases.describe(summary(kernels=[first, second]))


def test_the_scripts_name_their_interpreter_and_folder():
    for script in ("gpu_check", "gpu_measure"):
        text = (Path(gpu_phases.__file__).parent / f"{script}.sh").read_text()
        assert f'gpu_phases.py" {script.removeprefix("gpu_")} "$@"' in text
