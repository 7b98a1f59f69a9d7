"""Tests and benchmarks on a machine with torch and pytest only, such as a GPU machine without a network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def on_a_bare_machine(*arguments):
    return run("-m", "pytest", "-p", "tests.support.bare_machine", "-q", *arguments)


def test_operations_graphs_and_steps_are_tested_and_timed_there():
    tests = [
        f"tests/{name}.py" for name in ("ops/test_noise_bias_act", "training/test_captured_steps", "runs/test_graphs")
    ]
    paths = [*tests, "tests/training/test_step.py", "bench/test_operations.py", "bench/test_training_step.py"]
    here, there = run("-m", "pytest", "--collect-only", "-q", *paths), on_a_bare_machine("--collect-only", *paths)
    count = re.compile(r"^(\d+) tests? collected", re.M)
    assert "skipped" not in there.stdout, there.stdout
    assert int(count.search(here.stdout)[1]) == int(count.search(there.stdout)[1]) > 100


def test_a_training_step_runs_there_and_no_conftest_needs_a_missing_package():
    """Without a conftest pytest would collect nothing: it skips files, not folders."""
    step = "from bench.training_step import CASES, Ours; Ours(CASES['dcgan'], False)(1); print('trained')"
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("tests/**/conftest.py")]
    assert len(names) >= 3
    done = run("-c", f"import tests.support.bare_machine, {', '.join(names)}; {step}")
    assert done.stdout == "trained\n", done.stderr


def test_what_needs_a_missing_package_is_skipped_there():
    copies = "tests/runs/test_checkpoint.py::test_kept_checkpoints_are_copies[True]"  # this needs none
    resumed = "tests/runs/test_checkpoint.py::test_the_newest_checkpoints_are_kept_and_can_be_resumed"
    done = on_a_bare_machine("-rs", "tests/test_options.py", resumed, copies)
    assert "2 skipped" in done.stdout and "1 passed" in done.stdout and done.returncode == 0, done.stdout


def test_elsewhere_a_missing_package_is_an_error():
    code = "import os, pytest, sys; os.environ.pop('FASTGAN_TEST_BARE', None); sys.modules['tyro'] = None; "
    done = run("-c", code + "sys.exit(pytest.main(['-q', 'tests/test_options.py']))")
    assert done.returncode != 0 and "tyro" in done.stdout, done.stdout
