"""adain and style_epilogue: one table of cases for every backend, and tests of their own."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from fastgan.ops import BackendUnavailable, adain, batch_norm_act, style_epilogue, use_backend
from tests.support import backends, table
from tests.support.table import DTYPES, arrange, away_from_kinks, per_channel

STYLE = ("style_scale", "style_bias")
PARTS = ("noise", "strength", "bias", *STYLE)


class Case(NamedTuple):
    shape: tuple[int, ...] = (2, 16, 5, 7)
    layout: str = "nhwc"  # nchw, nhwc, sliced, expanded
    parts: tuple[str, ...] = PARTS
    act: str = "lrelu"
    gain: float = math.sqrt(2)
    scalar_strength: bool = False
    shared_noise: bool = False
    shared_style: bool = False
    eps: float = 1e-5
    mean: float = 0.0  # of x

    def __str__(self):
        flags = ["scalar" * self.scalar_strength, "shared" * self.shared_noise, "affine" * self.shared_style]
        flags += ["far" * bool(self.mean)]
        parts = {PARTS: "all", STYLE: "adain", (): "norm"}.get(self.parts, "+".join(self.parts))
        return "-".join(filter(None, ["x".join(map(str, self.shape)), self.layout, self.act, parts, *flags]))


IN_PIECES = {"nhwc": (1, 64, 32, 33), "nchw": (1, 1, 256, 257)}  # too much for one unit of work of any kernel


def _adain(shape, layout, parts=STYLE):
    return Case(shape, layout, parts, act="linear", gain=1.0)


def _forms():
    for layout in ("nhwc", "nchw"):
        yield _adain((2, 16, 5, 7), layout)
        yield _adain((2, 16, 5, 7), layout, ())
        yield _adain((2, 16, 5, 7), layout, ("style_scale",))
        yield _adain((2, 16, 5, 7), layout)._replace(shared_style=True)
        for act in ("linear", "relu", "lrelu"):
            yield Case(layout=layout, act=act)
        yield Case(layout=layout, parts=("noise", *STYLE))
        yield Case(layout=layout, parts=("bias",), gain=-0.7)
        yield Case(layout=layout, scalar_strength=True, shared_noise=True)
    yield Case(layout="sliced")
    yield Case(layout="expanded")


def _sizes():
    for layout in ("nhwc", "nchw"):
        awkward = ((1, 1, 1, 1), (3, 5, 1, 1), (2, 3, 33, 17), (1, 1, 9, 31), (0, 4, 3, 3), (2, 4, 0, 3), (2, 37, 4, 4))
        for shape in awkward:  # where there is no variance, its powers that 16 bits can hold
            yield Case(shape, layout, eps=1e-2 if shape[2:] == (1, 1) else 1e-5)
        yield _adain((2, 3, 33, 17), layout)
        yield Case((1, 300, 4, 4), layout)  # more channels than one tile has
        yield Case(IN_PIECES[layout], layout, scalar_strength=True)
    yield Case((1, 2, 64, 65), "nchw")  # too much for one tile of the Triton kernels
    for shape in ((5, 8), (0, 3), (2, 3, 11), (2, 3, 2, 3, 5)):
        yield Case(shape, "nchw", eps=1e-2)


def _far():
    """A case with a mean far from zero, whose rounding to fp32 leaves an error of 5e-4 in x - mean."""
    for layout in ("nhwc", "nchw"):
        for shape in ((2, 16, 5, 7), (2, 37, 3, 5), IN_PIECES[layout]):
            yield _adain(shape, layout)._replace(mean=1e4)
            yield Case(shape, layout, mean=1e4, gain=1.0)
        yield Case(layout=layout, mean=-1e4, act="linear", gain=1.0, scalar_strength=True)


CASES = [(case, dtype) for case in _forms() for dtype in DTYPES]
CASES += [(case, dtype) for case in _sizes() for dtype in ("fp32", "bf16")]
CASES += [(case, "fp32") for case in _far()]


def before_norm(x, noise=None, strength=None, bias=None, **_):
    """The input of the activation."""
    if noise is not None:
        x = x + (noise if strength is None else noise * (per_channel(strength, x) if strength.dim() else strength))
    return x if bias is None else x + per_channel(bias, x)


def textbook(x, style_scale=None, style_bias=None, *, act="linear", gain=1.0, eps=1e-5, **small):
    """The operation in plain PyTorch, in the dtype of its inputs. Independent of the reference in fastgan."""
    x = before_norm(x, **small)
    x = {"linear": lambda t: t, "relu": torch.relu, "lrelu": lambda t: F.leaky_relu(t, 0.2)}[act](x) * gain
    rows = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    centred = rows - rows.mean(2, keepdim=True)
    y = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    y = y.reshape(x.shape)
    if style_scale is not None:
        y = y * per_channel(style_scale, x)
    return y if style_bias is None else y + per_channel(style_bias, x)


def fused(case: Case, **options):
    """The public function that the case calls."""
    if case.act == "linear" and case.gain == 1 and not set(case.parts) - set(STYLE):
        return lambda x, style_scale=None, style_bias=None: adain(x, style_scale, style_bias, **options)
    return lambda x, **small: style_epilogue(x, **small, act=case.act, gain=case.gain, **options)


def make(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """x and the small tensors, exact in `dtype`, with no value near the kink of the activation."""
    generator = torch.Generator().manual_seed(seed)
    # Far from zero, sums and products before the norm are to be exact: what they round would hide all else.
    grid = (lambda t: (t * 8).round() / 8) if case.mean else (lambda t: t)
    draw = lambda *shape: grid(torch.randn(shape, generator=generator)).to(dtype).double()
    n, c, *spatial = case.shape
    style = (c,) if case.shared_style else (n, c)
    small = {
        "noise": draw(1 if case.shared_noise else n, 1, *spatial),
        "strength": draw() if case.scalar_strength else draw(c),
        "bias": draw(c),
        "style_scale": draw(*style),
        "style_bias": draw(*style),
    }
    small = {name: t for name, t in small.items() if name in case.parts}
    x = draw(*case.shape) + case.mean
    if case.layout == "expanded":
        x, small["style_scale"] = x[:1].expand(case.shape), small["style_scale"][:1].expand(n, c)
        small["noise"] = small["noise"][:1].expand(n, 1, *spatial)
    if case.act != "linear":
        x = away_from_kinks(x, lambda x: before_norm(x, **small).abs() < 0.02, dtype)
    x = arrange(x.to(device, dtype), case.layout)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    return {"x": x, **{name: t.to(device, kind) for name, t in small.items()}}


@table.over(CASES)
def test_values_and_derivatives_are_as_good_as_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    table.assert_derivatives_as_good_as_plain(
        fused(case, eps=case.eps),
        lambda x, **small: textbook(x, **small, act=case.act, gain=case.gain, eps=case.eps),
        make(case, DTYPES[dtype], backends.device(backend)),
        fixed=("noise",),
        layout=case.layout,
        case=case,
        terms=4.0,  # over the standard deviation of a few elements
        orders=table.orders_of(backend, case.mean),
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", [Case(), Case(layout="nchw", shared_noise=True), Case((2, 37, 4, 4))], ids=str)
@backends.one_instruction_set
def test_the_gradient_of_the_noise_is_as_good_as_plain_pytorch(backend, case, dtype):
    table.assert_derivatives_as_good_as_plain(
        fused(case, eps=case.eps),
        lambda x, **small: textbook(x, **small, act=case.act, gain=case.gain, eps=case.eps),
        make(case, DTYPES[dtype], backends.device(backend)),
        layout=case.layout,
        case=case,
        terms=4.0,
    )


@pytest.mark.parametrize("parts", [PARTS, STYLE, ()], ids=["all", "adain", "norm"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@backends.one_instruction_set
def test_gradcheck_and_gradgradcheck(backend, parts, layout):
    case = Case((2, 3, 2, 3), layout, parts, act="lrelu" if parts == PARTS else "linear", gain=1.0)
    tensors = make(case, torch.float64, backends.device(backend), seed=3)
    names = [name for name in tensors if name != "noise"]
    function = fused(case, eps=0.1)

    def of_inputs(*inputs):
        return function(**{**tensors, **dict(zip(names, inputs, strict=True))})

    inputs = [tensors[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(of_inputs, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(of_inputs, inputs, fast_mode=True)


@pytest.mark.parametrize(
    "case",
    [Case((2, 3, 2, 3)), Case((2, 3, 2, 3), "nchw", shared_noise=True), Case((2, 3, 2, 3), scalar_strength=False)],
    ids=str,
)
@backends.one_instruction_set
def test_noise_has_first_and_second_derivatives(backend, case):
    tensors = make(case, torch.float64, backends.device(backend))
    inputs = [t.requires_grad_() for t in tensors.values()]
    function = lambda *given: style_epilogue(**dict(zip(tensors, given, strict=True)), eps=0.1)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    only_noise = lambda noise: style_epilogue(**{**{k: t.detach() for k, t in tensors.items()}, "noise": noise})
    assert torch.autograd.gradcheck(only_noise, [tensors["noise"]], fast_mode=True)


@backends.one_instruction_set
def test_third_derivatives(backend):
    tensors = make(Case((2, 3, 2, 3), parts=STYLE), torch.float64, backends.device(backend))
    x, scale, bias = tensors.values()
    first = lambda x: torch.autograd.grad(adain(x, scale, bias).pow(3).sum(), x, create_graph=True)[0]
    assert torch.autograd.gradgradcheck(first, [x.requires_grad_()], fast_mode=True)


@backends.one_instruction_set
def test_path_length_through_a_generator_has_the_gradients_of_plain_pytorch(backend):
    """End to end: second derivatives must not treat the statistics of the forward kernel as constants."""
    device = backends.device(backend)
    torch.manual_seed(0)
    generator = torch.nn.ModuleList([torch.nn.Linear(4, 12), torch.nn.Conv2d(6, 3, 3)]).to(device, torch.float64)
    x, w = torch.randn(2, 6, 5, 5, device=device).double(), torch.randn(2, 4, device=device).double()
    noise, bias = torch.randn(2, 1, 5, 5, device=device).double(), torch.randn(6, device=device).double()

    def gradients():
        generator.zero_grad()
        leaf, content = w.clone().requires_grad_(), x.clone().requires_grad_()
        scale, shift = generator[0](leaf).chunk(2, 1)
        features = style_epilogue(content, noise=noise, bias=bias, style_scale=1 + scale, style_bias=shift)
        images = generator[1](adain(features, shift, scale))
        jacobian = torch.autograd.grad(images.pow(2).sum(), [leaf, content], create_graph=True)
        sum(j.square().sum().sqrt() for j in jacobian).backward()
        return [leaf.grad, content.grad, *(p.grad.clone() for p in generator.parameters() if p.grad is not None)]

    got = gradients()
    with backends.forced("torch"):
        expected = gradients()
    assert len(got) == 6  # the last bias shifts the images, whose square is differentiated
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variance_is_exact_at_a_mean_far_from_zero(backend, layout, dtype):
    """The variance as E[x^2] - E[x]^2 would be rounding error only. An outlier at the first position does not spoil it.

    Tests planes that kernels split into pieces and planes that they do not split.
    """
    device = backends.device(backend)
    for shape in ((2, 4, 24, 25), (1, 3, 150, 151)):
        generator = torch.Generator().manual_seed(0)
        x = 1000 + 8 * torch.randn(shape, generator=generator)
        x[0, 1, 0, 0] = -3e4
        x = arrange(x.to(device, dtype), layout)
        reference = textbook(x.double())
        y = adain(x)
        # With an exact mean, what is left is its rounding to single precision.
        error = (y.double() - reference).abs().amax((2, 3))
        largest = reference.abs().amax((2, 3))
        relative = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert (error < 1e-5 + relative * largest).all(), (error, largest)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_bias_before_the_norm_has_zero_gradient_at_a_mean_far_from_zero(backend, layout):
    """The bias does not change the output. Rounding the mean to fp32 leaves an error of 5e-4, which must not add up."""
    for shape in ((2, 16, 15, 17), IN_PIECES[layout]):
        tensors = make(
            Case(shape, layout, ("bias", *STYLE), "linear", 1.0, mean=1e4), torch.float32, backends.device(backend)
        )
        bias = tensors["bias"].requires_grad_()
        dy = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(bias.device)
        (dbias,) = torch.autograd.grad(style_epilogue(**tensors, act="linear"), bias, dy)
        assert dbias.abs().max() < 1e-3


@pytest.mark.parametrize("scalar", [True, False], ids=["scalar", "per channel"])
def test_the_second_gradient_of_strength_is_as_accurate_as_plain_pytorch_on_average(backend, scalar):
    """A single number may be exact by luck, so the error over several draws counts."""
    case, errors = Case((2, 4, 9, 7), "nchw", gain=1.0, scalar_strength=scalar), []
    for seed in range(12):
        tensors = make(case, torch.float32, backends.device(backend), seed)
        generator = torch.Generator().manual_seed(seed + 100)
        draw = lambda t, generator=generator: torch.randn(t.shape, generator=generator).to(t.device)
        dy, seeds = draw(tensors["x"]), [draw(t) for name, t in tensors.items() if name != "noise"]
        wide = {name: t.double() for name, t in tensors.items()}
        of = lambda function, *given: table.derivatives(function, *given, fixed=("noise",))[2][2].double()
        plain = lambda **given: textbook(**given, act=case.act)
        reference = of(plain, wide, dy.double(), [s.double() for s in seeds])
        errors.append([of(f, tensors, dy, seeds) - reference for f in (fused(case), plain)])
    ours, theirs = (torch.stack(each).square().mean().sqrt() for each in zip(*errors, strict=True))
    assert ours <= 2 * theirs


def test_a_constant_channel_gives_the_style_bias(backend):
    device = backends.device(backend)
    x = torch.full((2, 3, 9, 9), 0.1, device=device)
    scale, bias = torch.randn(2, 3, device=device), torch.randn(2, 3, device=device)
    y = adain(x, scale, bias)
    torch.testing.assert_close(y, bias[:, :, None, None].expand_as(y), rtol=1e-6, atol=1e-6)


@backends.one_instruction_set
def test_instance_norm_of_torch_is_adain_with_a_shared_style(backend):
    device = backends.device(backend)
    layer = torch.nn.InstanceNorm2d(5, affine=True).to(device)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(3, 5, 6, 7, device=device)
    torch.testing.assert_close(adain(x, layer.weight, layer.bias), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@backends.one_instruction_set
def test_output_has_the_memory_format_of_the_input(backend, layout):
    tensors = make(Case(layout=layout), torch.float32, backends.device(backend))
    x = tensors["x"].requires_grad_()
    for y in (style_epilogue(**tensors), adain(x)):
        assert y.stride() == x.stride()
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert dx.stride() == x.stride()


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(layout, shape) for layout in ("nchw", "nhwc") for shape in ((3, 24, 15, 17), IN_PIECES[layout])],
    ids=str,
)
@backends.every_kernel
def test_results_are_bitwise_repeatable(backend, layout, shape):
    tensors = make(Case(shape, layout), torch.float32, backends.device(backend))
    dy = torch.empty_like(tensors["x"]).copy_(torch.randn(shape, generator=torch.Generator().manual_seed(5)))
    x, *others = [t.requires_grad_(name != "noise") for name, t in tensors.items()]

    def results():
        y = style_epilogue(**tensors)
        plain = adain(x)
        # The second derivatives are plain PyTorch's.
        return [y, plain, *torch.autograd.grad(y, [x, *others[1:]], dy), *torch.autograd.grad(plain, x, dy)]

    table.assert_bitwise_repeatable(backend, results)


@pytest.mark.parametrize("parts", [PARTS, STYLE], ids=["all", "adain"])
@backends.one_instruction_set
def test_cotangents_need_not_be_dense(backend, parts):
    """A penalty on sums or transposes of gradients hands these over: stride 0, or the other way round."""
    case = Case(parts=parts, act="lrelu" if parts == PARTS else "linear", gain=1.0)
    tensors = make(case, torch.float64, backends.device(backend))
    inputs = [t.requires_grad_() for name, t in tensors.items() if name != "noise"]

    def second():
        y = fused(case)(**tensors)
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        product = sum(g.t().reshape(-1).sum() if g.dim() == 2 else g.sum() for g in first) + first[0].square().sum()
        summed = torch.autograd.grad(fused(case)(**tensors).sum(), inputs)
        return [*summed, *torch.autograd.grad(product, inputs, allow_unused=True)]

    got = second()
    with backends.forced("torch"):
        expected = second()
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@backends.one_instruction_set
def test_unneeded_gradients_are_not_computed(backend, monkeypatch):
    """If the input is frozen, the style has gradients and no grad_input is allocated."""
    from fastgan.ops.instance_norm import InstanceNorm

    made, allocate = [], InstanceNorm.allocate_grads
    monkeypatch.setattr(
        InstanceNorm, "allocate_grads", staticmethod(lambda *args: made.append(allocate(*args)) or made[-1])
    )
    tensors = make(Case(), torch.float32, backends.device(backend))
    for names in (("style_scale", "style_bias"), ("bias",), ("strength",), ("x", "style_bias")):
        leaves = {name: tensors[name].clone().requires_grad_() for name in names}
        y = style_epilogue(**{**tensors, **leaves})
        got = torch.autograd.grad(y.pow(3).sum(), list(leaves.values()))
        reference = textbook(**{**tensors, **leaves}, act="lrelu")
        for a, b in zip(got, torch.autograd.grad(reference.pow(3).sum(), list(leaves.values())), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        if backend != "torch":
            named = dict(zip(InstanceNorm.inputs, made[-1], strict=True))
            assert {name for name, grad in named.items() if grad is not None} == set(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_in_its_plane(backend, dtype):
    tensors = make(Case(), dtype, backends.device(backend))
    tensors["x"][1, 3, 2, 1] = math.nan
    for y in (style_epilogue(**tensors), adain(tensors["x"])):
        bad = y.isnan().flatten(2)
        assert bad[1, 3].all() and bad.sum() == bad.shape[2]


def test_torch_compile_makes_one_graph_also_where_the_input_is_frozen():
    tensors = make(Case(), torch.float32, "cpu")
    inputs = [tensors[part].requires_grad_() for part in PARTS[1:]]
    compiled = torch.compile(style_epilogue, fullgraph=True, backend="aot_eager")
    expected, got = (torch.autograd.grad(f(**tensors).pow(3).sum(), inputs) for f in (style_epilogue, compiled))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


class TestMistakesAreNamed:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"bias": torch.zeros(3)}, ["bias", "[3]", "[4]", "[2, 4, 5, 5]"]),
            ({"style_scale": torch.zeros(3)}, ["style_scale", "[3]", "[2, 4] or [4]"]),
            ({"style_bias": torch.zeros(4, 2)}, ["style_bias", "[4, 2]", "[2, 4]"]),
            ({"noise": torch.zeros(2, 4, 5, 5)}, ["noise", "[2, 4, 5, 5]", "[2, 1, 5, 5]"]),
            ({"strength": torch.zeros(())}, ["strength", "without noise"]),
            ({"noise": torch.zeros(1, 1, 5, 5), "strength": torch.zeros(3)}, ["strength", "[3]", "[] or [4]"]),
            ({"bias": torch.zeros(4, dtype=torch.int64)}, ["bias", "int64"]),
            ({"bias": torch.zeros(4, device="meta")}, ["bias", "meta", "cpu"]),
            ({"act": "silu"}, ["act", "'silu'", "piecewise linear", "lrelu"]),
            ({"gain": math.nan}, ["gain", "nan"]),
            ({"eps": 0.0}, ["eps", "0.0"]),
        ],
    )
    def test_an_argument_of_style_epilogue_that_does_not_fit(self, arguments, words):
        table.assert_message_contains(
            ["style_epilogue: ", *words], lambda: style_epilogue(torch.zeros(2, 4, 5, 5), **arguments)
        )

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"scale": torch.zeros(3, 4)}, ["scale", "[3, 4]", "[2, 4] or [4]"]),
            ({"bias": torch.zeros(2, 5)}, ["bias", "[2, 5]", "[2, 4]"]),
            ({"eps": -1.0}, ["eps", "-1.0"]),
        ],
    )
    def test_an_argument_of_adain_that_does_not_fit(self, arguments, words):
        table.assert_message_contains(["adain: ", *words], lambda: adain(torch.zeros(2, 4, 5, 5), **arguments))

    @pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.int32)])
    @pytest.mark.parametrize("function", [adain, style_epilogue])
    def test_an_x_that_does_not_fit(self, function, x):
        with pytest.raises(ValueError, match=f"{function.__name__}: x has"):
            function(x)

    def test_no_requested_backend_is_available(self):
        with use_backend("cuda"), pytest.raises(BackendUnavailable, match="cuda: serves CUDA tensors only"):
            adain(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("operation", [style_epilogue, batch_norm_act])
def test_cuda_kernels_give_the_same_in_any_order_of_blocks(monkeypatch, operation, dtype, layout):
    """On a card of two multiprocessors, blocks that apply statistics alternate with those that compute them. If its L2
    is small, they come in a launch of their own."""
    torch.manual_seed(0)
    shape = (3, 40, 29, 30)
    style = {"weight": (40,), "bias": (40,)}
    if operation is style_epilogue:
        style = {"strength": (40,), "bias": (40,), "style_scale": (3, 40), "style_bias": (3, 40)}
    inputs = {"x": arrange((3 + torch.randn(shape)).to(dtype), layout)}
    inputs |= {name: 1 + 0.3 * torch.randn(size) for name, size in style.items()}
    for t in inputs.values():
        t.requires_grad_()
    noise = {"noise": torch.randn(3, 1, *shape[2:])} if operation is style_epilogue else {}
    dy = arrange(torch.randn(shape).to(dtype), layout)
    monkeypatch.setenv("FASTGAN_EMULATED_MultiProcessorCount", "2")

    def results(backend: str) -> list[torch.Tensor]:
        with backends.forced(backend):
            y = operation(**inputs, **noise)
            return [y, *torch.autograd.grad(y, [t for t in inputs.values() if t.requires_grad], dy)]

    alternating = results("emulated")
    monkeypatch.setenv("FASTGAN_EMULATED_L2CacheSize", "65536")
    assert all(map(torch.equal, alternating, results("emulated")))
    plain = results("torch")
    monkeypatch.delenv("FASTGAN_EMULATED_L2CacheSize")
    for t in list(inputs.values())[:-2]:
        t.requires_grad_(False)  # the gradients of the style need no blocks that apply the sums
    assert all(map(torch.equal, alternating[-2:], results("emulated")[1:]))
    for found, expected in zip(alternating, plain, strict=True):
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < (1e-4 if dtype == torch.float32 else 1e-2)
