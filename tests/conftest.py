"""What all tests share."""

import os
from importlib.util import find_spec

# Of workers beside each other (pytest -n), and of the processes that they start, each has its share of the processors:
# more threads than these would wait for each other. What depends on the number of threads sets it.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import pytest
import torch

from tests import backends

# On a machine with torch and pytest alone, the operations are tested all the same.
TRAININGS = [
    f"test_{name}.py"
    for name in (
        "checkpoint",
        "command_line",
        "dataset",
        "evaluate",
        "evaluation",
        "export",
        "fuzz",
        "guard",
        "health",
        "initial",
        "loading",
        "log",
        "official_networks",
        "other_programs",
        "ranks",
        "sampler",
        "training",
        "transparency",
        "urls",
        "view",
    )
]
STEPS = ["test_graphs.py", "test_step.py", "test_time_to_quality.py"]
NEEDS = {
    "hypothesis": [
        "test_data.py",
        "test_dataset.py",
        "test_fuzz.py",
        "test_noise_bias_act_any.py",
        "test_official_networks.py",
    ],
    "tyro": [*TRAININGS, *STEPS],
    "safetensors": [*TRAININGS, *STEPS],
    "PIL": [*TRAININGS, "test_data.py", "test_metrics.py", "test_time_to_quality.py"],
    "matplotlib": [*TRAININGS, "test_data.py", "test_metrics.py", "test_time_to_quality.py"],
    "numpy": ["test_studies.py", "test_metrics.py"],
}
collect_ignore = sorted({file for module, files in NEEDS.items() if find_spec(module) is None for file in files})


def pytest_collection_modifyitems(items):
    """Where the backend is a parameter, those of GPUs have the mark of tests that need one. Slow tests come first:
    at the end, one worker would be left alone with them."""
    for item in items:
        if hasattr(item, "callspec") and item.callspec.params.get("backend") in ("cuda", "triton"):
            item.add_marker(pytest.mark.gpu)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="module")
def one_thread():
    """For networks that are so small that threads would do nothing but wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=backends.NAMES)
def backend(request):
    """The test runs once on every backend that this machine has; the value is the device of its tensors."""
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
    from tests.tiny_run import make_folder  # needs what a machine with torch and pytest alone lacks

    return make_folder(tmp_path_factory.mktemp("data") / "images")
