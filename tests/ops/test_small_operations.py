"""lerp_samples, minibatch_stddev, pixel_norm, squared_norm: one table of cases for every backend.

Tests of one operation are in test_OPERATION.py.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastgan import ops
from tests.support import backends, table
from tests.support.table import DTYPES, arrange

# The operations as one writes them in PyTorch, in the dtype of their inputs: written apart from those in fastgan ----


def textbook_pixel_norm(x, eps=1e-8):
    return x / (x.pow(2).mean(1, keepdim=True) + eps).sqrt()


def textbook_squared_norm(x):
    return x.pow(2).flatten(1).sum(1)


def textbook_lerp_samples(x, b, t):
    t = t.view(-1, *[1] * (x.dim() - 1))
    return (1 - t) * x + t * b


def textbook_minibatch_stddev(x, group_size=4, features=1):
    n, c = x.shape[:2]
    groups = n // min(group_size, n) if n else 0
    maps = []
    for i in range(n):
        group = x[i % groups :: groups]
        deviation = ((group - group.mean(0)).pow(2).mean(0) + 1e-8).sqrt()  # [C, ...]
        maps.append(torch.stack([part.mean() for part in deviation.chunk(features)]))
    maps = torch.stack(maps) if n else x.new_empty(0, features)
    return torch.cat([x, maps.reshape(n, features, *[1] * (x.dim() - 2)).expand(n, features, *x.shape[2:])], 1)


class Operation(NamedTuple):
    fused: Callable[..., Tensor]
    textbook: Callable[..., Tensor]
    gives: str = "activations"  # or "numbers": one a sample


OPERATIONS = {
    "pixel_norm": Operation(ops.pixel_norm, textbook_pixel_norm),
    "squared_norm": Operation(ops.squared_norm, textbook_squared_norm, gives="numbers"),
    "lerp_samples": Operation(lambda x, b, t: ops.lerp_samples(x, b, t), textbook_lerp_samples),
    "minibatch_stddev": Operation(ops.minibatch_stddev, textbook_minibatch_stddev),
}


class Case(NamedTuple):
    operation: str
    shape: tuple[int, ...] = (2, 16, 5, 7)
    layout: str = "nhwc"
    options: tuple[tuple[str, float], ...] = ()

    def __str__(self):
        options = [f"{name}={value}" for name, value in self.options]
        return "-".join([self.operation, "x".join(map(str, self.shape)), self.layout, *options])


def _shaped(name, shape, layout):
    options = ()
    if name == "pixel_norm" and shape[1] == 1:
        options = (("eps", 0.5),)  # the norm of a single channel is its sign, whose derivatives are rounding alone
    if name == "minibatch_stddev" and shape[0] in (1, 2):
        shape = (4, *shape[1:])  # so is what a group of one or two derives; tested apart
    return Case(name, shape, layout, options)


def _cases():
    for name in OPERATIONS:
        for layout in ("nhwc", "nchw"):
            for shape in ((2, 16, 5, 7), (1, 1, 1, 1), (3, 5, 1, 1), (4, 3, 33, 17), (4, 1, 9, 31), (8, 37, 4, 4)):
                yield _shaped(name, shape, layout)
            yield Case(name, (4, 160, 9, 9), layout)
            for empty in ((0, 4, 3, 3), (2, 4, 0, 3)):
                yield Case(name, empty, layout)
        yield Case(name, (4, 16, 5, 7), "sliced")
        if name != "minibatch_stddev":  # equal samples: tested apart
            yield Case(name, (4, 16, 5, 7), "expanded")
        for shape in ((4, 8), (40, 33), (0, 3), (2, 3, 11), (2, 3, 2, 3, 5)):
            yield _shaped(name, shape, "nchw")
    for layout in ("nhwc", "nchw"):
        yield Case("minibatch_stddev", (6, 24, 5, 7), layout, (("group_size", 3), ("features", 4)))
        yield Case("minibatch_stddev", (10, 6, 3, 5), layout, (("group_size", 5), ("features", 2)))


# What differs between dtypes shows at a few shapes.
CASES = [
    (case, dtype)
    for case in _cases()
    for dtype in DTYPES
    if dtype in ("fp32", "bf16") or case.layout == "sliced" or case.options or case.shape[1:] in ((3, 33, 17), (33,))
]


def make(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a call, exact in `dtype`."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)
    tensors = {"x": arrange(draw(*case.shape), case.layout)}
    if case.operation == "lerp_samples":
        tensors["b"] = arrange(draw(*case.shape), case.layout)
        tensors["t"] = torch.rand(case.shape[0], generator=generator).to(device, dtype)
    return tensors


def of(case: Case) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The fused operation and its plain PyTorch form, with the options of the case."""
    operation, options = OPERATIONS[case.operation], dict(case.options)
    return (lambda **tensors: operation.fused(**tensors, **options)), (
        lambda **tensors: operation.textbook(**tensors, **options)
    )


def fixed(case: Case) -> tuple[str, ...]:
    """Tensors whose gradient makes the reference run. Tests of kernels do not differentiate them."""
    return ("t",) if case.operation == "lerp_samples" else ()


each_operation = pytest.mark.parametrize("name", OPERATIONS)
each_layout = pytest.mark.parametrize("layout", ["nchw", "nhwc"])


@table.over(CASES)
def test_values_and_derivatives_are_as_good_as_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    dtype = DTYPES[dtype]
    tensors = make(case, dtype, backends.device(backend))
    fused, textbook = of(case)
    activations = OPERATIONS[case.operation].gives == "activations"
    in_dtype = lambda **tensors: fused(**tensors).to(dtype)  # numbers come in fp32 at least
    layout = case.layout if activations else "nchw"
    table.assert_derivatives_as_good_as_plain(in_dtype, textbook, tensors, fixed=fixed(case), layout=layout, case=case)


@each_operation
@each_layout
@backends.one_instruction_set
def test_gradcheck_and_gradgradcheck(backend, name, layout):
    tensors = make(Case(name, (4, 4, 1, 3), layout), torch.float64, backends.device(backend))
    function = lambda *inputs: OPERATIONS[name].fused(**dict(zip(tensors, inputs, strict=True)))
    inputs = [t.requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    if name == "lerp_samples":  # with a gradient of t, that was plain PyTorch
        inputs[-1].requires_grad_(False)
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@each_operation
@backends.one_instruction_set
def test_third_derivatives(backend, name):
    tensors = make(Case(name, (4, 3, 2, 2)), torch.float64, backends.device(backend))
    function = lambda x: OPERATIONS[name].fused(**{**tensors, "x": x}).pow(3).sum()
    first = lambda x: torch.autograd.grad(function(x), x, create_graph=True)[0]
    assert torch.autograd.gradgradcheck(first, [tensors["x"].requires_grad_()], fast_mode=True)


@each_operation
@each_layout
@backends.one_instruction_set
def test_memory_formats_are_kept(backend, name, layout):
    case = Case(name, (4, 16, 5, 7), layout)
    tensors = make(case, torch.float32, backends.device(backend))
    x = tensors["x"].requires_grad_()
    y = of(case)[0](**tensors)
    if OPERATIONS[name].gives == "activations":
        assert y.is_contiguous(memory_format=torch.channels_last) == (layout == "nhwc")
        assert y.is_contiguous() == (layout == "nchw")
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx.stride() == x.stride()


@each_operation
@each_layout
@backends.every_kernel
def test_results_are_bitwise_repeatable(backend, name, layout):
    side = 15 if backend == "emulated" else 31
    case = Case(name, (4, 24, side, side + 2), layout)
    tensors = make(case, torch.float32, backends.device(backend))
    table.assert_bitwise_repeatable(backend, lambda: table.all_derivatives(of(case)[0], tensors, fixed(case)))


@each_operation
@each_layout
@backends.one_instruction_set
def test_incoming_gradients_need_not_be_dense(backend, name, layout):
    """A sum passes an expanded gradient, a transposition a transposed one."""
    tensors = make(Case(name, (4, 6, 5, 3), layout), torch.float64, backends.device(backend))
    variables = [t.requires_grad_() for key, t in tensors.items() if key != "t"]

    def transposed(t):
        return t.transpose(0, -1).reshape(-1)

    def second():
        y = OPERATIONS[name].fused(**tensors)
        sums = torch.autograd.grad(y.sum(), variables, create_graph=True)
        strided = torch.autograd.grad(transposed(y).square().sum(), variables, create_graph=True)
        product = sum(g.sum() + transposed(h).square().sum() for g, h in zip(sums, strided, strict=True))
        return [*sums, *strided, *torch.autograd.grad(product, variables, allow_unused=True)]

    got = second()
    with backends.forced("torch"):
        expected = second()
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


X, T = torch.zeros(2, 4, 5, 5), torch.zeros(2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.pixel_norm(torch.zeros(3)), ["pixel_norm: x has shape [3]", "[N, C, ...]"]),
        (lambda: ops.pixel_norm(X.int()), ["pixel_norm: x has dtype torch.int32", "fp16"]),
        (lambda: ops.pixel_norm(X, eps=math.nan), ["eps is nan"]),
        (lambda: ops.squared_norm(torch.zeros(3)), ["squared_norm: x has shape [3]", "[N, C, ...]"]),
        (lambda: ops.minibatch_stddev(torch.zeros(3)), ["minibatch_stddev: x has shape [3]"]),
        (lambda: ops.minibatch_stddev(torch.zeros(6, 4)), ["a batch of 6", "group_size 4"]),
        (lambda: ops.minibatch_stddev(X, features=3), ["4 channels", "3 features"]),
        (lambda: ops.minibatch_stddev(X, group_size=0), ["group_size is 0"]),
        (lambda: ops.lerp_samples(X.int(), X, T), ["lerp_samples: a has dtype torch.int32"]),
        (lambda: ops.lerp_samples(X, X[:, :3], T), ["b has shape [2, 3, 5, 5], must be [2, 4, 5, 5]"]),
        (lambda: ops.lerp_samples(X, X.half(), T), ["b has dtype torch.float16, must be torch.float32"]),
        (lambda: ops.lerp_samples(X, X, T[:1]), ["t has shape [1], must be [2]", "[2, 4, 5, 5]"]),
        (lambda: ops.lerp_samples(X, X, T.int()), ["t has dtype torch.int32"]),
        (lambda: ops.lerp_samples(X, X, T.to("meta")), ["t is on meta, a on cpu"]),
    ],
)
def test_an_argument_that_does_not_fit_is_named(call, words):
    table.assert_message_contains(words, call)
