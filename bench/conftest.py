"""Collects the rows of the benchmarks, and prints them as one table at the end."""

from importlib.util import find_spec

import pytest

from bench import report

# On a machine with torch and pytest alone, the operations are timed all the same.
if not (find_spec("tyro") and find_spec("safetensors")):
    collect_ignore = ["test_data_path.py", "test_training_step.py"]

_ROWS = pytest.StashKey[list[dict]]()


def pytest_configure(config):
    config.stash[_ROWS] = []
    given = " ".join(map(str, config.invocation_params.args))
    if config.pluginmanager.hasplugin("benchmark") and "benchmark-columns" not in given:
        config.option.benchmark_columns = ["median", "rounds"]  # our own table says more


@pytest.fixture
def record(benchmark, request):
    """A function of a row and the timed call: hands both to pytest-benchmark, and the row to the table.

    The numbers in `extra_info` are those of the alternation. pytest-benchmark times one callable at a time: its own
    numbers, of a few more calls, are there for its file format and its comparison of runs.
    """

    def record_row(row, call, rounds=5):
        benchmark.group = row["operation"]
        benchmark.extra_info.update(row)
        request.config.stash[_ROWS].append(row)
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)

    return record_row


@pytest.hookimpl(trylast=True)  # below whatever pytest-benchmark prints
def pytest_terminal_summary(terminalreporter, config):
    if rows := config.stash[_ROWS]:
        terminalreporter.section("fastgan beside eager PyTorch and torch.compile")
        for line in report.lines(rows):
            terminalreporter.write_line(line)
