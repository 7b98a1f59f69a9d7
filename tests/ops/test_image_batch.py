"""image_batch: one table of cases for every backend, compared with numpy, and tests of its own."""

import os
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgan import ops
from fastgan.ops import image_batch
from tests.support import backends, table
from tests.support.table import DTYPES

SET = 5  # images in `pixels`


class Case(NamedTuple):
    shape: tuple[int, int, int]  # H, W, C
    index: tuple[int, ...] | None = (3, 0, 3, 4)
    mirrored: str | None = "some"  # or "all"

    def __str__(self):
        order = "in_order" if self.index is None else f"{len(self.index)}_of_{SET}"
        return f"{'x'.join(map(str, self.shape))}-{order}-{self.mirrored or 'none'}_mirrored"


# Sides that are, and are not, whole vectors of any kernel; rows that a shuffle does not divide; more than a piece.
SHAPES = (
    *((h, w, c) for c in (1, 3) for h, w in ((1, 1), (5, 7), (32, 32), (3, 129), (2, 1500))),
    *((4, 9, c) for c in (2, 4, 5, 16, 17, 40)),
    (130, 64, 3),
)
CASES = [
    *(Case(shape, mirrored=mirrored) for shape in SHAPES for mirrored in ("some", None)),
    *(Case((9, 16, c), index=None, mirrored=mirrored) for c in (1, 3) for mirrored in (None, "some", "all")),
    *(Case(shape, index=()) for shape in ((4, 4, 3), (0, 4, 3))),
    *(Case(shape) for shape in ((0, 4, 3), (4, 0, 1))),
]


def make(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor | None, Tensor | None]:
    """pixels, index, mirrored."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (SET, *case.shape), np.uint8)
    index = None if case.index is None else torch.tensor(case.index, dtype=torch.int64)
    count = SET if index is None else len(index)
    mirrored = None if case.mirrored is None else torch.ones(count, dtype=torch.bool)
    if case.mirrored == "some":
        mirrored[1::2] = False
    return tuple(t if t is None else t.to(device) for t in (torch.from_numpy(pixels), index, mirrored))


def textbook(pixels: Tensor, index: Tensor | None, mirrored: Tensor | None) -> Tensor:
    """The batch [N, C, H, W] in fp64, by numpy, image by image."""
    pixels = pixels.cpu().numpy()
    rows = range(len(pixels)) if index is None else index.tolist()
    turned = [False] * len(rows) if mirrored is None else mirrored.tolist()
    images = [pixels[row][:, ::-1] if turn else pixels[row] for row, turn in zip(rows, turned, strict=True)]
    batch = np.stack(images) if images else pixels[:0]
    return torch.from_numpy(batch / 127.5 - 1).permute(0, 3, 1, 2)


@table.over((case, dtype) for case in CASES for dtype in DTYPES)
def test_values_are_the_textbooks_and_the_bits_those_of_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    tensors, dtype = make(case, backends.device(backend)), DTYPES[dtype]
    got = image_batch(*tensors, dtype=dtype)
    expected = textbook(*tensors)
    assert got.dtype == dtype and got.shape == expected.shape
    rounding = torch.finfo(dtype).eps  # of fp64 at most what the textbook's own difference loses
    torch.testing.assert_close(got.cpu(), expected.to(dtype), rtol=rounding, atol=min(2 * rounding, 1e-6))
    if dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        return  # the interpreter does not round to it, but cuts off
    with ops.use_backend("torch"):
        assert torch.equal(got, image_batch(*tensors, dtype=dtype))


@pytest.mark.parametrize("channels", [1, 3])
def test_values_range_symmetrically_from_minus_one_to_one(backend, channels):
    """All bytes: 0 and 255 are exact, and p and 255 - p differ in sign only."""
    pixels = torch.arange(256, dtype=torch.uint8, device=backends.device(backend)).repeat_interleave(channels)
    values = image_batch(pixels.view(1, 16, 16, channels)).permute(0, 2, 3, 1).flatten()
    assert values[0] == -1 and values[-1] == 1
    assert torch.equal(values, -values.flip(0))
    assert (values.diff()[channels - 1 :: channels] > 0).all()


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6, 1), (1, 1, 1)], ids=str)
@backends.one_instruction_set
def test_the_result_is_in_channels_last_also_in_its_strides(backend, shape):
    h, w, c = shape
    y = image_batch(*make(Case(shape), backends.device(backend)))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.stride() == (h * w * c, 1, w * c, c)


@backends.one_instruction_set
def test_flags_may_be_bytes_and_arguments_may_be_strided(backend):
    pixels, index, mirrored = make(Case((5, 7, 3)), backends.device(backend))
    expected = image_batch(pixels, index, mirrored)
    assert torch.equal(image_batch(pixels, index, mirrored.to(torch.uint8) * 2), expected)
    strided = pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # NCHW in memory
    twice = torch.stack([index, index], 1)[:, 0]
    assert not strided.is_contiguous() and not twice.is_contiguous()
    assert torch.equal(image_batch(strided, twice, torch.stack([mirrored, mirrored], 1)[:, 0]), expected)


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_pixels_need_not_be_aligned(backend, offset):
    """Slices of a data set, or a memory-mapped file with a header, start at any byte."""
    shape = (SET, 8, 16, 1)
    whole = torch.arange(SET * 128 + offset, device=backends.device(backend)).to(torch.uint8)
    pixels, (_, index, mirrored) = whole[offset:].view(shape), make(Case(shape[1:]), backends.device(backend))
    assert torch.equal(image_batch(pixels, index, mirrored), image_batch(pixels.clone(), index, mirrored))


@pytest.mark.parametrize("name", ["torch", "cpp-baseline", "emulated"])
@pytest.mark.parametrize("wrong", [-1, SET, 2**40])
def test_an_index_out_of_range_is_an_index_error_on_a_cpu(name, wrong):
    pixels, _, _ = make(Case((4, 4, 1)))
    with backends.forced(name), pytest.raises(IndexError, match=re.escape(f"index has {wrong}, must be from 0 to 4")):
        image_batch(pixels, torch.tensor([0, wrong, 2]))


@pytest.mark.parametrize("name", ["emulated", "triton", "cuda"])
def test_an_index_out_of_range_is_nan_on_a_gpu(name):
    """Checking would synchronize. This test calls the kernels directly."""
    import fastgan_kernels
    from fastgan_kernels.calls import ImageBatchCall

    with backends.forced(name):
        device = backends.device(name)
        pixels, _, mirrored = make(Case((4, 8, 1)), device)
        y = torch.zeros(4, 4, 8, 1, device=device).permute(0, 3, 1, 2)
        index = torch.tensor([1, -1, SET, 2**40], device=device)
        fastgan_kernels.BACKENDS[name].launchers("image_batch").run(
            ImageBatchCall(len(pixels), 4, 4, 8, 1, y.dtype, y, pixels, index, mirrored)
        )
        assert torch.equal(y[:1], image_batch(pixels, index[:1], mirrored[:1]))
        assert y[1:].isnan().all()


def test_cpp_results_do_not_depend_on_the_number_of_threads():
    tensors, before, results = make(Case((130, 64, 3))), torch.get_num_threads(), []
    with backends.forced("cpp"):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(image_batch(*tensors))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("backend", [name for name in backends.KERNELS if name.startswith("cpp-")], indirect=True)
def test_cpp_streams_large_batches(backend):
    """Above the size at which streaming stores pay (24 MB); also unaligned."""
    pixels, index, mirrored = make(Case((101, 1300, 3), index=(*range(SET), *range(SET), *range(SET), 1, 2)))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = image_batch(pixels, index, mirrored, dtype)
        with ops.use_backend("torch"):
            assert torch.equal(got, image_batch(pixels, index, mirrored, dtype)), dtype


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
@pytest.mark.slow
def test_emulated_results_do_not_depend_on_the_order_of_threads(order, monkeypatch):
    results = []
    with backends.forced("emulated"):
        for one in ("forward", order):
            monkeypatch.setenv("FASTGAN_EMULATED_ORDER", one)
            results.append(image_batch(*make(Case((33, 48, 3)))))
    assert torch.equal(*results)


def test_an_index_out_of_range_is_an_index_error_in_a_compiled_graph():
    """Tracing cannot read values, so the operator checks them."""
    compiled = torch.compile(image_batch, fullgraph=True, backend="aot_eager")
    pixels, index, mirrored = make(Case((4, 4, 3)))
    with backends.forced("cpp"):
        assert torch.equal(compiled(pixels, index, mirrored), image_batch(pixels, index, mirrored))
        with pytest.raises(IndexError, match="index has 6"):
            compiled(pixels, index + 2, mirrored)


PIXELS, INDEX = torch.zeros(2, 4, 5, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: image_batch(PIXELS[0]), ["pixels has shape [4, 5, 3]", "[M, H, W, C]"]),
        (lambda: image_batch(PIXELS.float()), ["pixels has dtype torch.float32", "uint8"]),
        (lambda: image_batch(PIXELS, dtype=torch.int32), ["dtype is torch.int32", "fp16"]),
        (lambda: image_batch(PIXELS, INDEX.int()), ["index is [3] of torch.int32", "int64"]),
        (lambda: image_batch(PIXELS, INDEX[None]), ["index is [1, 3]", "[N]"]),
        (lambda: image_batch(PIXELS, INDEX, INDEX), ["mirrored is [3] of torch.int64", "bool"]),
        (lambda: image_batch(PIXELS, INDEX, torch.ones(2, dtype=torch.bool)), ["mirrored is [2]", "must be [3]"]),
        (lambda: image_batch(PIXELS, None, torch.ones(3, dtype=torch.bool)), ["mirrored is [3]", "must be [2]"]),
        (lambda: image_batch(PIXELS, INDEX.to("meta")), ["index is on meta, pixels on cpu"]),
    ],
)
def test_an_argument_that_does_not_fit_is_named(call, words):
    table.assert_message_contains(["image_batch: ", *words], call)
