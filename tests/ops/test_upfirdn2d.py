"""upfirdn2d: one table of cases for every backend, and tests of its own."""

import os
import re
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from fastgan.ops import upfirdn2d
from fastgan.ops.upfirdn2d import Upfirdn2d, forked_upfirdn2d, validate
from tests.support import backends, table
from tests.support.table import DTYPES, arrange

UP = {"up": 2, "padding": (2, 1, 2, 1), "gain": 4.0}
DOWN = {"down": 2, "padding": (1, 1, 1, 1)}
BLUR = {"padding": (2, 1, 2, 1)}


class Case(NamedTuple):
    shape: tuple[int, int, int, int] = (2, 16, 5, 7)
    layout: str = "nhwc"  # nchw, nhwc, sliced, expanded
    taps: tuple[int, ...] = (4,)  # the shape of the filter
    up: int | tuple[int, int] = 1
    down: int | tuple[int, int] = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    gain: float = 1.3
    flip: bool = False

    def __str__(self):
        sizes = ["x".join(map(str, self.shape)), self.layout, "taps" + "x".join(map(str, self.taps))]
        factors = [f"up{self.up}", f"down{self.down}", "pad" + ",".join(map(str, self.padding)), "flip" * self.flip]
        return "-".join(filter(None, [*sizes, *factors]))

    @property
    def options(self):
        return {name: getattr(self, name) for name in ("up", "down", "padding", "gain", "flip")}


def _cases():
    for layout in ("nhwc", "nchw"):
        for form in (UP, DOWN, BLUR):
            yield Case((1, 32, 6, 9), layout, **form)
        yield Case(layout=layout, up=2, padding=(1, 2, 1, 2))  # the other phase
        yield Case((2, 24, 6, 5), layout, taps=(3,), up=2, down=3, padding=(2, 3, 1, 4), flip=True)
        yield Case((1, 33, 4, 5), layout, taps=(12,), up=(2, 3), down=(3, 1), padding=(6, 5, 7, 4))
        yield Case((1, 16, 6, 7), layout, taps=(2, 5), up=(3, 1), down=(1, 2), padding=(-2, 5, 3, -1))
        yield Case((2, 3, 11, 6), layout, taps=(6, 1), up=(1, 2), padding=(-1, -2, 4, 4), flip=True)
        yield Case((2, 3, 9, 10), layout, **UP)
        yield Case((2, 3, 9, 10), layout, **DOWN)
        yield Case((2, 3, 9, 10), layout, taps=(5,), down=3, padding=(1, 0, -2, 3))
        yield Case((1, 1, 1, 1), layout, taps=(1,), up=3)
        yield Case((3, 20, 1, 1), layout, **UP)
        yield Case((1, 17, 2, 40), layout, taps=(4, 4), padding=(-3, 9, 3, 0))
        yield Case((1, 5, 4, 4), layout, padding=(-7, 12, 2, 2))  # nothing of the image is left
    yield Case((0, 4, 3, 3), "nchw", **UP)
    yield Case((2, 0, 3, 3), "nchw", **BLUR)
    yield Case(layout="sliced", **UP)
    yield Case(layout="expanded", **DOWN)


# What differs between dtypes shows in a few cases: filters of four taps have kernels of their own, others share one.
CASES = [
    (case, dtype)
    for case in _cases()
    for dtype in DTYPES
    if dtype in ("fp32", "bf16") or case.shape in ((1, 32, 6, 9), (2, 24, 6, 5), (2, 3, 9, 10))
]


def textbook(x, taps, *, up=1, down=1, padding=(0, 0, 0, 0), gain=1.0, flip=False):
    """The operation in separate steps, in the dtype of x. Independent of the reference in fastgan."""
    n, c, h, w = x.shape
    (up_x, up_y), (down_x, down_y) = ((f, f) if isinstance(f, int) else f for f in (up, down))
    spread = x.new_zeros(n, c, h * up_y, w * up_x)
    spread[:, :, ::up_y, ::up_x] = x
    margin = 13
    wide = F.pad(spread, [margin] * 4)
    left, right, top, bottom = padding
    wide = wide[:, :, margin - top : margin + h * up_y + bottom, margin - left : margin + w * up_x + right]
    taps = taps.to(x.dtype)
    if taps.dim() == 1:
        y = _convolved(_convolved(wide, taps[:, None], flip), taps[None, :], flip)
    else:
        y = _convolved(wide, taps, flip)
    return (y * gain)[:, :, ::down_y, ::down_x]


def _convolved(x, kernel, flip):
    kh, kw = kernel.shape
    rows, columns = x.shape[2] - kh + 1, x.shape[3] - kw + 1
    return sum(
        (kernel[i, j] if flip else kernel[kh - 1 - i, kw - 1 - j]) * x[:, :, i : i + rows, j : j + columns]
        for i in range(kh)
        for j in range(kw)
    )


def make(case, dtype, device):
    """x and the filter, exact in `dtype`."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(dtype).double()
    x, taps = draw(*case.shape), draw(*case.taps)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    return arrange(x.to(device, dtype), case.layout), taps.to(device, kind)


@table.over(CASES)
def test_values_and_derivatives_are_as_good_as_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    x, taps = make(case, DTYPES[dtype], backends.device(backend))
    table.assert_derivatives_as_good_as_plain(
        lambda x: upfirdn2d(x, taps, **case.options),
        lambda x: textbook(x, taps, **case.options),
        {"x": x},
        layout=case.layout,
        case=case,
    )


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    "form", [UP, DOWN, BLUR, {"up": (1, 3), "down": (2, 1), "padding": (-1, 4, 3, 2), "flip": True}]
)
@backends.one_instruction_set
def test_gradcheck_and_gradgradcheck(backend, layout, form):
    device = backends.device(backend)
    x = arrange(torch.randn(2, 4, 3, 5, dtype=torch.float64), layout).to(device).requires_grad_()
    taps = torch.randn(4, dtype=torch.float64, device=device)
    function = lambda x: upfirdn2d(x, taps, **form)
    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: function(x).square(), x, fast_mode=True)


def fork(x, taps, **options):
    """Two readers of x, whose gradients meet in the filter's adjoint."""
    x, y = forked_upfirdn2d(x, taps, **options)
    return x.sin(), y.square()


def separate(x, taps, **options):
    return x.sin(), upfirdn2d(x, taps, **options).square()


FORKS = [(DOWN, (4,)), ({"up": 2, "padding": (2, 1, 2, 1)}, (3, 2)), (BLUR, (4,))]


@pytest.mark.parametrize(("options", "taps"), FORKS, ids=str)
@pytest.mark.parametrize("shape", [(2, 32, 6, 8), (2, 3, 4, 6)], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "sliced"])
def test_a_fork_has_the_derivatives_of_its_two_branches(backend, layout, shape, options, taps, unwritten_is_nan):
    device = backends.device(backend)
    x = arrange(torch.randn(shape, dtype=torch.float64, device=device), layout).requires_grad_()
    filter = torch.randn(taps, dtype=torch.float64, device=device)

    def derivatives(function):
        first, second = function(x, filter, **options)
        (gradient,) = torch.autograd.grad(first.sum() + second.sum(), x, create_graph=True)
        return first, second, gradient, *torch.autograd.grad(gradient.square().sum(), x)

    for got, expected in zip(derivatives(fork), derivatives(separate), strict=True):
        torch.testing.assert_close(got, expected)


@backends.one_instruction_set
def test_a_fork_passes_gradcheck_and_gradgradcheck(backend):
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, device=backends.device(backend))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    taps = torch.randn(4, dtype=torch.float64, device=x.device)
    function = lambda x: fork(x, taps, **DOWN)
    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        lambda x: torch.autograd.grad(sum(part.sum() for part in function(x)), x, create_graph=True)[0],
        x,
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_fork_adds_gradients_as_exactly_as_plain_pytorch(backend, dtype):
    x = torch.randn(2, 32, 6, 6, device=backends.device(backend)).to(DTYPES[dtype])
    taps = torch.tensor([1.0, 3, 3, 1], device=x.device) / 8
    joined = lambda x, y: x + F.interpolate(y, scale_factor=2)
    table.assert_derivatives_as_good_as_plain(
        lambda x: joined(*forked_upfirdn2d(x, taps, **DOWN)),
        lambda x: joined(x, textbook(x, taps, **DOWN)),
        {"x": x.contiguous(memory_format=torch.channels_last)},
    )


def test_a_fork_adds_gradients_without_a_pass_of_its_own(monkeypatch):
    calls, launch = [], Upfirdn2d.allocate_output
    monkeypatch.setattr(Upfirdn2d, "allocate_output", lambda *args: calls.append(1) or launch(*args))
    x = torch.randn(1, 16, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    with backends.forced("cpp"):
        first, second = forked_upfirdn2d(x, torch.ones(4), **DOWN)
        assert first.data_ptr() == x.data_ptr()
        gradients = [torch.ones_like(first), torch.ones_like(second)]
        with torch.profiler.profile() as profile:
            torch.autograd.grad([first, second], x, gradients)
    assert len(calls) == 2 and "aten::add" not in {event.name for event in profile.events()}


def test_every_derivative_is_a_kernel_call(monkeypatch):
    """The operation is its own adjoint, so the reference runs for no order."""
    monkeypatch.setattr(Upfirdn2d, "reference", None)
    x = torch.randn(1, 16, 4, 4, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(3, dtype=torch.float64)
    with backends.forced("cpp"):
        y = upfirdn2d(x, taps, up=2, padding=(1, 0, 2, 1))
        for _ in range(3):
            (y,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        assert y.requires_grad


@backends.one_instruction_set
def test_the_filter_has_a_gradient(backend):
    device = backends.device(backend)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    for shape in ((3,), (2, 3)):
        taps = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
        function = lambda x, taps: upfirdn2d(x, taps, up=2, padding=(1, 2, 0, 1))
        assert torch.autograd.gradcheck(function, [x, taps], fast_mode=True)


def test_a_filter_is_convolved_unless_flipped(backend):
    """An impulse gives the filter; with flip, the reversed filter."""
    x = torch.zeros(1, 1, 5, 5, device=backends.device(backend))
    x[0, 0, 2, 2] = 1
    taps = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], device=x.device)
    assert torch.equal(upfirdn2d(x, taps)[0, 0], taps)
    assert torch.equal(upfirdn2d(x, taps, flip=True)[0, 0], taps.flip(0, 1))
    row = torch.tensor([1.0, 2.0, 4.0], device=x.device)
    assert torch.equal(upfirdn2d(x, row)[0, 0], torch.outer(row, row))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(2, 16, 5, 7), (2, 1, 4, 4), (2, 16, 1, 1)])
@backends.one_instruction_set
def test_output_has_the_memory_format_of_the_input(backend, layout, shape):
    format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    x = torch.empty(shape, device=backends.device(backend), memory_format=format).normal_().requires_grad_()
    y = upfirdn2d(x, torch.ones(4, device=x.device), **UP)
    assert y.stride() == torch.empty(y.shape, memory_format=format).stride()
    if backend != "torch":  # where PyTorch's own convolution decides
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert dx.stride() == x.stride()


def results(case, device="cpu"):
    """The result and its gradient."""
    x, taps = make(case, torch.float32, device)
    return table.all_derivatives(lambda x: upfirdn2d(x, taps, **case.options), {"x": x})[:2]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@backends.every_kernel
def test_results_are_bitwise_repeatable(backend, layout):
    shape = (2, 8, 9, 17) if backend == "emulated" else (3, 24, 31, 33)
    cases = Case(shape, layout, **UP), Case(shape, layout, taps=(3, 2))
    of_all = lambda: [t for case in cases for t in results(case, backends.device(backend))]
    table.assert_bitwise_repeatable(backend, of_all)


@pytest.mark.parametrize("form", [UP, BLUR])
def test_rows_wider_than_a_tile(form):
    """The C++ kernels process rows in tiles: here three, the last one partial."""
    for shape, layout in (((1, 64, 3, 301), "nhwc"), ((1, 2, 3, 20001), "nchw")):
        case = Case(shape, layout, **form)
        with backends.forced("cpp"):
            got = results(case)
        with backends.forced("torch"):
            expected = results(case)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@backends.one_instruction_set
def test_cotangents_need_not_be_dense(backend):
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64, device=backends.device(backend))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    taps = torch.randn(4, dtype=torch.float64, device=x.device)
    y = upfirdn2d(x, taps, **UP)
    for dy in (torch.ones((), dtype=x.dtype, device=x.device).expand(y.shape), torch.randn_like(y).contiguous()):
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        with backends.forced("torch"):
            (expected,) = torch.autograd.grad(upfirdn2d(x, taps, **UP), x, dy)
        torch.testing.assert_close(dx, expected)


class TestUnderTorchCompile:
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    def test_forward_and_backward_are_one_graph(self, layout):
        x, taps = make(Case(layout=layout), torch.float32, "cpu")
        x.requires_grad_()
        function = lambda x: upfirdn2d(x, taps, up=2, padding=(2, 1, 2, 1), gain=4.0)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        expected, y = function(x), compiled(x)
        torch.testing.assert_close(y, expected)
        dx, got = (torch.autograd.grad(each.square().sum(), x)[0] for each in (expected, y))
        torch.testing.assert_close(got, dx)

    def test_the_operator_passes_torchs_checks(self):
        if backends.why_not("cpp"):
            pytest.skip(backends.why_not("cpp"))
        x, taps = make(Case(), torch.float32, "cpu")
        options = (2, 2, 1, 1, 2, 1, 2, 1, 4.0, False, True)
        torch.library.opcheck(
            torch.ops.fastgan.upfirdn2d, (x, taps, *options, "cpp"), test_utils=("test_schema", "test_faketensor")
        )


class TestMistakesAreNamed:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"x": torch.zeros(3, 4, 5)}, ["x", "[3, 4, 5]", "[N, C, H, W]"]),
            ({"x": torch.zeros(1, 1, 2, 2, dtype=torch.int32)}, ["x", "int32"]),
            ({"taps": torch.zeros(2, 2, 2)}, ["taps", "[2, 2, 2]"]),
            ({"taps": torch.zeros(0)}, ["taps", "[0]"]),
            ({"taps": torch.zeros(3, dtype=torch.int64)}, ["taps", "int64"]),
            ({"taps": torch.zeros(3, device="meta")}, ["taps", "meta", "cpu"]),
            ({"up": 0}, ["up", "0"]),
            ({"down": (1, 2, 3)}, ["down", "(1, 2, 3)"]),
            ({"padding": (1, 2)}, ["padding", "(1, 2)"]),
            ({"padding": (-3, 0, 0, 0)}, ["[5, 2]", "[4, 4]", "padding (-3, 0, 0, 0)"]),
        ],
    )
    def test_an_argument_that_does_not_fit(self, arguments, words):
        given = {"x": torch.zeros(2, 4, 5, 5), "taps": torch.ones(4), **arguments}
        table.assert_message_contains(words, lambda: upfirdn2d(**given))


# Triton, compiled without a GPU ----------------------------------------------------------------------------------


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled")
@pytest.mark.parametrize(
    ("layout", "dtype", "capability"),
    [
        *(("nhwc", torch.bfloat16, capability) for capability in (80, 90, 100)),
        *((layout, torch.float32, 90) for layout in ("nhwc", "nchw")),
        ("nchw", torch.bfloat16, 90),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", [UP, DOWN, BLUR, {"taps": (7, 5)}], ids=["up", "down", "blur", "7x5"])
def test_triton_kernels_compile_without_spills(layout, form, dtype, capability, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from fastgan_kernels.triton import upfirdn2d as kernels
    from tests.support.compiled_triton import Recorder, compiled_for, in_loops, resources

    launches = []
    for name in ("_filter", "_strips"):
        monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name), launches))
    case = Case((2, 64, 32, 32), layout, **form)
    x, taps = make(case, dtype, "cpu")
    x, taps, options = validate("test", x, taps, case.up, case.down, case.padding, case.gain, case.flip)
    Upfirdn2d.launch_forward(kernels, Upfirdn2d.allocate_output((x, taps), options), (x, taps), options)
    [(kernel, arguments, named)] = launches
    compiled = compiled_for(capability, kernel, arguments, named)
    used = resources(compiled.asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0, used
    if layout == "nhwc":
        for access in ("ld", "st"):
            assert re.search(rf"{access}\.global[\w.:]*\.v4\.b32\b", compiled.asm["ptx"]), f"no wide access ({access})"
        assert in_loops(compiled.asm["ttgir"], "convert_layout") == 0
