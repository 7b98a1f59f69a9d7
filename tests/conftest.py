"""What all tests share."""

import os
from importlib.util import find_spec

# Of workers beside each other (pytest -n), and of the processes that they start, each has its share of the processors:
# more threads than these would wait for each other. What depends on the number of threads sets it.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import pytest
import torch

from tests.support import backends

# On a machine with torch and pytest alone, the operations are tested all the same.
TRAININGS = [
    "runs/test_checkpoint.py",
    "cli/test_command_line.py",
    "data/test_dataset.py",
    "cli/test_evaluate.py",
    "training/test_validation.py",
    "export/test_export.py",
    "cli/test_fuzz.py",
    "training/test_guard.py",
    "runs/test_health.py",
    "training/test_initial.py",
    "data/test_loading.py",
    "runs/test_log.py",
    "interop/test_official_networks.py",
    "interop/test_other_programs.py",
    "training/test_distributed.py",
    "test_sampler.py",
    "training/test_training.py",
    "test_transparency.py",
    "data/test_urls.py",
    "view/test_view.py",
]
STEPS = ["runs/test_graphs.py", "training/test_step.py", "bench/test_time_to_quality.py"]
NEEDS = {
    "hypothesis": [
        "data/test_data.py",
        "data/test_dataset.py",
        "cli/test_fuzz.py",
        "ops/test_noise_bias_act_any.py",
        "interop/test_official_networks.py",
    ],
    "tyro": [*TRAININGS, *STEPS],
    "safetensors": [*TRAININGS, *STEPS],
    "PIL": [*TRAININGS, "data/test_data.py", "metrics/test_metrics.py", "bench/test_time_to_quality.py"],
    "matplotlib": [*TRAININGS, "data/test_data.py", "metrics/test_metrics.py", "bench/test_time_to_quality.py"],
    "numpy": ["test_studies.py", "metrics/test_metrics.py"],
}
collect_ignore = sorted({file for module, files in NEEDS.items() if find_spec(module) is None for file in files})


def pytest_collection_modifyitems(items):
    """Where the backend is a parameter, those of GPUs have the mark of tests that need one. Slow tests come first:
    at the end, one worker would be left alone with them."""
    for item in items:
        if hasattr(item, "callspec") and item.callspec.params.get("backend") in ("cuda", "triton"):
            item.add_marker(pytest.mark.gpu)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    _group_backends(items)


def _group_backends(items):
    """Moves tests that differ in the backend alone next to each other: they share the textbook's results."""
    groups = {}
    for item in items:
        spec = getattr(item, "callspec", None)
        others = [(name, index) for name, index in spec.indices.items() if name != "backend"] if spec else []
        groups.setdefault((item.parent.nodeid, item.originalname if spec else item.nodeid, *others), []).append(item)
    items[:] = [item for group in groups.values() for item in group]


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
    from tests.support.tiny_run import make_folder  # needs what a machine with torch and pytest alone lacks

    return make_folder(tmp_path_factory.mktemp("data") / "images")
