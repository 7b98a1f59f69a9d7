"""The Triton kernels of batch_norm_act without a GPU, compiled for three generations of cards.

Triton's interpreter runs them in test_tables_elsewhere.
"""

import re

import pytest
import torch

from fastgan_kernels.calls import NormCall

triton = pytest.importorskip("triton")

from fastgan_kernels.triton import batch_norm_act as kernels  # noqa: E402
from tests.support.compiled_triton import Recorder, compiled_for, in_loops, resources  # noqa: E402

INTERPRETED = triton.knobs.runtime.interpret  # decided when the kernels were decorated
FORWARD, BACKWARD = (
    ("segment_moments", "_merge_moments", "normalise"),
    ("segment_sums", "_merge_sums", "input_gradients"),
)
READS = {"segment_moments": 1, "normalise": 1, "segment_sums": 2, "input_gradients": 2}


@pytest.mark.skipif(INTERPRETED, reason="kernels decorated for the interpreter cannot be compiled")
@pytest.mark.parametrize(
    ("dtype", "capability"),
    [(torch.bfloat16, 80), (torch.bfloat16, 90), (torch.bfloat16, 100), (torch.float32, 90)],
    ids=str,
)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_kernels_compile_to_wide_accesses_without_spills(dtype, layout, capability, monkeypatch, tmp_path):
    launches = []
    for name in (*FORWARD, *BACKWARD):
        monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name), launches))
    x = torch.empty(64, 128, 16, 16, dtype=dtype)
    statistics, weight, bias = torch.empty(3, 128), torch.empty(128), torch.empty(128)
    sizes = (1, 128, 64 * 16 * 16, True) if layout == "nhwc" else (64, 128, 16 * 16, False)
    shared = (*sizes, dtype, True, 0.2, 1.4, 1e-5, False, False, None, None, None, weight, bias, x, statistics)
    kernels.forward(NormCall(*shared, x))
    kernels.backward(NormCall(*shared, None, x, x, dstyle_scale=weight, dstyle_bias=bias))
    assert [kernel.__name__ for kernel, *_ in launches] == [*FORWARD, *BACKWARD]
    for kernel, arguments, named in launches:
        compiled = compiled_for(capability, kernel, arguments, named)
        used = resources(compiled.asm["cubin"], tmp_path)
        assert used["STACK"] == used["LOCAL"] == 0, (kernel.__name__, used)
        assert compiled.metadata.shared <= 16 * 1024
        ptx, ttgir = compiled.asm["ptx"], compiled.asm["ttgir"]
        assert not re.search(r"(?:ld|st)\.global[\w.:]*\.b(?:8|16)\b", ptx), "single 16-bit numbers are moved"
        if kernel.__name__ in READS:
            vectors = r"v4\.b32|v2\.b64"
            if layout == "nhwc" and dtype.itemsize == 2 and kernel.__name__ in ("segment_sums", "input_gradients"):
                vectors = r"v2\.b32"  # 8 bytes, for want of registers
            writes = kernel.__name__ in ("normalise", "input_gradients")
            for access, least in ("ld", READS[kernel.__name__]), ("st", writes):
                wide = re.findall(rf"{access}\.global[\w.:]*\.(?:{vectors})\b", ptx)
                assert len(wide) >= least, f"{kernel.__name__}: {len(wide)} vector accesses ({access})"
            for slow in ("convert_layout", "tt.reduce", "barrier"):
                assert in_loops(ttgir, slow) == 0, f"{slow} in every step of {kernel.__name__}"
