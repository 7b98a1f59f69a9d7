"""Patching replaces equal layers only, changes nothing but their forward, and can be undone."""

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
from fastgan.ops import use_backend
from fastgan.patching import instances, sequences
from fastgan.penalties import why_not_one_pass
from tests.support import backends, foreign

pytestmark = pytest.mark.skipif(
    backends.why_not("cpp") is not None, reason="nothing is gained, and so replaced, without kernels"
)
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


def norms_with_activations():
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5, affine=False, track_running_stats=False), nn.LeakyReLU(0.1),
        nn.BatchNorm2d(5), nn.Tanh(),
    )  # fmt: skip


def equalized_convolutions_with_activations():
    downscale = foreign.BlurLayer((1, 1), stride=2)
    return nn.Sequential(
        foreign.EqualConv2d(4, 6, 3, padding=1),
        nn.LeakyReLU(0.2),
        foreign.EqualizedConv2d(6, 5, 3, intermediate=foreign.BlurLayer()),
        nn.LeakyReLU(0.2),
        foreign.EqualizedConv2d(5, 4, 3, downscale=downscale),
        nn.LeakyReLU(0.2),
        foreign.EqualizedConv2d(4, 2, 1),
    )


@pytest.fixture
def also_on_a_cpu(monkeypatch):
    """Convolutions with activations are replaced although nothing is gained."""
    monkeypatch.setattr(sequences, "why_nothing_is_gained", lambda conv: None)


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
    "sequence, norms": (norms_with_activations, [(2, 4, 8, 6)], [""]),
    "sequence, norm of vectors": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), [(5, 4)], [""]),
    "sequence, equalized": (
        equalized_convolutions_with_activations, [(2, 4, 8, 6)], ["", "2.intermediate", "4.downscale"]
    ),
    "sequence, spectral norm": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(4, 6, 3)), nn.ReLU()).eval(), [(2, 4, 5, 6)], [""]
    ),
    "blur of stylegan1": (lambda: foreign.StyleGAN1.Blur(4), [(2, 4, 5, 6)], [""]),
    "blur with stride": (lambda: foreign.BlurLayer((1, 2, 4), 2), [(2, 4, 5, 6)], [""]),
    "modulated around 1": (lambda: foreign.Conv2DMod(4, 6, 3), [(2, 4, 5, 6), (2, 4)], [""]),
    "modulated around 1, to rgb": (lambda: foreign.Conv2DMod(4, 3, 1, demod=False), [(2, 4, 5, 6), (2, 4)], [""]),
    "official dense": (lambda: foreign.FullyConnectedLayer(4, 6, "lrelu", 0.01), [(3, 4)], [""]),
    "official conv": (lambda: foreign.Conv2dLayer(4, 6, 3, activation="lrelu", conv_clamp=0.7), [(2, 4, 5, 6)], [""]),
    "official conv, linear": (lambda: foreign.Conv2dLayer(4, 6, 3, conv_clamp=0.7), [(2, 4, 5, 6)], [""]),
    "official conv, down": (lambda: foreign.Conv2dLayer(4, 6, 3, activation="swish", down=2), [(2, 4, 8, 6)], [""]),
    "official skip, down": (lambda: foreign.Conv2dLayer(4, 6, 1, bias=False, down=2), [(2, 4, 8, 6)], [""]),
    "official skip, up": (lambda: foreign.Conv2dLayer(4, 6, 1, bias=False, up=2), [(2, 4, 5, 6)], [""]),
    "official conv, frozen": (
        lambda: foreign.Conv2dLayer(4, 6, 3, activation="lrelu", trainable=False), [(2, 4, 5, 6)], [""]
    ),
    "official synthesis": (
        lambda: foreign.SynthesisLayer(4, 6, 5, 5, use_noise=False, conv_clamp=0.9), [(2, 4, 5, 5), (2, 5)], [""]
    ),
    "official synthesis, up": (
        lambda: foreign.SynthesisLayer(4, 6, 5, 10, up=2, use_noise=False, activation="tanh"),
        [(2, 4, 5, 5), (2, 5)], [""],
    ),
    "official to rgb": (lambda: foreign.ToRGBLayer(4, 3, 5), [(2, 4, 5, 6), (2, 5)], [""]),
    "official to rgb, clamped": (lambda: foreign.ToRGBLayer(4, 3, 5, conv_clamp=0.9), [(2, 4, 5, 6), (2, 5)], [""]),
    "official stddev": (lambda: foreign.MinibatchStdLayer(2, 2), [(4, 4, 3, 3)], [""]),
    "official stddev of all": (lambda: foreign.MinibatchStdLayer(None), [(3, 4, 3, 3)], [""]),
}  # fmt: skip


def randomized(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def values_and_gradients(model, inputs):
    """The result, first gradients, and gradients of the squared norm of the input gradients; None for no gradient."""
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
    return [t if t is None else t.detach() for t in (y, *first, *second)]


def assert_same(got, expected, tolerance):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1, b.abs().max().item()))


def made(name, dtype=torch.float32):
    """A layer, what it takes, and what is replaced of it."""
    make, shapes, replaced = LAYERS[name]
    layer = randomized(make()).to(dtype)
    for buffer_name, buffer in layer.named_buffers():
        if "resample_filter" in buffer_name:
            buffer.data = buffer.data.float()
    inputs = [torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3)) for shape in shapes]
    return layer, inputs, replaced


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_replaced_layer_computes_the_same(name, dtype, also_on_a_cpu):
    layer, inputs, replaced = made(name, dtype)
    before, shapes = type(layer), [x.shape for x in inputs]
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


@pytest.mark.parametrize("name", LAYERS)
def test_deepcopy_pickle_and_autocast(name, also_on_a_cpu):
    """Copies and files are of patched layers, the names of their state are the class's own; bf16 stays close."""
    layer, inputs, _ = made(name)
    inputs = [x.requires_grad_() for x in inputs]
    keys, reference = list(layer.state_dict()), copy.deepcopy(layer)
    buffer = io.BytesIO()
    with fastgan.patch(layer):
        torch.save(layer, buffer)
        buffer.seek(0)
        for twin in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
            assert type(twin) is type(layer) and list(twin.state_dict()) == keys
            twin.load_state_dict(reference.state_dict())
            torch.manual_seed(0)
            got = twin(*inputs)
            torch.manual_seed(0)
            torch.testing.assert_close(got, reference(*inputs), rtol=1e-4, atol=1e-4)
        reference.load_state_dict(layer.state_dict())
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(0)
            expected = reference(*inputs).float()
            torch.manual_seed(0)
            got = layer(*inputs).float()
        got.sum().backward()
        assert all(t.grad.isfinite().all() for t in (*inputs, *layer.parameters()) if t.grad is not None)
        assert (got - expected).abs().mean() <= 0.03 * expected.abs().mean() + 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_updates_its_running_statistics(training):
    model = randomized(norms_with_activations().double())
    twin = copy.deepcopy(model)
    (replaced,) = fastgan.patch(twin).replaced.values()
    assert replaced == ("Sequential", "batch_norm_act", 2)
    for seed in range(3):
        x = torch.randn(2, 4, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(twin(x), model(x))
    for module in (model, twin):
        module.train(training)
    torch.testing.assert_close(twin(x), model(x))
    torch.testing.assert_close(twin.state_dict(), model.state_dict())


def test_convolutions_with_activations_are_left_on_a_cpu():
    """In a sequence with batch norms, pairs that gain are replaced; the report names the others."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2, inplace=True))
    patched = fastgan.patch(model)
    assert not patched.replaced and "nothing is gained on a CPU" in patched.left[""]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU())
    patched = fastgan.patch(model)
    assert patched.replaced == {"": ("Sequential", "batch_norm_act", 1)}
    assert "in part" in patched.left[""] and patched.unknown == {"Conv2d": 1, "ReLU": 1}
    conv = nn.Conv2d(3, 4, 3, device="meta")  # not a CPU
    assert sequences.why_nothing_is_gained(conv) is None
    with use_backend("torch"):
        assert "no kernel can serve here" in fastgan.patch(foreign.FusedLeakyReLU(4)).left[""]


def test_patched_layers_call_fused_operations(monkeypatch):
    """Else the test above would compare a layer with itself."""
    layer = foreign.FusedLeakyReLU(4)
    fastgan.patch(layer)
    monkeypatch.setattr(patching.modules, "noise_bias_act", lambda x, **options: "fastgan")
    assert layer(torch.randn(2, 4, 3, 3)) == "fastgan"


# ---- a model in use -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patched_generator():
    model = randomized(foreign.Generator())
    return model, fastgan.patch(model)


def test_optimizers_and_checkpoints_work_across_a_patch():
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


def test_a_patched_model_compiles_as_one_graph(also_on_a_cpu):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), foreign.FusedLeakyReLU(4))
    assert set(fastgan.patch(model).replaced) == {"", "2"}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(compiled(x), model(x))
    with pytest.raises(UserError, match="patch it first, then"):
        fastgan.patch(compiled)


def test_tracing_sees_the_original(also_on_a_cpu):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(4 * 16, 1))
    assert fastgan.patch(model).replaced
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
    operations = {str(node.target) for node in torch.export.export(model, (x,)).graph.nodes}
    assert {"aten.conv2d.default", "aten.leaky_relu.default"} <= operations
    assert why_not_one_pass(model, x) is None


def test_keyword_arguments_keep_their_names():
    layer = randomized(foreign.StyledConv(4, 6, 5))
    x, style, noise = torch.randn(2, 4, 5, 6), torch.randn(2, 5), torch.randn(1, 1, 5, 6)
    expected = layer(input=x, style=style, noise=noise)
    fastgan.patch(layer)
    torch.testing.assert_close(layer(x, noise=noise, style=style), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(input=x, style=style, noise=noise), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="unknown"):
        layer(x, style, unknown=noise)


def test_patching_changes_the_class_alone():
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


def test_calls_that_cannot_be_fused_run_the_original(also_on_a_cpu):
    """Inputs of other shapes, and layers changed after patching, run the original forward."""
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


def test_a_with_block_restores_the_originals_after_an_exception():
    model = foreign.Generator()
    classes = list(map(type, model.modules()))
    with pytest.raises(RuntimeError, match="in the block"), fastgan.patch(model):
        assert list(map(type, model.modules())) != classes
        raise RuntimeError("in the block")
    assert list(map(type, model.modules())) == classes


def test_undo_leaves_later_changes():
    layer = foreign.FusedLeakyReLU(4)
    patched = fastgan.patch(layer)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    with pytest.warns(UserWarning, match="changed since"):
        patched.undo()
    patched.undo()  # the second time it does nothing
    with pytest.raises(RuntimeError, match="parametrized"):  # as PyTorch says it
        pickle.dumps(layer)
    assert fastgan.patch(layer).left[""].endswith("patched already")


# ---- layers that are refused, and the reported reasons --------------------------------------------------------------


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


class NoGradientOfBias(foreign.Conv2dLayer):
    """Its bias has no second gradient; with a clamp it would be zeros."""

    def __init__(self, *sizes):
        super().__init__(*sizes, activation="lrelu")

    def forward(self, x, gain=1):
        y = F.conv2d(x, self.weight * self.weight_gain) + self.bias.view(1, -1, 1, 1)
        return torch.where(y > 0, y, 0.2 * y) * self.act_gain * gain


def with_other_filter(layer):
    layer.weight[1, 0, 0, 0] = 1
    return layer


def hooked(layer):
    layer.register_forward_hook(lambda *_: None)
    return layer


def with_own_forward(layer):
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
    "has a forward set on the instance": lambda: with_own_forward(foreign.FusedLeakyReLU(4)),
    "its submodule 'modulation' has a forward hook": lambda: with_part_hooked(
        foreign.ModulatedConv2d(4, 4, 3, 5), "modulation"
    ),
    "its submodule 'blur' has a hook": lambda: with_part_hooked(
        foreign.ModulatedConv2d(4, 4, 3, 5, upsample=True), "blur"
    ),
    "its result differs": lambda: foreign.ModulatedConv2d(4, 4, 3, 5, eps=1e-5),
    "has no activation": lambda: foreign.EqualLinear(4, 4),
    "keeps running statistics": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "a convolution and its activation have hooks": lambda: nn.Sequential(
        hooked(nn.Conv2d(4, 4, 3)), nn.LeakyReLU(0.2)
    ),
    "where nothing can be compared": lambda: foreign.FusedLeakyReLU(4).to("meta"),
    "has no numbers `negative_slope`": lambda: foreign.FusedLeakyReLU(4, negative_slope=-0.2),
    "is not None, unlike the original's": lambda: NoGradientOfBias(4, 4, 1),
    "has a stride or a dilation": lambda: foreign.Conv2DMod(4, 4, 3, stride=2),
    "has no `eps` of 1e-08": lambda: foreign.Conv2DMod(4, 4, 3, eps=1e-5),
    "different filters for channels": lambda: with_other_filter(foreign.StyleGAN1.Blur(4)),
    "has the activation 'elu'": lambda: foreign.Conv2dLayer(4, 4, 3, activation="elu"),
    "has up 2 and down 1 for a kernel of 3": lambda: foreign.Conv2dLayer(4, 4, 3, up=2),
    "has a cumulative average": lambda: nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.ReLU()),
    "have a negative slope": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.LeakyReLU(-0.1)),
    "is a compiled script": lambda: torch.jit.script(norms_with_activations()),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_layers_that_may_differ_are_left_with_a_reason(reason):
    layer = REFUSED[reason]()
    classes = list(map(type, layer.modules()))
    patched = fastgan.patch(layer)
    assert reason in patched.left[""], str(patched)
    assert "" not in patched.replaced and type(layer) is classes[0]


def test_the_report_is_readable(patched_generator, also_on_a_cpu):
    _, patched = patched_generator
    lines = str(patched).splitlines()
    assert lines[0] == "replaced (11):"
    assert "  ModulatedConv2d by modulated_conv2d (3): conv1.conv, conv2.conv, to_rgb" in lines
    assert any(line.startswith("  EqualLinear: has no activation, so there is nothing to fuse (3)") for line in lines)
    assert not patched.unknown  # the noise layer belongs to a replaced layer
    assert str(fastgan.patch(nn.Linear(2, 2))) == "replaced: nothing\nunknown: Linear (1)"
    lines = str(fastgan.patch(nn.ModuleList([convolutions_with_activations() for _ in range(2)]))).splitlines()
    assert lines[1] == "  Sequential by noise_bias_act (2, 4 pairs): 0, 1"
    assert lines[-1] == "unknown: Conv2d (2)"


def test_buffer_values_are_checked_for_every_layer():
    """Two layers of the same configuration may differ in the values of their filters."""
    model = nn.ModuleList([foreign.StyleGAN1.Blur(4), with_other_filter(foreign.StyleGAN1.Blur(4))])
    patched = fastgan.patch(model)
    assert list(patched.replaced) == ["0"] and list(patched.left) == ["1"]


class OwnReduce(foreign.FullyConnectedLayer):
    """Pickles the original layer, like the official layers."""

    def __reduce__(self):
        return OwnReduce._made, (self.weight.shape, vars(self))

    @staticmethod
    def _made(shape, state):
        layer = OwnReduce(shape[1], shape[0])
        layer.__setstate__(state)
        return layer


def test_copies_of_layers_with_their_own_reduce_are_patched():
    layer = OwnReduce(4, 6, "lrelu")
    fastgan.patch(layer)
    twin, loaded = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    assert type(twin) is type(layer) and type(loaded) is OwnReduce
    assert twin.weight is not layer.weight
    x = torch.randn(3, 4)
    torch.testing.assert_close(twin(x), layer(x))
    torch.testing.assert_close(loaded(x), layer(x))


def test_mistakes_raise_errors_of_one_line():
    with pytest.raises(UserError, match="Module, not a dict"):
        fastgan.patch({})
    with pytest.raises(UserError, match="takes modules such as"):
        fastgan.patch_ops(foreign.Blur((1, 1)))
    with pytest.raises(UserError, match="needs at least one module: give the modules"):
        fastgan.patch_ops()
    with pytest.raises(UserError, match="math has none of the known functions: bias_act"):
        fastgan.patch_ops(math)
    with pytest.raises(AttributeError, match="no attribute 'pach'"):
        _ = fastgan.pach


class InMode(nn.Module):
    def __init__(self, layer, **mode):
        super().__init__()
        self.layer, self.mode = layer, mode

    def forward(self, x, w):
        return self.layer(x, w, fused_modconv=False, gain=0.5, **self.mode)


ALIAS_FREE = {
    "same size": lambda: foreign.StyleGAN3.SynthesisLayer(4, 6, 5, 26),
    "radial, up": lambda: foreign.StyleGAN3.SynthesisLayer(4, 6, 5, 16, up=4, k=1, radial=True),
    "to rgb": lambda: foreign.StyleGAN3.SynthesisLayer(4, 3, 5, 14, up=1, down=1, k=1, is_torgb=True, conv_clamp=3.0),
}


@pytest.mark.parametrize("name", ALIAS_FREE)
def test_official_synthesis_of_stylegan3(name):
    """It computes in fp32 at least. Its bias may lack the second gradient, which is zero."""
    layer = randomized(ALIAS_FREE[name]())
    size = int(layer.in_size[0])
    x, w = torch.randn(2, 4, size, size), torch.randn(2, 5)
    twin, expected = copy.deepcopy(layer), values_and_gradients(layer, [x, w])
    with fastgan.patch(twin) as patched:
        assert list(patched.replaced) == [""], str(patched)
        found = values_and_gradients(twin, [x, w])
        missing = [
            torch.zeros_like(b) if a is None and b is not None else a for a, b in zip(found, expected, strict=True)
        ]
        assert sum(a is not b for a, b in zip(missing, found, strict=True)) <= 1
        assert_same(missing, expected, 1e-4)
        for arguments in ({"update_emas": True}, {"noise_mode": "none", "force_fp32": True}):
            with torch.no_grad():
                torch.testing.assert_close(twin(x, w, **arguments), layer(x, w, **arguments), rtol=1e-4, atol=1e-4)
        assert twin.magnitude_ema == pytest.approx(float(layer.magnitude_ema)) and twin.magnitude_ema != 1
        with pytest.raises(AssertionError):  # the layer's own, for an image of another size
            twin(x[:, :, 1:], w)


@pytest.mark.parametrize("noise_mode", ["random", "const", "none"])
def test_official_synthesis_in_every_noise_mode(noise_mode):
    layer = randomized(foreign.SynthesisLayer(4, 6, 5, 10, up=2, conv_clamp=0.9))
    inputs, model = [torch.randn(2, 4, 5, 5), torch.randn(2, 5)], InMode(layer, noise_mode=noise_mode)
    expected = values_and_gradients(model, inputs)
    with fastgan.patch(model) as patched:
        assert list(patched.replaced) == ["layer"]
        assert_same(values_and_gradients(model, inputs), expected, 1e-4)
        with pytest.raises(AssertionError):  # the layer's own, for an image of another size
            model(torch.randn(2, 4, 6, 6), inputs[1])
