"""noise_bias_act_to_rgb: the fused kernels against the separate operations in plain PyTorch."""

import math
from typing import NamedTuple

import pytest
import torch

from fastgan.ops import noise_bias_act_to_rgb
from fastgan.ops.noise_bias_act_to_rgb import NoiseBiasActToRGB
from tests.ops.test_noise_bias_act import textbook as textbook_epilogue
from tests.support import backends, table
from tests.support.table import DTYPES, arrange, away_from_kinks

ALL = ("noise", "strength", "bias", "scale", "post")
LAST = ALL[:-1]  # of the last layer, after which there is only the image


class Case(NamedTuple):
    shape: tuple[int, ...] = (2, 16, 5, 7)
    layout: str = "nhwc"
    parts: tuple[str, ...] = ALL
    image_channels: int = 3
    act: str = "lrelu"
    clamp: float | None = None
    scalar_strength: bool = True
    shared_noise: bool = False

    def __str__(self):
        parts = {ALL: "all", LAST: "last", (): "nothing"}.get(self.parts) or "+".join(self.parts)
        flags = ["vector" * (not self.scalar_strength), "shared" * self.shared_noise, "clamp" * bool(self.clamp)]
        sizes = "x".join(map(str, self.shape))
        return "-".join(filter(None, [sizes, f"to{self.image_channels}", self.layout, self.act, parts, *flags]))


def _cases():
    for parts in (ALL, LAST, ("post",), (), ("bias", "post"), ("noise", "scale")):
        yield Case(parts=parts)
    for k in (1, 2, 4):
        yield Case(image_channels=k)
    for shape in (
        (1, 8, 1, 1),
        (2, 3, 33, 17),
        (2, 37, 4, 4),
        (2, 64, 9, 31),
        (1, 520, 3, 5),
        (1, 301, 3, 5),
        (3, 1, 9, 9),
    ):
        yield Case(shape)
        yield Case(shape, parts=LAST, image_channels=4)
    yield Case(clamp=1.5)
    yield Case(shared_noise=True)
    yield Case((2, 64, 24, 24))  # the sums have several pieces


def _elsewhere():
    """Cases that no kernel of the operation takes."""
    yield Case(layout="nchw")
    yield Case(layout="sliced")
    yield Case(act="silu")
    yield Case(image_channels=5)
    yield Case(scalar_strength=False)
    yield Case((2, 5), "nchw", ("bias", "post"))
    yield Case((2, 5, 3), "nchw", LAST)


CASES = [(case, dtype) for case in _cases() for dtype in ("fp32", "bf16")]
CASES += [(Case(shape), dtype) for shape in ((2, 16, 5, 7), (2, 37, 4, 4)) for dtype in ("fp16", "fp64")]
CASES += [(case, "fp32") for case in _elsewhere()]


def textbook(x, to_rgb, post=None, **others):
    z = textbook_epilogue(x, **others)
    rgb = torch.einsum("nkc,nc...->nk...", to_rgb, z)
    return None if post is None else textbook_epilogue(z, scale=post, act="linear", gain=1.0, clamp=None), rgb


def make(case: Case, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """The tensors by name, exact in `dtype`. No value is near a jump of the derivative."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(size, generator=generator).to(dtype).double()
    n, c, *spatial = case.shape
    small = {
        "noise": draw(1 if case.shared_noise else n, 1, *spatial),
        "strength": draw() if case.scalar_strength else draw(c),
        "bias": draw(c),
        "scale": draw(n, c),
        "post": draw(n, c),
    }
    small = {name: t for name, t in small.items() if name in case.parts}
    before = {name: t for name, t in small.items() if name != "post"}

    def near_kink(x):
        of = lambda **options: textbook_epilogue(x, **before, **options, clamp=None)
        near = of(act="linear", gain=1.0).abs() < 0.02
        return near if case.clamp is None else near | ((of(act=case.act, gain=1.4).abs() - case.clamp).abs() < 0.05)

    x = away_from_kinks(draw(*case.shape), near_kink, dtype)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    others = {"to_rgb": draw(n, case.image_channels, c) / math.sqrt(c), **small}
    return {"x": arrange(x.to(device, dtype), case.layout), **{name: t.to(device, kind) for name, t in others.items()}}


def together(function, case: Case):
    """Both results as one tensor, in the dtype of x."""

    def call(x, **others):
        y, rgb = function(x, **others, act=case.act, gain=1.4, clamp=case.clamp)
        return rgb.to(x.dtype) if y is None else torch.cat([y, rgb.to(x.dtype)], 1)

    return call


def check(case: Case, tensors: dict[str, torch.Tensor]) -> None:
    table.assert_derivatives_as_good_as_plain(
        together(noise_bias_act_to_rgb, case), together(textbook, case), tensors, fixed=("noise",),
        layout="nhwc" if len(case.shape) == 4 else "nchw", case=case,
    )  # fmt: skip


@table.over(CASES)
def test_values_and_derivatives_are_as_good_as_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    check(case, make(case, DTYPES[dtype], backends.device(backend)))


@pytest.fixture
def fused_only(monkeypatch):
    """Counts fused calls, and fails if the reference runs."""
    calls = []
    launch = NoiseBiasActToRGB.launch_forward
    monkeypatch.setattr(NoiseBiasActToRGB, "launch_forward", lambda *args: (calls.append(1), launch(*args)))
    monkeypatch.setattr(NoiseBiasActToRGB, "reference_backward", None)
    return calls


@pytest.mark.parametrize("parts", [ALL, LAST], ids=["all", "last"])
@backends.every_kernel
def test_kernels_serve_up_to_second_derivatives(backend, fused_only, parts):
    case = Case(parts=parts)
    check(case, make(case, torch.float32, backends.device(backend)))
    assert fused_only


@backends.one_instruction_set
def test_the_image_has_the_precision_of_arithmetic_and_the_memory_format_of_x(backend):
    for dtype, kind in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        tensors = make(Case(), dtype, backends.device(backend))
        y, rgb = noise_bias_act_to_rgb(**tensors)
        assert y.dtype == dtype and rgb.dtype == kind
        assert y.is_contiguous(memory_format=torch.channels_last) and rgb.stride(1) == 1


@pytest.mark.parametrize(
    ("parts", "image_channels"),
    [(ALL, 1), (ALL, 4), (LAST, 3), (("post",), 4), ((), 3)],
    ids=["all-1", "all-4", "last-3", "post-4", "nothing-3"],
)
@backends.one_instruction_set
def test_gradcheck_and_gradgradcheck(backend, parts, image_channels):
    case = Case((2, 2, 2, 3), parts=parts, image_channels=image_channels)
    tensors = make(case, torch.float64, backends.device(backend))
    names = [name for name in tensors if name != "noise"]
    fixed = {name: t for name, t in tensors.items() if name not in names}

    def function(*given):
        y, rgb = noise_bias_act_to_rgb(**dict(zip(names, given, strict=True)), **fixed, gain=1.4)
        return rgb if y is None else (y, rgb)

    inputs = [tensors[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@backends.one_instruction_set
def test_third_derivatives(backend):
    tensors = make(Case((1, 2, 2, 2)), torch.float64, backends.device(backend))
    x = tensors.pop("x").requires_grad_()
    function = lambda x: sum(t.square().sum() for t in noise_bias_act_to_rgb(x, **tensors))
    first = lambda x: torch.autograd.grad(function(x).square(), x, create_graph=True)[0]
    assert torch.autograd.gradgradcheck(first, x, fast_mode=True)


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("which", [0, 1], ids=["y", "image"])
@backends.one_instruction_set
def test_a_loss_of_one_result_has_the_gradients_of_plain_pytorch(backend, which, second):
    """The style has no gradient from the image, nor the weight from y: None, not zeros."""
    tensors = {name: t.requires_grad_(name != "noise") for name, t in make(Case(), torch.float64, "cpu").items()}
    tensors = {name: t.to(backends.device(backend)) for name, t in tensors.items()}
    variables = [t for t in tensors.values() if t.requires_grad]

    def derivatives(function):
        result = function(**tensors, act="lrelu", gain=1.4, clamp=None)[which]
        first = torch.autograd.grad(result.square().sum(), variables, create_graph=second, allow_unused=True)
        if not second:
            return first
        total = sum(g.square().sum() for g in first if g is not None)
        return [*first, *torch.autograd.grad(total, variables, allow_unused=True)]

    for got, expected in zip(derivatives(noise_bias_act_to_rgb), derivatives(textbook), strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected)


@backends.every_kernel
def test_results_are_bitwise_repeatable(backend):
    tensors = make(Case((2, 24, 21, 19)), torch.float32, backends.device(backend))
    call = together(noise_bias_act_to_rgb, Case())
    table.assert_bitwise_repeatable(backend, lambda: table.all_derivatives(call, tensors, fixed=("noise",)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"to_rgb": torch.zeros(2, 3, 4)}, ["to_rgb", "[2, 3, 4]", "[2, 3, 16]"]),
        ({"to_rgb": torch.zeros(3, 16)}, ["to_rgb", "[3, 16]"]),
        ({"noise": torch.zeros(1, 1, 4, 5)}, ["noise", "[1, 1, 4, 5]", "[1, 1, 5, 5]"]),
        ({"post": torch.zeros(2, 3)}, ["post", "[2, 3]", "[2, 16]"]),
        ({"act": "gelu"}, ["act", "'gelu'"]),
    ],
)
def test_an_argument_that_does_not_fit_is_named(arguments, words):
    given = {"x": torch.zeros(2, 16, 5, 5), "to_rgb": torch.zeros(2, 3, 16), **arguments}
    table.assert_message_contains(words, lambda: noise_bias_act_to_rgb(**given))


def test_no_samples_no_pixels_and_no_channels():
    for shape in ((0, 4, 3, 3), (2, 4, 0, 3), (2, 0, 3, 3)):
        n, c, h, w = shape
        x = torch.zeros(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
        y, rgb = noise_bias_act_to_rgb(x, torch.zeros(n, 3, c), post=torch.zeros(n, c))
        assert y.shape == shape and rgb.shape == (n, 3, h, w) and not rgb.any()
        (y.sum() + rgb.sum()).backward()


@pytest.mark.parametrize("parts", [ALL, LAST], ids=["all", "last"])
@backends.one_instruction_set
def test_noise_has_first_and_second_derivatives(backend, parts):
    tensors = make(Case((1, 2, 3, 2), parts=parts), torch.float64, backends.device(backend))
    names = [*tensors]

    def function(*given):
        y, rgb = noise_bias_act_to_rgb(**dict(zip(names, given, strict=True)))
        return rgb if y is None else (y, rgb)

    inputs = [t.requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def _learned_noise():
    yield from (Case(), Case(shared_noise=True), Case(parts=LAST), Case(parts=("noise", "scale"), clamp=1.5))
    for k, parts in ((1, ALL), (4, LAST)):
        yield Case((2, 37, 4, 9), parts=parts, image_channels=k)
        yield Case((1, 520, 3, 5), parts=parts, image_channels=k)  # a warp takes the channels in turns


LEARNED_NOISE = [(case, dtype) for case in _learned_noise() for dtype in ("fp32", "bf16")]
LEARNED_NOISE += [(case, "fp64") for case in (Case(), Case(shared_noise=True), Case(parts=LAST))]


@table.over(LEARNED_NOISE)
def test_the_gradient_of_the_noise_is_as_good_as_plain_pytorch(backend, case, dtype, unwritten_is_nan):
    table.assert_derivatives_as_good_as_plain(
        together(noise_bias_act_to_rgb, case), together(textbook, case),
        make(case, DTYPES[dtype], backends.device(backend)), layout="nhwc", case=("noise", case),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
@backends.every_kernel
def test_a_kernel_computes_the_gradient_of_the_noise(backend, dtype, monkeypatch):
    monkeypatch.setattr(NoiseBiasActToRGB, "reference_backward", None)
    for case in (Case(), Case(shared_noise=True), Case(parts=LAST)):
        tensors = make(case, DTYPES[dtype], backends.device(backend))
        tensors["noise"].requires_grad_()
        together(noise_bias_act_to_rgb, case)(**tensors).sum().backward()
        assert tensors["noise"].grad.any()
