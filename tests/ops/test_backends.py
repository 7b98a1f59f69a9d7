"""Choice of a backend."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import fastgan_kernels
from fastgan.cli import doctor
from fastgan.ops import backends, noise_bias_act, use_backend
from fastgan.ops.fused import OPERATIONS
from fastgan_kernels import extension
from tests.support import backends as tested


@pytest.mark.parametrize("name", tested.NAMES)
def test_operations_are_tested_on_this_backend(name):
    """Skipped, with the reason, for a backend that tests leave out on this machine."""
    if reason := tested.why_not(name):
        pytest.skip(f"{name}: {reason}")
    assert name in tested.AVAILABLE


def test_the_fastest_available_backend_is_chosen():
    offered = backends.explain("noise_bias_act", "cpu")
    assert [name for name, _ in offered] == ["cpp", "torch"]
    assert backends.choose("noise_bias_act", "cpu") == next(name for name, reason in offered if reason is None)


def test_a_forced_list_is_searched_in_order():
    with use_backend("cuda, torch"):
        assert backends.choose("noise_bias_act", "cpu") == "torch"


def test_use_backend_restores_the_previous_choice_after_an_exception():
    before = backends.choose("noise_bias_act", "cpu")
    with pytest.raises(RuntimeError, match="inside"), use_backend("torch"):
        assert backends.choose("noise_bias_act", "cpu") == "torch"
        raise RuntimeError("inside")
    assert backends.choose("noise_bias_act", "cpu") == before


@pytest.mark.parametrize("names", ["fast", "torch,gpu", "", " , "])
def test_an_unknown_backend_name_is_refused(names):
    with pytest.raises(ValueError, match="backend"), use_backend(names):
        pass


@pytest.mark.slow
def test_the_environment_variable_chooses_the_backend():
    code = "from fastgan.ops import backends; print(backends.choose('noise_bias_act', 'cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTGAN_BACKEND": "cuda,torch"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "torch\n", done.stderr


def test_a_backward_pass_uses_the_backend_of_its_forward_pass(monkeypatch):
    """Outside of the block too, and in another thread, where no context variable is set."""
    if backends.why_not("cpp", "noise_bias_act", "cpu"):
        pytest.skip(backends.why_not("cpp", "noise_bias_act", "cpu"))
    launchers = fastgan_kernels.BACKENDS["cpp"].launchers("noise_bias_act")
    calls = []
    launch = launchers.backward
    monkeypatch.setattr(launchers, "backward", lambda *args: (calls.append(1), launch(*args)))
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with use_backend("cpp"):
        y = noise_bias_act(x)
    with use_backend("torch"):
        thread = threading.Thread(target=lambda: y.sum().backward())
        thread.start()
        thread.join()
    assert calls == [1] and x.grad is not None


@pytest.fixture
def two_cards(monkeypatch):
    """A machine with an old and a new GPU, and CUDA kernels for the new one only. The old one is current."""
    capabilities = [(7, 0), (9, 0)]
    if extension.module() is None:
        pytest.skip(extension.load_error())
    monkeypatch.setattr(extension, "why_no_part", lambda part: None)
    monkeypatch.setattr(extension.module(), "cuda", {operation: {} for operation in OPERATIONS})
    cuda = {"built": True, "archs": [80, 90], "nvcc": "nvcc", "reason": None}
    built = {"compiler": "c++", "cpu": {"built": False, "reason": "none"}} | extension.build_info() | {"cuda": cuda}
    monkeypatch.setattr(extension, "build_info", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    backends._first_that_can.cache_clear()
    yield
    backends._first_that_can.cache_clear()


def test_each_card_is_judged_separately(two_cards, monkeypatch):
    after_cuda = "triton" if backends.why_not("triton", "noise_bias_act", "cuda:0") is None else "torch"
    for _ in range(2):  # chosen, then remembered
        assert backends.choose("noise_bias_act", torch.device("cuda:1")) == "cuda"
        assert backends.choose("noise_bias_act", torch.device("cuda:0")) == after_cuda
    assert "from sm_80 on, this is sm_70" in backends.why_not("cuda", "noise_bias_act", "cuda:0")
    assert backends.explain("noise_bias_act", "cuda:1")[0] == ("cuda", None)
    for without_number in ("cuda", torch.device("cuda")):  # the current card, whichever that is at the time
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        assert backends.choose("noise_bias_act", without_number) == after_cuda
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        assert backends.choose("noise_bias_act", without_number) == "cuda"


def test_the_doctor_lists_every_card(two_cards, monkeypatch):
    monkeypatch.setattr(doctor, "_gpu", lambda: {"cuda": "13.0", "driver": "580", "cards": ["an old one", "a new one"]})
    found = doctor.examine()
    assert list(found["operations"]["noise_bias_act"]) == ["cpu", "cuda:0", "cuda:1"]
    text = " ".join(doctor.describe(found).split())
    assert "fastest for each shape (cudnn.benchmark)" in text and "convolutions in TF32" in text
    assert "GPU 1 tensors cuda" in text and "not cuda: compiled for cards from sm_80 on, this is sm_70" in text


def test_the_stream_is_found_without_torchs_private_function(monkeypatch):
    class Stream:
        cuda_stream = 77

    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream", raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: Stream if index == 1 else None)
    assert extension._stream_getter()(1) == 77
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 78, raising=False)
    assert extension._stream_getter()(1) == 78


@pytest.mark.parametrize(("value", "interpreted"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_interpreter_mode_is_detected_without_triton_knobs(monkeypatch, value, interpreted):
    triton = pytest.importorskip("triton")
    monkeypatch.delattr(triton, "knobs")
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert (backends.why_not("triton", "noise_bias_act", "cpu") is None) == interpreted


@pytest.mark.parametrize("options", [{}, {"clamp": 1.5}])
def test_tracing_gives_no_warning(options, recwarn):
    """Dynamo warns when it traces into a cached function."""
    torch.compile(lambda x: noise_bias_act(x, **options), fullgraph=True, backend="aot_eager")(torch.randn(2, 3, 4, 4))
    assert not [each for each in recwarn if "lru_cache" in str(each.message)]


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("options", [{}, {"clamp": 1.5}])
def test_torch_compile_without_the_constant_decorator_traces_the_function(monkeypatch, options):
    marked = {backends._constant_choice, sys.modules["fastgan.ops.noise_bias_act"]._rounded}
    for function in marked:
        monkeypatch.delattr(function, "_dynamo_marked_constant")
    x = torch.randn(2, 3, 4, 4)
    expected = noise_bias_act(x, **options)  # first, since loading the extension cannot be traced
    compiled = torch.compile(lambda x: noise_bias_act(x, **options), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.slow
def test_an_error_in_the_environment_variable_is_one_line():
    for module in ("fastgan.doctor", "fastgan.train"):
        done = subprocess.run(
            [sys.executable, "-m", module, *["--images", "8"] * (module == "fastgan.train")],
            env={**os.environ, "FASTGAN_BACKEND": "nonsense"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.startswith("error: FASTGAN_BACKEND=nonsense: unknown backend 'nonsense'")
