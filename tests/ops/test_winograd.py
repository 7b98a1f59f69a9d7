"""winograd: the kernel by itself, and which convolutions use it."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import fastgan_kernels
from fastgan.ops import conv2d, use_backend, winograd
from fastgan.ops.fixed_weights import FixedWeights, fixed_weights
from fastgan_kernels import extension
from fastgan_kernels.calls import WinogradCall
from tests.support import backends
from tests.support.accuracy import assert_as_good_as_plain

NHWC = torch.channels_last
# Samples, inputs, outputs, height, width, padding. Tiles and panels are whole or parts; blocks one, several, a part.
CASES = [
    (1, 16, 32, 8, 8, 1),
    (2, 7, 5, 9, 11, 1),
    (3, 33, 70, 6, 4, 1),
    (1, 1, 1, 1, 1, 1),
    (2, 8, 32, 1, 300, 1),
    (1, 64, 64, 32, 28, 1),
    (1, 512, 32, 16, 16, 1),
    (2, 18, 40, 13, 10, 0),
    (2, 18, 40, 13, 10, 2),
    (40, 3, 33, 5, 5, 2),
]
served = pytest.mark.skipif(bool(extension.why_no_part("cpu")), reason="the extension has no CPU kernels")


@pytest.fixture(params=["cpp-baseline", "cpp-avx2", "cpp-avx512"])
def convolution(request):
    with backends.forced(request.param):
        run = fastgan_kernels.BACKENDS["cpp"].launchers("winograd").run

        def convolve(x, weight, padding):
            (n, inputs, height, width), outputs = x.shape, len(weight)
            y = torch.empty(n, outputs, height + 2 * padding - 2, width + 2 * padding - 2).to(memory_format=NHWC)
            run(WinogradCall(n, height, width, inputs, outputs, padding, y, x, winograd.transformed(weight)))
            return y

        yield convolve


def tensors(n, inputs, outputs, height, width, padding=1):
    torch.manual_seed(0)
    x = torch.randn(n, inputs, height, width).to(memory_format=NHWC)
    return x, torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_its_error_is_at_most_twice_that_of_plain_pytorch(case, convolution, unwritten_is_nan):
    """The root mean square is held to the rule of `tests.support.accuracy`. The largest error is allowed more.

    For each channel, 36 products of numbers up to 2.9 times as large (a row of the transform of x) cancel to the sum of
    9, or of fewer at a border: about 36 terms of magnitude 1 with these weights.
    """
    padding = case[-1]
    x, weight = tensors(*case)
    y = convolution(x, weight, padding)
    reference = F.conv2d(x.double(), weight.double(), padding=padding)
    plain = F.conv2d(x, weight, padding=padding)
    allowed = 2 * (plain - reference).norm() + 4 * torch.finfo(torch.float32).eps * reference.norm()
    assert (y - reference).norm() <= allowed
    assert_as_good_as_plain(y, plain, reference, torch.float32, "y", summed=36)


def test_results_are_bitwise_repeatable_for_any_number_of_threads(convolution):
    x, weight = tensors(3, 20, 40, 30, 22)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(convolution(x, weight, 1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_sample_does_not_depend_on_the_others(convolution):
    x, weight = tensors(5, 20, 40, 14, 14)
    together = convolution(x, weight, 1)
    for i, own in enumerate(x.split(1)):
        assert torch.equal(convolution(own.contiguous(memory_format=NHWC), weight, 1)[0], together[i])


@pytest.fixture
def launched(monkeypatch):
    """The calls of the kernel."""
    calls, run = [], winograd.kernel.run
    monkeypatch.setattr(winograd.kernel, "run", lambda call: calls.append(call) or run(call))
    return calls


@served
def test_convolutions_by_fixed_weights_use_it(launched):
    x, weight = tensors(1, 32, 32, 16, 16)
    kept = FixedWeights(lambda: [weight])
    with backends.forced("cpp-avx2"):
        expected = conv2d(x, weight, padding=1)
        assert not launched
        with fixed_weights(kept):
            results = [conv2d(x, weight, padding=1) for _ in range(2)]
    assert len(launched) == 2 and launched[0].weight is launched[1].weight, "the weight is transformed once"
    for y in results:
        assert y.is_contiguous(memory_format=NHWC)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@served
def test_other_convolutions_do_not(launched, monkeypatch):
    x, weight = tensors(1, 32, 32, 16, 16)
    small, narrow = torch.randn(1, 32, 4, 4).to(memory_format=NHWC), torch.randn(4, 32, 3, 3)
    unknown, wide = weight.clone(), torch.randn(32, 32, 5, 5)
    known = [weight, narrow, wide, *(weight.to(dtype) for dtype in (torch.bfloat16, torch.float64))]
    with backends.forced("cpp-avx2"), fixed_weights(FixedWeights(lambda: known)):
        conv2d(x, unknown, padding=1)
        conv2d(x, weight, padding=1, stride=2)
        conv2d(x, wide, padding=1)
        conv2d(x, narrow, padding=1)
        conv2d(small, weight, padding=1)
        conv2d(x.contiguous(), weight, padding=1)
        conv2d(x, weight, torch.zeros(32), padding=1)
        conv2d(x, weight, padding=(0, 1))
        for other in known[-2:]:
            conv2d(x.to(other.dtype), other, padding=1)
        trained = conv2d(x, weight.requires_grad_(), padding=1)
        weight.requires_grad_(False)
        with use_backend("torch"):
            conv2d(x, weight, padding=1)
        with monkeypatch.context() as patch:
            patch.setattr(extension.module(), "cpu_isa", lambda: "baseline")
            conv2d(x, weight, padding=1)
        assert not launched
        conv2d(x, weight, padding=1)
    assert trained.requires_grad and len(launched) == 1


@pytest.mark.parametrize("size, outputs, padding", [((2, 2), 8, 0), ((1, 2), 8, 0), ((4, 4), 0, 1)])
def test_a_convolution_without_output_is_the_library_s(size, outputs, padding):
    x, weight = torch.ones(1, 8, *size), torch.ones(outputs, 8, 3, 3)
    assert not winograd.is_suited(x, weight, 1, (padding, padding))


def test_every_size_has_a_workspace():
    """Asks for the workspace only, at sizes past 2^31 and at the smallest ones."""
    if extension.why_no_part("cpu"):
        pytest.skip(extension.why_no_part("cpu"))
    workspace, none = extension.module().cpu_workspace["winograd"]["run"], torch.empty(0)
    for n, inputs, outputs, side in itertools.product((1, 1 << 20), (1, 512), (1, 512), (1, 1024)):
        call = WinogradCall(n, side, side, inputs, outputs, 1, none, none, none)
        assert 0 < workspace(call) <= torch.get_num_threads() * (8 << 20)
