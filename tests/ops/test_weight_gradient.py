"""weight_gradient: the kernel by itself, and which convolutions use it."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan_kernels
from bench.convolutions import Bare
from fastgan.ops import conv2d, conv_transpose2d, use_backend, weight_gradient
from fastgan_kernels import extension
from fastgan_kernels.calls import WeightGradientCall
from tests.support import backends
from tests.support.accuracy import assert_as_good_as_plain

NHWC = torch.channels_last
# Samples, channels of the smaller and the larger image, height and width of the smaller, kernel, stride, padding.
# Channels fill panels, fill one partly, or are fewer. Images are one chunk of the sum, a part of one, or several.
CASES = [
    (4, 16, 16, (8, 8), (3, 3), 1, (1, 1)),
    (3, 6, 32, (16, 16), (3, 3), 1, (1, 1)),
    (2, 13, 19, (40, 24), (3, 3), 1, (0, 1)),
    (1, 1, 1, (1, 1), (3, 3), 1, (1, 1)),
    (5, 3, 40, (1, 300), (1, 3), 1, (0, 1)),
    (5, 8, 33, (300, 1), (3, 1), 1, (1, 0)),
    (2, 10, 16, (9, 7), (4, 4), 2, (1, 1)),
    (3, 12, 24, (33, 16), (3, 3), 2, (1, 1)),
    (2, 5, 7, (6, 10), (5, 4), 3, (2, 0)),
    (9, 32, 48, (4, 4), (4, 4), 2, (1, 1)),
    (40, 32, 16, (5, 5), (2, 2), 1, (0, 0)),
    (2, 70, 130, (16, 16), (3, 3), 1, (1, 1)),
    (6, 16, 16, (32, 32), (1, 1), 1, (0, 0)),
]


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture(params=["cpp-baseline", "cpp-avx2", "cpp-avx512"])
def launcher(request):
    with backends.forced(request.param):
        run = fastgan_kernels.BACKENDS["cpp"].launchers("weight_gradient").run
        yield lambda dw, small, large, *rest: run(
            WeightGradientCall(dw.dtype, *small.shape, *large.shape[1:], *dw.shape[2:], *rest, dw, small, large)
        )


def tensors(dtype, n, a, b, size, kernel, stride, padding):
    """The smaller and the larger image."""
    torch.manual_seed(0)
    large = [(side - 1) * stride + k - 2 * pad for side, k, pad in zip(size, kernel, padding, strict=True)]
    assert min(large) > 0
    return tuple(torch.randn(n, c, *sides).to(dtype, memory_format=NHWC) for c, sides in ((a, size), (b, large)))


def by_library(small, large, kernel, stride, padding):
    weight = torch.zeros(small.shape[1], large.shape[1], *kernel, dtype=small.dtype, requires_grad=True)
    return torch.autograd.grad(F.conv2d(large, weight, stride=stride, padding=padding), weight, small)[0]


@dtypes
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_as_accurate_as_the_librarys(case, dtype, launcher, unwritten_is_nan):
    n, a, b, size, *geometry = case
    small, large = tensors(dtype, *case)
    dw = torch.empty(a, b, *geometry[0]).to(dtype, memory_format=NHWC)
    launcher(dw, small, large, geometry[1], *geometry[2])
    reference = by_library(small.double(), large.double(), *geometry)
    plain = by_library(small, large, *geometry)
    summed = n * size[0] * size[1] if dtype == torch.float32 else 0  # bf16 rounds the result only: sums are fp32
    assert_as_good_as_plain(dw, plain, reference, dtype, "dw", summed=summed)


@dtypes
def test_the_larger_image_may_have_columns_that_no_tap_reads(dtype, launcher):
    """Stride 2 and 3 taps do not read the last column of an image of even width."""
    torch.manual_seed(0)
    small = torch.randn(2, 8, 4, 4).to(dtype, memory_format=NHWC)
    large = torch.randn(2, 16, 10, 10).to(dtype, memory_format=NHWC)
    assert F.conv2d(large, torch.zeros(8, 16, 3, 3, dtype=dtype), stride=2).shape == small.shape
    dw = torch.empty(8, 16, 3, 3).to(dtype, memory_format=NHWC)
    launcher(dw, small, large, 2, 0, 0)
    reference = by_library(small.float(), large.float(), (3, 3), 2, (0, 0))
    rounding = 0 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(dw.float(), reference, rtol=rounding + 1e-4, atol=1e-4)


@dtypes
def test_an_infinity_affects_only_the_taps_that_read_it(dtype, launcher):
    """Neither pairing of pixels nor padding with zeros spreads an infinity."""
    small, large = tensors(dtype, 3, 16, 16, (16, 16), (3, 3), 1, (0, 0))
    large[2, 5, 0, 0] = torch.inf  # only the first tap reads it
    dw = torch.empty(16, 16, 3, 3).to(dtype, memory_format=NHWC)
    launcher(dw, small, large, 1, 0, 0)
    expected = torch.zeros(16, 16, 3, 3, dtype=torch.bool)
    expected[:, 5, 0, 0] = True
    assert torch.equal(~dw.isfinite(), expected)


@dtypes
def test_results_are_bitwise_repeatable_for_any_number_of_threads(dtype, launcher):
    case = (8, 48, 160, (16, 16), (3, 3), 1, (1, 1))
    small, large = tensors(dtype, *case)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(torch.empty(48, 160, 3, 3).to(dtype, memory_format=NHWC))
            launcher(results[-1], small, large, 1, 1, 1)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


# In convolutions -----------------------------------------------------------------------------------------------------

served = pytest.mark.skipif(
    backends.why_not("cpp-avx2") is not None, reason=f"cpp-avx2: {backends.why_not('cpp-avx2')}"
)
WAYS = {"conv2d": (conv2d, F.conv2d), "conv_transpose2d": (conv_transpose2d, F.conv_transpose2d)}


@pytest.fixture(params=WAYS)
def pair(request):
    """Our convolution and torch's, on an instruction set for which our kernel is used."""
    with backends.forced("cpp-avx2"):
        yield WAYS[request.param]


class LibraryGradients(TorchDispatchMode):
    """Counts the weight gradients that the library computes."""

    made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.made += args[10][1]
        return function(*args, **(kwargs or {}))


def images_and_weight(dtype=torch.float32, memory_format=NHWC, channels=16):
    torch.manual_seed(0)
    x = torch.randn(4, channels, 16, 16).to(dtype, memory_format=memory_format).requires_grad_()
    return x, torch.randn(channels, channels, 4, 4).to(dtype, memory_format=memory_format).requires_grad_()


def gradients(function, x, weight, **options):
    y = function(x, weight, stride=2, padding=1, **options)
    return torch.autograd.grad(y.square().sum(), (x, weight))


@served
def test_an_fp32_convolution_uses_it(pair):
    ours, torchs = pair
    x, weight = images_and_weight()
    with LibraryGradients() as library:
        got = gradients(ours, x, weight)
    assert library.made == 0
    plain = gradients(torchs, x, weight)
    reference = gradients(torchs, x.double(), weight.double())
    for what, *three in zip(("dx", "dw"), got, plain, reference, strict=True):
        assert_as_good_as_plain(*three, torch.float32, what, summed=1024)
    assert got[1].is_contiguous(memory_format=NHWC)


def test_a_bf16_convolution_uses_it_with_bf16_instructions():
    if reason := backends.why_not("cpp-avx512"):
        pytest.skip(reason)
    x, weight = images_and_weight(torch.bfloat16)
    with backends.forced("cpp-avx512"), LibraryGradients() as library:
        dx, dw = gradients(conv2d, x, weight)
    assert library.made == 0
    reference = gradients(F.conv2d, x.double(), weight.double())
    for what, *three in zip(("dx", "dw"), (dx, dw), gradients(F.conv2d, x, weight), reference, strict=True):
        assert_as_good_as_plain(*three, torch.bfloat16, what)


@served
@pytest.mark.parametrize(
    "given",
    [
        {"dtype": torch.float64},
        {"dtype": torch.bfloat16},
        {"memory_format": torch.contiguous_format},
        {"channels": 7},
        {"channels": 17},
    ],
    ids=["fp64", "bf16", "NCHW", "few channels", "half a panel"],
)
def test_other_convolutions_use_the_librarys(pair, given):
    ours, torchs = pair
    x, weight = images_and_weight(**given)
    with LibraryGradients() as library:
        got = gradients(ours, x, weight)
    assert library.made == 1
    assert all(torch.equal(*both) for both in zip(got, gradients(torchs, x, weight), strict=True))


@served
def test_the_backend_of_the_forward_pass_decides(pair):
    ours, _ = pair
    x, weight = images_and_weight()
    with use_backend("torch"):
        y = ours(x, weight, stride=2, padding=1)
    with LibraryGradients() as library:
        y.square().sum().backward()
        assert library.made == 1
        ours(x, weight, stride=2, padding=1).square().sum().backward()
    assert library.made == 1


@served
def test_it_is_used_on_measured_instruction_sets_only(monkeypatch):
    cpu = torch.device("cpu")
    with backends.forced("cpp-avx2"):
        assert weight_gradient.kernel.why_not(cpu) is None
    with use_backend("cpp"), monkeypatch.context() as patch:
        patch.setattr(extension.module(), "cpu_isa", lambda: "baseline")
        assert "baseline" in weight_gradient.kernel.why_not(cpu)
    with use_backend("torch"):
        assert weight_gradient.kernel.why_not(cpu) == "not asked for"
    assert "CPU" in weight_gradient.kernel.why_not(torch.device("cuda"))


@served
def test_penalties_through_it_have_the_right_gradients(pair):
    """Second derivatives, with the gradient of a bias in the same pass."""
    ours, torchs = pair
    x, weight = images_and_weight()
    bias = torch.randn(16, requires_grad=True)

    def of_penalty(function, *given):
        x, weight, bias = (t.detach().to(given[0].dtype).requires_grad_() for t in given)
        y = function(x, weight, bias, stride=2, padding=1).square()
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum() + y.mean(), (weight, bias))

    with LibraryGradients() as library:
        got = of_penalty(ours, x, weight, bias)
    assert library.made == 0
    plain = of_penalty(torchs, x, weight, bias)
    reference = of_penalty(torchs, x.double(), weight.double(), bias.double())
    for what, *three in zip(("dw", "dbias"), got, plain, reference, strict=True):
        assert_as_good_as_plain(*three, torch.float32, what, summed=1024)


@served
def test_the_floor_of_a_step_counts_the_librarys_operations():
    x, weight = images_and_weight()
    with backends.forced("cpp-avx2"):
        floor = Bare(lambda: gradients(conv2d, x, weight))
        theirs = Bare(lambda: gradients(F.conv2d, x, weight))
    assert (floor.flops, floor.count) == (theirs.flops, theirs.count)


def test_every_size_has_a_workspace():
    """Asks for the workspace only, at sizes past 2^31 and at the smallest ones."""
    if extension.why_no_part("cpu"):
        pytest.skip(extension.why_no_part("cpu"))
    workspace, none = extension.module().cpu_workspace["weight_gradient"]["run"], torch.empty(0)
    dtypes = torch.float32, torch.bfloat16
    for dtype, n, a, b, side in itertools.product(dtypes, (1, 1 << 20), (1, 512), (1, 512), (1, 1024)):
        call = WeightGradientCall(dtype, n, a, side, side, b, side, side, 3, 3, 1, 1, 1, none, none, none)
        assert 0 < workspace(call) < 200 << 20
