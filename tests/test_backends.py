"""Choice of a backend."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import fastgan_kernels
from fastgan.ops import backends, noise_bias_act, use_backend


def test_the_fastest_that_can_serve_is_chosen():
    offered = backends.explain("noise_bias_act", "cpu")
    assert [name for name, _ in offered] == ["cpp", "torch"]
    assert backends.choose("noise_bias_act", "cpu") == next(name for name, reason in offered if reason is None)


def test_a_list_is_searched_in_its_order():
    with use_backend("cuda, torch"):
        assert backends.choose("noise_bias_act", "cpu") == "torch"


def test_the_choice_before_is_restored_also_after_an_exception():
    before = backends.choose("noise_bias_act", "cpu")
    with pytest.raises(RuntimeError, match="inside"), use_backend("torch"):
        assert backends.choose("noise_bias_act", "cpu") == "torch"
        raise RuntimeError("inside")
    assert backends.choose("noise_bias_act", "cpu") == before


@pytest.mark.parametrize("names", ["fast", "torch,gpu", "", " , "])
def test_a_name_that_no_backend_has_is_refused(names):
    with pytest.raises(ValueError, match="backend"), use_backend(names):
        pass


@pytest.mark.parametrize(("value", "outcome"), [("torch", "torch"), ("cuda,torch", "torch")])
def test_the_environment_chooses(value, outcome):
    code = "from fastgan.ops import backends; print(backends.choose('noise_bias_act', 'cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FASTGAN_BACKEND": value}, capture_output=True, text=True
    )
    assert outcome in done.stdout + done.stderr


def test_a_backward_pass_uses_the_backend_of_its_forward_pass(monkeypatch):
    """Also outside of the block, and in another thread, where no context variable is set."""
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


def test_a_mistake_in_the_environment_is_one_line():
    for module in ("fastgan.doctor", "fastgan.train"):
        done = subprocess.run(
            [sys.executable, "-m", module, *["--images", "8"] * (module == "fastgan.train")],
            env={**os.environ, "FASTGAN_BACKEND": "nonsense"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.startswith("error: FASTGAN_BACKEND=nonsense: unknown backend 'nonsense'")
