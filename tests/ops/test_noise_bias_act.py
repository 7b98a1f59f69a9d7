"""noise_bias_act: one table of cases for every backend, and tests of its own."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from fastgan.ops import BackendUnavailable, noise_bias_act, use_backend
from fastgan.ops.activations import ACTIVATIONS
from fastgan.ops.arithmetic import arithmetic_dtype
from fastgan.ops.noise_bias_act import NoiseBiasAct
from fastgan.ops.recordable import recorded_by
from tests.support import backends, table
from tests.support.table import DTYPES, arrange, away_from_kinks, per_channel

PARTS = ("noise", "strength", "bias", "scale", "post")
NOISY = ("noise", "strength", "bias")


class Case(NamedTuple):
    shape: tuple[int, ...] = (2, 16, 5, 7)
    layout: str = "nhwc"  # nchw, nhwc, sliced, expanded
    parts: tuple[str, ...] = PARTS
    act: str = "lrelu"
    gain: float = math.sqrt(2)
    clamp: float | None = None
    scalar_strength: bool = True
    shared_noise: bool = False
    residual: bool = False

    def __str__(self):
        flags = ["scalar" * self.scalar_strength, "shared" * self.shared_noise, "clamp" * (self.clamp is not None)]
        flags.append("residual" * self.residual)
        parts = "+".join(self.parts) if self.parts != PARTS else "all"
        return "-".join(filter(None, ["x".join(map(str, self.shape)), self.layout, self.act, parts, *flags]))


def _forms():
    """Each combination of an activation and a code path of the kernels."""
    for layout in ("nhwc", "nchw"):
        for act in ACTIVATIONS:
            yield Case(layout=layout, act=act)
            yield Case(layout=layout, act=act, parts=("bias",), clamp=1.5)
        yield Case(layout=layout, parts=("bias",))
        yield Case(layout=layout, parts=NOISY)
        yield Case(layout=layout, scalar_strength=False, parts=NOISY, act="tanh")
        yield Case(layout=layout, parts=("bias",), residual=True)
        yield Case(layout=layout, act="silu", residual=True)


def _options():
    for layout in ("nhwc", "nchw"):
        for parts in ((), ("noise",), ("noise", "strength"), ("scale",), ("post",)):
            yield Case(layout=layout, parts=parts)
        yield Case(layout=layout, scalar_strength=False)
        yield Case(layout=layout, shared_noise=True)
        yield Case(layout=layout, clamp=1.5, gain=0.7)
        yield Case(layout=layout, clamp=0.7, parts=("bias",))  # 0.7 in 16 bits is rounded, like the output
        yield Case(layout=layout, gain=-1.0, parts=("bias",))
        for act in ("linear", "relu", "sigmoid"):
            yield Case(layout=layout, parts=("bias",), act=act, residual=True)
        yield Case(layout=layout, parts=("bias",), clamp=1.5, residual=True)
        yield Case((2, 37, 4, 4), layout, parts=(), residual=True)
        yield Case((2, 37, 4, 4), layout, parts=NOISY, residual=True)
    yield Case(layout="sliced")
    yield Case(layout="expanded")


def _sizes():
    for layout in ("nhwc", "nchw"):
        awkward = ((1, 1, 1, 1), (3, 5, 1, 1), (2, 3, 33, 17), (1, 1, 9, 31), (0, 4, 3, 3), (2, 4, 0, 3), (2, 37, 4, 4))
        for shape in awkward:
            yield Case(shape, layout)
            yield Case(shape, layout, parts=("bias",))
        yield Case((2, 256, 9, 9), layout)
        yield Case((2, 256, 9, 9), layout, parts=("noise", "strength"), shared_noise=True)
        yield Case((1, 4, 64, 64), layout, parts=NOISY, shared_noise=True)  # a GPU cuts a sample into segments
    for shape in ((2, 3, 33, 17), (2, 37, 4, 4)):
        yield Case(shape, "nhwc", parts=NOISY)
    for channels in (16, 32, 64, 128, 192):  # rows that fit into registers, and columns of wider ones
        for parts in (PARTS, ("bias",), NOISY, ("noise", "bias")):
            yield Case((2, channels, 3, 5), "nhwc", parts=parts)
        yield Case((2, channels, 3, 5), "nhwc", clamp=1.5, scalar_strength=False)
    for shape in ((5, 8), (300, 33), (0, 3), (2, 3, 11), (2, 3, 2, 3, 5)):
        yield Case(shape, "nchw")
        yield Case(shape, "nchw", parts=("bias",))


CASES = [(case, dtype) for case in _forms() for dtype in DTYPES]
CASES += [(case, dtype) for case in (*_options(), *_sizes()) for dtype in ("fp32", "bf16")]
CASES += [(Case(shape), dtype) for shape in ((2, 3, 33, 17), (2, 37, 4, 4)) for dtype in ("fp16", "fp64")]


def textbook(
    x, noise=None, strength=None, bias=None, scale=None, post=None, residual=None, *, act, gain, clamp, slope=0.2
):
    """The operation in plain PyTorch, in the dtype of its inputs. Independent of the reference in fastgan."""

    if scale is not None:
        x = x * per_channel(scale, x)
    if noise is not None:
        x = x + (noise if strength is None else noise * (per_channel(strength, x) if strength.dim() else strength))
    if bias is not None:
        x = x + per_channel(bias, x)
    functions = {"linear": lambda t: t, "relu": torch.relu, "lrelu": lambda t: F.leaky_relu(t, slope)}
    functions |= {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu, "softplus": F.softplus}
    x = functions[act](x) * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    x = x if post is None else x * per_channel(post, x)
    return x if residual is None else x + residual


def make(case: Case, dtype: torch.dtype, device: str, seed: int = 0):
    """x and the small tensors, exact in `dtype`, with no value near a jump of the derivative."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(dtype).double()
    n, c, *spatial = case.shape
    small = {
        "noise": draw(1 if case.shared_noise else n, 1, *spatial),
        "strength": draw() if case.scalar_strength else draw(c),
        "bias": draw(c),
        "scale": draw(n, c),
        "post": draw(n, c),
    }
    small = {name: t for name, t in small.items() if name in case.parts}
    x = draw(*case.shape)
    if case.layout == "expanded":
        x, small["scale"] = x[:1].expand(case.shape), small["scale"][:1].expand(n, c)
        small["noise"] = small["noise"][:1].expand(n, 1, *spatial)
    before = {name: t for name, t in small.items() if name != "post"}

    def near_kink(x):
        of = lambda **options: textbook(x, **before, **options, clamp=None)
        near = of(act="linear", gain=1.0).abs() < 0.02
        if case.clamp is not None:
            near |= (of(act=case.act, gain=case.gain).abs() - case.clamp).abs() < 0.05
        return near

    x = away_from_kinks(x, near_kink, dtype)
    x = arrange(x.to(device, dtype), case.layout)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    others = {name: t.to(device, kind) for name, t in small.items()}
    if case.residual:
        others["residual"] = arrange(draw(*case.shape).to(device, dtype), case.layout)
    return x, others


@table.over(CASES)
def test_values_and_derivatives_are_as_good_as_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    x, small = make(case, DTYPES[dtype], backends.device(backend))
    options = {"act": case.act, "gain": case.gain, "clamp": case.clamp}
    table.assert_derivatives_as_good_as_plain(
        lambda x, **kw: noise_bias_act(x, **kw, **options),
        lambda x, **kw: textbook(x, **kw, **options),
        {"x": x, **small},
        fixed=("noise",),
        layout=case.layout,
        case=case,
    )


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("parts", [PARTS, ("bias",)], ids="+".join)  # derivatives from the input, from the output
@backends.one_instruction_set
def test_gradcheck_and_gradgradcheck(backend, act, parts):
    device = backends.device(backend)
    case = Case((2, 3, 2, 3), "nhwc", parts, act, clamp=2.0)
    x, small = make(case, torch.float64, device, seed=3)
    names = [name for name in small if name != "noise"]
    inputs = [x.requires_grad_(), *(small[name].requires_grad_() for name in names)]

    def function(x, *rest):
        named = dict(zip(names, rest, strict=True))
        return noise_bias_act(x, noise=small.get("noise"), **named, act=act, gain=1.3, clamp=2.0)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("act", ["lrelu", "linear", "tanh"])
@pytest.mark.parametrize("clamp", [None, 2.0])
@backends.one_instruction_set
def test_gradcheck_and_gradgradcheck_with_a_residual(backend, act, clamp):
    x, small = make(Case((2, 3, 2, 3), "nhwc", ("bias",), act, residual=True), torch.float64, backends.device(backend))
    inputs = [t.requires_grad_() for t in (x, small["bias"], small["residual"])]
    function = lambda x, bias, residual: noise_bias_act(x, bias=bias, residual=residual, act=act, clamp=clamp)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@backends.every_kernel
def test_the_gradient_of_a_residual_is_that_of_the_result(backend):
    x, small = make(Case(parts=("bias",), residual=True), torch.float32, backends.device(backend))
    y = noise_bias_act(x, bias=small["bias"], residual=small["residual"].requires_grad_())
    dy = torch.ones_like(y)
    (gradient,) = torch.autograd.grad(y, small["residual"], dy)
    assert gradient is dy


def test_a_residual_is_compiled_to_one_graph():
    x, small = make(Case(parts=("bias",), residual=True), torch.float32, "cpu")
    inputs = [t.requires_grad_() for t in (x, small["bias"], small["residual"])]
    function = lambda x, bias, residual: noise_bias_act(x, bias=bias, residual=residual)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = [(y, *torch.autograd.grad(y.square().sum(), inputs)) for y in (function(*inputs), compiled(*inputs))]
    torch.testing.assert_close(*results)


@backends.one_instruction_set
def test_a_recorder_sees_a_residual_as_a_sum(backend):
    x, small = make(Case(parts=("bias",), residual=True), torch.float32, backends.device(backend))
    seen = []
    with recorded_by(lambda name, function, args, kwargs: seen.append(kwargs.keys()) or function(*args, **kwargs)):
        noise_bias_act(x, **small)
    assert seen == [{"bias"}]


def test_a_residual_that_does_not_fit_is_named():
    x = torch.zeros(2, 3, 4, 4)
    for residual in (torch.zeros(2, 3, 4, 5), x.double()):
        with pytest.raises(ValueError, match=r"residual is .* must be as x"):
            noise_bias_act(x, residual=residual)


def _learned_noise():
    for layout in ("nhwc", "nchw"):
        yield from (Case(layout=layout), Case(layout=layout, shared_noise=True))
        yield from (Case(layout=layout, parts=NOISY), Case(layout=layout, parts=("noise",)))
        yield Case((2, 37, 4, 9), layout, scalar_strength=False)
        yield Case((2, 37, 4, 9), layout, parts=NOISY, act="tanh", scalar_strength=False)
        yield Case((3, 5, 1, 1), layout, act="silu", clamp=1.5)
        yield Case((2, 128, 5, 7), layout, shared_noise=True)  # wide enough for sums in registers
    yield Case((2, 40, 33, 17), "nchw")  # several pieces a sample
    yield Case((0, 4, 3, 3))


LEARNED_NOISE = [(case, dtype) for case in _learned_noise() for dtype in ("fp32", "bf16")]
LEARNED_NOISE += [(Case((2, 3, 33, 17), layout), dtype) for layout in ("nhwc", "nchw") for dtype in ("fp16", "fp64")]


@table.over(LEARNED_NOISE)
def test_the_gradient_of_the_noise_is_as_good_as_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    x, small = make(case, DTYPES[dtype], backends.device(backend))
    options = {"act": case.act, "gain": case.gain, "clamp": case.clamp}
    table.assert_derivatives_as_good_as_plain(
        lambda x, **kw: noise_bias_act(x, **kw, **options),
        lambda x, **kw: textbook(x, **kw, **options),
        {"x": x, **small},
        layout=case.layout,
        case=case,
    )


@backends.every_cpp
def test_the_gradient_of_the_noise_of_large_tensors(backend):
    """Too large for the cache: written by non-temporal stores, which need aligned addresses in every piece."""
    x = torch.zeros(1, 24, 512, 512, requires_grad=True)
    noise = torch.zeros(1, 1, 512, 512, requires_grad=True)
    noise_bias_act(x, noise=noise, strength=torch.ones(()), bias=torch.ones(24)).sum().backward()
    assert torch.equal(noise.grad, x.grad.sum(1, keepdim=True))


@backends.every_kernel
def test_a_kernel_computes_the_gradient_of_the_noise(backend, monkeypatch):
    monkeypatch.setattr(NoiseBiasAct, "reference", None)
    monkeypatch.setattr(NoiseBiasAct, "reference_backward", None)
    for case in (Case(), Case(layout="nchw"), Case(parts=NOISY)):
        x, small = make(case, torch.float32, backends.device(backend))
        noise_bias_act(x, **{**small, "noise": small["noise"].requires_grad_()}).sum().backward()
        assert small["noise"].grad.any()


@backends.one_instruction_set
def test_noise_has_first_and_second_derivatives(backend):
    x, small = make(Case((2, 3, 2, 3), act="tanh"), torch.float64, backends.device(backend))
    names = [*small]
    inputs = [x.requires_grad_(), *(t.requires_grad_() for t in small.values())]
    function = lambda x, *given: noise_bias_act(x, **dict(zip(names, given, strict=True)), act="tanh")
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@backends.one_instruction_set
def test_third_derivatives(backend):
    x, small = make(Case((2, 3, 2, 2), act="tanh"), torch.float64, backends.device(backend))
    function = lambda x: noise_bias_act(x, **small, act="tanh")
    first = lambda x: torch.autograd.grad(function(x).square().sum(), x, create_graph=True)[0]
    assert torch.autograd.gradgradcheck(first, [x.requires_grad_()], fast_mode=True)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@backends.one_instruction_set
def test_output_has_the_memory_format_of_the_input(backend, layout):
    x = arrange(torch.randn(2, 16, 5, 7, device=backends.device(backend)), layout).requires_grad_()
    y = noise_bias_act(x, bias=torch.zeros(16, device=x.device))
    assert y.stride() == x.stride()
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx.stride() == x.stride()


@pytest.mark.parametrize("channels", [24, 32])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@backends.every_kernel
def test_results_are_bitwise_repeatable(backend, layout, channels):
    side = 15 if backend == "emulated" else 31
    x, small = make(Case((4, channels, side, side + 2), layout), torch.float32, backends.device(backend))
    results = lambda: table.all_derivatives(noise_bias_act, {"x": x, **small}, fixed=("noise",))
    table.assert_bitwise_repeatable(backend, results)


def test_the_workspace_of_cpp_kernels_grows_and_shrinks():
    """17 samples of 512x512 need more workspace than a thread keeps between calls."""
    for n, side in ((1, 8), (17, 512), (1, 8), (17, 512)):
        dy = torch.ones(n, 3, side, side).contiguous(memory_format=torch.channels_last)
        bias = torch.zeros(3, requires_grad=True)
        with backends.forced("cpp"):
            noise_bias_act(torch.ones_like(dy), bias=bias).backward(dy)
        torch.testing.assert_close(bias.grad, torch.full((3,), float(n * side * side)))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("parts", [PARTS, ("bias",)], ids="+".join)
@backends.one_instruction_set
def test_cotangents_need_not_be_dense(backend, act, parts):
    """A penalty on sums or transposes of gradients passes cotangents of stride 0 or transposed ones."""
    x, small = make(Case(parts=parts, act=act), torch.float64, backends.device(backend))
    names = [name for name in small if name != "noise"]
    inputs = [x.requires_grad_(), *(small[name].requires_grad_() for name in names)]

    def second():
        y = noise_bias_act(x, **small, act=act)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        product = sum(g.t().reshape(-1).sum() if g.dim() == 2 else g.sum() for g in first) + first[0].square().sum()
        return torch.autograd.grad(product, inputs)

    got = second()
    with backends.forced("torch"):
        expected = second()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("parts", [PARTS, ("bias",)], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_nan(backend, parts, dtype):
    x, small = make(Case(parts=parts), dtype, backends.device(backend))
    x[0, 3, 2, 1] = math.nan
    for act in ACTIVATIONS:
        y = noise_bias_act(x, **small, act=act, clamp=1.0)
        assert y.isnan().sum() == 1 and y[0, 3, 2, 1].isnan(), act


@pytest.mark.parametrize("parts", [PARTS, ("bias",)], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinities_propagate_and_relu_of_minus_infinity_is_nan(backend, parts, dtype):
    """Relu is lrelu of slope 0, so minus infinity gives 0 * -inf, on every backend as in F.leaky_relu."""
    for act, below in (("relu", math.nan), ("lrelu", -math.inf), ("linear", -math.inf)):
        x, small = make(Case(parts=parts, act=act), dtype, backends.device(backend))
        for name in {"scale", "post"} & small.keys():
            small[name] = small[name].abs() + 0.1
        x[0, 3, 2, 1], x[1, 2, 1, 3] = -math.inf, math.inf
        y = noise_bias_act(x, **small, act=act)
        assert [y[0, 3, 2, 1].item(), y[1, 2, 1, 3].item()] == pytest.approx([below, math.inf], nan_ok=True)
        assert y.isfinite().sum() == y.numel() - 2


def extreme_numbers(dtype: torch.dtype) -> torch.Tensor:
    """Infinities, the largest numbers, numbers whose exponential just fits into fp32, and NaN."""
    largest = torch.finfo(dtype).max
    near = [0.0, 1e-4, 0.5, 3.0, 21.0, 87.0, 88.4, 89.0, 104.0, 1e4]
    positive = torch.tensor([*near, largest, math.inf], dtype=torch.float64)
    return torch.cat([positive, -positive, torch.tensor([math.nan])]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("ones", [("scale", "post"), ()], ids=["from the input", "from the output"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_extreme_numbers_have_the_results_and_derivatives_of_plain_pytorch(backend, act, ones, dtype):
    """Infinities and NaN appear exactly where plain PyTorch has them. Relu is F.leaky_relu of slope 0."""
    device = backends.device(backend)
    x = extreme_numbers(dtype).reshape(1, -1, 1, 1).to(device)
    small = {name: torch.ones(1, x.shape[1], device=device, dtype=arithmetic_dtype(dtype)) for name in ones}

    def derivatives(function):
        leaf, dy = x.clone().requires_grad_(), torch.ones_like(x).requires_grad_()
        y = function(leaf)
        (dx,) = torch.autograd.grad(y, leaf, dy, create_graph=True)
        seconds = torch.autograd.grad(dx, [dy, leaf], torch.ones_like(x), allow_unused=True, materialize_grads=True)
        return [y, dx, *seconds]

    plain, slope = ("lrelu", 0.0) if act == "relu" else (act, 0.2)
    wide = lambda x: textbook(x.to(arithmetic_dtype(dtype)), act=plain, slope=slope, gain=1.0, clamp=None).to(dtype)
    got, expected = derivatives(lambda x: noise_bias_act(x, **small, act=act)), derivatives(wide)
    rounding = 4 * torch.finfo(dtype).eps
    tolerance = {"rtol": rounding, "atol": max(rounding, 1e-6)}
    named = [dict(zip(("y", "dx", "ddy", "ddx"), each, strict=True)) for each in (got, expected)]
    torch.testing.assert_close(*named, **tolerance, equal_nan=True)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_result_at_the_clamp_has_the_slope_of_torchs_clamp_unless_it_is_taken_from_the_output(backend, layout):
    """`torch.clamp` passes a gradient at its limits, but the output does not tell such a result from a clamped one."""
    x = torch.tensor([0.5, 1.0, -1.0, 1.5], device=backends.device(backend)).reshape(1, 1, 2, 2).repeat(1, 16, 1, 1)
    x = arrange(x, layout).requires_grad_()
    for ones, at_the_limit in ((torch.ones(1, 16, device=x.device), 1.0), (None, 0.0)):
        y = noise_bias_act(x, post=ones, act="linear", clamp=1.0)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        if backend == "torch":  # autograd of the reference
            at_the_limit = 1.0
        assert dx[0, 3].flatten().tolist() == [1.0, at_the_limit, at_the_limit, 0.0]


@backends.one_instruction_set
def test_a_tensor_that_outlives_a_transform_is_ordinary(backend):
    x, bias = (torch.randn(*shape, device=backends.device(backend)) for shape in ((2, 3, 4, 5), (3,)))
    outlived = []
    torch.func.grad(lambda x: (outlived.append(x), x.sum())[1])(x)
    torch.testing.assert_close(noise_bias_act(outlived[0], bias=bias), noise_bias_act(x, bias=bias))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_clamp_infinities_have_the_slope_of_their_sign(backend, layout, dtype):
    x, small = make(Case((2, 32, 3, 5), layout, parts=("bias",)), dtype, backends.device(backend))
    x[0, 3, 2, 1], x[1, 2, 1, 3] = -math.inf, math.inf
    (dx,) = torch.autograd.grad(noise_bias_act(x.requires_grad_(), **small, gain=2.0), x, torch.ones_like(x))
    assert [dx[0, 3, 2, 1].item(), dx[1, 2, 1, 3].item()] == pytest.approx([0.4, 2.0], rel=4e-3)


class TestUnderTorchCompile:
    @pytest.mark.parametrize("parts", [PARTS, ("bias",)], ids="+".join)
    @pytest.mark.parametrize("x_is_learned", [True, False])
    def test_forward_and_backward_are_one_graph(self, parts, x_is_learned):
        x, small = make(Case(parts=parts), torch.float32, "cpu")
        inputs = [
            *([x.requires_grad_()] if x_is_learned else []),
            *(t.requires_grad_() for part, t in small.items() if part != "noise"),
        ]
        torch.compiler.reset()  # or the cases together exceed the limit of recompilations
        compiled = torch.compile(noise_bias_act, fullgraph=True, backend="aot_eager")
        expected = noise_bias_act(x, **small)
        grads = torch.autograd.grad(expected.square().sum(), inputs)
        y = compiled(x, **small)
        torch.testing.assert_close(y, expected)
        for got, wanted in zip(torch.autograd.grad(y.square().sum(), inputs), grads, strict=True):
            torch.testing.assert_close(got, wanted)

    def test_numbers_may_change_between_calls(self):
        torch.compiler.reset()  # the other tests have used up how often a function may be compiled
        compiled = torch.compile(noise_bias_act, fullgraph=True, backend="aot_eager")
        x = torch.randn(2, 4, 3, 3)
        for gain in (1.0, 1.4, 0.7):
            torch.testing.assert_close(compiled(x, gain=gain), noise_bias_act(x, gain=gain))


class TestMistakesAreNamed:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"bias": torch.zeros(3)}, ["bias", "[3]", "[4]", "[2, 4, 5, 5]"]),
            ({"scale": torch.zeros(4)}, ["scale", "[4]", "[2, 4]"]),
            ({"post": torch.zeros(4, 2)}, ["post", "[4, 2]", "[2, 4]"]),
            ({"noise": torch.zeros(2, 4, 5, 5)}, ["noise", "[2, 4, 5, 5]", "[2, 1, 5, 5]"]),
            ({"strength": torch.zeros(())}, ["strength", "without noise"]),
            ({"noise": torch.zeros(1, 1, 5, 5), "strength": torch.zeros(3)}, ["strength", "[3]", "[] or [4]"]),
            ({"bias": torch.zeros(4, dtype=torch.int64)}, ["bias", "int64"]),
            ({"bias": torch.zeros(4, device="meta")}, ["bias", "meta", "cpu"]),
            ({"act": "gelu"}, ["act", "'gelu'", "lrelu"]),
            ({"clamp": 0.0}, ["clamp", "0.0"]),
            ({"gain": math.nan}, ["gain", "nan"]),
        ],
    )
    def test_an_argument_that_does_not_fit(self, arguments, words):
        table.assert_message_contains(words, lambda: noise_bias_act(torch.zeros(2, 4, 5, 5), **arguments))

    @pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.int32)])
    def test_an_x_that_does_not_fit(self, x):
        with pytest.raises(ValueError, match="noise_bias_act: x has"):
            noise_bias_act(x)

    def test_no_requested_backend_is_available(self):
        with use_backend("cuda"), pytest.raises(BackendUnavailable, match="cuda: serves CUDA tensors only"):
            noise_bias_act(torch.zeros(2, 3, 4, 4))
