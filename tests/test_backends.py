"""Choice of a backend."""

import os
import subprocess
import sys

import pytest
import torch

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


@pytest.mark.parametrize(
    ("value", "outcome"), [("torch", "torch"), ("cuda,torch", "torch"), ("nonsense", "unknown backend")]
)
def test_the_environment_chooses(value, outcome):
    code = "from fastgan.ops import backends; print(backends.choose('noise_bias_act', 'cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FASTGAN_BACKEND": value}, capture_output=True, text=True
    )
    assert outcome in done.stdout + done.stderr


def test_a_backward_pass_uses_the_backend_of_its_forward_pass():
    """Also where it runs outside of the block, or in another thread: a graph holds what made it."""
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with use_backend("torch"):
        y = noise_bias_act(x)
    assert "Forward" not in type(y.grad_fn).__name__
    y.sum().backward()
