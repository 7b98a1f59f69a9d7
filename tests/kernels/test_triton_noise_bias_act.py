"""The Triton kernels of noise_bias_act without a GPU, compiled for three generations of cards.

Triton's interpreter runs them in test_tables_elsewhere.
"""

import math
import re
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgan_kernels.calls import NoiseBiasActCall, View

triton = pytest.importorskip("triton")

from fastgan_kernels.triton import noise_bias_act as kernels  # noqa: E402
from fastgan_kernels.triton import noise_gradient, tiles  # noqa: E402
from fastgan_kernels.triton.tiles import plan_of  # noqa: E402
from tests.support.compiled_triton import Recorder, compiled_for, in_loops, on_cards, resources  # noqa: E402

INTERPRETED = triton.knobs.runtime.interpret  # decided when the kernels were decorated
PARTS = ("noise", "strength", "bias", "scale", "post")
NOISY = ("noise", "strength", "bias")

# Compiled for cards ----------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A call of a launcher. The sizes are those of a training: all of them multiples of 16."""

    launcher: str
    layout: str
    dtype: torch.dtype
    act: str = "lrelu"
    parts: tuple[str, ...] = PARTS
    from_output: bool = False
    per_channel: bool = False
    learns_noise: bool = False

    def __str__(self):
        parts = "all" if self.parts == PARTS else "+".join(self.parts)
        learned = "-learned" * self.learns_noise
        return f"{self.launcher}-{self.layout}-{str(self.dtype)[6:]}-{self.act}-{parts}{learned}"

    def launch(self):
        n, c, p = 8, 128, 4096
        view = View(n, c, p, self.layout == "nhwc")
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        x = torch.empty(n, c, 64, 64, dtype=self.dtype)
        shapes = ((n, 1, 64, 64), (c,) if self.per_channel else (), (c,), (n, c), (n, c))
        small = {
            name: torch.empty(shape, dtype=kind) if name in self.parts else None
            for name, shape in zip(PARTS, shapes, strict=True)
        }
        others = [small[name] for name in PARTS[1:]]  # of the same shapes: sums to be made, cotangents
        options = (self.act, 0.2, 1.4, math.inf)
        shared = (*view, self.dtype, *options, True, self.per_channel and "strength" in self.parts, *small.values())
        match self.launcher:
            case "forward":
                kernels.forward(NoiseBiasActCall(*shared, x, x))
            case "backward":
                call = NoiseBiasActCall(*shared, None, None, self.from_output, x, x, x, *others)
                kernels.backward(call._replace(dnoise=small["noise"] if self.learns_noise else None))
            case "double_backward":
                results = (None,) * 5 if self.from_output else (x, *others)
                kernels.double_backward(
                    NoiseBiasActCall(*shared, None, None, self.from_output, x, x, *results, x, *others, x)
                )


def _calls():
    for layout in ("nhwc", "nchw"):
        for dtype, act in ((torch.bfloat16, "lrelu"), (torch.float32, "softplus")):
            yield Call("forward", layout, dtype, act)
            yield Call("backward", layout, dtype, act)
            from_output = act if act == "lrelu" else "sigmoid"  # softplus keeps its input
            yield Call("backward", layout, dtype, from_output, parts=("bias",), from_output=True)
            yield Call("double_backward", layout, dtype, act)
        yield Call("double_backward", layout, torch.bfloat16, parts=NOISY, from_output=True)
        yield Call("double_backward", layout, torch.float16, "silu", per_channel=True)
        for options in ({"parts": NOISY, "from_output": True}, {}, {"act": "silu", "per_channel": True}):
            yield Call("backward", layout, torch.bfloat16, **options, learns_noise=True)
    yield Call("backward", "nhwc", torch.float64, "tanh", learns_noise=True)


def launches_of(call, monkeypatch):
    launches = []
    for module, name in ((kernels, "_elements"), (tiles, "add_pieces"), (noise_gradient, "_noise_gradient")):
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), launches))
    call.launch()
    return launches


@pytest.mark.skipif(INTERPRETED, reason="kernels decorated for the interpreter cannot be compiled")
@pytest.mark.parametrize(("call", "capability"), on_cards(_calls()), ids=str)
def test_kernels_compile_to_wide_accesses_without_spills(call, capability, monkeypatch, tmp_path):
    launches = launches_of(call, monkeypatch)
    sums = call.launcher == "backward" or (call.launcher == "double_backward" and not call.from_output)
    names = ["_elements"] + ["add_pieces"] * sums + ["_noise_gradient"] * call.learns_noise
    assert [kernel.__name__ for kernel, *_ in launches] == names
    for kernel, arguments, named in launches:
        compiled = compiled_for(capability, kernel, arguments, named)
        used = resources(compiled.asm["cubin"], tmp_path)
        assert used["STACK"] == used["LOCAL"] == 0, used
        assert compiled.metadata.shared <= 16 * 1024

        ptx, ttgir = compiled.asm["ptx"], compiled.asm["ttgir"]
        assert not re.search(r"(?:ld|st)\.global[\w.:]*\.b(?:8|16)\b", ptx), "single 16-bit numbers are moved"
        if kernel.__name__ != "add_pieces":
            second = call.launcher == "double_backward" and not call.from_output
            loads = {"forward": 1, "backward": 2, "double_backward": 3 if second else 2}[call.launcher]
            vectors = r"v4\.b32|v2\.b64"
            if second and call.layout == "nhwc" and call.dtype.itemsize == 2:
                vectors = r"v2\.b32"  # 8 bytes, for want of registers
            stores = 2 if second else kernel.__name__ == "_elements"
            for access, least in ("ld", loads), ("st", stores):
                wide = re.findall(rf"{access}\.global[\w.:]*\.(?:{vectors})\b", ptx)
                assert len(wide) >= least, f"{len(wide)} vector accesses ({access}), must be {least} or more"
            for slow in ("convert_layout", "tt.reduce", "barrier"):
                assert in_loops(ttgir, slow) == 0, f"{slow} in every step"


# Cut into programs -----------------------------------------------------------------------------------------------

sizes = st.integers(1, 70) | st.integers(1, 2**17)


@given(n=sizes, c=sizes, p=sizes, pixels=st.booleans(), element_size=st.sampled_from([2, 4, 8]), twice=st.booleans())
def test_the_programs_cover_every_element_once(n, c, p, pixels, element_size, twice):
    plan = plan_of(View(n, c, p, pixels), element_size, twice)
    fast, slow = (c, p) if plan.nhwc else (p, n * c)
    assert plan.nhwc == (pixels and p > 1)
    assert fast % plan.align == 0 and (plan.align == 16 or fast % (2 * plan.align))
    for size in (plan.rows, plan.columns):
        assert size & (size - 1) == 0
    assert plan.rows * plan.columns * element_size <= 128 * 16
    if plan.nhwc:
        tiles, step = -(-fast // plan.columns), plan.rows
        assert plan.programs == n * plan.segments * plan.tiles
    else:
        tiles, step = -(-slow // plan.rows), plan.columns
        assert plan.programs == plan.segments * plan.tiles
    assert plan.tiles == tiles
    assert plan.segments * plan.steps * step >= p
    assert (plan.steps - 1) * plan.segments * step < p  # no step that could be left out of every segment
