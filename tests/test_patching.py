"""Patching replaces what computes the same and nothing else, changes nothing but the forward, and can be undone."""

import copy
import io
import math
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgan
from fastgan import patching
from fastgan.errors import UserError
from fastgan.losses import why_not_one_pass
from fastgan.patching import instances
from tests import foreign

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}


def convolutions_with_activations():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(6, 6, 3, stride=2, groups=2),
        nn.Sigmoid(),
        nn.InstanceNorm2d(6, affine=True),
        nn.Conv2d(6, 2, 1),
    )


# Layer, shapes of what it takes, names of what is replaced.
LAYERS = {
    "upsample": (foreign.Upsample, [(2, 4, 5, 6)], [""]),
    "downsample": (foreign.Downsample, [(2, 4, 8, 6)], [""]),
    "blur": (lambda: foreign.Blur((2, 1)), [(2, 4, 5, 6)], [""]),
    "bias and lrelu": (lambda: foreign.FusedLeakyReLU(4, 0.1, 1.3), [(2, 4, 5, 6)], [""]),
    "dense": (lambda: foreign.EqualLinear(4, 6, 0.01, "fused_lrelu"), [(3, 4)], [""]),
    "pixel norm": (foreign.PixelNorm, [(3, 4)], [""]),
    "modulated": (lambda: foreign.ModulatedConv2d(4, 6, 3, 5), [(2, 4, 5, 6), (2, 5)], [""]),
    "to rgb": (lambda: foreign.ModulatedConv2d(4, 3, 1, 5, demodulate=False), [(2, 4, 5, 6), (2, 5)], [""]),
    "modulated, up": (
        lambda: foreign.ModulatedConv2d(4, 6, 3, 5, upsample=True), [(2, 4, 5, 6), (2, 5)], ["", "blur"]
    ),
    "modulated, down": (
        lambda: foreign.ModulatedConv2d(4, 6, 3, 5, downsample=True), [(2, 4, 8, 6), (2, 5)], ["", "blur"]
    ),
    "styled": (lambda: foreign.StyledConv(4, 6, 5), [(2, 4, 5, 6), (2, 5)], ["", "conv", "activate"]),
    "styled, up": (
        lambda: foreign.StyledConv(4, 6, 5, upsample=True), [(2, 4, 5, 6), (2, 5), (2, 1, 10, 12)],
        ["", "conv", "conv.blur", "activate"],
    ),
    "adain, scale": (lambda: foreign.AdaptiveInstanceNorm(4, 5), [(2, 4, 5, 6), (2, 5)], ["", "norm"]),
    "adain, scale around 1": (lambda: foreign.AdaIN(5, 4), [(2, 4, 5, 6), (2, 5)], ["", "norm"]),
    "adain, 1d": (lambda: foreign.AdaIN(5, 4, nn.InstanceNorm1d), [(2, 4, 7), (2, 5)], ["", "norm"]),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), [(2, 4, 5, 6)], [""]),
    "sequence": (convolutions_with_activations, [(2, 4, 8, 6)], ["", "4"]),
    "sequence, 1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, dilation=2), nn.SiLU()), [(2, 4, 9)], [""]),
}  # fmt: skip


def randomized(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def values_and_gradients(model, inputs):
    """The result, its gradients, and those of the squared norm of the inputs' gradients."""
    torch.manual_seed(5)  # for noise that is drawn
    inputs = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    leaves = [*inputs, *model.parameters()]
    y = model(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    first = torch.autograd.grad((y * weights).sum(), leaves, create_graph=True, allow_unused=True)
    penalty = sum(g.square().sum() for g in first[: len(inputs)])
    second = [None] * len(leaves)
    if penalty.requires_grad:
        second = torch.autograd.grad(penalty, leaves, allow_unused=True)
    found = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves * 2, [*first, *second], strict=True)]
    return [t.detach() for t in (y, *found)]


def assert_same(got, expected, tolerance):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1, b.abs().max().item()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_replaced_layer_computes_the_same(name, dtype):
    make, shapes, replaced = LAYERS[name]
    layer = randomized(make()).to(dtype)
    before = type(layer)
    inputs = [torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3)) for shape in shapes]
    expected = values_and_gradients(layer, inputs)
    with fastgan.patch(layer) as patched:
        assert list(patched.replaced) == replaced, str(patched)
        assert isinstance(layer, before) and type(layer).__name__ == before.__name__
        assert_same(values_and_gradients(layer, inputs), expected, TOLERANCE[dtype])
        if len(shapes[0]) == 4:
            inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
            assert layer(*inputs).is_contiguous(memory_format=torch.channels_last)
            assert_same(values_and_gradients(layer, inputs), expected, TOLERANCE[dtype])
    assert type(layer) is before
    assert_same(values_and_gradients(layer, inputs), expected, TOLERANCE[dtype])


def test_fastgan_is_what_computes(monkeypatch):
    """Else the test above would compare a layer with itself."""
    layer = foreign.FusedLeakyReLU(4)
    fastgan.patch(layer)
    monkeypatch.setattr(patching.layers, "noise_bias_act", lambda x, **options: "fastgan")
    assert layer(torch.randn(2, 4, 3, 3)) == "fastgan"


# ---- a model in use -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patched_generator():
    model = randomized(foreign.Generator())
    return model, fastgan.patch(model)


def test_a_model_trains_on_with_its_optimizer_and_its_checkpoints():
    reference = randomized(foreign.Generator().double())
    model = copy.deepcopy(reference)
    adams = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (reference, model)]
    parameters, keys = list(model.parameters()), list(model.state_dict())
    for step in range(4):
        if step == 2:
            undo = fastgan.patch(model)
            assert "conv1" in undo.replaced
        for m, adam in zip((reference, model), adams, strict=True):
            torch.manual_seed(step)
            adam.zero_grad()
            m(torch.randn(2, 5, dtype=torch.float64)).square().mean().backward()
            adam.step()
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    foreign.Generator().double().load_state_dict(model.state_dict())


def test_copies_compute_with_their_own_parameters(patched_generator):
    model, _ = patched_generator
    z = torch.randn(2, 5)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert instances.is_patched(twin.conv1) and type(twin.conv1) is type(model.conv1)
        torch.manual_seed(0)
        expected = model(z)
        torch.manual_seed(0)
        torch.testing.assert_close(twin(z), expected)
        randomized(twin, seed=1)
        torch.manual_seed(0)
        assert not torch.allclose(twin(z), expected)


def test_a_patched_model_compiles_as_one_graph():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), foreign.FusedLeakyReLU(4))
    assert set(fastgan.patch(model).replaced) == {"", "2"}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(compiled(x), model(x))
    with pytest.raises(UserError, match="patch it first, then"):
        fastgan.patch(compiled)


def test_who_records_a_model_sees_the_original():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(4 * 16, 1))
    assert fastgan.patch(model).replaced
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
    operations = {str(node.target) for node in torch.export.export(model, (x,)).graph.nodes}
    assert {"aten.conv2d.default", "aten.leaky_relu.default"} <= operations
    assert why_not_one_pass(model) is None


def test_arguments_keep_their_names():
    layer = randomized(foreign.StyledConv(4, 6, 5))
    x, style, noise = torch.randn(2, 4, 5, 6), torch.randn(2, 5), torch.randn(1, 1, 5, 6)
    expected = layer(input=x, style=style, noise=noise)
    fastgan.patch(layer)
    torch.testing.assert_close(layer(x, noise=noise, style=style), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(input=x, style=style, noise=noise), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="unknown"):
        layer(x, style, unknown=noise)


def test_patching_leaves_no_trace_but_the_class():
    model = foreign.Generator().eval().requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = [{k: id(v) for k, v in vars(m).items()} for m in model.modules()]
    randoms = lambda: (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist())
    before = randoms()
    with torch.no_grad():
        assert fastgan.patch(model).replaced
    assert randoms() == before
    assert [{k: id(v) for k, v in vars(m).items()} for m in model.modules()] == attributes
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_what_a_layer_cannot_fuse_runs_as_before():
    """Inputs of other shapes, and whatever was changed after patching, go to the original."""
    model = randomized(convolutions_with_activations())
    x = torch.randn(2, 4, 8, 6)
    expected = model(x)
    fastgan.patch(model)
    torch.testing.assert_close(model(x[0]), expected[0], rtol=1e-4, atol=1e-4)  # not a batch
    seen = []
    model[0].register_forward_hook(lambda module, args, y: seen.append(y))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[0], F.leaky_relu(model[0](x), 0.2))  # in place, as it was
    model[1] = nn.Identity()
    torch.testing.assert_close(model[:2](x), model[0](x))


@pytest.mark.parametrize("sizes", [(3, 1), (1, 3)])
def test_one_style_for_many_images_and_one_image_in_many_styles(sizes):
    layer, x, style = foreign.AdaIN(5, 4), torch.randn(sizes[0], 4, 5, 6), torch.randn(sizes[1], 5)
    expected = layer(x, style)
    assert "" in fastgan.patch(layer).replaced
    torch.testing.assert_close(layer(x, style), expected)


# ---- the way back ---------------------------------------------------------------------------------------------------


def test_a_block_puts_everything_back_after_an_exception():
    model = foreign.Generator()
    classes = list(map(type, model.modules()))
    with pytest.raises(RuntimeError, match="in the block"), fastgan.patch(model):
        assert list(map(type, model.modules())) != classes
        raise RuntimeError("in the block")
    assert list(map(type, model.modules())) == classes


def test_what_was_changed_since_is_not_undone():
    layer = foreign.FusedLeakyReLU(4)
    patched = fastgan.patch(layer)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    with pytest.warns(UserWarning, match="changed since"):
        patched.undo()
    patched.undo()  # the second time it does nothing
    with pytest.raises(RuntimeError, match="parametrized"):  # as PyTorch says it
        pickle.dumps(layer)
    assert fastgan.patch(layer).left[""].endswith("patched already")


# ---- what is refused, and that it is told ---------------------------------------------------------------------------


class OtherSlope(foreign.FusedLeakyReLU):
    def forward(self, input):
        return super().forward(input) + 1e-6 * input


class ThroughNumpy(foreign.FusedLeakyReLU):
    def forward(self, input):
        return input + torch.from_numpy(super().forward(input).detach().numpy()) - input


class WithoutGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.detach()


class NoSecondGradient(foreign.ModulatedConv2d):
    def forward(self, input, style):
        return super().forward(WithoutGraph.apply(input), style)


class WithMask(foreign.ModulatedConv2d):
    def forward(self, input, style, mask=None):
        return super().forward(input if mask is None else mask * input, style)


def hooked(layer):
    layer.register_forward_hook(lambda *_: None)
    return layer


def with_forward_of_its_own(layer):
    layer.forward = lambda input: input
    return layer


def with_part_hooked(layer, part):
    getattr(layer, part).register_forward_hook(lambda *_: None)
    return layer


REFUSED = {
    "computes something else": lambda: OtherSlope(4),
    "the gradient of argument 0 differs": lambda: ThroughNumpy(4),
    "the second gradient of": lambda: NoSecondGradient(4, 4, 3, 5),
    "its forward takes (input, style, mask)": lambda: WithMask(4, 4, 3, 5),
    "has a forward hook": lambda: hooked(foreign.FusedLeakyReLU(4)),
    "has a forward pre-hook": lambda: nn.utils.spectral_norm(foreign.EqualLinear(4, 4, activation="fused_lrelu")),
    "has a parametrization": lambda: nn.utils.parametrizations.weight_norm(foreign.EqualLinear(4, 4, activation="x")),
    "a forward that was set on this one": lambda: with_forward_of_its_own(foreign.FusedLeakyReLU(4)),
    "its part 'modulation' has a forward hook": lambda: with_part_hooked(
        foreign.ModulatedConv2d(4, 4, 3, 5), "modulation"
    ),
    "its part 'blur' has a hook": lambda: with_part_hooked(
        foreign.ModulatedConv2d(4, 4, 3, 5, upsample=True), "blur"
    ),
    "its result differs": lambda: foreign.ModulatedConv2d(4, 4, 3, 5, eps=1e-5),
    "has no activation": lambda: foreign.EqualLinear(4, 4),
    "keeps running statistics": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "a convolution and the activation behind it have hooks": lambda: nn.Sequential(
        hooked(nn.Conv2d(4, 4, 3)), nn.LeakyReLU(0.2)
    ),
    "where nothing can be tried": lambda: foreign.FusedLeakyReLU(4).to("meta"),
    "has no numbers `negative_slope`": lambda: foreign.FusedLeakyReLU(4, negative_slope=-0.2),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_known_for_sure_is_left_and_told(reason):
    layer = REFUSED[reason]()
    classes = list(map(type, layer.modules()))
    patched = fastgan.patch(layer)
    assert reason in patched.left[""], str(patched)
    assert "" not in patched.replaced and type(layer) is classes[0]


def test_the_report_is_readable(patched_generator):
    _, patched = patched_generator
    lines = str(patched).splitlines()
    assert lines[0] == "replaced:"
    assert "  ModulatedConv2d (3): conv1.conv, conv2.conv, to_rgb" in lines
    assert any(line.startswith("  EqualLinear: has no activation, so there is nothing to fuse (3)") for line in lines)
    assert lines[-1] == "not known: NoiseInjection (2)"
    assert str(fastgan.patch(nn.Linear(2, 2))) == "replaced: nothing\nnot known: Linear (1)"


def test_a_mistake_is_told_in_one_line():
    with pytest.raises(UserError, match="Module, not a dict"):
        fastgan.patch({})
    with pytest.raises(UserError, match="takes modules such as"):
        fastgan.patch_ops(foreign.Blur((1, 1)))
    with pytest.raises(UserError, match="math has none of the functions that are known: bias_act"):
        fastgan.patch_ops(math)
    with pytest.raises(AttributeError, match="no attribute 'pach'"):
        _ = fastgan.pach


# ---- modules of functions -------------------------------------------------------------------------------------------


def test_bias_act_of_the_official_code():
    module = foreign.official_bias_act()
    x, b = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    ours = [{}, {"act": "lrelu"}, {"act": "swish", "gain": 2}, {"act": "tanh", "clamp": 0.5, "gain": math.sqrt(0.5)}]
    theirs = [{"act": "elu"}, {"act": "lrelu", "impl": "ref"}, {"clamp": 0}]
    expected = [module.bias_act(x, b, **options) for options in (*ours, *theirs)]
    original = module.bias_act
    with fastgan.patch_ops(module) as patched:
        assert patched.replaced == {"torch_utils.ops.bias_act.bias_act": "bias_act"}
        assert fastgan.patch_ops(module).left == {"torch_utils.ops.bias_act.bias_act": "was replaced already"}
        module.calls = 0
        got = [module.bias_act(x, b, **options) for options in ours]
        assert module.calls == 0
        got += [module.bias_act(x, b, **options) for options in theirs]
        rows = module.bias_act(x, torch.ones(5, dtype=torch.float64), dim=2)
        assert module.calls == len(theirs) + 1
        torch.testing.assert_close(rows, x + 1)
        assert_same(got, expected, 1e-12)
    assert module.bias_act is original


def test_upfirdn2d_of_the_official_code():
    module = foreign.official_upfirdn2d()
    x, f = torch.randn(2, 3, 6, 5), torch.tensor([1.0, 2.0, 4.0]) / 7
    calls = [
        lambda: module.upsample2d(x, f),
        lambda: module.upfirdn2d(x=x, f=torch.outer(f, f), padding=[1, 0, -1, 2], flip_filter=True),
        lambda: module.upfirdn2d(x, f, up=[2, 1], down=[1, 2], padding=1),
    ]
    expected = [call() for call in calls]
    with fastgan.patch_ops(module):
        module.calls = 0
        assert_same([call() for call in calls], expected, 1e-5)
        assert module.calls == 0
        torch.testing.assert_close(module.upfirdn2d(x, None), x)
        assert module.calls == 1


def test_modulated_conv2d_of_the_official_code():
    module = foreign.official_networks()
    x, styles, noise = torch.randn(2, 4, 5, 6), torch.randn(2, 4), torch.randn(10, 12)
    weight, f = torch.randn(3, 4, 3, 3), foreign.resampling_kernel()
    options = {"up": 2, "padding": 1, "resample_filter": f, "flip_weight": False}
    expected = module.modulated_conv2d(x=x, weight=weight, styles=styles, noise=noise, **options)
    with fastgan.patch_ops(module) as patched:
        assert list(patched.replaced.values()) == ["modulated_conv2d"]
        got = module.modulated_conv2d(x=x, weight=weight, styles=styles, noise=noise, **options)
    assert_same([got], [expected], 1e-5)


def test_a_function_of_the_same_name_that_computes_something_else_is_left():
    module = foreign.official_bias_act()
    right = module.bias_act

    def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
        return right(x, b, dim, act, alpha, gain, clamp) * (1.001 if act == "lrelu" else 1)

    module.bias_act = bias_act
    assert "its result differs" in fastgan.patch_ops(module).left["torch_utils.ops.bias_act.bias_act"]
    module.bias_act = lambda x, bias: x
    assert "other parameters" in fastgan.patch_ops(module).left["torch_utils.ops.bias_act.bias_act"]
    assert module.bias_act.__name__ == "<lambda>"
