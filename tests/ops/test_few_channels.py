"""few_channels: the kernels by themselves, and which convolutions use them."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan_kernels
from fastgan.ops import conv2d, conv_transpose2d, use_backend
from fastgan.ops.few_channels import FewChannels
from fastgan.ops.layout import is_channels_last
from fastgan_kernels.calls import FewChannelsCall
from tests.support import backends
from tests.support.accuracy import assert_as_good_as_plain

NHWC = torch.channels_last
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
WAYS = {"conv2d": (conv2d, F.conv2d), "conv_transpose2d": (conv_transpose2d, F.conv_transpose2d)}


@pytest.fixture(params=["cpp-baseline", "cpp-avx2", "cpp-avx512"])
def isa(request):
    with backends.forced(request.param):
        yield request.param


# The launchers -------------------------------------------------------------------------------------------------------

# Samples, channels of many and of few, height and width of many, kernel, stride, padding, and rows and columns of few
# that no tap reads. Some vectors are full; some images are several work items.
CASES = [
    (3, 64, 1, (8, 8), (3, 3), 1, (1, 1), (0, 0)),
    (2, 16, 3, (5, 7), (1, 1), 1, (0, 0), (0, 0)),
    (2, 22, 2, (9, 4), (3, 2), 1, (1, 0), (0, 0)),
    (1, 48, 1, (16, 16), (4, 4), 2, (1, 1), (0, 0)),
    (2, 32, 3, (6, 5), (4, 4), 2, (1, 1), (1, 1)),
    (2, 18, 1, (3, 3), (5, 5), 3, (2, 0), (2, 1)),
    (2, 16, 1, (4, 4), (1, 1), 2, (0, 0), (1, 1)),  # no tap reads some pixels in between
    (1, 512, 3, (4, 4), (1, 1), 1, (0, 0), (0, 0)),
    (1, 16, 2, (40, 300), (3, 3), 1, (1, 1), (0, 0)),
    (1, 20, 1, (70, 130), (3, 3), 2, (1, 1), (0, 1)),
    (1, 1040, 1, (3, 4), (6, 8), 1, (2, 3), (0, 0)),
    (65, 16, 1, (1, 1), (1, 1), 1, (0, 0), (0, 0)),
]


def by_library(given, wanted, n, c, o, size, kernel, stride, padding, beyond):
    """Computes the tensor `wanted` from the two given ones by the library, in their dtype."""
    shapes = {
        "many": (n, c, *size),
        "weight": (c, o, *kernel),
        "few": (n, o, *few_size(size, kernel, stride, padding, beyond)),
    }
    dtype = next(iter(given.values())).dtype
    zero = {name: torch.zeros(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}
    tensors = {**zero, **given}
    y = F.conv2d(tensors["few"], tensors["weight"], stride=stride, padding=padding)
    return y if wanted == "many" else torch.autograd.grad(y, zero[wanted], given["many"])[0]


def few_size(size, kernel, stride, padding, beyond):
    sides = zip(size, kernel, padding, beyond, strict=True)
    return tuple((side - 1) * stride + k - 2 * pad + more for side, k, pad, more in sides)


def launch(map_, case, given, dtype, flipped=False, memory_format=NHWC):
    n, c, o, size, kernel, stride, padding, beyond = case
    launchers = fastgan_kernels.BACKENDS["cpp"].launchers("few_channels")
    empty = lambda *shape: torch.empty(shape, dtype=dtype).to(memory_format=NHWC)
    many = given.get("many", empty(n, c, *size))
    few = given.get("few", empty(n, o, *few_size(size, kernel, stride, padding, beyond)))
    weight = given.get("weight", empty(c, o, *kernel)).to(memory_format=memory_format)
    made = {"gather": many, "scatter": few, "outer": weight}[map_]
    sizes = *many.shape, *few.shape[1:], *kernel, stride, *padding
    steps = weight.stride(1), weight.stride(3), weight.stride(0)
    launchers.run(FewChannelsCall(map_, dtype, *sizes, flipped, *steps, many, few, weight))
    return made


def draw(case, dtype):
    n, c, o, size, kernel, stride, padding, beyond = case
    torch.manual_seed(0)
    shapes = (n, c, *size), (n, o, *few_size(size, kernel, stride, padding, beyond)), (c, o, *kernel)
    images = (torch.randn(shape).to(dtype, memory_format=NHWC) for shape in shapes)
    return dict(zip(("many", "few", "weight"), images, strict=True))


@dtypes
@pytest.mark.parametrize("map_, wanted", [("gather", "many"), ("scatter", "few"), ("outer", "weight")])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_map_is_as_accurate_as_the_librarys(case, map_, wanted, dtype, isa, unwritten_is_nan):
    given = draw(case, dtype)
    del given[wanted]
    got = launch(map_, case, given, dtype)
    reference = by_library({name: t.double() for name, t in given.items()}, wanted, *case)
    plain = by_library(given, wanted, *case)
    summed = reference.numel() * case[1] if dtype == torch.float32 else 0
    assert_as_good_as_plain(got, plain, reference, dtype, wanted, summed=summed)


@pytest.mark.parametrize("memory_format", [NHWC, torch.contiguous_format], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("map_, wanted", [("gather", "many"), ("scatter", "few"), ("outer", "weight")])
def test_a_weight_may_be_flipped_and_in_either_memory_format(map_, wanted, memory_format, isa):
    case = CASES[2]
    given = draw(case, torch.float32)
    del given[wanted]
    expected = launch(map_, case, given, torch.float32)
    if "weight" in given:
        given["weight"] = given["weight"].flip(2, 3)
    got = launch(map_, case, given, torch.float32, flipped=True, memory_format=memory_format)
    assert torch.equal(got if map_ != "outer" else got.flip(2, 3), expected)


@dtypes
@pytest.mark.parametrize("map_, wanted", [("gather", "many"), ("scatter", "few"), ("outer", "weight")])
def test_results_are_bitwise_repeatable_for_any_number_of_threads(map_, wanted, dtype, isa):
    case = (16, 64, 1, (32, 32), (3, 3), 1, (1, 1), (0, 0))
    given = draw(case, dtype)
    del given[wanted]
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(launch(map_, case, given, dtype))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


# In convolutions -----------------------------------------------------------------------------------------------------

# Outputs, inputs, kernel, options.
TO_FEW = [
    ("conv2d", 1, 16, (3, 3), {"padding": 1}),
    ("conv2d", 3, 64, (3, 3), {}),
    ("conv2d", 2, 32, (1, 1), {}),
    ("conv2d", 1, 16, (5, 3), {"padding": (2, 0)}),
    ("conv2d", 1, 16, (4, 4), {"padding": 3}),
    ("conv_transpose2d", 1, 32, (4, 4), {"stride": 2, "padding": 1}),
    ("conv_transpose2d", 3, 16, (2, 3), {"padding": (1, 0)}),
]
FROM_FEW = [
    ("conv2d", 16, 1, (3, 3), {"padding": 1, "stride": 2}),
    ("conv2d", 64, 3, (4, 4), {"padding": 1, "stride": 2}),
    ("conv2d", 128, 3, (1, 1), {}),
    ("conv2d", 20, 2, (3, 1), {"padding": (1, 0)}),
]


@pytest.fixture(autouse=True)
def compiled():
    if reason := backends.why_not("cpp"):
        pytest.skip(reason)


class LibraryConvolutions(TorchDispatchMode):
    """Counts calls of the library."""

    made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            self.made += 1
        return function(*args, **(kwargs or {}))


def image_and_weight(way, outputs, inputs, kernel, dtype=torch.float32, memory_format=NHWC, size=(9, 8)):
    torch.manual_seed(0)
    x = torch.randn(2, inputs, *size).to(dtype, memory_format=memory_format).requires_grad_()
    shape = (outputs, inputs) if way == "conv2d" else (inputs, outputs)
    return x, torch.randn(*shape, *kernel).to(dtype, memory_format=memory_format).requires_grad_()


def derivatives(function, x, weight, options):
    """The result, its gradients, and the gradients of a penalty."""
    y = function(x, weight, **options)
    first = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))
    return [y, *first, *second]


@dtypes
@pytest.mark.parametrize("given", TO_FEW + FROM_FEW, ids=str)
def test_results_and_derivatives_match_the_library(given, dtype):
    way, outputs, inputs, kernel, options = given
    ours, torchs = WAYS[way]
    x, weight = image_and_weight(way, outputs, inputs, kernel, dtype)
    with LibraryConvolutions() as library:
        got = derivatives(ours, x, weight, options)
    assert library.made == 0
    assert is_channels_last(got[0])
    plain = derivatives(torchs, x, weight, options)
    reference = derivatives(
        torchs, x.double().detach().requires_grad_(), weight.double().detach().requires_grad_(), options
    )
    for what, *three in zip(("y", "dx", "dw", "ddx", "ddw"), got, plain, reference, strict=True):
        assert_as_good_as_plain(*three, dtype, what, summed=1024)


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": torch.float64},
        {"memory_format": torch.contiguous_format, "inputs": 18},
        {"outputs": 6},
        {"outputs": 5, "kernel": (1, 1), "options": {}},
        {"inputs": 12},
        {"inputs": 17},
        {"options": {"stride": 2}},
        {"options": {"padding": 3}},
    ],
    ids=["fp64", "NCHW", "not few by taps", "not few", "not many", "odd", "strided", "padded beyond the taps"],
)
def test_other_convolutions_go_to_the_library(changed):
    given = {"outputs": 1, "inputs": 16, "kernel": (3, 3), "options": {"padding": 1}} | changed
    options = given.pop("options")
    x, weight = image_and_weight("conv2d", **given)
    got, expected = (derivatives(function, x, weight, options) for function in WAYS["conv2d"])
    with LibraryConvolutions() as library:
        y = conv2d(x, weight, **options)
    assert library.made == 1
    assert torch.equal(y, expected[0])
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "kernel, strides", [((3, 1), (48, 1, 16, 7)), ((1, 3), (48, 1, 5, 16)), ((1, 1), (16, 1, 3, 5))]
)
def test_any_stride_of_a_single_row_or_column_works(kernel, strides):
    x, weight = image_and_weight("conv2d", 1, 16, kernel)
    odd = torch.empty_strided(weight.shape, strides).copy_(weight.detach()).requires_grad_()
    padding = tuple(k // 2 for k in kernel)
    results = []
    for each in (weight, odd):
        with LibraryConvolutions() as library:
            y = conv2d(x, each, padding=padding)
            results.append((y, *torch.autograd.grad(y.pow(2).sum(), (x, each))))
        assert library.made == 0
    for plain, ours in zip(*results, strict=True):
        assert torch.equal(plain, ours)


def test_the_library_writes_large_images():
    for outputs, inputs, forward in ((64, 3, 1), (3, 64, 0)):
        x, weight = image_and_weight("conv2d", outputs, inputs, (1, 1), size=(128, 128))
        with LibraryConvolutions() as library:
            y = conv2d(x, weight)
            assert library.made == forward
            torch.autograd.grad(y.sum(), (x, weight))
        assert library.made == 1  # the image of many channels, in forward or backward


def test_a_bias_goes_to_the_library_and_has_a_gradient():
    x, weight = image_and_weight("conv2d", 1, 16, (3, 3))
    bias = torch.randn(1, requires_grad=True)
    grads = [
        torch.autograd.grad(function(x, weight, bias, padding=1).pow(2).sum(), (x, weight, bias))
        for function in WAYS["conv2d"]
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_backend_decides_and_unneeded_gradients_are_not_computed():
    x, weight = image_and_weight("conv2d", 1, 16, (3, 3))
    with use_backend("torch"), LibraryConvolutions() as library:
        y = conv2d(x, weight, padding=1)
    assert library.made == 1
    y = conv2d(x, weight, padding=1)
    with LibraryConvolutions() as library:
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert library.made == 0 and dx.requires_grad


@pytest.mark.parametrize("channels", [1, 3])
def test_incoming_gradients_may_have_any_layout(channels):
    """A loss or a matrix product may pass an expanded or an NCHW gradient."""
    x, weight = image_and_weight("conv2d", channels, 16, (3, 3))
    y = conv2d(x, weight, padding=1)
    for dy in (torch.ones(()).expand(y.shape), torch.randn(y.shape), torch.randn(y.shape).to(memory_format=NHWC)):
        got = torch.autograd.grad(y, (x, weight), dy, retain_graph=True)
        expected = torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), dy)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape, message", [((1, 17, 3, 3), "channels"), ((1, 16, 12, 3), "Kernel size")])
def test_shapes_that_do_not_fit_raise_torchs_errors(shape, message):
    x = torch.randn(2, 16, 9, 8).to(memory_format=NHWC)
    assert FewChannels.of(x, torch.randn(shape), 1, (0, 0), False) is None
    with pytest.raises(RuntimeError, match=message):
        conv2d(x, torch.randn(shape))
