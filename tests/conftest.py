"""Fixtures and hooks of all tests."""

import os

from fastgan.cores import usable_cpus

# Workers (pytest -n) share the CPUs: more threads would wait for each other. Processes that tests start inherit this.
# Tests that depend on the number of threads set it.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // int(workers))))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # without processes of its own

import pytest
import torch

from tests.support import backends

# If set, tests that import packages which this machine lacks are skipped: torch and pytest suffice for operations and
# steps. bench/gpu_phases.py and the tests of wheels set it.
BARE = "FASTGAN_TEST_BARE" in os.environ
REQUIRED = ("bench", "fastgan", "fastgan_kernels", "pytest", "tests", "torch")


def _missing_package(error) -> str | None:
    """Name of the package whose lack may skip a test, if `error` is that lack."""
    if not BARE or not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    name = error.name.split(".")[0]
    return None if name in REQUIRED else name


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skips a test file that imports a missing package, as `pytest.importorskip` in it would."""
    report = yield
    if name := _missing_package(report.call.excinfo and report.call.excinfo.value.__cause__):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: needs {name}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skips a test that imports a missing package while it runs."""
    report = yield
    if name := _missing_package(call.excinfo and call.excinfo.value):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: needs {name}")
    return report


def pytest_collection_modifyitems(items):
    """Marks tests by their backend and puts long and slow ones first: at the end, one worker would be left alone with
    them.

    Without slow tests, operations run on plain PyTorch and on the fastest kernels for this CPU, but not on those for
    other CPUs nor on emulated CUDA, which takes a minute to compile.
    """
    slow = ("emulated", *backends.SLOWER_CPP)
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("backend") in ("cuda", "triton"):
            item.add_marker(pytest.mark.gpu)
        if any(isinstance(value, str) and value in slow for value in params.values()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("long", "slow")])
    _group_backends(items)


def _group_backends(items):
    """Moves tests that differ in the backend alone next to each other: they share the textbook's results."""
    groups = {}
    for item in items:
        spec = getattr(item, "callspec", None)
        others = [(name, id(value)) for name, value in spec.params.items() if name != "backend"] if spec else []
        groups.setdefault((item.parent.nodeid, item.originalname if spec else item.nodeid, *others), []).append(item)
    items[:] = [item for group in groups.values() for item in group]


@pytest.fixture(scope="module")
def one_thread():
    """One thread: small networks lose time with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=backends.AVAILABLE)
def backend(request):
    """The test runs once on every backend that this machine has; the value is the backend's name."""
    with backends.forced(request.param):
        yield request.param


@pytest.fixture
def unwritten_is_nan():
    """Memory that torch.empty hands out is filled with NaN: an element that no kernel wrote fails its comparison."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module")
def one_cache(tmp_path_factory):
    """The trainings of a module share a cache of their own, and leave the number of threads as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few labelled images to train on."""
    from tests.support.tiny_run import make_folder  # needs what a machine with torch and pytest alone lacks

    return make_folder(tmp_path_factory.mktemp("data") / "images")
