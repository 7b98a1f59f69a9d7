"""bias_act_blur: the fused kernels against the two operations in plain PyTorch."""

import math

import pytest
import torch

from fastgan.ops import bias_act_blur, use_backend
from fastgan.ops.bias_act_blur import BiasActBlur
from fastgan.ops.recordable import recorded_by
from tests.ops.test_noise_bias_act import textbook as textbook_activation
from tests.ops.test_upfirdn2d import textbook as textbook_filter
from tests.support import backends, table
from tests.support.table import DTYPES, arrange

PADDING = (2, 2, 2, 2)  # of the filter before a 3x3 convolution of stride 2


def make(shape, dtype, device="cpu", layout="nhwc", taps=(4,), bias=True):
    """The tensors by name, exact in `dtype`."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(size, generator=generator).to(dtype).double()
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    small = {"taps": draw(*taps)} | ({"bias": draw(shape[1])} if bias else {})
    small = {name: t.to(device, kind) for name, t in small.items()}
    return {"x": arrange(draw(*shape).to(device, dtype), layout), **small}


def textbook(x, taps, bias=None, *, padding=PADDING, act="lrelu", gain=1.0, clamp=None, **others):
    z = textbook_activation(x, bias=bias, act=act, gain=gain, clamp=clamp, **others)
    return textbook_filter(z, taps, padding=padding)


# 32 channels of 16 bits and 16 of fp32 are 64 bytes; 48 need two accesses, and 5 no fused kernel takes.
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("shape", [(2, 32, 5, 8), (1, 96, 9, 4), (2, 5, 4, 3)], ids=str)
@pytest.mark.parametrize("options", [{}, {"act": "linear", "gain": 1.3}, {"clamp": 0.75, "slope": 0.1}], ids=str)
def test_values_and_derivatives_are_as_good_as_plain_pytorch(backend, shape, dtype, options, unwritten_is_nan):
    tensors = make(shape, DTYPES[dtype], backends.device(backend))
    table.assert_derivatives_as_good_as_plain(
        lambda **kw: bias_act_blur(**kw, padding=PADDING, **options),
        lambda **kw: textbook(**kw, **options),
        tensors,
        fixed=("taps",),
        layout="nhwc",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clamp": 0.5},
        {"act": "relu", "gain": math.sqrt(2)},
        {"act": "tanh"},
        {"padding": (3, 0, -1, 3)},
        {"layout": "nchw"},
        {"layout": "sliced"},
        {"taps": (3,)},
        {"taps": (4, 4)},
        {"shape": (1, 8, 2, 1)},
        {"shape": (1, 24, 1, 1)},
        {"shape": (1, 24, 3, 70)},  # several blocks along a row and along the channels
        {"bias": False},
    ],
    ids=str,
)
def test_every_form_in_double_precision(backend, changes, unwritten_is_nan):
    of_tensors = {name: changes[name] for name in ("layout", "taps", "bias") if name in changes}
    of_call = {"padding": PADDING} | {
        name: changes[name] for name in ("act", "clamp", "gain", "padding") if name in changes
    }
    tensors = make(changes.get("shape", (2, 16, 5, 6)), torch.float64, backends.device(backend), **of_tensors)
    dy = torch.randn_like(textbook(**tensors, **of_call))
    seeds = [torch.randn_like(t) for name, t in tensors.items() if name != "taps"]
    got, expected = (
        table.derivatives(lambda f=f, **kw: f(**kw, **of_call), tensors, dy, seeds, fixed=("taps",))
        for f in (bias_act_blur, textbook)
    )
    for a, b in zip([got[0], *got[1], *got[2]], [expected[0], *expected[1], *expected[2]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("clamp", [None, 0.5])
@backends.one_instruction_set
def test_gradcheck_and_gradgradcheck(backend, clamp):
    tensors = make((1, 8, 2, 3), torch.float64, backends.device(backend))
    x, bias = (tensors[name].requires_grad_() for name in ("x", "bias"))
    function = lambda x, bias: bias_act_blur(x, tensors["taps"], bias=bias, padding=PADDING, clamp=clamp)
    assert torch.autograd.gradcheck(function, (x, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, bias), fast_mode=True)


@backends.one_instruction_set
def test_third_derivatives(backend):
    tensors = make((1, 8, 2, 2), torch.float64, backends.device(backend))
    function = lambda x: bias_act_blur(x, tensors["taps"], bias=tensors["bias"], padding=PADDING).square().sum()
    first = lambda x: torch.autograd.grad(function(x).square(), x, create_graph=True)[0]
    assert torch.autograd.gradgradcheck(first, tensors["x"].requires_grad_(), fast_mode=True)


@backends.every_kernel
def test_kernels_serve_up_to_second_derivatives(backend, monkeypatch):
    calls, launch = [], BiasActBlur.launch_forward
    monkeypatch.setattr(BiasActBlur, "launch_forward", lambda *args: (calls.append(1), launch(*args)))
    monkeypatch.setattr(BiasActBlur, "reference_backward", None)
    tensors = make((2, 16, 6, 5), torch.float32, backends.device(backend))
    dy = torch.randn_like(textbook(**tensors))
    seeds = [torch.randn_like(tensors[name]) for name in ("x", "bias")]
    table.derivatives(lambda **kw: bias_act_blur(**kw, padding=PADDING), tensors, dy, seeds, fixed=("taps",))
    assert calls


def test_results_are_bitwise_repeatable(backend):
    tensors = make((2, 32, 21, 19), torch.float32, backends.device(backend))
    inputs = [tensors[name].requires_grad_() for name in ("x", "bias")]

    def results():
        y = bias_act_blur(**tensors, padding=PADDING)
        return [y, *torch.autograd.grad(y, inputs, torch.ones_like(y))]

    table.assert_bitwise_repeatable(backend, results)


@pytest.mark.skipif(backends.why_not("cpp") is not None, reason="needs a compiled kernel")
def test_forward_and_backward_are_one_graph_and_the_operators_pass_torchs_checks():
    tensors = make((2, 16, 5, 6), torch.float32)
    inputs = [tensors[name].requires_grad_() for name in ("x", "bias")]
    function = lambda x, bias: bias_act_blur(x, tensors["taps"], bias=bias, padding=PADDING)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = [(y, *torch.autograd.grad(y.square().sum(), inputs)) for y in (function(*inputs), compiled(*inputs))]
    torch.testing.assert_close(*results)
    given, options = [t.detach() for t in tensors.values()], (0.2, 1.0, math.inf, *PADDING, "cpp")
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(torch.ops.fastgan.bias_act_blur, (*given, *options), **checks)
    grad, needs_grad = results[0][0].detach(), [True, False, True]
    torch.library.opcheck(torch.ops.fastgan.bias_act_blur_backward, (grad, given, needs_grad, *options), **checks)


@backends.one_instruction_set
def test_a_recorder_sees_the_two_operations(backend):
    tensors = make((1, 16, 4, 4), torch.float32, backends.device(backend))
    seen = []
    with recorded_by(lambda name, function, args, kwargs: seen.append(name.__name__) or function(*args, **kwargs)):
        bias_act_blur(**tensors, padding=PADDING)
    assert seen == ["noise_bias_act", "upfirdn2d"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bias": torch.zeros(3)}, ["bias", "[3]", "[16]"]),
        ({"taps": torch.zeros(2, 2, 2)}, ["taps", "[2, 2, 2]"]),
        ({"padding": (-3, 0, 0, 0)}, ["smaller than the filter", "[5, 2]"]),
        ({"act": "gelu"}, ["act", "'gelu'"]),
    ],
)
def test_an_argument_that_does_not_fit_is_named(arguments, words):
    x = torch.zeros(2, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    table.assert_message_contains(words, lambda: bias_act_blur(**{"x": x, "taps": torch.ones(4), **arguments}))


def test_a_learned_filter_has_a_gradient():
    with use_backend("torch"):
        tensors = make((1, 2, 4, 4), torch.float64)
        taps = tensors.pop("taps").requires_grad_()
        assert torch.autograd.gradcheck(lambda taps: bias_act_blur(taps=taps, **tensors), taps, fast_mode=True)
