"""The Triton kernels of instance_norm without a GPU, compiled for three generations of cards.

Triton's interpreter runs them in test_tables_elsewhere.
"""

import re
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgan_kernels.calls import NormCall, View

triton = pytest.importorskip("triton")

from fastgan_kernels.triton import instance_norm as kernels  # noqa: E402
from tests.support.compiled_triton import Recorder, compiled_for, in_loops, on_cards, resources  # noqa: E402

INTERPRETED = triton.knobs.runtime.interpret  # decided when the kernels were decorated
KERNELS = ("_whole_forward", "_whole_backward", "segment_moments", "_merge_moments", "normalise")
KERNELS += ("segment_sums", "_merge_sums", "input_gradients", "add_pieces")
SMALL_PLANE, LARGE_PLANE = 16, 128  # a side: all positions in one program, and in segments


class Call(NamedTuple):
    """A call of a launcher. The sizes are those of a training: all of them multiples of 16."""

    launcher: str
    layout: str
    side: int
    dtype: torch.dtype
    plain: bool = False  # adain, else all of style_epilogue

    def __str__(self):
        what = "adain" if self.plain else "epilogue"
        return f"{self.launcher}-{self.layout}-{self.side}-{str(self.dtype)[6:]}-{what}"

    def launch(self):
        n, c, side = 8, 128, self.side
        view = View(n, c, side**2, self.layout == "nhwc")
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        x, statistics = torch.empty(n, c, side, side, dtype=self.dtype), torch.empty(2, n, c, dtype=kind)
        shapes = ((n, 1, side, side), (c,), (c,))
        before = [None if self.plain else torch.empty(shape, dtype=kind) for shape in shapes]
        style = [torch.empty(n, c, dtype=kind) for _ in range(2)]
        shared = (
            *view,
            self.dtype,
            False,
            0.2,
            1.4,
            1e-5,
            not self.plain,
            not self.plain,
            *before,
            *style,
            x,
            statistics,
        )
        if self.launcher == "forward":
            kernels.forward(NormCall(*shared, x))
        else:
            kernels.backward(NormCall(*shared, None, x, x, *before[1:], *style))


CALLS = [
    Call(launcher, layout, side, dtype, plain)
    for launcher in ("forward", "backward")
    for layout in ("nhwc", "nchw")
    for side, dtype, plain in (
        (SMALL_PLANE, torch.bfloat16, False),
        (SMALL_PLANE, torch.float32, True),
        (LARGE_PLANE, torch.bfloat16, False),
        (LARGE_PLANE, torch.float32, True),
    )
] + [Call("backward", "nhwc", LARGE_PLANE, torch.float64)]


@pytest.mark.skipif(INTERPRETED, reason="kernels decorated for the interpreter cannot be compiled")
@pytest.mark.parametrize(("call", "capability"), on_cards(CALLS), ids=str)
def test_kernels_compile_to_wide_accesses_without_spills(call, capability, monkeypatch, tmp_path):
    launches = []
    for name in KERNELS:
        monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name), launches))
    call.launch()
    whole = call.side == SMALL_PLANE
    expected = {
        ("forward", True): ["_whole_forward"],
        ("forward", False): ["segment_moments", "_merge_moments", "normalise"],
        ("backward", True): ["_whole_backward"],
        ("backward", False): ["segment_sums", "_merge_sums", "input_gradients"],
    }[call.launcher, whole]
    if call.launcher == "backward" and not call.plain:
        expected.append("add_pieces")
    assert [kernel.__name__ for kernel, *_ in launches] == expected
    reads = {
        "_whole_forward": 1,
        "segment_moments": 1,
        "normalise": 1,
        "_whole_backward": 2,
        "segment_sums": 2,
        "input_gradients": 2,
    }
    writes = ("_whole_forward", "normalise", "_whole_backward", "input_gradients")
    for kernel, arguments, named in launches:
        compiled = compiled_for(capability, kernel, arguments, named)
        used = resources(compiled.asm["cubin"], tmp_path)
        # On sm_90 the compiler loads one pointer again in every step of segment_sums, to keep 56 registers.
        stack = 8 if kernel.__name__ == "segment_sums" and capability == 90 else 0
        assert used["STACK"] <= stack and used["LOCAL"] == 0, used
        assert compiled.metadata.shared <= 16 * 1024
        ptx, ttgir = compiled.asm["ptx"], compiled.asm["ttgir"]
        assert "fma.rn.f32" not in ptx or "div" in ptx, "a product was contracted with a sum"
        assert not re.search(r"(?:ld|st)\.global[\w.:]*\.b(?:8|16)\b", ptx), "single 16-bit numbers are moved"
        if kernel.__name__ in reads:
            vectors = r"v4\.b32|v2\.b64"
            if (
                call.layout == "nhwc"
                and call.dtype.itemsize == 2
                and kernel.__name__ in ("segment_sums", "input_gradients")
            ):
                vectors = r"v2\.b32"  # 8 bytes, for want of registers
            for access, least in ("ld", reads[kernel.__name__]), ("st", kernel.__name__ in writes):
                wide = re.findall(rf"{access}\.global[\w.:]*\.(?:{vectors})\b", ptx)
                assert len(wide) >= least, f"{len(wide)} vector accesses ({access}), must be {least} or more"
            for slow in ("convert_layout", "tt.reduce", "barrier"):
                assert in_loops(ttgir, slow) == 0, f"{slow} in every step"


sizes = st.integers(1, 70) | st.integers(1, 2**17)


@given(
    n=sizes, c=sizes, p=sizes, pixels=st.booleans(), element_size=st.sampled_from([2, 4, 8]), tensors=st.integers(1, 2)
)
def test_a_tile_that_holds_all_positions_covers_every_element(n, c, p, pixels, element_size, tensors):
    whole = kernels._whole_of(View(n, c, p, pixels), element_size, tensors)
    if whole is None:
        assert p > 128  # planes so small are never read twice
        return
    assert whole.rows * whole.columns * tensors <= 8192
    fast, channels = (c, whole.columns) if whole.nhwc else (p, whole.rows)
    assert fast % whole.align == 0
    assert (whole.rows if whole.nhwc else whole.columns) >= p
    of_all = c if whole.nhwc else n * c
    assert whole.tiles * channels >= of_all > (whole.tiles - 1) * channels
    assert whole.programs == whole.tiles * (n if whole.nhwc else 1)
