"""More elements than 32 bits count, without the memory for them: a few megabytes that are mapped over and over again.

What a kernel writes to one place then appears at all its images; an index cut to 32 bits leaves the mapping, which ends
the process. So the test runs in one of its own.
"""

import ctypes
import mmap
import os
import subprocess
import sys

import pytest
import torch

import fastgan_kernels
from fastgan import ops
from fastgan_kernels.signatures import View
from tests import backends

CHANNELS, CHUNK = 64, 8 << 20  # bytes of physical memory behind a tensor
ELEMENTS = (1 << 31) + (CHUNK // 2)  # bf16


def mapped(elements: int) -> torch.Tensor:
    """A bf16 tensor of so many elements, all chunks of which are one and the same memory."""
    size = elements * 2
    assert size % CHUNK == 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    memory = os.memfd_create("fastgan")
    os.ftruncate(memory, CHUNK)
    anonymous, fixed, no_reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 0x10, 0x4000
    start = libc.mmap(None, size, 0, anonymous | no_reserve, -1, 0)
    for offset in range(0, size, CHUNK):
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        got = libc.mmap(start + offset, CHUNK, protection, mmap.MAP_SHARED | fixed, memory, 0)
        assert got == start + offset, os.strerror(ctypes.get_errno())
    return torch.frombuffer((ctypes.c_char * size).from_address(start), dtype=torch.bfloat16)


def run_kernels(pixels: bool) -> None:
    x, dy, y, dx = (mapped(ELEMENTS) for _ in range(4))
    head = CHUNK // 2
    pattern = torch.arange(head).remainder(7).sub(3)
    for t in (x, dy):
        t[:head] = pattern.to(t.dtype)
    positions = ELEMENTS // CHANNELS
    view = View(1, CHANNELS, positions, pixels)
    bias, dbias = torch.zeros(CHANNELS), torch.empty(CHANNELS)
    launchers = fastgan_kernels.BACKENDS["cpp"].launchers("noise_bias_act")
    options = ("lrelu", 0.5, 2.0, float("inf"))
    launchers.forward(view, y, x, None, None, bias, None, None, *options)
    launchers.backward(view, dx, None, dbias, None, None, dy, y, True, None, None, bias, None, None, *options)
    slope = torch.where(pattern > 0, 2.0, 1.0)
    assert torch.equal(y[:head].float(), pattern * slope) and torch.equal(dx[:head].float(), pattern * slope)
    if pixels:  # a chunk is whole pixels; in NCHW channels begin within one
        images = ELEMENTS // head
        expected = (pattern * slope).double().reshape(-1, CHANNELS).sum(0) * images
        torch.testing.assert_close(dbias.double(), expected, rtol=1e-4, atol=1e-2 * images)


def run_others() -> None:
    """The forward kernels of the other operations in NHWC; a chunk is whole pixels, and whole rows of an image."""
    x, y = mapped(ELEMENTS), mapped(ELEMENTS)
    head, width = CHUNK // 2, 1024
    x[:head] = torch.arange(head).remainder(11).sub(4).to(x.dtype)
    view = View(1, CHANNELS, ELEMENTS // CHANNELS, True)

    def image(t):
        return t.view(1, -1, width, CHANNELS).permute(0, 3, 1, 2)

    def check(name, expected, rows=slice(None)):
        torch.testing.assert_close(image(y[:head])[:, :, rows], expected[:, :, rows], rtol=0.01, atol=0.01, msg=name)
        y[:head] = float("nan")

    chunk, launchers = image(x[:head]), lambda name: fastgan_kernels.BACKENDS["cpp"].launchers(name)
    launchers("pixel_norm").forward(view, y, x, 1e-8)
    check("pixel_norm", ops.pixel_norm(chunk))
    statistics = torch.empty(2, 1, CHANNELS)
    launchers("instance_norm").forward(view, y, statistics, x, *[None] * 5, 1.0, 1.0, 1e-5)
    check("instance_norm", ops.adain(chunk))
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    launchers("upfirdn2d").forward(image(y), image(x), taps, 1, 1, 1, 1, 2, 1, 2, 1, 1.0, False, True)
    check("upfirdn2d", ops.upfirdn2d(chunk, taps, padding=(2, 1, 2, 1)), slice(3, -3))  # neighbours are other images
    sums = torch.empty(1)
    launchers("squared_norm").forward(sums, x.view(1, -1))
    expected = chunk.double().square().sum() * (ELEMENTS // head)
    torch.testing.assert_close(sums[0].double(), expected, rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
@pytest.mark.parametrize("call", ["run_kernels(pixels=True)", "run_kernels(pixels=False)", "run_others()"])
def test_cpp_kernels_count_in_64_bits(call):
    if reason := backends.why_not("cpp-baseline"):
        pytest.skip(reason)
    code = f"from tests import test_large; test_large.{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
