"""What the L2 serves of the Triton kernels that filter, counted from their plans."""

import pytest
import torch

from bench.forms import FILTERED
from fastgan_kernels.calls import Upfirdn2dCall

strips = pytest.importorskip("fastgan_kernels.triton.strips")


def reads(call: Upfirdn2dCall) -> float:
    """Pixels that programs read, each once a program, by the pixels of the image."""
    plan = strips.plan_of(call)
    border = 1 if call.up_x == 2 else 4 - call.down_x
    step_x, width = (1, 2) if call.up_x == 2 else (2 * call.down_x, call.down_x + 4)
    total = 0
    for tile in range(plan.segments):
        seen = torch.zeros(call.h, call.w, dtype=torch.bool)
        for strip in range(tile * plan.lanes, min((tile + 1) * plan.lanes, plan.strips)):
            top = plan.first_y + strip // plan.runs * plan.steps * call.down_y
            left = plan.first_x + strip % plan.runs * step_x
            bottom = top + plan.steps * call.down_y + border
            seen[max(top, 0) : max(bottom, 0), max(left, 0) : max(left + width, 0)] = True
        total += int(seen.sum())
    return total / (call.h * call.w)


def call_of(shape, up, down, pad) -> Upfirdn2dCall:
    n, c, h, w = shape
    oh, ow = ((size * up + 2 * pad - 4 + (up == 2)) // down + 1 for size in (h, w))
    none = torch.empty(0)
    return Upfirdn2dCall(
        n, c, h, w, oh, ow, True, torch.bfloat16, up, up, down, down, pad, pad, 4, 4, True, 1.0, False, none, none
    )


@pytest.mark.parametrize("shape", [(32, 512, 32, 32), *FILTERED["cuda"]], ids=str)
@pytest.mark.parametrize(("up", "down", "pad"), [(1, 1, 2), (1, 1, 1), (2, 1, 2), (1, 2, 1)])
def test_an_input_is_read_little_more_than_once(shape, up, down, pad):
    call = call_of(shape, up, down, pad)
    assert strips.fits(call)
    assert 1 <= reads(call) <= 1.3
