"""conv2d, conv_transpose2d and filtered_conv2d: values, derivatives, and which convolutions they consist of."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.ops import conv2d, conv_transpose2d, upfirdn2d
from fastgan.ops.convolution import filtered_conv2d
from fastgan.penalties import logits_and_squared_grad
from tests.support import backends

PAIRS = {"conv2d": (conv2d, F.conv2d), "conv_transpose2d": (conv_transpose2d, F.conv_transpose2d)}
CASES = [
    pytest.param(kernel, stride, padding, id=f"{kernel[0]}x{kernel[1]} stride {stride} padding {padding}")
    for kernel, stride, padding in [((3, 3), 1, 1), ((3, 3), 2, 0), ((4, 4), 2, 1), ((1, 1), 1, 0), ((3, 1), 1, (1, 0))]
]


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def tensors(pair, kernel, dtype=torch.float64, bias=False, channels_last=False, groups=1):
    torch.manual_seed(0)
    x = torch.randn(2, 3 * groups, 6, 6, dtype=dtype)
    shape = (3 * groups, 4, *kernel) if pair[1] is F.conv_transpose2d else (4 * groups, 3, *kernel)
    weight = torch.randn(shape, dtype=dtype)
    if channels_last:
        x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    tensors = [x, weight] + ([torch.randn(4 * groups, dtype=dtype)] if bias else [])
    return [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize(("kernel", "stride", "padding"), CASES)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_values_and_derivatives(pair, kernel, stride, padding, bias):
    ours, torchs = pair
    given = tensors(pair, kernel, bias=bias)
    options = {"stride": stride, "padding": padding}
    assert torch.equal(ours(*given, **options), torchs(*given, **options))
    assert torch.autograd.gradcheck(lambda *t: ours(*t, **options), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: ours(*t, **options), given, fast_mode=True)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), CASES)
def test_values_and_derivatives_in_groups(pair, kernel, stride, padding, channels_last):
    ours, torchs = pair
    given = tensors(pair, kernel, bias=True, channels_last=channels_last, groups=3)
    options = {"stride": stride, "padding": padding, "groups": 3}
    assert torch.equal(ours(*given, **options), torchs(*given, **options))
    assert torch.autograd.gradcheck(lambda *t: ours(*t, **options), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: ours(*t, **options), given, fast_mode=True)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_a_kernel_for_each_channel_as_large_as_the_image(channels_last):
    """The library takes milliseconds for the gradient of this weight."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn(6, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    head = lambda x, weight: conv2d(x, weight, groups=6)
    assert torch.autograd.gradcheck(head, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(head, (x, weight), fast_mode=True)
    for dtype in (torch.float64, torch.bfloat16):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (x, weight)]
        with Convolutions() as counted:
            (dw,) = torch.autograd.grad(head(*inputs).sum(), inputs[1])
        (expected,) = torch.autograd.grad(F.conv2d(*(t.double() for t in inputs), groups=6).sum(), inputs[1])
        torch.testing.assert_close(dw, expected)
        assert counted.names == ["convolution"]


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_memory_formats_and_dtypes_match_torch(pair, channels_last):
    for dtype in (torch.float32, torch.bfloat16):
        given = tensors(pair, (3, 3), dtype, channels_last=channels_last)
        got, expected = (function(*given, stride=2) for function in pair)
        assert torch.equal(got, expected) and got.stride() == expected.stride() and got.dtype == dtype


def test_third_derivatives_match_torch(pair):
    """Derivatives of a cubic function of both tensors: second derivatives are differentiable themselves."""

    def derivatives(function):
        x, weight = tensors(pair, (3, 3))
        found = [function(x, weight, padding=1).pow(3).sum()]
        for _ in range(3):
            dx, dw = torch.autograd.grad(found[-1], (x, weight), create_graph=True)
            found.append(dx.square().sum() + dw.square().sum() + (dx.sum() * dw.sum()))
        return found

    for got, expected in zip(*map(derivatives, pair), strict=True):
        torch.testing.assert_close(got, expected)


def test_autocast_converts_as_torch_does(pair):
    x, weight = tensors(pair, (3, 3), torch.float32)
    grads = []
    for function in pair:
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x, weight, padding=1)
        assert y.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(y.float().square().sum(), (x, weight)))
    for got, expected in zip(*grads, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)


class WeightGradients(TorchDispatchMode):
    """Counts computed weight gradients, and convolutions by kernels as large as images."""

    def __init__(self):
        super().__init__()
        self.made = self.image_sized = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.made += args[10][1]
        if function is torch.ops.aten.convolution.default:
            self.image_sized += args[1].shape[-1] > 4
        return function(*args, **(kwargs or {}))


def two_layers(function, x, weight):
    return function(function(x, weight, padding=1).square(), weight, padding=1).sum()


def penalty(function, x, weight):
    (dx,) = torch.autograd.grad(two_layers(function, x, weight), x, create_graph=True)
    return dx.square().sum()


def square_case():
    torch.manual_seed(0)
    return torch.randn(2, 3, 6, 6, requires_grad=True), nn.Parameter(torch.randn(3, 3, 3, 3))


@pytest.mark.parametrize("create_graph", [False, True])
def test_image_gradients_alone_compute_no_weight_gradients(pair, create_graph):
    """`needs_input_grad` only says that the weight has a graph. The engine knows which gradients are requested."""
    ours, _ = pair
    x, weight = square_case()
    used = [weight, weight * 0.5, weight.transpose(0, 1).contiguous(), weight.double().float()]
    for each in used:
        for inputs, expected in ((x, 0), ((x, each), 2)):
            y = two_layers(ours, x, each)
            with WeightGradients() as counted:
                torch.autograd.grad(y, inputs, create_graph=create_graph, retain_graph=True)
            assert counted.made == expected


def test_all_requested_gradients_are_computed(pair):
    """Leaves and non-leaves, by backward and by autograd.grad."""
    found = []
    for function in pair:
        for inputs in (None, ["x"], ["weight"], ["x", "weight"]):
            given = dict(zip(("x", "weight"), square_case(), strict=True))
            named = None if inputs is None else [given[name] for name in inputs]
            two_layers(function, **given).backward(inputs=named)
            found.append([t.grad for t in given.values()])
            if named is not None:
                found.append(torch.autograd.grad(two_layers(function, **given), named))
        x, weight = square_case()
        made = weight * x.mean()  # depends on the images
        found.append(torch.autograd.grad(two_layers(function, x, made), [made, x]))
        found.append(torch.autograd.grad(penalty(function, x, weight * x.mean()), [x, weight]))
        found.append(torch.autograd.grad(penalty(function, x, weight), weight))
    half = len(found) // 2
    for got, expected in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(got, expected)


def test_penalties_in_one_thread_do_not_suppress_gradients_in_another():
    """Four threads compute penalties while four others need weight gradients for a second derivative."""
    start = threading.Barrier(8)

    def run(number: int) -> bool:
        x, weight = square_case()
        start.wait(60)
        for _ in range(40):
            if number % 2:
                logits_and_squared_grad(lambda images: two_layers_each(images, weight), x)
            else:
                made = torch.autograd.grad(two_layers(conv2d, x, weight), weight, create_graph=True, allow_unused=True)
                if made[0] is None:
                    return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(run, range(8)))
    x, weight = square_case()  # after the threads have ended
    made = torch.autograd.grad(two_layers(conv2d, x, weight), weight, create_graph=True, allow_unused=True)
    assert made[0] is not None


def two_layers_each(x, weight):
    return conv2d(conv2d(x, weight, padding=1).square(), weight, padding=1).sum((1, 2, 3))


class Convolutions(TorchDispatchMode):
    """Names of the convolutions within the block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution" in str(function):
            self.names.append(str(function._overloadpacket).removeprefix("aten."))
        return function(*args, **(kwargs or {}))


def test_second_derivatives_take_as_many_convolutions_in_groups_as_without(pair):
    found = []
    for groups in (1, 3):
        given = tensors(pair, (3, 3), groups=groups)
        with Convolutions() as counted:
            (dx,) = torch.autograd.grad(pair[0](*given, groups=groups).sum(), given[0], create_graph=True)
            dx.square().sum().backward()
        found.append(counted.names)
    assert found[0] == found[1] and len(found[0]) == 3


def test_second_derivatives_use_no_kernel_as_large_as_the_image(pair):
    counts = []
    for function in pair:
        value = penalty(function, *square_case())
        with WeightGradients() as counted:
            value.backward()
        counts.append(counted.image_sized)
    assert counts[0] == 0 < counts[1]


def test_an_empty_batch_gives_zero_gradients(pair):
    ours, torchs = pair
    weight = torch.randn(3, 3, 3, 3, requires_grad=True)
    x = torch.randn(0, 3, 6, 6, requires_grad=True)
    got, expected = ours(x, weight, padding=1), torchs(x, weight, padding=1)
    assert got.shape == expected.shape
    got.sum().backward()
    assert not weight.grad.any()


# filtered_conv2d -----------------------------------------------------------------------------------------------------


def by_parts(x, weight, taps, *, filter_padding, stride):
    return conv2d(upfirdn2d(x, taps, padding=filter_padding), weight, stride=stride)


def filtered_case(dtype=torch.float64, size=6):
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size + 1, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    return x, weight, torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=dtype) / 8


OPTIONS = {"filter_padding": (2, 2, 1, 2), "stride": 2}


@backends.one_instruction_set
def test_filtered_conv2d_equals_filter_then_convolution(backend):
    x, weight, taps = (t.detach().to(backends.device(backend)) for t in filtered_case())
    x, weight = x.requires_grad_(), weight.requires_grad_()
    function = lambda x, weight: filtered_conv2d(x, weight, taps, **OPTIONS)
    torch.testing.assert_close(function(x, weight), by_parts(x, weight, taps, **OPTIONS))
    assert torch.autograd.gradcheck(function, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight), fast_mode=True)


def test_filtered_conv2d_under_a_penalty():
    """Up to third derivatives, also without the weight's gradient."""
    found = []
    for function in (filtered_conv2d, by_parts):
        x, weight, taps = filtered_case()
        y = function(x, weight, taps, **OPTIONS).pow(3)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (ddx,) = torch.autograd.grad(dx.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(ddx.square().sum(), (x, weight)))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


class Saved:
    """Counts the bytes that autograd saves within the block, without the tensors `of`."""

    def __init__(self, *of):
        self.known = {t.untyped_storage().data_ptr() for t in of}
        self.storages = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda t: t)

    def _note(self, t):
        self.storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    def __enter__(self):
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)
        self.bytes = sum(storage.nbytes() for at, storage in self.storages.items() if at not in self.known)


def test_filtered_conv2d_saves_only_its_arguments():
    x, weight, taps = filtered_case(torch.float32, size=16)
    for function in (filtered_conv2d, by_parts):
        with Saved(x, weight, taps) as saved:
            function(x, weight, taps, **OPTIONS)
        assert (saved.bytes < x.nbytes) == (function is filtered_conv2d)


@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
def test_no_image_is_saved_for_a_frozen_weight(filtered):
    x, weight, taps = filtered_case(torch.float32, size=16)
    weight = weight.detach()
    with Saved(weight, taps) as saved:
        y = filtered_conv2d(x, weight, taps, **OPTIONS) if filtered else conv2d(x, weight)
    assert saved.bytes == 0
    expected = by_parts(x, weight, taps, **OPTIONS) if filtered else F.conv2d(x, weight)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), x)[0], torch.autograd.grad(expected.square().sum(), x)[0]
    )


def test_filtered_conv2d_under_autocast_equals_filter_then_convolution():
    x, weight, taps = filtered_case(torch.float32)
    found = []
    for given in (x, x.detach().bfloat16().requires_grad_()):
        for function in (filtered_conv2d, by_parts):
            with torch.autocast("cpu", torch.bfloat16):
                y = function(given, weight, taps, **OPTIONS)
            assert y.dtype == torch.bfloat16
            found.append((y, *torch.autograd.grad(y.float().square().sum(), (given, weight))))
    for got, expected in zip(found[::2], found[1::2], strict=True):
        assert all(torch.equal(*both) for both in zip(got, expected, strict=True))


def test_filtered_conv2d_names_arguments_that_do_not_fit():
    x, weight, taps = filtered_case()
    with pytest.raises(ValueError, match="smaller than the filter"):
        filtered_conv2d(x, weight, taps, filter_padding=(-3, -3, -2, -3), stride=2)
    with pytest.raises(RuntimeError, match="channels"):
        filtered_conv2d(x, weight[:, :2], taps, **OPTIONS)
