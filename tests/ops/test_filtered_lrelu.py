"""filtered_lrelu against its parts in plain PyTorch: values, derivatives, sizes and errors."""

import functools

import pytest
import torch

from fastgan import ops
from fastgan.models.alias_free import low_pass
from fastgan.ops.filtered_lrelu import _separately, _validate, filtered_lrelu
from tests.support import backends, table

RADIAL = low_pass(12, 8.0, 10.0, 64, radial=True)
MIRRORED, LONGER = low_pass(12, 8.0, 10.0, 64), low_pass(24, 8.0, 10.0, 128)
FORMS = {
    "same rate": (12, 12, {"up": 2, "down": 2, "padding": (9, 10, 9, 10)}),
    "doubling": (24, 12, {"up": 4, "down": 2, "padding": (17, 16, 18, 15)}),
    "mirrored": (MIRRORED, MIRRORED, {"up": 2, "down": 2, "padding": (9, 10, 9, 10)}),
    "mirrored doubling": (LONGER, MIRRORED, {"up": 4, "down": 2, "padding": (17, 16, 18, 15)}),
    "radial": (12, RADIAL, {"up": 2, "down": 2, "padding": (9, 10, 9, 10)}),
    "upsampling alone": (12, None, {"up": 2, "padding": (6, 5, 6, 5)}),
    "downsampling alone": (None, 12, {"down": 2, "padding": 5}),
    "cropped": (4, 3, {"up": 1, "down": 1, "padding": (-1, 2, 3, -2)}),
    "odd factors": (9, 7, {"up": 3, "down": 3, "padding": (7, 8, 6, 9)}),
    "few taps": (2, 5, {"up": 4, "down": 1, "padding": 2}),
}
torch.manual_seed(0)
ANY = torch.randn(12, 12) / 12
OTHER_FORMS = {  # in the dtypes of a training
    "radial doubling": (24, RADIAL, {"up": 4, "down": 2, "padding": (17, 16, 18, 15)}),
    "any 2-D filter": (12, ANY, {"up": 2, "down": 2, "padding": (9, 10, 9, 10)}),
    "any 2-D filter doubling": (24, ANY, {"up": 4, "down": 2, "padding": (17, 16, 18, 15)}),
    "any 2-D filter first": (ANY, 12, {"up": 2, "down": 2, "padding": (10, 9, 9, 10)}),
}
OPTIONS = {"plain": {}, "clamped": {"clamp": 0.6, "gain": 1.5}, "flipped": {"flip": True, "slope": 0.1}}


def filter(given, dtype=torch.float32):
    if given is None or isinstance(given, torch.Tensor):
        return None if given is None else given.to(dtype)
    torch.manual_seed(given)
    return torch.randn(given, dtype=dtype) / given**0.5


def make(form, shape, dtype, layout):
    up_taps, down_taps, named = (FORMS | OTHER_FORMS)[form]
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "nhwc" else x
    bias = torch.randn(shape[1], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return x, filter(up_taps), filter(down_taps), bias, named


def in_parts(x, up_taps, down_taps, bias, *, up=1, down=1, padding=0, gain=2**0.5, slope=0.2, clamp=None, flip=False):
    x, up_taps, down_taps, bias, sides = _validate(x, up_taps, down_taps, bias, up, down, padding)
    with ops.use_backend("torch"):
        return _separately(x, up_taps, down_taps, bias, up, down, sides, gain, slope, clamp, flip)


@table.over_product(
    form=tuple(FORMS),
    shape=((2, 3, 9, 7), (1, 16, 6, 11), (2, 37, 5, 8)),
    layout=("nchw", "nhwc"),
    options=tuple(OPTIONS),
)
def test_values_and_gradients_are_those_of_its_parts(form, shape, layout, options, backend):
    x, up_taps, down_taps, bias, named = make(form, shape, torch.float64, layout)
    named = named | OPTIONS[options]
    results = []
    for function in (filtered_lrelu, in_parts):
        given = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = function(given[0], up_taps, down_taps, given[1], **named)
        dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).requires_grad_()
        first = torch.autograd.grad(y, given, dy, create_graph=True)
        (ddy,) = torch.autograd.grad(sum(g.square().sum() for g in first), dy)
        results.append([y, *first, ddy])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    assert results[0][0].is_contiguous(memory_format=format)


@pytest.mark.parametrize("form", ["same rate", "mirrored", "radial", "odd factors"])
def test_gradcheck_and_gradgradcheck(form, backend):
    x, up_taps, down_taps, bias, named = make(form, (1, 2, 4, 3), torch.float64, "nhwc")
    up_taps, down_taps = (None if taps is None else taps.double() for taps in (up_taps, down_taps))
    function = lambda x, bias: filtered_lrelu(x, up_taps, down_taps, bias, clamp=0.9, **named)
    given = (x.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(function, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("form", ["same rate", "mirrored", "radial"])
def test_precision(form, dtype, backend):
    x, up_taps, down_taps, bias, named = make(form, (2, 24, 10, 9), dtype, "nhwc")
    expected = in_parts(x.double(), up_taps, down_taps, bias.double(), **named)
    error = lambda y: (y.double() - expected).square().mean().sqrt().item()
    ours = error(filtered_lrelu(x, up_taps, down_taps, bias, **named))
    assert ours <= 1.2 * error(in_parts(x, up_taps, down_taps, bias, **named)) + 1e-7


@backends.every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("same rate", (1, 16, 36, 67)),
        ("doubling", (1, 24, 18, 33)),
        ("doubling", (2, 8, 5, 3)),
        ("radial", (1, 24, 35, 45)),
        ("radial", (2, 7, 5, 9)),
        ("radial doubling", (1, 16, 17, 25)),
        ("any 2-D filter", (1, 8, 19, 46)),
        ("any 2-D filter doubling", (1, 8, 9, 12)),
        ("any 2-D filter first", (1, 8, 9, 12)),
        ("same rate", (1, 5, 33, 35)),
        ("doubling", (1, 3, 9, 33)),
        ("mirrored", (1, 16, 36, 67)),
        ("mirrored", (8, 72, 6, 3)),  # blocks of channels that take turns
        ("mirrored doubling", (8, 72, 3, 4)),
        ("radial", (8, 72, 3, 4)),
    ],
    ids=str,
)
def test_filters_of_stylegan3_on_images_of_several_tiles(form, shape, dtype, backend):
    """In the dtypes of a training, for which there are kernels of their own."""
    assert max(relative_errors(form, shape, dtype, backend)) < (1e-5 if dtype == torch.float32 else 4e-3)


@backends.every_kernel
@pytest.mark.parametrize(
    "form",
    ["same rate", "doubling", "mirrored", "mirrored doubling", "radial", "radial doubling", "any 2-D filter first"],
)
def test_the_image_may_begin_anywhere_among_the_taps(form, backend):
    for left, top in ((8, 9), (9, 8), (10, 11), (11, 10), (-2, 13)):
        padding = (left, 20 - left, top, 20 - top)
        assert max(relative_errors(form, (1, 8, 5, 6), torch.float32, backend, padding=padding)) < 1e-5, padding


def relative_errors(form, shape, dtype, backend, **options):
    """Of y, dx, dbias and ddy, beside plain PyTorch in fp64."""
    device = backends.device(backend)
    got = on_tiles(filtered_lrelu, form, shape, dtype, device, **options)
    expected = in_parts_on_tiles(form, shape, dtype, device, **options)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (*got[:2], got[3]))
    rms = lambda t: t.double().square().mean().sqrt()
    return [rms(ours - exact) / rms(exact) for ours, exact in zip(got, expected, strict=True)]


def on_tiles(function, form, shape, dtype, device, to=lambda t: t, **options):
    """Result, first derivatives and a second one, of the numbers of `dtype` after `to`."""
    *tensors, named = make(form, shape, dtype, "nhwc")
    x, up_taps, down_taps, bias = (None if t is None else to(t.to(device)) for t in tensors)
    given = x, bias = [t.detach().requires_grad_() for t in (x, bias)]
    y = function(x, up_taps, down_taps, bias, clamp=1.5, **(named | options))
    dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=device).view(y.shape)
    dy = dy.to(dtype).to(y.dtype).requires_grad_()
    first = torch.autograd.grad(y, given, dy, create_graph=True)
    return [t.detach() for t in (y, *first, *torch.autograd.grad(first[0], dy, x))]


@functools.lru_cache(maxsize=1)  # conftest.py orders tests so that the backends of a case follow each other
def in_parts_on_tiles(*case, **options):
    return on_tiles(in_parts, *case, to=torch.Tensor.double, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"up": 0}, "up is 0"),
        ({"padding": (1, 2)}, "padding is"),
        ({"padding": -9}, "nothing is left"),
        ({"bias": torch.zeros(5)}, "bias has shape"),
        ({"up_taps": torch.ones(2, 3)}, "up_taps has shape"),
    ],
)
def test_errors_name_the_argument(changes, message):
    with pytest.raises(ValueError, match=f"filtered_lrelu: {message}"):
        filtered_lrelu(torch.randn(1, 3, 8, 8), **({"down_taps": torch.ones(3)} | changes))
