"""Loading of the compiled extension: which one is refused, and what the user is told."""

import shutil
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fastgan_kernels
from fastgan.ops import backends, noise_bias_act, pixel_norm
from fastgan_kernels import calls, extension


def test_an_extension_of_other_calls_or_other_sources_is_refused(monkeypatch, tmp_path):
    """The message names the first difference and the remedy."""
    module = extension.module()
    if module is None:
        pytest.skip(extension.load_error())
    assert module.calls == calls.fields()
    kernels = types.SimpleNamespace(calls=dict(module.calls), sources=module.sources)
    assert extension._why_stale(kernels) is None
    kernels.calls["PixelNormCall"] = [f.replace("eps", "epsilon") for f in kernels.calls["PixelNormCall"]]
    assert extension._why_stale(kernels) == "PixelNormCall has the field `epsilon: float` there, `eps: float` here"
    kernels.calls["PixelNormCall"] = kernels.calls["PixelNormCall"][:3]
    assert extension._why_stale(kernels) == "PixelNormCall has the field `None` there, `channels_last: bool` here"
    kernels.calls = module.calls
    (tmp_path / "arithmetic.h").write_text("// y = x + 1")
    monkeypatch.setattr(extension, "csrc", tmp_path)
    assert extension._why_stale(kernels) == f"it was not built from the present {tmp_path}"


@pytest.fixture
def not_yet_loaded(monkeypatch):
    """The state before the first use of an operation."""
    monkeypatch.setattr(extension, "_loaded", None)
    backends._first_that_can.cache_clear()
    yield
    backends._first_that_can.cache_clear()


def test_a_stale_extension_gives_one_warning_at_first_use(not_yet_loaded, monkeypatch, tmp_path):
    if find_spec("fastgan_kernels._C") is None:
        pytest.skip("there is no extension")
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    (csrc / "arithmetic.h").write_text("// y = x + 1")
    monkeypatch.setattr(extension, "csrc", csrc)
    with pytest.warns(RuntimeWarning) as caught:
        for _ in range(2):
            noise_bias_act(torch.zeros(2, 3))
            pixel_norm(torch.zeros(2, 3))
    (warning,) = caught
    assert f"stale (it was not built from the present {csrc}): run `pip install {tmp_path}` again" in str(
        warning.message
    )
    assert "stale" in extension.load_error()


def test_an_extension_that_does_not_load_gives_a_warning(not_yet_loaded, monkeypatch):
    def refuse(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(extension, "import_module", refuse)
    with pytest.warns(RuntimeWarning, match=r"does not load \(libgomp.so.1: cannot .*\): run `pip install"):
        assert noise_bias_act(torch.ones(1, 1), gain=2.0).item() == 2


def test_a_missing_extension_gives_no_warning(not_yet_loaded, monkeypatch, recwarn):
    monkeypatch.setitem(sys.modules, "fastgan_kernels._C", None)
    monkeypatch.delattr(fastgan_kernels, "_C", raising=False)
    assert noise_bias_act(torch.ones(1, 1), gain=2.0).item() == 2
    assert "missing" in extension.load_error() and not recwarn.list


def test_the_command_that_rebuilds_is_that_of_the_installation(monkeypatch, tmp_path):
    package = Path(extension.__file__).resolve().parent
    if package.name == "kernels":  # used in place
        monkeypatch.setattr(extension, "csrc", package.with_name("csrc"))
        assert extension._install_command() == f"pip install -e {package.parent}"
    monkeypatch.setattr(extension, "csrc", tmp_path)
    assert extension._install_command() == f"pip install {tmp_path.parent}"
    monkeypatch.setattr(extension, "csrc", None)
    assert extension._install_command() == "pip install ."


def test_a_cpu_without_the_instruction_sets_of_the_extension_has_no_cpp_backend(monkeypatch):
    module = types.SimpleNamespace(isas=["avx2", "avx512"], has_cpu=False)
    monkeypatch.setattr(extension, "_loaded", (module, None))
    reason = fastgan_kernels.BACKENDS["cpp"].why_not("noise_bias_act", torch.device("cpu"))
    assert reason.startswith("this CPU lacks avx2 and avx512, which the kernels need: run `pip install ")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("objdump") is None, reason="there is no objdump")
def test_no_avx2_kernel_loads_a_vector_under_a_mask():
    """Compilers make such loads of `p ? p[i] : 0` in a loop. Fully masked, from a null pointer, emulators may fault."""
    module = extension.module()
    if module is None:
        pytest.skip(extension.load_error())
    command = 'objdump -d --no-show-raw-insn "$1" | grep -oE "[[:space:]](vp?maskmov|vfmadd231p)" | sort | uniq -c'
    counted = subprocess.run(["sh", "-c", command, "sh", module.__file__], capture_output=True, text=True)
    assert "vfmadd231p" in counted.stdout, "objdump has read the code"
    assert "maskmov" not in counted.stdout, counted
