"""Prints the rows of all benchmarks as tables at the end of a pytest run."""

import pytest

from bench import report

_ROWS = pytest.StashKey[list[dict]]()


def pytest_configure(config):
    config.stash[_ROWS] = []
    given = " ".join(map(str, config.invocation_params.args))
    if config.pluginmanager.hasplugin("benchmark") and "benchmark-columns" not in given:
        config.option.benchmark_columns = ["median", "rounds"]  # our table has the rest


@pytest.fixture
def record(benchmark, request):
    """Function (row, call) that reports a result: the row to our table, both to pytest-benchmark.

    Numbers in `extra_info` come from contestants run in turn. pytest-benchmark times one callable at a time; its own
    numbers serve its file format and its comparison of runs only.
    """

    def record_row(row, call, rounds=5):
        benchmark.group = row["operation"]
        benchmark.extra_info.update(row)
        request.config.stash[_ROWS].append(row)
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)

    return record_row


@pytest.hookimpl(trylast=True)  # after pytest-benchmark
def pytest_terminal_summary(terminalreporter, config):
    if rows := config.stash[_ROWS]:
        terminalreporter.section("fastgan beside eager PyTorch and torch.compile")
        for line in report.lines(rows):
            terminalreporter.write_line(line)
