"""The tables of cases of all operations in separate processes: under Triton's interpreter, which must be enabled before
kernels are decorated, and on CPU kernels and emulated CUDA kernels under AddressSanitizer, which must be preloaded.

All tables share a process, since its imports take longer than the cases of a table.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastgan_kernels import extension
from tests.emulation import build as emulation
from tests.support import backends

TESTS = Path(__file__).parent
TABLE = "values_and_derivatives"  # part of the names of the tests over a table

# Cases of each file, for pytest -k. Relu and linear are lrelu with another slope; the formulas of activations and of
# small tensors do not depend on the layout.
INTERPRETED = {
    "test_noise_bias_act.py": f"{TABLE} and (bf16 and (2x16x5x7 and (nhwc and not (c-relu or w-relu or linear or "
    "sigmoid-b) or nchw-lrelu-all or nchw-lrelu-b or nchw-lrelu-noise+strength+bias or nchw-silu-all or sliced or "
    "expanded) or 2x37x4x4 and not residual or 1x1x9x31 or 0x4x3x3 or 5x8 or 2x3x11 or 1x4x64x64-nchw) "
    "or fp64 and 5x7 and lrelu-all or fp16 and nhwc-silu-all and not residual) "
    "or gradient_of_the_noise_is and (bf16 and not 33x17 or fp64 and nhwc)",
    "test_noise_bias_act_to_rgb.py": f"{TABLE} and bf16 and (16x5x7 and not (to2 or +) or 37x4x4 or 9x31-to3) "
    "or gradient_of_the_noise_is and bf16",
    "test_instance_norm.py": f"{TABLE} and (bf16 and not (c-relu or w-relu or 33x17 or 256x257) "
    "or fp64 and lrelu-all-scalar)",
    "test_batch_norm_act.py": f"{TABLE} and (bf16 and not (c-relu or w-relu or linear or 33x17 or 32x33 or 26x27) "
    "or fp64 and c-lrelu)",
    "test_upfirdn2d.py": f"{TABLE} and bf16 and (24x6x5 or 16x6x7 or 20x1x1 or 5x4x4) or fork and bf16",
    "test_small_operations.py": f"{TABLE} and bf16 and (37x4x4 or 5x1x1 or 40x33 and not stddev or 0x4x3x3 or "
    "6x24x5x7)",
    "test_bias_act_blur.py": f"{TABLE} and bf16 and clamp and (32 or 96) or double and clamp",
    "test_filtered_noise_bias_act.py": "double and all and clamp",
    "test_filtered_lrelu.py": "gradients and 2x3x9x7 and nhwc-clamped and (radial or odd)",
    "test_image_batch.py": "(values_are and bf16 and (5x7 or 9x16 or 4x9x5 or 0_of or 0x4)) or nan_on_a_gpu",
}
# Cases of each file in fp32 and bf16, at sizes that fill no vector or block.
SANITIZED = {
    "test_noise_bias_act.py": f"{TABLE} and (37x4x4 or 9x31 or 300x33) or gradient_of_the_noise_is and 37x4x9",
    "test_noise_bias_act_to_rgb.py": f"{TABLE} and (37x4x4 or 33x17 or 520x3x5) or gradient_of_the_noise_is and 37x4x9",
    "test_instance_norm.py": f"{TABLE} and (37x4x4 or 9x31 or 32x33 or 256x257) and not far",
    "test_batch_norm_act.py": f"{TABLE} and (37x4x4 or 9x31 or 32x33 or 26x27) and not far",
    "test_upfirdn2d.py": f"{TABLE} and (33x4x5 or 17x2x40 or 16x5x7 or 3x9x10)",
    "test_filtered_noise_bias_act.py": f"{TABLE} and 24",
    "test_bias_act_blur.py": f"{TABLE} and 96",
    "test_small_operations.py": f"{TABLE} and (37x4x4 or 40x33)",
    "test_filtered_lrelu.py": "precision or several_tiles",
    "test_image_batch.py": "values_are and (5x7 or 3x129 or 4x9 or 9x16)",
}


def chosen(tables: dict[str, str], also: str) -> list[str]:
    """Command-line arguments of Python that run these cases."""
    cases = " or ".join(f"({file} and ({cases}))" for file, cases in tables.items())
    options = ["-q", "-x", "-rp", "-p", "no:cacheprovider", *(str(TESTS / file) for file in tables)]
    return ["-m", "pytest", *options, "-k", f"{also} and ({cases})"]


def assert_all_passed(done: subprocess.CompletedProcess, tables: dict[str, str]) -> None:
    """Asserts that every file ran a case and that nothing was skipped."""
    failures, _, summary = done.stdout.partition("= short test summary info =")
    assert done.returncode == 0, failures[-4000:] + done.stderr[-2000:]
    assert "skipped" not in summary.splitlines()[-1]
    for file in tables:
        assert f"PASSED tests/ops/{file}::" in summary, f"no case of {file}"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the tables themselves run the triton backend")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the tables themselves run the triton backend")
def test_triton_passes_the_tables_under_its_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, *chosen(INTERPRETED, "triton")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=TESTS.parents[1], capture_output=True, text=True)
    assert_all_passed(done, INTERPRETED)


@pytest.mark.long
@pytest.mark.slow
def test_cuda_kernels_access_only_their_own_memory():
    if reason := emulation.why_unavailable("address"):
        pytest.skip(reason)
    command = chosen(SANITIZED, "emulated and (fp32 or bf16)")
    environment = {**os.environ, "FASTGAN_TEST_SANITIZER": "address"}
    done = emulation.run_under_address_sanitizer(command, env=environment, cwd=TESTS.parents[1])
    assert_all_passed(done, SANITIZED)


@pytest.fixture
def isa():
    """The instruction set in use. Skips if its kernels cannot be compiled under AddressSanitizer."""
    if reason := backends.why_not("cpp") or emulation.why_unavailable("address"):
        pytest.skip(reason)
    return extension.module().cpu_isa()


@pytest.mark.long
@pytest.mark.slow
def test_cpu_kernels_access_only_their_own_memory(isa):
    """Arguments have any strides."""
    command = chosen({"test_layouts.py": "strides"}, f"cpp-{isa}")
    environment = {**os.environ, "FASTGAN_TEST_SANITIZER": "address", "OMP_NUM_THREADS": "1"}
    done = emulation.run_under_address_sanitizer(command, env=environment, cwd=TESTS.parents[1])
    assert_all_passed(done, {"test_layouts.py": ""})


# The gradient of a transposed weight, allocated by `empty_like`. Its taps are not the same distance apart, so the
# kernel writes beyond its end.
BEYOND = """
import torch, fastgan_kernels
from fastgan_kernels.calls import FewChannelsCall
from tests.support import backends
with backends.forced("cpp-{isa}"):
    run = fastgan_kernels.BACKENDS["cpp"].launchers("few_channels").run
    many, few = (torch.randn(2, c, 8, 8).to(memory_format=torch.channels_last) for c in (64, 3))
    weight = torch.empty_like(torch.randn(64, 3, 3, 3).transpose(2, 3))
    first, second, _, step = weight.stride()
    sizes = 2, 64, 8, 8, 3, 8, 8, 3, 3, 1, 1, 1
    run(FewChannelsCall("outer", many.dtype, *sizes, False, second, step, first, many, few, weight))
"""


@pytest.mark.slow
def test_a_write_beyond_a_tensor_is_reported(isa):
    """The check itself detects an error."""
    environment = {**os.environ, "FASTGAN_TEST_SANITIZER": "address", "OMP_NUM_THREADS": "1"}
    command = ["-c", BEYOND.format(isa=isa)]
    done = emulation.run_under_address_sanitizer(command, env=environment, cwd=TESTS.parents[1])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and "few_channels/cpu.cpp" in done.stderr, done.stderr[-2000:]
