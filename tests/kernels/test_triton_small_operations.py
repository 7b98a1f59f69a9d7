"""The Triton kernels of the operations of a formula each, compiled without a GPU for three generations of cards."""

import re
from typing import NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")

from fastgan_kernels.calls import (  # noqa: E402
    ImageBatchCall,
    MinibatchStddevCall,
    PixelNormCall,
    SamplesCall,
)
from fastgan_kernels.triton import (  # noqa: E402
    image_batch,
    lerp_samples,
    minibatch_stddev,
    pixel_norm,
    squared_norm,
)
from tests.support.compiled_triton import Recorder, compiled_for, in_loops, on_cards, resources  # noqa: E402

INTERPRETED = triton.knobs.runtime.interpret  # decided when the kernels were decorated
N, C, H, W = 8, 128, 64, 64


class Call(NamedTuple):
    """A call of a launcher. The sizes are those of a training: all of them multiples of 16."""

    module: object
    launcher: str
    kernels: tuple[str, ...]  # that it launches
    wide: tuple[int, int] | None  # tensors that the first reads and writes, 16 bytes a time; None where it cannot
    layout: str
    dtype: torch.dtype

    def __str__(self):
        name = self.module.__name__.rpartition(".")[2]
        return f"{name}-{self.launcher}-{self.layout}-{str(self.dtype)[6:]}"

    def launch(self):
        x = torch.empty(N, C, H, W, dtype=self.dtype)
        numbers = torch.empty(N)
        sizes, samples = (N, C, H * W, self.layout == "nhwc", self.dtype), (N, x.numel() // N, self.dtype)
        pixels, index, mirrored = torch.empty(N, H, W, C).byte(), torch.empty(N).long(), torch.empty(N).bool()
        norm = lambda order, *rest: PixelNormCall(*sizes, order, 1e-8, *rest)
        stddev = lambda order, *rest: MinibatchStddevCall(*sizes, order, 4, N // 4, 1, 1e-6, x, *rest)
        call = {
            (pixel_norm, "forward"): lambda: norm(0, x, x),
            (pixel_norm, "backward"): lambda: norm(1, x, x, None, x),
            (pixel_norm, "double_backward"): lambda: norm(2, x, x, x, x, x),
            (squared_norm, "forward"): lambda: SamplesCall(*samples, x, sums=numbers),
            (squared_norm, "backward"): lambda: SamplesCall(*samples, x, weight=numbers, first=x),
            (lerp_samples, "forward"): lambda: SamplesCall(*samples, x, x, numbers, x),
            (lerp_samples, "backward"): lambda: SamplesCall(*samples, x, None, numbers, x, x),
            (image_batch, "forward"): lambda: ImageBatchCall(N, N, H, W, C, self.dtype, x, pixels, index, mirrored),
            (minibatch_stddev, "forward"): lambda: stddev(0, x),
            (minibatch_stddev, "backward"): lambda: stddev(1, None, x, x),
            (minibatch_stddev, "double_backward"): lambda: stddev(2, x, x, x, x),
        }[self.module, self.launcher]()
        (getattr(self.module, "run", None) or getattr(self.module, self.launcher))(call)


def _calls():
    for dtype in (torch.bfloat16, torch.float32):
        for layout in ("nhwc", "nchw"):
            for launcher, reads, writes in (("forward", 1, 1), ("backward", 2, 1), ("double_backward", 3, 2)):
                yield Call(pixel_norm, launcher, ("_normalize",), (reads, writes), layout, dtype)
            module, sums = minibatch_stddev, ("_add_pieces", "_append")
            yield Call(module, "forward", ("_walk", *sums), None, layout, dtype)
            yield Call(module, "backward", ("_gradient_of_maps", "_walk"), None, layout, dtype)
            yield Call(module, "double_backward", ("_gradient_of_maps", "_walk", *sums), None, layout, dtype)
        yield Call(squared_norm, "forward", ("_sum_of_squares", "_add_pieces"), (1, 0), "nhwc", dtype)
        yield Call(squared_norm, "backward", ("_scale",), (1, 1), "nhwc", dtype)
        yield Call(lerp_samples, "forward", ("_lerp",), (2, 1), "nhwc", dtype)
        yield Call(lerp_samples, "backward", ("_split",), (1, 2), "nhwc", dtype)
        yield Call(image_batch, "forward", ("_image_batch",), (1, 1), "nhwc", dtype)


@pytest.mark.skipif(INTERPRETED, reason="kernels decorated for the interpreter cannot be compiled")
@pytest.mark.parametrize(("call", "capability"), on_cards(_calls()), ids=str)
def test_kernels_compile_without_spills_and_to_wide_accesses(call, capability, monkeypatch, tmp_path):
    launches = []
    for name in call.kernels:
        monkeypatch.setattr(call.module, name, Recorder(getattr(call.module, name), launches))
    call.launch()
    assert tuple(kernel.__name__ for kernel, *_ in launches) == call.kernels
    for i, (kernel, arguments, named) in enumerate(launches):
        compiled = compiled_for(capability, kernel, arguments, named)
        used = resources(compiled.asm["cubin"], tmp_path)
        assert used["STACK"] == used["LOCAL"] == 0, used
        if call.wide and i == 0:
            for access, least in zip(("ld", "st"), call.wide, strict=True):
                wide = re.findall(rf"{access}\.global[\w.:]*\.(?:v4\.b32|v2\.b64)\b", compiled.asm["ptx"])
                assert len(wide) >= least, f"{len(wide)} vector accesses ({access}), must be {least} or more"
            for slow in ("convert_layout", "tt.reduce", "barrier"):
                assert in_loops(compiled.asm["ttgir"], slow) == 0, f"{slow} in every step"
