"""filtered_noise_bias_act: the fused kernels against the two operations in plain PyTorch."""

import math

import pytest
import torch

from fastgan.ops import filtered_noise_bias_act, noise_bias_act, upfirdn2d, use_backend
from fastgan.ops.filtered_noise_bias_act import FilteredNoiseBiasAct
from tests.ops.test_noise_bias_act import textbook as textbook_epilogue
from tests.ops.test_upfirdn2d import textbook as textbook_filter
from tests.support import backends, table
from tests.support.table import DTYPES, arrange

ALL = ("noise", "strength", "bias", "scale", "post")
PARTS = {"all": ALL, "discriminator": ("bias",), "noisy": ALL[:3], "none": ()}
OPTIONS = {"padding": (1, 1, 1, 1), "fir_gain": 4.0}


def make(shape, parts, dtype, device, layout="nhwc", taps=(4,), padding=(1, 1, 1, 1), scalar=True, shared=False):
    """The tensors by name, exact in `dtype`. No filtered value is near the kink of the activation."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(size, generator=generator).to(dtype).double()
    n, c, h, w = shape
    filter = draw(*taps)
    left, right, top, bottom = padding
    oh, ow = h + top + bottom - taps[0] + 1, w + left + right - taps[-1] + 1
    small = {
        "noise": draw(1 if shared else n, 1, oh, ow),
        "strength": draw() if scalar else draw(c),
        "bias": draw(c),
        "scale": draw(n, c),
        "post": draw(n, c),
    }
    small = {name: t for name, t in small.items() if name in parts}
    x = draw(*shape)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    others = {"taps": filter, **small}
    return {"x": arrange(x.to(device, dtype), layout), **{name: t.to(device, kind) for name, t in others.items()}}


def textbook(x, taps, *, padding, fir_gain, act="lrelu", gain=1.0, clamp=None, **small):
    return textbook_epilogue(
        textbook_filter(x, taps, padding=padding, gain=fir_gain), **small, act=act, gain=gain, clamp=clamp
    )


def check(tensors, layout="nhwc", **options):
    options = {**OPTIONS, **options}
    table.assert_derivatives_as_good_as_plain(
        lambda **kw: filtered_noise_bias_act(**kw, **options),
        lambda **kw: textbook(**kw, **options),
        tensors,
        fixed=("taps", "noise"),
        layout=layout,
    )


# An activation that is linear has no kink, across which 16 bits would fall on one side or the other.
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", [(2, 16, 5, 8), (1, 24, 9, 4)], ids=str)
def test_values_and_derivatives_are_as_good_as_plain_pytorch(backend, shape, parts, dtype, unwritten_is_nan):
    check(make(shape, PARTS[parts], DTYPES[dtype], backends.device(backend)), act="linear", gain=1.3)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clamp": 25.0},
        {"act": "relu"},
        {"act": "tanh"},
        {"padding": (2, 0, -1, 3)},
        {"padding": (6, 1, 0, 5)},  # some outputs read no input
        {"layout": "nchw"},
        {"layout": "sliced"},
        {"taps": (3,)},
        {"shape": (2, 5, 6, 6)},
        {"shape": (1, 16, 2, 2)},
        {"shape": (1, 20, 4, 70)},  # several blocks along a row and along the channels
        {"scalar": False, "shared": True},
    ],
    ids=str,
)
def test_every_form_in_double_precision(backend, changes, parts, unwritten_is_nan):
    of_tensors = {name: changes[name] for name in ("layout", "taps", "padding", "scalar", "shared") if name in changes}
    of_call = {name: changes[name] for name in ("act", "clamp", "padding") if name in changes}
    shape = changes.get("shape", (2, 16, 5, 6))
    tensors = make(shape, PARTS[parts], torch.float64, backends.device(backend), **of_tensors)
    options = {**OPTIONS, **of_call}
    dy = torch.randn_like(textbook(**tensors, **options))
    seeds = [torch.randn_like(t) for name, t in tensors.items() if name not in ("taps", "noise")]
    got, expected = (
        table.derivatives(lambda f=f, **kw: f(**kw, **options), tensors, dy, seeds, fixed=("taps", "noise"))
        for f in (filtered_noise_bias_act, textbook)
    )
    for a, b in zip([got[0], *got[1], *got[2]], [expected[0], *expected[1], *expected[2]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("parts", PARTS)
@backends.one_instruction_set
def test_gradcheck_and_gradgradcheck(backend, parts):
    tensors = make((1, 2, 3, 4), PARTS[parts], torch.float64, backends.device(backend))
    names = [name for name in tensors if name not in ("taps", "noise")]
    fixed = {name: t for name, t in tensors.items() if name not in names}
    function = lambda *given: filtered_noise_bias_act(**dict(zip(names, given, strict=True)), **fixed, **OPTIONS)
    inputs = [tensors[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@backends.one_instruction_set
def test_third_derivatives(backend):
    tensors = make((1, 2, 3, 2), ALL, torch.float64, backends.device(backend))
    x = tensors.pop("x").requires_grad_()
    function = lambda x: filtered_noise_bias_act(x, **tensors, **OPTIONS).square().sum()
    first = lambda x: torch.autograd.grad(function(x).square(), x, create_graph=True)[0]
    assert torch.autograd.gradgradcheck(first, x, fast_mode=True)


@pytest.fixture
def fused_only(monkeypatch):
    """Counts fused calls, and fails if the references run."""
    calls = []
    launch = FilteredNoiseBiasAct.launch_forward
    monkeypatch.setattr(FilteredNoiseBiasAct, "launch_forward", lambda *args: (calls.append(1), launch(*args)))
    monkeypatch.setattr(FilteredNoiseBiasAct, "reference_backward", None)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS)
def test_kernels_serve_up_to_second_derivatives(fused_only, parts):
    with backends.forced("emulated"):
        check(make((2, 16, 6, 5), PARTS[parts], torch.float32, "cpu"), gain=math.sqrt(2), act="linear")
    assert fused_only


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS)
def test_fused_equals_separate_operations_over_many_elements(parts):
    """In fp32: the sums have several pieces, and the last one is shorter."""
    with backends.forced("emulated"):
        tensors = make((2, 16, 41, 39), PARTS[parts], torch.float32, "cpu", scalar=False)
        variables = {name: t.requires_grad_() for name, t in tensors.items() if name not in ("taps", "noise")}
        y = filtered_noise_bias_act(**tensors, **OPTIONS, clamp=8.0)
        at_kink = (y.abs() < 1e-4) | ((y.abs() - 8).abs() < 1e-4)  # there rounding decides between two derivatives
        dy = torch.randn_like(y).masked_fill(at_kink, 0)
        got = torch.autograd.grad(y, list(variables.values()), dy)
        filtered = upfirdn2d(tensors["x"], tensors["taps"], padding=(1, 1, 1, 1), gain=4.0)
        small = {name: t for name, t in tensors.items() if name not in ("x", "taps")}
        apart = noise_bias_act(filtered, **small, clamp=8.0)
        expected = torch.autograd.grad(apart, list(variables.values()), dy)
    torch.testing.assert_close(y, apart, rtol=1e-5, atol=4e-5)  # the FIR filters sum in different orders
    for name, a, b in zip(variables, got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backend", [name for name in backends.KERNELS if name in ("emulated", "cuda")], indirect=True)
def test_results_are_bitwise_repeatable(backend):
    tensors = make((2, 16, 21, 19), ALL, torch.float32, backends.device(backend))
    inputs = [t.requires_grad_() for name, t in tensors.items() if name not in ("taps", "noise")]

    def results():
        y = filtered_noise_bias_act(**tensors, **OPTIONS)
        return [y, *torch.autograd.grad(y, inputs, torch.ones_like(y))]

    table.assert_bitwise_repeatable(backend, results)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_activations_need_not_be_aligned(dtype):
    """A tensor of another library may start at any element, without a storage offset that would tell."""
    with backends.forced("emulated"):
        tensors = make((2, 16, 9, 7), ALL, DTYPES[dtype], "cpu")
        names = [name for name in tensors if name not in ("taps", "noise")]
        dy = torch.randn_like(filtered_noise_bias_act(**tensors, **OPTIONS))

        def results(move):
            given = {**tensors, "x": move(tensors["x"])}
            variables = [given[name].detach().requires_grad_() for name in names]
            given |= dict(zip(names, variables, strict=True))
            y = filtered_noise_bias_act(**given, **OPTIONS)
            return [y, *torch.autograd.grad(y, variables, move(dy))]

        aligned, elsewhere = results(lambda t: t), results(_misaligned)
    for a, b in zip(aligned, elsewhere, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def _misaligned(t):
    """A copy in channels_last at an address that is not divisible by 16."""
    n, c, h, w = t.shape
    raw = bytearray(t.nbytes + 32)
    skip = -torch.frombuffer(raw, dtype=torch.uint8).data_ptr() % 16 + t.element_size()
    copy = torch.frombuffer(raw, dtype=t.dtype, offset=skip, count=t.numel()).view(n, h, w, c).permute(0, 3, 1, 2)
    assert copy.data_ptr() % 16 == t.element_size() and copy.storage_offset() == 0
    return copy.copy_(t)


@backends.one_instruction_set
def test_output_has_the_memory_format_of_the_input(backend):
    for layout in ("nhwc", "nchw"):
        x = make((2, 16, 5, 7), ("bias",), torch.float32, backends.device(backend), layout)["x"]
        y = filtered_noise_bias_act(x, torch.ones(4, device=x.device), **OPTIONS)
        assert y.is_contiguous(memory_format=torch.channels_last) == (layout == "nhwc")


def test_the_operators_pass_torchs_checks():
    """The fused kernels run on a GPU only. This tests the fake implementations."""
    tensors = make((2, 16, 5, 6), ALL, torch.bfloat16, "cpu")
    options = (1, 1, 1, 1, 4.0, 0.2, 1.0, math.inf, "cuda")
    with torch._subclasses.FakeTensorMode() as mode:
        inputs = [mode.from_tensor(t) for t in tensors.values()]
        y = torch.ops.fastgan.filtered_noise_bias_act(*inputs, *options)
        needs_grad = [True, False, False, True, True, True, True]
        grads = torch.ops.fastgan.filtered_noise_bias_act_backward(y, inputs, needs_grad, *options)
    assert y.shape == (2, 16, 4, 5) and y.stride(1) == 1
    assert [g.shape for g in grads] == [(2, 16, 5, 6), (), (16,), (2, 16), (2, 16)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"noise": torch.zeros(1, 1, 5, 5)}, ["noise", "[1, 1, 5, 5]", "[1, 1, 4, 4]"]),
        ({"taps": torch.zeros(2, 2, 2)}, ["taps", "[2, 2, 2]"]),
        ({"padding": (-3, 0, 0, 0)}, ["smaller than the filter", "[5, 2]"]),
        ({"act": "gelu"}, ["act", "'gelu'"]),
    ],
)
def test_an_argument_that_does_not_fit_is_named(arguments, words):
    x = torch.zeros(2, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    given = {"x": x, "taps": torch.ones(4), "padding": (1, 1, 1, 1), **arguments}
    table.assert_message_contains(words, lambda: filtered_noise_bias_act(**given))


def test_a_learned_filter_has_a_gradient():
    with use_backend("torch"):
        tensors = make((1, 2, 4, 4), ("bias",), torch.float64, "cpu")
        taps = tensors.pop("taps").requires_grad_()
        assert torch.autograd.gradcheck(
            lambda taps: filtered_noise_bias_act(taps=taps, **tensors, **OPTIONS), taps, fast_mode=True
        )
