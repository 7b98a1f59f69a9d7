"""A recording follows the forward pass as it happens, or refuses with a reason; it has no side effects.

State, random numbers and branches may change between two calls. In each call, the one-pass form equals double backward
to rounding, or is not taken.
"""

import contextvars
import copy
import functools
import gc
import itertools
import os
import random
import threading
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from fastgan import layers, models
from fastgan.layers import BatchNormAct
from fastgan.losses import nonsaturating_real
from fastgan.models.gradient_checkpointing import enable_gradient_checkpointing
from fastgan.ops import conv2d, noise_bias_act
from fastgan.ops.recordable import recordable
from fastgan.penalties import (
    logits_and_squared_grad,
    one_pass,
    rules,
    why_not_one_pass,
    zero_centered_penalty,
)
from fastgan.penalties.recording import Recording
from tests.penalties.discriminators import SIZE, SavedTensor, assert_equal_gradients, batch, build, by_double_backward

pytestmark = pytest.mark.usefixtures("one_thread")


class Varied(nn.Module):
    """A plain discriminator that calls `vary(self, features)` between its layers."""

    FACTOR = 2.0

    def __init__(self, vary=lambda self, x: x):
        super().__init__()
        self.conv, self.act, self.out = nn.Conv2d(3, 4, 4, stride=4), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        self.vary = vary
        self.register_buffer("scale", torch.tensor(1.5))
        self.shift = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, images):
        return self.out(self.vary(self, self.act(self.conv(images))).flatten(1))


def varied(vary, **attributes):
    torch.manual_seed(0)
    discriminator = Varied(vary).double()
    vars(discriminator).update(attributes)
    return discriminator


def seed():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)


def copied(discriminator):
    left = [
        value
        for module in discriminator.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor)
    ]
    return copy.deepcopy(discriminator, {id(value): value for value in left if value.grad_fn is not None})


def penalized(form, discriminator, images, *labels):
    """Gradients of a loss with R1 with respect to images and parameters; and whether one pass was taken."""
    seed()
    logits, squares = logits_and_squared_grad(form, images, *labels)
    loss = nonsaturating_real(logits) + 3 * zero_centered_penalty(squares)
    wanted = [images, *(p for p in discriminator.parameters() if p.requires_grad)]
    return torch.autograd.grad(loss, wanted, allow_unused=True), "OnePass" in type(logits.grad_fn).__name__


def assert_followed_or_refused(discriminator, reason=None, images=None, *labels):
    """Asserts one pass, or double backward for a reason that contains `reason`; and correct gradients in both."""
    images = batch()[0] if images is None else images
    twin = copied(discriminator)  # in the state that the discriminator is in before the call
    expected, _ = penalized(by_double_backward(twin), twin, images, *labels)
    seed()
    why = why_not_one_pass(discriminator, images, *labels)
    got, one_pass_taken = penalized(discriminator, discriminator, images, *labels)
    assert_equal_gradients(got, expected)
    assert one_pass_taken == (reason is None), why
    assert why is None if reason is None else reason in why, why
    return got


# Changes between two calls ----------------------------------------------------------------------------------------


class Settings:
    """An object outside of the discriminator."""

    def __init__(self, factor=2.0):
        self.factor = factor

    def times(self, x):
        return x * self.factor


GLOBAL = Settings()
LOCAL = threading.local()
CONTEXT = contextvars.ContextVar("factor", default=2.0)


def make_closure():
    factor = 2.0

    def change(discriminator):
        nonlocal factor
        factor = 0.5

    return varied(lambda self, x: x * factor), change


def make_partial():
    times = functools.partial(lambda x, factor: x * factor, factor=2.0)
    return varied(lambda self, x: self.times(x), times=times), lambda discriminator: setattr(
        discriminator, "times", functools.partial(times, factor=0.5)
    )


def make_bound_method():
    settings = Settings()
    return varied(lambda self, x: self.times(x), times=settings.times), lambda discriminator: vars(
        discriminator.times.__self__
    ).update(factor=0.5)


def make_stochastic_depth():
    def vary(self, x):
        return x + self.act(x - 0.1) if self.random.random() < 0.5 else x

    return varied(vary, random=random.Random(0)), lambda d: d.random.seed(3)


def make_environment():
    os.environ.pop("FASTGAN_TEST_FACTOR", None)
    return (
        varied(lambda self, x: x * float(os.environ.get("FASTGAN_TEST_FACTOR", "2"))),
        lambda discriminator: os.environ.update(FASTGAN_TEST_FACTOR="0.5"),
    )


def make_patched_forward():
    def change(discriminator):
        discriminator.act.forward = lambda x: F.leaky_relu(x, 0.7) - 0.5

    return varied(lambda self, x: x), change


def make_patched_class():
    class Scaled(nn.Module):
        def forward(self, x):
            return x * 2

    def change(discriminator):
        Scaled.forward = lambda self, x: x * 0.5

    discriminator = varied(lambda self, x: self.scaled(x))
    discriminator.scaled = Scaled()
    return discriminator, change


def make_hook():
    return varied(lambda self, x: x), lambda d: d.act.register_forward_hook(lambda module, args, y: 3 * y - 1)


def make_pre_hook():
    return varied(lambda self, x: x), lambda d: d.act.register_forward_pre_hook(lambda module, args: (args[0] - 0.3,))


def make_old_spectral_norm():
    """Its power iteration writes buffers in place in each call."""
    discriminator = varied(lambda self, x: x)
    nn.utils.spectral_norm(discriminator.conv)
    return discriminator, lambda d: d.eval()


def make_parametrization(parametrize):
    def make():
        discriminator = varied(lambda self, x: x)
        parametrize(discriminator.conv)
        return discriminator, lambda d: d.eval()

    return make


def set_to(name, value):
    return lambda d: setattr(d, name, value)


def counts(self, x):
    self.steps += 1
    return x / self.steps


def on_values(self, x):
    return x * 2 if x.sum() > 0 else -x


def with_constant_of_images(self, x):
    with torch.no_grad():
        y = x * 2
    return x + y - x.detach() + x.detach().mean()


def keeps_running_scale(self, x):
    with torch.no_grad():
        self.scale.lerp_(x.abs().mean(), 0.1)
    return x * self.scale.clone()


def under_own_autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x * 2


# Each returns a discriminator, and a change after which a cached recording would be wrong (or None).
FOLLOWED = {
    "closure": make_closure,
    "partial": make_partial,
    "bound method": make_bound_method,
    "random.Random": lambda: (varied(lambda self, x: x * self.random.random(), random=random.Random(1)), None),
    "stochastic depth": make_stochastic_depth,
    "random": lambda: (varied(lambda self, x: x * random.random()), None),
    "numpy.random": lambda: (varied(lambda self, x: x * np.random.random()), None),
    "torch.rand": lambda: (varied(lambda self, x: x * torch.rand(())), None),
    "mask drawn": lambda: (varied(lambda self, x: x * (torch.rand(x.shape) < 0.7) / 0.7), None),
    "patched forward": make_patched_forward,
    "patched class": make_patched_class,
    "forward hook": make_hook,
    "forward pre-hook": make_pre_hook,
    "named_buffers": lambda: (
        varied(lambda self, x: x * sum(b.item() for _, b in self.named_buffers())),
        lambda d: d.scale.fill_(0.25),
    ),
    "state_dict": lambda: (
        varied(lambda self, x: x * float(self.state_dict()["scale"])),
        lambda d: d.scale.fill_(0.25),
    ),
    "item of a parameter": lambda: (
        varied(lambda self, x: x / self.conv.weight.norm().item()),
        lambda d: d.conv.weight.data.mul_(2),
    ),
    "buffer": lambda: (varied(lambda self, x: x * self.scale), lambda d: d.scale.fill_(0.25)),
    "running scale": lambda: (varied(keeps_running_scale), None),
    "class attribute": lambda: (
        varied(lambda self, x: x * type(self).FACTOR),
        lambda d: setattr(type(d), "FACTOR", 0.5),
    ),
    "global": lambda: (varied(lambda self, x: x * GLOBAL.factor), lambda d: setattr(GLOBAL, "factor", 0.5)),
    "thread-local": lambda: (
        varied(lambda self, x: x * getattr(LOCAL, "factor", 2.0)),
        lambda d: setattr(LOCAL, "factor", 0.5),
    ),
    "context variable": lambda: (varied(lambda self, x: x * CONTEXT.get()), lambda d: CONTEXT.set(0.5) and None),
    "environment": make_environment,
    "iterator": lambda: (varied(lambda self, x: x * next(self.factors), factors=itertools.cycle([2.0, 0.5])), None),
    "object": lambda: (
        varied(lambda self, x: self.settings.times(x), settings=Settings()),
        lambda d: setattr(d.settings, "factor", 0.5),
    ),
    "options": lambda: (
        varied(lambda self, x: x * self.options["gain"][0], options={"gain": [2.0]}),
        lambda d: d.options["gain"].__setitem__(0, 0.5),
    ),
    "training": lambda: (varied(lambda self, x: x * (2 if self.training else 0.5)), lambda d: d.eval()),
    "autocast asked for": lambda: (
        varied(lambda self, x: x * (2 if torch.is_autocast_enabled("cpu") else 0.5)),
        None,
    ),
    "own autocast": lambda: (varied(under_own_autocast), None),
    "grad mode asked for": lambda: (varied(lambda self, x: x * (2 if torch.is_grad_enabled() else 0.5)), None),
    "type asked for": lambda: (varied(lambda self, x: x * 3 if type(x) is torch.Tensor else x), None),
    "tracing asked for": lambda: (varied(lambda self, x: x if torch.jit.is_tracing() else x * 3), None),
    "branch on values": lambda: (varied(on_values), lambda d: d.shift.data.add_(1)),
    "running mean": lambda: (varied(centred), None),
    "constant overwritten": lambda: (varied(overwriting_a_constant), None),
    "logging": lambda: (varied(logging), None),
    "torch.func": lambda: (varied(with_torch_func), None),
    "checkpoint": lambda: (varied(checkpointed), None),
    "added to a buffer": lambda: (varied(adding_to_a_buffer), None),
    "added to itself": lambda: (varied(adding_to_itself), None),
    "counter": lambda: (varied(counts, steps=0), None),
    "constants of the images": lambda: (varied(with_constant_of_images), None),
    "slope": lambda: (varied(lambda self, x: x), lambda d: setattr(d.act, "negative_slope", 0.6)),
    "padding": lambda: (varied(lambda self, x: x), lambda d: vars(d.conv).update(padding=(1, 1))),
    "new parameter": lambda: (
        varied(lambda self, x: x + self.shift),
        set_to("shift", nn.Parameter(torch.full((1, 4, 1, 1), 0.7, dtype=torch.float64))),
    ),
    "new module": lambda: (varied(lambda self, x: x), set_to("act", nn.ReLU())),
    "frozen": lambda: (varied(lambda self, x: x + self.shift), lambda d: d.conv.bias.requires_grad_(False)),
    "old spectral norm": make_old_spectral_norm,
    "spectral norm": make_parametrization(nn.utils.parametrizations.spectral_norm),
    "weight norm": make_parametrization(nn.utils.parametrizations.weight_norm),
    "subclass": lambda: (varied(lambda self, x: Doubling(4, 4, 1).double()(x)), None),
    "dropout off": lambda: (varied(lambda self, x: F.dropout(x, 0.5, self.training)).eval(), None),
    "in place": lambda: (varied(lambda self, x: (x * 2).add_(self.shift).mul_(0.5).relu_()), None),
    "split": lambda: (varied(lambda self, x: torch.cat([half * k for k, half in enumerate(x.chunk(2, 1))], 1)), None),
    "read by two biases": lambda: (varied(lambda self, x: activations_of_one_value(self, x)), None),
    "biases of every shape": lambda: (varied(biases_of_every_shape), None),
    "matrix product": lambda: (varied(lambda self, x: x.transpose(1, 3) @ outer(self.shift)), None),
}  # fmt: skip


class Doubling(layers.EqualizedConv2d):
    def __init__(self, *sizes):
        torch.manual_seed(9)
        super().__init__(*sizes, act="lrelu")
        self.requires_grad_(False)

    def forward(self, x):
        return 2 * super().forward(x)


def outer(shift):
    return shift[:, 0] * shift[:, 0].t()


def centred(self, x):
    """Subtracts a running mean, which the next call changes before this call's backward."""
    with torch.no_grad():
        self.scale.lerp_(x.mean(), 0.5)
    return x - self.scale


def with_torch_func(self, x):
    """Factors by torch.func: one independent of the images, one of their values without gradient."""
    weights = torch.func.vmap(lambda row: row.square().sum())(self.shift) * 0.1
    return x * weights[:, None, None] * torch.func.grad(lambda t: (t**2).sum())(x.detach())


def checkpointed(self, x):
    return torch.utils.checkpoint.checkpoint(lambda x: self.act(x * 2 - 1), x, use_reentrant=False)


def adding_to_itself(self, x):
    x = x * 1
    return x.add_(x.detach())


def logging(self, x):
    """Computes statistics of the images that the logits do not depend on."""
    GLOBAL.seen = x.std() + x.flatten().abs().max() + torch.tanh(x).norm(), x.sum().item()
    return x


def activations_of_one_value(self, x):
    """Two activations with biases and a sum read the same value, so that its adjoint is a sum."""
    bias = self.shift.flatten()
    one, other = (noise_bias_act(x, bias=k * bias, act="relu", clamp=0.5) for k in (1, -2))
    return one + other + x


def biases_of_every_shape(self, x):
    """Linear layers with biases that broadcast: a single number, one for each sample and feature."""
    features, weight = x.flatten(1), self.conv.weight.flatten(1)[:, :16].repeat(16, 4)  # [64, 64]
    for bias in (self.shift[0, 0], self.shift.flatten()[0], self.shift.view(1, 4).repeat(len(x), 16)):
        features = self.act(F.linear(features, weight, bias))
    return features


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(Varied, "FACTOR", 2.0)
    monkeypatch.setattr(GLOBAL, "factor", 2.0)
    monkeypatch.setenv("FASTGAN_TEST_FACTOR", "2")
    vars(LOCAL).clear()
    yield
    CONTEXT.set(2.0)


SAME = ("spectral norm", "old spectral norm", "weight norm", "branch on values", "frozen")  # the numbers may be


@pytest.mark.parametrize("name", FOLLOWED)
def test_changes_between_calls_are_recorded(name):
    discriminator, change = FOLLOWED[name]()
    assert_followed_or_refused(discriminator)
    before = assert_followed_or_refused(discriminator)
    if change is not None:
        change(discriminator)
        after = assert_followed_or_refused(discriminator)
        pairs = [(a, b) for a, b in zip(before, after, strict=False) if a is not None and b is not None]
        same = all(torch.equal(a, b) for a, b in pairs if a.shape == b.shape)
        assert not same or name in SAME


def test_autocast_may_be_switched_between_calls():
    discriminator, _ = FOLLOWED["autocast asked for"]()
    assert_followed_or_refused(discriminator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_followed_or_refused(discriminator)
    assert_followed_or_refused(discriminator)


# Refusals ---------------------------------------------------------------------------------------------------------


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad


def hooked_value(self, x):
    x = x * 1
    x.register_hook(lambda grad: 2 * grad)
    return x


def hooked_node(self, x):
    x = x * 1
    x.grad_fn.register_prehook(lambda grads: (2 * grads[0],))
    return x


def overwriting_a_view(self, x):
    y = x * 2
    z = y.view(y.shape)
    z += 1
    return y


def overwriting_what_is_read(self, x):
    y = self.act(x)
    y *= self.shift
    return y


def overwriting_a_constant(self, x):
    y = x + self.scale
    self.scale += 1
    return y


def overwriting_without_graph(self, x):
    y = x + 1
    with torch.no_grad():
        y.mul_(2)
    return y


def overwriting_data_of_a_value(self, x):
    y = x + 1
    y.data.mul_(2)
    return y


def adding_to_a_buffer(self, x):
    return torch.zeros_like(x).add_(x)


def convolving_with_itself(self, x):
    return x + F.conv2d(x, x[:, :, :1, :1]).mean(1, True)


def overwriting_data(self, x):
    y = x + self.shift
    self.shift.data.add_(1)
    return y


def across_samples(self, x):
    x = x.flatten(1)
    return x + (x.sum(1, keepdim=True) + x.sum(1)).mean(1, keepdim=True)  # [N, 1] + [N]


def assigning_part(self, x):
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    return y


def with_layer(module):
    torch.manual_seed(0)
    return lambda: nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), module, nn.Flatten(), nn.Linear(64, 1)).double()


def with_backward_hook():
    discriminator = varied(lambda self, x: x)
    discriminator.act.register_full_backward_hook(lambda module, grads, outputs: (2 * grads[0],))
    return discriminator


def with_zero_end(vary):
    """A last layer of zeros makes logits and gradients independent of all layers before it."""

    def make():
        discriminator = varied(vary)
        nn.init.zeros_(discriminator.out.weight)
        return discriminator

    return make


def scripted():
    discriminator = varied(lambda self, x: x)
    discriminator.act = torch.jit.script(nn.LeakyReLU(0.3))
    return discriminator


class Flat(nn.Module):
    """Calls `vary(x)` with vectors [N, F], which functions that accept an unbatched [C, L] would mix."""

    def __init__(self, vary):
        super().__init__()
        self.out, self.vary = nn.Linear(3 * SIZE * SIZE, 1), vary

    def forward(self, images):
        return self.out(self.vary(images.flatten(1)).flatten(1))


def flat(vary):
    return lambda: Flat(vary).double()


KERNEL = torch.randn(3, 3, 3, dtype=torch.float64)  # of a batch of 3, taken for channels

REFUSED = {
    "curved": (with_layer(nn.Tanh()), "Tanh '1': tanh() is not known"),
    "curved, fused": (with_layer(layers.EqualizedConv2d(4, 4, 1, act="silu")), "'1': noise_bias_act() has the activ"),
    "curved behind a zero end": (with_zero_end(lambda self, x: torch.tanh(x)), "tanh() is not known"),
    "slope of the other sign": (with_layer(nn.LeakyReLU(-0.2)), "must not be negative"),
    "function": (lambda: varied(lambda self, x: torch.sin(x)), "sin() is not known"),
    "product": (lambda: varied(lambda self, x: x * x), "mul() multiplies two values computed from the images"),
    "quotient": (lambda: varied(lambda self, x: 1 / (x + 9)), "div__() is not known"),
    "batch norm": (with_layer(nn.BatchNorm2d(4)), "BatchNorm2d '1': batch_norm() is not known"),
    "batch norm and activation": (with_layer(BatchNormAct(4)), "BatchNormAct '1': batch_norm_act() is not known"),
    "dropout": (with_layer(nn.Dropout(0.5)), "Dropout '1': dropout() is not known"),
    "minibatch stddev": (
        with_layer(nn.Sequential(layers.MinibatchStddev(1, 4), nn.Conv2d(8, 4, 1))),
        "MinibatchStddev '1.0': minibatch_stddev() is not known",
    ),
    "vmap": (lambda: varied(lambda self, x: torch.vmap(lambda x: x * 2)(x)), "was not recorded"),
    "own Function": (
        lambda: varied(lambda self, x: Tripled.apply(x)),
        "a result of TripledBackward is computed from the images",
    ),
    "function of the compiler": (scripted, "was not recorded"),
    "backward hook": (with_backward_hook, "was not recorded"),
    "hook on a value": (lambda: varied(hooked_value), "register_hook() exposes the graph"),
    "hook on a node": (lambda: varied(hooked_node), "grad_fn() exposes the graph"),
    "view overwritten": (lambda: varied(overwriting_a_view), "was not recorded"),
    "activation overwritten": (lambda: varied(overwriting_what_is_read), "mul_() overwrites what was read before"),
    "value overwritten without a graph": (lambda: varied(overwriting_without_graph), "overwritten without a graph"),
    "data of a value overwritten": (lambda: varied(overwriting_data_of_a_value), "data() exposes the graph"),
    "a weight of the images": (lambda: varied(convolving_with_itself), "conv2d() takes one value"),
    "attention": (lambda: varied(lambda self, x: x * torch.sigmoid(x.mean(1, True))), "sigmoid() is not known"),
    "data overwritten": (lambda: varied(overwriting_data), "overwrites what was read before"),
    "part assigned": (lambda: varied(assigning_part), "was not recorded"),
    "samples compared": (lambda: varied(lambda self, x: x - x.mean(0, keepdim=True)), "mean() works along dimension 0"),
    "counted from the end": (lambda: varied(lambda self, x: x - x.mean(-4, True)), "mean() works along dimension -4"),
    "over all": (lambda: varied(lambda self, x: x - x.mean()), "mean() must name its dimensions"),
    "joined": (lambda: varied(lambda self, x: torch.cat([x, x])[:3]), "cat() works along dimension 0"),
    "regrouped": (lambda: varied(lambda self, x: x.reshape(4, -1)[:, :48].reshape(3, 64)), "reshape() makes [4, 48]"),
    "broadcast": (lambda: varied(across_samples), "broadcasts operands with different numbers of dimensions"),
    "rolled": (lambda: varied(lambda self, x: x.roll(1, 0)), "roll() is not known"),
    "flipped": (lambda: varied(lambda self, x: x.flip(0)), "flip() is not known"),
    "transposed": (flat(lambda x: (x[:, :3] @ x.new_ones(3, 3)).t()[:, :1] * x), "t() is not known"),
    "permuted": (flat(lambda x: x + x[:, :3].permute(1, 0)[:, :1]), "permute() works along dimension 0"),
    "expanded": (flat(lambda x: x + x[:, :3].expand(3, 3, 3)[:, 1].sum(1, True)), "expand() is given [3, 3]"),
    "padded": (flat(lambda x: F.pad(x, (0, 0, 1, -1))), "pad() pads dimension 0 of [3, 768]"),
    "padded by a module": (flat(nn.ZeroPad2d((0, 0, 1, -1))), "pad() pads dimension 0"),
    "unbatched convolution": (flat(lambda x: F.conv1d(x, KERNEL, padding=1)), "conv1d() is given [3, 768], must"),
    "unbatched convolution of images": (
        flat(lambda x: F.conv2d(x.view(3, 3 * SIZE, SIZE), KERNEL[..., None], padding=(1, 0))),
        "conv2d() is given [3, 48, 16], must be given 4 dimensions",
    ),
    "unbatched transposed": (flat(lambda x: F.conv_transpose1d(x, KERNEL, padding=1)), "conv_transpose1d() is given"),
    "vector product": (flat(lambda x: x + F.linear(x[:, 0], KERNEL[0])[:, None]), "linear() is given [3]"),
    "vector activation": (flat(lambda x: x + F.relu(x[:, 0])[:, None]), "relu() is given [3]"),
    "picked": (flat(lambda x: x[torch.tensor([1, 2, 0])]), "getitem__() must be given an index that begins with ':'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_without_a_rule_take_double_backward(name):
    make, reason = REFUSED[name]
    assert_followed_or_refused(make(), reason)


def test_the_discriminator_itself_is_not_named_in_a_reason():
    assert (
        why_not_one_pass(varied(lambda self, x: torch.sin(x)), batch()[0])
        == "sin() is not known to be piecewise linear"
    )


def test_functions_take_double_backward():
    assert "is not a module" in why_not_one_pass(by_double_backward(build("dcgan")), batch()[0])


def test_double_backward_uses_the_recorded_forward_pass():
    """Running it again would count and draw random numbers twice."""
    discriminator = varied(lambda self, x: torch.tanh(counts(self, x)), steps=0)
    logits, squares = logits_and_squared_grad(discriminator, batch()[0])
    torch.autograd.grad(squares.sum(), discriminator.parameters(), create_graph=True, allow_unused=True)
    assert discriminator.steps == 1


def test_a_result_independent_of_the_images_is_refused():
    discriminator = varied(lambda self, x: x.detach())
    assert why_not_one_pass(discriminator, batch()[0]) == "its result does not depend on the images"


# New rules --------------------------------------------------------------------------------------------------------


@recordable
def shifted_conv(x, weight, shift):
    return conv2d(x, weight) + shift[:, None, None]


def test_a_new_rule_works_and_a_wrong_one_is_detected():
    discriminator = varied(
        lambda self, x: shifted_conv(x, torch.eye(4).double()[:, :, None, None] * 2, self.shift.flatten())
    )
    images = batch()[0]
    assert_followed_or_refused(discriminator, "shifted_conv() is not known")
    try:
        # Wrong: the shift is declared part of the linear map.
        rules.rule(shifted_conv)(lambda x, *w: rules.Affine(shifted_conv.__wrapped__, (x,), w))
        with pytest.raises(AssertionError, match="the linear parts make a squared gradient"):
            one_pass.check(discriminator, images)

        @rules.rule(shifted_conv)
        def _(x, weight, shift):
            rules.require_only_first(x, weight, shift)
            return rules.Affine(conv2d, (x,), (weight,), bias=shift)

        one_pass.check(discriminator, images, tolerance=1e-10)
        assert_followed_or_refused(discriminator)
    finally:
        del rules._RULES[shifted_conv]


# Compilers and memory ---------------------------------------------------------------------------------------------


@pytest.mark.slow  # the compiler has to be imported
def test_compiled_functions_are_recorded_or_refused():
    """The eager backend runs PyTorch's functions, which are recorded; aot_eager makes an autograd Function."""
    plain = varied(lambda self, x: x * 2 + 1)
    affine = {name: torch.compile(lambda x: x * 2 + 1, backend=name) for name in ("eager", "aot_eager")}
    for discriminator in (varied(lambda self, x: affine["eager"](x)), torch.compile(plain, backend="eager")):
        for turn in range(3):  # the second call runs what the first has compiled
            images = (batch()[0] * (turn + 1)).detach().requires_grad_()
            expected, _ = penalized(by_double_backward(plain), plain, images)
            got, one_pass_taken = penalized(discriminator, discriminator, images)
            assert one_pass_taken
            assert_equal_gradients(got, expected)
    assert "was not recorded" in why_not_one_pass(varied(lambda self, x: affine["aot_eager"](x)), batch()[0])


def test_the_graph_is_freed_without_garbage_collection():
    """GPU memory would be held until the next collection."""

    def left_by(form):
        """Number of saved tensors alive after the results are dropped; PyTorch's double backward leaves some."""
        held = []

        def pack(tensor):
            kept = SavedTensor(tensor)
            held.append(weakref.ref(kept))
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            logits_and_squared_grad(form, batch()[0])
        assert held
        return sum(ref() is not None for ref in held)

    followed, refused = varied(lambda self, x: x), varied(lambda self, x: torch.tanh(x))
    images = batch()[0]
    gc.collect()
    gc.disable()
    try:
        assert left_by(followed) == 0
        assert left_by(refused) == left_by(by_double_backward(refused))
        for discriminator in (followed, refused):
            with Recording(images) as recording:
                discriminator(images)
            freed = weakref.ref(recording)
            del recording
            assert freed() is None
    finally:
        gc.enable()


# Side effects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vary", [counts, keeps_running_scale, lambda self, x: torch.tanh(counts(self, x))])
@pytest.mark.parametrize("as_buffer", [True, False])
def test_a_recorded_call_leaves_the_state_of_a_plain_call(vary, as_buffer, tmp_path):
    discriminator = varied(vary, **({} if as_buffer else {"steps": 0}))
    if as_buffer:
        discriminator.register_buffer("steps", torch.zeros((), dtype=torch.float64))
    plain = copy.deepcopy(discriminator)
    images = batch()[0]
    for _ in range(3):
        plain(images)
        logits_and_squared_grad(discriminator, images)
    assert set(vars(discriminator)) == set(vars(plain))
    assert discriminator.steps == plain.steps
    for key, value in discriminator.state_dict().items():
        assert type(value) is torch.Tensor
        assert torch.equal(value, plain.state_dict()[key])
    assert type(discriminator(images)) is torch.Tensor
    if vary is not keeps_running_scale:
        discriminator.vary = None  # a lambda cannot be pickled
    torch.save(discriminator.state_dict(), tmp_path / "discriminator.pt")


def test_why_not_one_pass_changes_nothing():
    discriminator = varied(
        lambda self, x: keeps_running_scale(self, counts(self, x)) * random.random() * torch.rand(())
    )
    discriminator.register_buffer("steps", torch.zeros((), dtype=torch.float64))
    before = copy.deepcopy(discriminator.state_dict())
    states = random.getstate(), torch.get_rng_state()
    assert why_not_one_pass(discriminator, batch()[0]) is None
    assert all(torch.equal(discriminator.state_dict()[key], before[key]) for key in before)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert not any(p.grad is not None for p in discriminator.parameters())


def test_nothing_is_patched_while_a_discriminator_is_recorded():
    seen = []

    def look(self, x):
        seen.append(
            (nn.Module.__call__, nn.Module.__getattr__, torch.autocast.__enter__, torch.add, len, F.conv2d, type(x))
        )
        return x

    discriminator = varied(look)
    discriminator(batch()[0])
    logits_and_squared_grad(discriminator, batch()[0])
    assert seen[0] == seen[1]


def test_threads_record_and_run_discriminators_concurrently():
    """Half of the threads record the discriminators, the others call them, each under its own autocast."""
    discriminators = [build(name) for name in ("residual", "growing", "bottleneck")]
    images = batch()[0].detach()
    parameters = [list(discriminator.parameters()) for discriminator in discriminators]

    def gradients(i):
        logits, squares = logits_and_squared_grad(discriminators[i], images)
        assert "OnePass" in type(logits.grad_fn).__name__
        return torch.autograd.grad(logits.sum() + squares.sum(), parameters[i])

    expected = [gradients(i) for i in range(3)]
    logits = [discriminator(images).detach() for discriminator in discriminators]
    failures, start = [], threading.Barrier(8)

    def work(number):
        try:
            start.wait()
            for turn in range(6):
                i = (number + turn) % 3
                if number % 2:
                    assert_equal_gradients(gradients(i), expected[i])
                else:
                    with torch.autocast("cpu", enabled=turn % 2 == 0):
                        assert torch.equal(discriminators[i](images), logits[i])
                    with pytest.raises(ValueError, match="must be odd"):
                        layers.EqualizedConv2d(1, 1, 2)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_failing_forward_pass_ends_the_recording():
    def fail(self, x):
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        logits_and_squared_grad(varied(fail), batch()[0])
    assert not torch._C._is_torch_function_mode_enabled()
    assert_followed_or_refused(varied(lambda self, x: x))


# fastgan's discriminators -----------------------------------------------------------------------------------------

STDDEV = "MinibatchStddev 'stddev': minibatch_stddev() is not known"
NORM = "batch_norm_act() is not known"


def without_stddev(discriminator):
    """Replaces minibatch stddev, which PGGAN and StyleGAN always have."""
    discriminator.stddev = nn.ZeroPad3d((0, 0, 0, 0, 0, 1))  # appends a map of zeros
    return discriminator


def at_stage(resolution, alpha, change=lambda d: d):
    def apply(discriminator):
        discriminator.grow_to(resolution, alpha)
        return change(discriminator)

    return apply


def checkpointed_blocks(discriminator):
    enable_gradient_checkpointing(discriminator)
    return discriminator


# Architecture, options, number of classes, change, and the reason against one pass or None.
SHIPPED = [
    *(("mlp", {}, labels, None, None) for labels in (0, 3)),
    *(("dcgan", {"variant": v}, labels, None, NORM) for v in ("transposed", "upsample") for labels in (0, 3)),
    *(
        ("dcgan", {"variant": v, "discriminator_norm": False}, labels, None, None)
        for v in ("transposed", "upsample")
        for labels in (0, 3)
    ),
    ("cgan", {"variant": "conv"}, 3, None, NORM),
    ("cgan", {"variant": "conv", "discriminator_norm": False}, 3, None, None),
    ("cgan", {"variant": "mlp"}, 3, None, None),
    *(("r3gan", {}, labels, change, None) for labels in (0, 3) for change in (None, checkpointed_blocks)),
    *(("fastgan", {}, labels, None, "SkipExcitation") for labels in (0, 3)),
    *((arch, {}, labels, None, STDDEV) for arch in ("pggan", "stylegan", "stylegan2") for labels in (0, 3)),
    *((arch, {}, 3, checkpointed_blocks, STDDEV) for arch in ("pggan", "stylegan", "stylegan2")),
    *(
        (arch, {}, labels, change, None)
        for arch in ("pggan", "stylegan")
        for labels in (0, 3)
        for change in (
            without_stddev,
            at_stage(8, 1.0, without_stddev),
            at_stage(8, 0.3, without_stddev),
            at_stage(4, 1.0, without_stddev),
            at_stage(16, 0.7, lambda d: checkpointed_blocks(without_stddev(d))),
        )
    ),
    *((arch, {}, 3, at_stage(8, 0.3), STDDEV) for arch in ("pggan", "stylegan")),
    *(
        ("stylegan2", {"stddev_features": 0, **options}, labels, change, None)
        for labels in (0, 3)
        for options, change in (
            ({}, None),
            ({"discriminator_architecture": "orig"}, None),
            ({"discriminator_architecture": "skip"}, None),
            ({"resample_filter": (1.0, 2.0, 1.0)}, None),
            ({"discriminator_mapping_layers": 2}, None),
            ({"conv_clamp": None}, None),
            ({"conv_clamp": 0.5}, None),
            ({}, checkpointed_blocks),
        )
    ),
]


def _id(case):
    arch, options, labels, change, _ = case
    number = SHIPPED.index(case)
    return f"{number}-{arch}-{'-'.join(f'{k}={v}' for k, v in options.items())}{'-labels' if labels else ''}" + (
        f"-{change.__qualname__.split('.')[0]}" if change else ""
    )


@pytest.mark.parametrize("case", SHIPPED, ids=_id)
def test_every_family_takes_one_pass_or_says_why_not(case):
    arch, options, num_classes, change, reason = case
    torch.manual_seed(0)
    size = {"resolution": 16, "channels": 3, "z_dim": 8, "channel_base": 128, "channel_max": 16}
    _, discriminator = models.build(models.ModelConfig(arch=arch, num_classes=num_classes, **size, **options))
    discriminator = discriminator if change is None else change(discriminator)
    discriminator.double()
    for parameter in discriminator.parameters():  # some start at zero
        nn.init.normal_(parameter, std=0.3)
    stage = getattr(discriminator, "stage_resolution", 16)
    images = torch.randn(4, 3, stage, stage, dtype=torch.float64, requires_grad=True)
    labels = (torch.arange(4) % 3,) if num_classes else ()
    gradients = assert_followed_or_refused(discriminator, reason, images, *labels)
    if num_classes:
        named = zip(dict(discriminator.named_parameters()), gradients[1:], strict=True)
        assert all(grad.any() for name, grad in named if "embed" in name)  # of the labels' embedding too
