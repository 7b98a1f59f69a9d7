"""More than 2^31 elements, on every backend.

A CPU has no memory for such tensors. There a tensor is one chunk of some megabytes, mapped repeatedly: a write to one
place appears in all its images, so every image must get the same value. The addresses before each tensor are reserved
but not mapped: an index truncated to 32 bits leads there and kills the process. So the kernels run in a process of
their own. A GPU has the memory.

Emulated CUDA and interpreted Triton would take hours (a second for a few million elements, 2 ms a program). They
execute only the first and the last blocks of every launch, and Triton only the first and the last iterations of long
loops: the largest indices are among them. Then only written elements are compared, and no sums or values that depend on
sums.
"""

import contextlib
import ctypes
import fcntl
import math
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

import fastgan_kernels
from fastgan import ops
from fastgan.ops.bias_act_blur import BiasActBlur
from fastgan.ops.bias_act_blur import Options as BlurOptions
from fastgan.ops.filtered_lrelu import Options as AliasFreeOptions
from fastgan.ops.filtered_lrelu import call_of as alias_free_call_of
from fastgan.ops.filtered_noise_bias_act import FilteredNoiseBiasAct
from fastgan.ops.filtered_noise_bias_act import Options as FusedOptions
from fastgan.ops.upfirdn2d import Options as FilterOptions
from fastgan.ops.upfirdn2d import call_of
from fastgan_kernels.calls import (
    FewChannelsCall,
    ImageBatchCall,
    MinibatchStddevCall,
    NoiseBiasActCall,
    NoiseBiasActToRGBCall,
    NormCall,
    PixelNormCall,
    SamplesCall,
    WeightGradientCall,
)
from tests.emulation import build as emulation
from tests.support import backends

# A chunk has 63 rows of 1024 pixels with 64 channels. So 2^32 elements are no whole number of chunks, and elements that
# far apart differ.
ROWS, WIDTH, CHANNELS = 63, 1024, 64
CHUNK = ROWS * WIDTH * CHANNELS
PAST = 1 << 31
ENDS = {"emulated": 8, "triton": 2}  # blocks executed at each end; some of the last have no work
# Iterations of a `range` in an interpreted program; of longer ones the first and the last run. A `tl.range` runs all.
MANY_TURNS = 16
FEW_BLOCKS = ("instance_norm, NHWC", "batch_norm_act, NHWC")  # blocks of millions of elements: one runs at each end
GPU_BYTES = 24 << 30  # enough for the largest case

# Memory ------------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
FIXED, NO_RESERVE, POPULATE = 0x10, 0x4000, 0x8000  # of mmap, on Linux


def _map(start: int | None, size: int, protection: int, flags: int, file: int) -> int:
    got = _libc.mmap(start, size, protection, flags, file, 0)
    if got is None or got == ctypes.c_void_p(-1).value:
        raise MemoryError(os.strerror(ctypes.get_errno()))
    return got


_unused: dict[tuple[int, int, int], list[int]] = {}  # addresses of released mappings, by their sizes


def mapped(chunk: Tensor, count: int, populate: bool) -> tuple[Tensor, Callable[[], None]]:
    """`count` consecutive mappings of the memory of one chunk, and a function that releases them for another.

    With `populate`, the operating system maps all pages at once, which is cheaper if all of them are used. It takes as
    long as some kernels, so released mappings are used again.
    """
    assert chunk.nbytes % mmap.PAGESIZE == 0
    sizes = PAST * chunk.itemsize, chunk.nbytes, count
    unused = _unused.setdefault(sizes, [])
    start = unused.pop() if unused else _mapped_anew(*sizes, populate)
    memory = (ctypes.c_char * (count * chunk.nbytes)).from_address(start)
    whole = torch.frombuffer(memory, dtype=chunk.dtype)
    whole[: chunk.numel()] = chunk
    return whole, lambda: unused.append(start)


def _mapped_anew(guard: int, nbytes: int, count: int, populate: bool) -> int:
    """Address of `count` mappings of the same `nbytes`, after `guard` bytes that must not be accessed."""
    file = os.memfd_create("fastgan")
    os.ftruncate(file, nbytes)
    start = _map(None, guard + count * nbytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE, -1) + guard
    for i in range(count):
        flags = mmap.MAP_SHARED | FIXED | (POPULATE if populate else 0)
        _map(start + i * nbytes, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, file)
    os.close(file)
    return start


# The cases ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A backend and the memory of its tensors, which are flat, in bf16 or bytes, and consist of equal chunks."""

    backend: str
    device: str = "cpu"
    mapped: bool = True
    ends: int = 0  # blocks executed at each end of a grid; 0 for all
    large: bool = True
    _mappings: list[Callable[[], None]] = field(default_factory=list)

    def count(self, chunk: int = CHUNK) -> int:
        """Number of chunks with more than 2^31 elements. Always one more than a multiple of 3."""
        least = PAST // chunk + 1 if self.large else 4
        return least + (1 - least) % 3

    def repeated(self, chunk: Tensor, count: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        chunk = chunk.flatten().to(dtype)
        if not self.mapped:
            return chunk.to(self.device).repeat(count)
        whole, release = mapped(chunk, count, populate=not self.ends)
        self._mappings.append(release)
        return whole

    def unwritten(self, count: int, chunk: int = CHUNK) -> Tensor:
        return self.repeated(torch.full((chunk,), math.nan), count)

    def small(self, *shape: int, value: float = math.nan) -> Tensor:
        return torch.full(shape, value, device=self.device)

    def launchers(self, operation: str):
        return fastgan_kernels.BACKENDS[self.backend].launchers(operation)

    def check(self, name: str, got: Tensor, expected: Tensor, where: Tensor | None = None) -> None:
        """Asserts that all chunks of `got` equal `expected`, at the places `where` if given (shape of `expected`).

        With `ends`, compares written elements only, and requires some in the first and in the last of these rows.
        """
        chosen = torch.ones_like(expected, dtype=torch.bool) if where is None else where
        rows = expected.shape[0]
        expected, chosen = (t.flatten().to(self.device) for t in (expected, chosen))
        for chunk in got[: len(expected)].unsqueeze(0) if self.mapped else got.view(-1, len(expected)):
            here = chosen
            if self.ends:
                here = chosen & ~chunk.isnan()
                compared = here.view(rows, -1).any(1)[chosen.view(rows, -1).any(1)]
                assert compared[0] and compared[-1], f"{name}: nothing to compare at an end"
            torch.testing.assert_close(
                chunk[here].float(), expected[here].float(), rtol=0.01, atol=0.01, msg=lambda text: f"{name}: {text}"
            )

    def check_sums(self, name: str, got: Tensor, expected: Tensor, terms: int) -> None:
        """Compares sums of `terms` numbers of magnitude 1 to a few."""
        if not self.ends:
            torch.testing.assert_close(
                got.double().cpu(), expected.double(), rtol=1e-4, atol=1e-4 * terms, msg=lambda text: f"{name}: {text}"
            )

    def release(self) -> None:
        while self._mappings:
            self._mappings.pop()()


def numbers(period: int, least: int, count: int = CHUNK) -> Tensor:
    return torch.arange(count).remainder(period).add(least).bfloat16()


def image(t: Tensor) -> Tensor:
    """The rows of a chunk, or of all chunks stacked, as an image in channels_last."""
    return t.view(1, -1, WIDTH, CHANNELS).permute(0, 3, 1, 2)


def rows_of(t: Tensor) -> Tensor:
    """The rows of an image in channels_last, in memory order."""
    return t.permute(0, 2, 3, 1).reshape(t.shape[2], -1)


def plain(function: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """`function(x)` in plain PyTorch, and the gradient of x for a `dy`."""
    x = x.detach().requires_grad_()
    with ops.use_backend("torch"):
        y = function(x)
    return y.detach(), None if dy is None else torch.autograd.grad(y, x, dy)[0]


def noise_bias_act(run: Run, n: int, c: int, pixels: bool) -> None:
    count = run.count()
    values = numbers(7, -3)
    x, dy = (run.repeated(values, count) for _ in range(2))
    y, dx = (run.unwritten(count) for _ in range(2))
    bias, dbias = run.small(c, value=0.0), run.small(c)
    options = ("lrelu", 0.5, 2.0, math.inf)
    expected = (values * torch.where(values > 0, 2.0, 1.0)).view(ROWS, -1)
    launchers = run.launchers("noise_bias_act")
    small = None, None, bias, None, None
    shared = n, c, count * CHUNK // (n * c), pixels, x.dtype, *options, False, False, *small
    launchers.forward(NoiseBiasActCall(*shared, x, y))
    run.check("y", y, expected)
    y[:CHUNK] = expected.flatten().to(y)  # all of it, for the backward pass
    launchers.backward(NoiseBiasActCall(*shared, from_output=True, dy=dy, reference=y, dx=dx, dbias=dbias))
    run.check("dx", dx, expected)
    of_channels = expected.double().view(-1, c).sum(0) if pixels else expected.double().view(c, -1).sum(1)
    run.check_sums("dbias", dbias, of_channels * count, count * CHUNK // c)


def noise_bias_act_to_rgb(run: Run, n: int) -> None:
    count, pixels = run.count(), ROWS * WIDTH
    of_x, of_dy, of_drgb = numbers(7, -3), numbers(11, -4), numbers(13, -6, pixels)
    x, dy = run.repeated(of_x, count), run.repeated(of_dy, count)
    y, dx = (run.unwritten(count) for _ in range(2))
    drgb = run.repeated(of_drgb, count, torch.float32)
    rgb = run.repeated(torch.full((pixels,), math.nan), count, torch.float32)
    small = run.small(n, 1, CHANNELS, value=0.25), None, None, None, None, run.small(n, CHANNELS, value=0.5)
    shared = n, CHANNELS, count * pixels // n, 1, x.dtype, 0.5, 2.0, math.inf, False, *small, x
    slope = torch.where(of_x > 0, 2.0, 1.0)
    z = of_x * slope
    launchers = run.launchers("noise_bias_act_to_rgb")
    launchers.forward(NoiseBiasActToRGBCall(*shared, y, rgb))
    run.check("y", y, (0.5 * z).view(ROWS, -1))
    run.check("rgb", rgb, 0.25 * z.view(-1, CHANNELS).sum(1).view(ROWS, -1))
    dto_rgb = run.small(n, 1, CHANNELS)
    launchers.backward(NoiseBiasActToRGBCall(*shared, dy=dy, drgb=drgb, dx=dx, dto_rgb=dto_rgb))
    run.check("dx", dx, ((0.5 * of_dy + 0.25 * of_drgb.repeat_interleave(CHANNELS)) * slope).view(ROWS, -1))
    of_chunk = (z.double().view(-1, CHANNELS) * of_drgb.double()[:, None]).sum(0)
    run.check_sums("dto_rgb", dto_rgb, of_chunk.expand(n, 1, -1) * count / n, count * pixels // n)


def squared_norm(run: Run, n: int) -> None:
    count = run.count()
    values = numbers(11, -4)
    x, dx, sums = run.repeated(values, count), run.unwritten(count), run.small(n)
    launchers = run.launchers("squared_norm")
    sizes, rows = (n, x.numel() // n, x.dtype), x.view(n, -1)
    launchers.forward(SamplesCall(*sizes, rows, sums=sums))
    launchers.backward(SamplesCall(*sizes, rows, weight=run.small(n, value=0.25), first=dx.view(n, -1)))
    run.check("dx", dx, (0.5 * values).view(ROWS, -1))
    run.check_sums("sums", sums, values.double().square().sum().expand(n) * (count / n), 0)


def lerp_samples(run: Run, n: int) -> None:
    count = run.count()
    of_a, of_b = numbers(7, -3), numbers(11, -4)
    a, b = run.repeated(of_a, count), run.repeated(of_b, count)
    y, da, db = (run.unwritten(count) for _ in range(3))
    t = run.small(n, value=0.25)
    launchers = run.launchers("lerp_samples")
    sizes = n, a.numel() // n, a.dtype
    launchers.forward(SamplesCall(*sizes, a.view(n, -1), b.view(n, -1), t, y.view(n, -1)))
    run.check("y", y, torch.lerp(of_a, of_b, 0.25).view(ROWS, -1))
    launchers.backward(SamplesCall(*sizes, b.view(n, -1), None, t, da.view(n, -1), db.view(n, -1)))
    run.check("da", da, (0.75 * of_b).view(ROWS, -1))
    run.check("db", db, (0.25 * of_b).view(ROWS, -1))


def image_batch(run: Run, images: int, rows: int, mirrored: bool) -> None:
    """`images` images of a chunk or more, with `rows` rows of a chunk or more (0: rows of WIDTH pixels)."""
    count, c = run.count(), CHANNELS
    values = numbers(251, 0)
    pixels, y = run.repeated(values, count, torch.uint8), run.unwritten(count)
    h = rows or count * CHUNK // (images * WIDTH * c)
    shape = images, h, count * CHUNK // (images * h * c), c
    index = torch.arange(images, device=run.device).flip(0)
    flags = torch.full((images,), mirrored, device=run.device)
    launchers = run.launchers("image_batch")
    y_nhwc = y.view(shape).permute(0, 3, 1, 2)
    launchers.run(ImageBatchCall(images, *shape, y.dtype, y_nhwc, pixels.view(shape), index, flags))
    of_rows = values.float().view(-1, WIDTH if not rows else ROWS * WIDTH, c)
    expected = (of_rows.flip(1) if mirrored else of_rows) / 127.5 - 1
    run.check("y", y, expected.view(ROWS, -1))


def pixel_norm(run: Run, n: int, pixels: bool) -> None:
    count = run.count()
    of_x, of_dy = numbers(7, -3), numbers(11, -4)
    x, dy = run.repeated(of_x, count), run.repeated(of_dy, count)
    y, dx = (run.unwritten(count) for _ in range(2))
    sizes = n, CHANNELS, count * CHUNK // (n * CHANNELS), pixels, x.dtype
    shape = (-1, CHANNELS) if pixels else (1, CHANNELS, -1)  # pixels are samples alike
    expected_y, expected_dx = plain(ops.pixel_norm, of_x.view(shape), of_dy.view(shape))
    launchers = run.launchers("pixel_norm")
    launchers.run(PixelNormCall(*sizes, 0, 1e-8, x, y))
    run.check("y", y, expected_y.view(ROWS, -1))
    launchers.run(PixelNormCall(*sizes, 1, 1e-8, x, dx, None, dy))
    run.check("dx", dx, expected_dx.view(ROWS, -1))


def instance_norm(run: Run, n: int, pixels: bool) -> None:
    """Everything depends on sums. So with `ends` this only tests that kernels access nothing outside their tensors."""
    count = run.count()
    of_x, of_dy = numbers(7, -3), numbers(11, -4)
    x, dy = run.repeated(of_x, count), run.repeated(of_dy, count)
    y, dx = (run.unwritten(count) for _ in range(2))
    sizes = n, CHANNELS, count * CHUNK // (n * CHANNELS), pixels
    statistics = run.small(2, n, CHANNELS, value=0.0)
    launchers = run.launchers("instance_norm")
    shared = *sizes, x.dtype, False, 1.0, 1.0, 1e-5, False, False, *[None] * 5, x, statistics
    launchers.forward(NormCall(*shared, y))
    launchers.backward(NormCall(*shared, None, dy, dx))
    if not run.ends:
        of_sample = (lambda t: t.view(1, -1, CHANNELS).movedim(-1, 1)) if pixels else lambda t: t.view(1, CHANNELS, -1)
        expected = plain(ops.adain, of_sample(of_x), of_sample(of_dy))
        for name, got, of_chunk in zip(("y", "dx"), (y, dx), expected, strict=True):
            in_order = of_chunk.movedim(1, -1) if pixels else of_chunk
            run.check(name, got, in_order.reshape(ROWS, -1))


def batch_norm_act(run: Run, n: int, pixels: bool) -> None:
    """Everything depends on sums, see `instance_norm`."""
    if run.backend == "cpp" and pixels:
        return  # the same code as instance_norm of one sample
    count = run.count()
    of_x, of_dy = numbers(7, -3), numbers(11, -4)
    x, dy = run.repeated(of_x, count), run.repeated(of_dy, count)
    y, dx = (run.unwritten(count) for _ in range(2))
    p = count * CHUNK // CHANNELS
    sizes = (1, CHANNELS, p, True) if pixels else (n, CHANNELS, p // n, False)
    statistics = run.small(3, CHANNELS, value=0.0)
    launchers = run.launchers("batch_norm_act")
    shared = *sizes, x.dtype, True, 1.0, 1.0, 1e-5, False, False, *[None] * 5, x, statistics
    launchers.forward(NormCall(*shared, y))
    launchers.backward(NormCall(*shared, None, dy, dx))
    if not run.ends:
        of_sample = (lambda t: t.view(1, -1, CHANNELS).movedim(-1, 1)) if pixels else lambda t: t.view(1, CHANNELS, -1)
        expected = plain(lambda t: ops.batch_norm_act(t, act="linear"), of_sample(of_x), of_sample(of_dy))
        for name, got, of_chunk in zip(("y", "dx"), (y, dx), expected, strict=True):
            in_order = of_chunk.movedim(1, -1) if pixels else of_chunk
            run.check(name, got, in_order.reshape(ROWS, -1))


def taps(run: Run) -> Tensor:
    return torch.tensor([1.0, 3.0, 3.0, 1.0], device=run.device) / 8


def within(neighbours: int = 3) -> Tensor:
    """Marks rows whose neighbours lie in the same chunk."""
    where = torch.zeros(ROWS, WIDTH * CHANNELS, dtype=torch.bool)
    where[neighbours:-neighbours] = True
    return where


def upfirdn2d_of_one_image(run: Run) -> None:
    count = run.count()
    values = numbers(11, -4)
    x, y = run.repeated(values, count), run.unwritten(count)
    blur = lambda t: ops.upfirdn2d(t, taps(Run("torch")), padding=(2, 1, 2, 1))
    expected, _ = plain(blur, image(values))
    launchers = run.launchers("upfirdn2d")
    launchers.forward(call_of(image(y), image(x), taps(run), FilterOptions(1, 1, 1, 1, 2, 1, 2, 1, 1.0, False, True)))
    run.check("y", y, rows_of(expected), within())


def upfirdn2d_of_planes(run: Run) -> None:
    count = run.count()
    values = numbers(11, -4)
    x, y = run.repeated(values, count), run.unwritten(count)
    planes = lambda t: t.view(-1, CHANNELS, ROWS, WIDTH)
    blur = lambda t: ops.upfirdn2d(t, taps(Run("torch")), padding=(2, 1, 2, 1))
    expected, _ = plain(blur, planes(values))
    launchers = run.launchers("upfirdn2d")
    options = FilterOptions(1, 1, 1, 1, 2, 1, 2, 1, 1.0, False, False)
    launchers.forward(call_of(planes(y), planes(x), taps(run), options))
    run.check("y", y, expected.view(ROWS, -1))


def filtered_noise_bias_act(run: Run) -> None:
    if run.backend == "cpp":
        return  # two operations that have cases of their own
    count = run.count()
    of_x, of_dy = numbers(11, -4), numbers(7, -3)
    x, dy = run.repeated(of_x, count), run.repeated(of_dy, count)
    y, dx = (run.unwritten(count) for _ in range(2))
    bias = run.small(CHANNELS, value=1 / 128)  # filtered values are multiples of 1/64, so no sum is zero
    scale = run.small(1, CHANNELS, value=1.0)  # the derivative is computed from x
    small, options = (None, None, bias, scale, None), FusedOptions(2, 1, 2, 1, 1.0, 0.5, 2.0, math.inf)
    blur = lambda t: ops.upfirdn2d(t, taps(Run("torch")), padding=(2, 1, 2, 1))
    filtered, _ = plain(blur, image(of_x.float()))
    slope = torch.where(filtered + 1 / 128 > 0, 2.0, 1.0)
    launchers = run.launchers("filtered_noise_bias_act")
    FilteredNoiseBiasAct.launch_forward(launchers, image(y), (image(x), taps(run), *small), options)
    run.check("y", y, rows_of((filtered + 1 / 128) * slope), within())
    grads = image(dx), None, None, None, run.small(CHANNELS), None, None
    backward = lambda: FilteredNoiseBiasAct.launch_backward(
        launchers, grads, image(dy), (image(x), taps(run), *small), options
    )
    if run.backend == "triton" and run.ends:
        # dx takes a second kernel, that of upfirdn2d, which would read what blocks have written that did not run.
        du, filters = run.unwritten(count), import_module("fastgan_kernels.triton.upfirdn2d")
        with (
            mock.patch.object(torch, "empty_like", lambda like: image(du)),
            mock.patch.object(filters, "forward", lambda call: None),
        ):
            backward()
        run.check("du", du, of_dy.view(ROWS, -1) * rows_of(slope), within())
        return
    backward()
    _, expected = plain(blur, image(of_x.float()), image(of_dy.float()) * slope)
    run.check("dx", dx, rows_of(expected), within(6))


def bias_act_blur(run: Run) -> None:
    count = run.count()
    of_x, of_dy = numbers(11, -4), numbers(7, -3)
    x, dy = run.repeated(of_x, count), run.repeated(of_dy, count)
    y, dx = (run.unwritten(count) for _ in range(2))
    options = BlurOptions(0.5, 2.0, math.inf, 2, 1, 2, 1)
    activated = lambda t: ops.noise_bias_act(t, slope=0.5, gain=2.0)
    blur = lambda t: ops.upfirdn2d(activated(t), taps(Run("torch")), padding=(2, 1, 2, 1))
    expected, _ = plain(blur, image(of_x))
    adjoint, _ = plain(lambda t: ops.upfirdn2d(t, taps(Run("torch")), padding=(1, 2, 1, 2)), image(of_dy.float()))
    slope = torch.where(image(of_x) > 0, 2.0, 1.0)
    launchers = run.launchers("bias_act_blur")
    BiasActBlur.launch_forward(launchers, image(y), (image(x), taps(run), None), options)
    run.check("y", y, rows_of(expected), within())
    BiasActBlur.launch_backward(launchers, (image(dx), None, None), image(dy), (image(x), taps(run), None), options)
    run.check("dx", dx, rows_of((adjoint * slope).bfloat16()), within())


def filtered_lrelu(run: Run) -> None:
    """With 4 taps, as the other filters. On a GPU with the 12 of StyleGAN3 and twice the rate, a kernel of its own: its
    blocks march down the whole image, and one takes minutes if it is emulated."""
    rate, size = (2, 12) if run.backend == "cuda" else (1, 4)
    filters = [torch.arange(1.0, size + 1, device=run.device) / 64, torch.arange(size, 0.0, -1, device=run.device) / 64]
    before, both = size, 2 * size - 1 - rate
    sides = (before, both - before) * 2
    count, values = run.count(), numbers(11, -4)
    x, y = run.repeated(values, count), run.unwritten(count)
    named = {"up": rate, "down": rate, "padding": sides, "slope": 0.5, "gain": 2.0}
    expected, _ = plain(lambda t: ops.filtered_lrelu(t, *[f.cpu() for f in filters], **named), image(values))
    options = AliasFreeOptions(
        rate, rate, before, before, image(y).shape[2], WIDTH, rate**2, 0.5, 2.0, math.inf, False, False, 0, 0, True
    )
    call = alias_free_call_of(image(y), (image(x), *filters, None), options)
    run.launchers("filtered_lrelu").forward(call._replace(reads_signs=False))
    run.check("y", y, rows_of(expected), within(size))


def minibatch_stddev(run: Run) -> None:
    """A group of three samples that begin a third of a chunk apart.

    So the samples differ, and all images of one place combine the same three values, in another order.
    """
    rows, c, features = 432, 8064, 128
    every = c + features
    of_x, of_dy = numbers(11, -4, rows * c), numbers(7, -3, rows * every)
    count = run.count(rows * c)
    x, dy = run.repeated(of_x, count), run.repeated(of_dy, count)
    y, dx = run.unwritten(count, rows * every), run.unwritten(count, rows * c)
    samples = lambda t: t.view(3, rows // 3, -1).movedim(-1, 1)
    in_order = lambda t: t.movedim(1, -1).reshape(rows, -1)
    expected_y, expected_dx = plain(lambda t: ops.minibatch_stddev(t, 3, features), samples(of_x), samples(of_dy))
    p = count * rows // 3
    shared = 3, c, p, True, x.dtype, 3, 1, features, 1 / (c // features * p * 3), x
    launchers = run.launchers("minibatch_stddev")
    launchers.run(MinibatchStddevCall(*shared[:5], 0, *shared[5:], y))
    copied = torch.arange(every).expand(rows, every) < c if run.ends else None  # the others are sums
    run.check("y", y, in_order(expected_y), copied)
    launchers.run(MinibatchStddevCall(*shared[:5], 1, *shared[5:], None, dx, dy))
    run.check("dx", dx, in_order(expected_dx))


def weight_gradient(run: Run, n: int) -> None:
    """The kernel is one pixel high, so all chunks give the same sum, row by row."""
    if run.backend != "cpp":
        return  # no other backend has it
    channels, kernel, padding = 8, (1, 2), (0, 1)
    of_large, of_small = numbers(7, -3), numbers(11, -4, ROWS * WIDTH * channels)
    count = run.count()
    large, small = (run.repeated(of, count, torch.float32) for of in (of_large, of_small))
    dw = run.small(channels, CHANNELS, *kernel).to(memory_format=torch.channels_last)
    nhwc = lambda t, n, c: t.view(n, -1, WIDTH, c).permute(0, 3, 1, 2)
    images = nhwc(small, n, channels), nhwc(large, n, CHANNELS)
    sizes = *images[0].shape, *images[1].shape[1:], *kernel, 1, *padding
    run.launchers("weight_gradient").run(WeightGradientCall(dw.dtype, *sizes, dw, *images))
    to_the_right = torch.nn.functional.pad(nhwc(of_small.double(), 1, channels), (0, 1))  # the library pads there, too
    of_chunk = torch.nn.grad.conv2d_weight(
        nhwc(of_large.double(), 1, CHANNELS), dw.shape, to_the_right, padding=padding
    )
    run.check_sums("dw", dw, of_chunk * count, 0)


def few_channels(run: Run, n: int) -> None:
    """The kernel is one pixel high."""
    if run.backend != "cpp":
        return  # no other backend has it
    channels, kernel, padding = 2, (1, 3), (0, 1)
    count, nhwc = run.count(), lambda t, n, c: t.view(n, -1, WIDTH, c).permute(0, 3, 1, 2)
    many_chunk, few_chunk = numbers(7, -3), numbers(11, -4, ROWS * WIDTH * channels)
    weight = numbers(5, -2, CHANNELS * channels * 3).view(CHANNELS, channels, *kernel)
    steps = weight.stride(1), weight.stride(3), weight.stride(0)
    many, few = run.repeated(many_chunk, count), run.repeated(few_chunk, count)
    one_many, one_few = nhwc(many_chunk.double(), 1, CHANNELS), nhwc(few_chunk.double(), 1, channels)

    def launch(map_: str, many: Tensor, few_image: Tensor, weight: Tensor) -> None:
        many, few_image = nhwc(many, n, CHANNELS), nhwc(few_image, n, channels)
        sizes = *many.shape, *few_image.shape[1:], *kernel, 1, *padding
        run.launchers("few_channels").run(
            FewChannelsCall(map_, many.dtype, *sizes, False, *steps, many, few_image, weight)
        )

    of_chunk = torch.nn.grad.conv2d_weight(one_few, weight.shape, one_many, padding=padding)
    dw = torch.full(weight.shape, math.nan)
    fp32 = run.repeated(many_chunk, count, torch.float32), run.repeated(few_chunk, count, torch.float32)
    launch("outer", *fp32, dw)
    run.check_sums("dw", dw, of_chunk * count, 0)

    y, x = run.unwritten(count), run.unwritten(count, len(few_chunk))
    launch("gather", y, few, weight)
    gathered = torch.nn.functional.conv2d(one_few, weight.double(), padding=padding)
    run.check("many", y, gathered.permute(0, 2, 3, 1).reshape(ROWS, -1))
    launch("scatter", many, x, weight)
    scattered = torch.nn.functional.conv_transpose2d(one_many, weight.double(), padding=padding)
    run.check("few", x, scattered.permute(0, 2, 3, 1).reshape(ROWS, -1))


CASES = {  # squared_norm and lerp_samples share their walk over samples: one of the two has one sample, one has many
    "noise_bias_act, one sample, NHWC": lambda run: noise_bias_act(run, 1, CHANNELS, True),
    "noise_bias_act, one plane": lambda run: noise_bias_act(run, 1, 1, False),
    "noise_bias_act, many planes": lambda run: noise_bias_act(run, run.count(), CHANNELS, False),
    "noise_bias_act_to_rgb, one sample": lambda run: noise_bias_act_to_rgb(run, 1),
    "squared_norm, one sample": lambda run: squared_norm(run, 1),
    "lerp_samples, many samples": lambda run: lerp_samples(run, run.count()),
    "image_batch, one image": lambda run: image_batch(run, 1, 0, False),
    "image_batch, one mirrored row": lambda run: image_batch(run, 1, 1, True),
    "image_batch, many mirrored images": lambda run: image_batch(run, run.count(), 0, True),
    "pixel_norm, NHWC": lambda run: pixel_norm(run, 1, True),
    "pixel_norm, many planes": lambda run: pixel_norm(run, run.count(), False),
    "instance_norm, NHWC": lambda run: instance_norm(run, 1, True),
    "batch_norm_act, NHWC": lambda run: batch_norm_act(run, 1, True),
    "batch_norm_act, many planes": lambda run: batch_norm_act(run, run.count(), False),
    "instance_norm, many planes": lambda run: instance_norm(run, run.count(), False),
    "upfirdn2d, NHWC": upfirdn2d_of_one_image,
    "upfirdn2d, many planes": upfirdn2d_of_planes,
    "filtered_noise_bias_act": filtered_noise_bias_act,
    "bias_act_blur": bias_act_blur,
    "filtered_lrelu": filtered_lrelu,
    "minibatch_stddev": minibatch_stddev,
    "weight_gradient, one sample": lambda run: weight_gradient(run, 1),
    "weight_gradient, many samples": lambda run: weight_gradient(run, run.count()),
    "few_channels, one sample": lambda run: few_channels(run, 1),
    "few_channels, many samples": lambda run: few_channels(run, run.count()),
}

# The processes -----------------------------------------------------------------------------------------------------


class Int64(int):
    """A number that a Triton kernel declares as 64-bit."""


@contextlib.contextmanager
def triton_interpreted(run: Run) -> Iterator[None]:
    """Makes Triton's interpreter run the ends of a launch only, and give integers the widths that the compiler gives.

    The interpreter chooses the width of a parameter by its value, the compiler by its declaration. The interpreter
    chooses the width of a loop variable by its value, the compiler by the bounds of the loop.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    launch, convert = interpreter.InterpretedFunction.run, interpreter._implicit_cvt

    def int64(number: int) -> tl.tensor:
        return tl.tensor(interpreter.TensorHandle(np.array([number], np.int64), tl.int64), tl.int64)

    def launch_ends(self, *args, grid, **named):
        (programs,) = grid
        executed = min(programs, 2 * run.ends)
        kinds = self.fn.__annotations__
        args = [
            Int64(value) if kinds.get(name) == tl.int64 else value
            for name, value in zip(self.arg_names, args, strict=False)
        ]

        def number(x: int, y: int, z: int) -> None:
            builder.grid_idx = (x if x < run.ends else programs - executed + x, y, z)

        with mock.patch.object(builder, "set_grid_idx", number):
            return launch(self, *args, grid=(executed,), **named)

    def loop(*bounds):
        is_int64 = any(isinstance(bound, tl.tensor) and bound.dtype == tl.int64 for bound in bounds)
        turns = range(*(int(bound) for bound in bounds))
        executed = turns if len(turns) <= MANY_TURNS else (*turns[: run.ends], *turns[-run.ends :])
        for i in executed:
            yield int64(i) if is_int64 else i

    with contextlib.ExitStack() as stack:
        patch = lambda *what, **how: stack.enter_context(mock.patch.object(*what, **how))
        patch(interpreter.InterpretedFunction, "run", launch_ends)
        patch(interpreter, "_implicit_cvt", lambda value: int64(value) if isinstance(value, Int64) else convert(value))
        for path in Path(fastgan_kernels.__file__).parent.glob("triton/[a-z]*.py"):
            patch(import_module(f"fastgan_kernels.triton.{path.stem}"), "range", loop, create=True)
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Runs one process at a time, since the memory of a GPU holds the tensors of one case."""
    with open(os.path.join(tempfile.gettempdir(), "fastgan-large.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(backend: str) -> None:
    """Runs all cases on a backend in this process, in mapped memory or in that of a GPU."""
    on_gpu = backends.device(backend) == "cuda"
    run = Run(backend, backends.device(backend), mapped=not on_gpu)
    forced = backends.forced(backend)
    around = alone() if on_gpu else triton_interpreted(run) if backend == "triton" else contextlib.nullcontext()
    with forced, around:
        for name, case in CASES.items():
            print(name, flush=True)  # shows the case if the process is killed
            if not on_gpu and backend != "cpp":
                run.ends = 1 if name in FEW_BLOCKS else ENDS[backend]
                os.environ["FASTGAN_EMULATED_ENDS"] = str(run.ends)
            case(run)
            run.release()


def why_not(backend: str) -> str | None:
    """Why this machine cannot run the cases on a backend, or None."""
    if backends.device(backend) == "cuda":
        free = torch.cuda.get_device_properties(0).total_memory
        return None if free >= GPU_BYTES else f"the GPU has {free >> 30} GiB of memory, {GPU_BYTES >> 30} are needed"
    if backend == "cuda":
        return "needs an NVIDIA GPU"
    if not hasattr(os, "memfd_create"):
        return "needs Linux"
    if backend == "triton":
        pytest.importorskip("triton")
        return None
    return emulation.why_unavailable() if backend == "emulated" else backends.why_not("cpp")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpp", "emulated", "triton", "cuda"])
def test_kernels_count_in_64_bits(backend):
    if reason := why_not(backend):
        pytest.skip(reason)
    environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if backends.device(backend) == "cpu" else {})}
    command = [sys.executable, "-X", "faulthandler", "-c", f"from tests.ops.test_large import main; main({backend!r})"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"status {done.returncode}: {done.stdout[-1000:]} {done.stderr[-3000:]}"
    assert done.stdout.splitlines() == list(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("name", {name.split(",")[0]: name for name in CASES}.values())  # one of each operation
def test_the_cases_hold_below_2_to_31_elements(name):
    """A few chunks in ordinary memory, on the C++ kernels."""
    with backends.forced("cpp"):
        CASES[name](Run("cpp", mapped=False, large=False))
