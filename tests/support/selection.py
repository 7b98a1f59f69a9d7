"""A plugin for pytest that selects tests by their function and their parameters, each by its whole name.

python -m pytest -p tests.support.selection --backend cuda --dtype bf16 --each 8 tests/ops
"""

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("selection")
    group.addoption("--test", metavar="NAME", help="name of the test function")
    group.addoption("--backend", metavar="NAME", help="value of the parameter `backend`")
    group.addoption("--dtype", metavar="NAME", help="value of the parameter `dtype`; tests without one are kept")
    group.addoption("--each", type=int, metavar="N", help="N cases of each test function, evenly spread")
    group.addoption("--in-all", type=int, metavar="N", help="N cases in all, evenly spread over the test functions")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    option = config.getoption
    chosen = [
        item
        for item in items
        if option("test") in (None, getattr(item, "originalname", item.name))
        and option("backend") in (None, _parameter(item, "backend"))
        and (option("dtype") is None or _parameter(item, "dtype") in (None, option("dtype")))
    ]
    functions: dict[str, list] = {}
    for item in chosen:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    count = option("each")
    if option("in_all") and functions:
        count = -(-option("in_all") // len(functions))
    if count:
        chosen = [item for cases in functions.values() for item in _spread(cases, count)]
    if option("in_all"):
        chosen = _spread(chosen, option("in_all"))
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def _parameter(item, name):
    """The value of a parameter; None if the test has none of that name."""
    return item.callspec.params.get(name) if hasattr(item, "callspec") else None


def _spread(cases: list, count: int) -> list:
    """`count` cases at equal distances."""
    count = min(count, len(cases))
    return [cases[i * len(cases) // count] for i in range(count)]
