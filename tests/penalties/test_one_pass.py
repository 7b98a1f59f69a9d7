"""The one-pass form gives the numbers of double backward, and keeps nothing after backward."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from fastgan import layers, losses
from fastgan.ops import noise_bias_act, use_backend
from fastgan.penalties import logits_and_squared_grad, one_pass, why_not_one_pass, zero_centered_penalty
from tests.penalties.discriminators import (
    DISCRIMINATORS,
    LOSSES,
    SIZE,
    SavedTensor,
    assert_equal_gradients,
    batch,
    build,
    by_double_backward,
    concatenated,
    interpolated,
    r1_and_r2,
)
from tests.support import backends

pytestmark = pytest.mark.usefixtures("one_thread")

# Gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrangement", [r1_and_r2, concatenated, interpolated], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_gradients_equal_double_backward(name, arrangement):
    discriminator = build(name)
    real, fake, labels = batch(name)
    assert why_not_one_pass(discriminator, real, labels) is None
    inputs = [real, fake, *discriminator.parameters()]
    for loss in LOSSES.values():
        one, double = (
            torch.autograd.grad(arrangement(form, loss, real, fake, labels), inputs, allow_unused=True)
            for form in (discriminator, by_double_backward(discriminator))
        )
        assert_equal_gradients(one, double)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_recorded_steps_compute_the_discriminator(name):
    real, _, labels = batch(name)
    one_pass.check(build(name), real, labels, tolerance=1e-10)


def test_the_limited_discriminator_reaches_its_limits():
    discriminator = build("limited")
    reached = []
    discriminator.blocks[0].conv.register_forward_hook(lambda module, args, y: reached.append((y.abs() == 0.7).sum()))
    discriminator(batch()[0])
    assert reached[0] > 10


def test_every_backend_replays_a_discriminator(backend):
    device = backends.device(backend)
    torch.manual_seed(0)
    discriminator = nn.Sequential(
        nn.Conv2d(2, 3, 2),
        nn.LeakyReLU(0.1),
        layers.EqualizedConv2d(3, 4, 3, act="lrelu", clamp=0.5),
        nn.Flatten(),
        layers.EqualizedLinear(64, 3, act="relu"),
        nn.Linear(3, 1),
    ).to(device, torch.float64)
    nn.init.normal_(discriminator[2].bias)
    real, fake = torch.randn(2, 2, 2, 5, 5, dtype=torch.float64, device=device)
    run = lambda form: torch.autograd.grad(
        r1_and_r2(form, LOSSES["relativistic"], real, fake, None), discriminator.parameters()
    )
    got = run(discriminator)
    with backends.forced("torch"):
        assert_equal_gradients(got, run(by_double_backward(discriminator)))


@pytest.mark.parametrize("form", [lambda d: d, by_double_backward], ids=["one pass", "double backward"])
def test_only_tensors_that_require_grad_get_gradients(form):
    discriminator = build("residual")
    expected = torch.autograd.grad(
        r1_and_r2(form(discriminator), LOSSES["hinge"], *batch()),
        [p for p in discriminator.parameters() if p.dim() == 1],
    )
    for parameter in discriminator.parameters():
        parameter.requires_grad_(parameter.dim() == 1)
    real, fake, _ = batch()
    r1_and_r2(form(discriminator), LOSSES["hinge"], real.detach(), fake, None).backward()
    assert_equal_gradients([p.grad for p in discriminator.parameters() if p.requires_grad], expected)
    assert real.grad is None
    assert fake.grad is not None
    with torch.no_grad():
        logits, squares = logits_and_squared_grad(form(discriminator), real)
    assert not logits.requires_grad
    assert not squares.requires_grad


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_either_result_alone_can_be_differentiated(name):
    """Gradients are None exactly where double backward's are: |g|^2 does not depend on the last bias."""
    discriminator = build(name)
    real, _, labels = batch(name)
    for pick in (0, 1):
        one, double = (
            torch.autograd.grad(
                logits_and_squared_grad(form, real, labels)[pick].square().sum(),
                [real, *discriminator.parameters()],
                allow_unused=True,
            )
            for form in (discriminator, by_double_backward(discriminator))
        )
        assert_equal_gradients(one, double)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_empty_batch(name):
    discriminator = build(name)
    real, _, labels = batch(name)
    logits, squares = logits_and_squared_grad(discriminator, real[:0], None if labels is None else labels[:0])
    assert logits.shape == squares.shape == (0,)
    for grad in torch.autograd.grad(logits.sum() + squares.sum(), discriminator.parameters(), allow_unused=True):
        assert grad is None or not grad.any()


def test_gradients_of_a_layer_used_twice_add_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.LeakyReLU(0.2)
            self.out = nn.Linear(3 * SIZE * SIZE, 1)

        def forward(self, images):
            x = self.conv(images)
            x = self.act(self.conv(self.act(x))) + x + x
            return self.out(x.flatten(1))

    discriminator = Twice().double()
    real, fake, _ = batch()
    assert why_not_one_pass(discriminator, real) is None
    one, double = (
        torch.autograd.grad(r1_and_r2(form, LOSSES["hinge"], real, fake, None), discriminator.parameters())
        for form in (discriminator, by_double_backward(discriminator))
    )
    assert_equal_gradients(one, double)


@pytest.mark.parametrize("name", ["residual", "projection", "label maps", "dcgan"])
def test_autocast_is_as_accurate_as_double_backward(name):
    """Compared with fp64. The batch is large, so that a few signs that the forms round differently do not matter."""
    discriminator = build(name)

    def r1(form, precision, **autocast):
        real, _, labels = batch(name, n=64, dtype=precision)
        with torch.autocast("cpu", **autocast):
            logits, squares = logits_and_squared_grad(form, real, labels)
            loss = losses.nonsaturating_real(logits) + 3 * zero_centered_penalty(squares)
        assert logits.dtype == squares.dtype == precision
        return torch.autograd.grad(loss, discriminator.parameters())

    exact = r1(discriminator, torch.float64, enabled=False)
    discriminator.float()
    one, double = (
        [
            ((got.double() - wanted).norm() / wanted.norm()).item()
            for got, wanted in zip(r1(form, torch.float32, dtype=torch.bfloat16), exact, strict=True)
        ]
        for form in (discriminator, by_double_backward(discriminator))
    )
    for ours, theirs in zip(one, double, strict=True):
        assert ours <= 1.5 * theirs + 0.005


def test_numbers_and_scalars_do_not_promote_16_bit_activations():
    """Multiplied by c they are tensors [N], but must not promote bf16 to fp32."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = layers.EqualizedConv2d(3, 4, 3), nn.Linear(4 * SIZE * SIZE, 1)
            self.shift = nn.Parameter(torch.tensor(0.3))

        def forward(self, images):
            x = noise_bias_act(1 - self.conv(images) + self.shift, bias=self.conv.bias)
            return self.out(x.flatten(1))

    discriminator = Shifted()
    real, fake, _ = batch(n=16, dtype=torch.float32)
    assert why_not_one_pass(discriminator, real) is None
    grads = []
    for form in (discriminator, by_double_backward(discriminator)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = r1_and_r2(form, LOSSES["nonsaturating"], real, fake, None)
        grads.append(torch.autograd.grad(loss, discriminator.parameters()))
    assert_equal_gradients(*grads, tolerance=0.05)


@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_fp16_gradients_of_tiny_and_scaled_losses_are_accurate(scale):
    """c and p are divided by their maximum before they meet fp16 activations."""
    discriminator = build("residual").float()
    real, _, _ = batch(dtype=torch.float32)

    def run(factor):
        with torch.autocast("cpu", dtype=torch.float16):
            logits, squares = logits_and_squared_grad(discriminator, real.detach())
        return torch.autograd.grad(factor * (logits.sum() + squares.sum()), discriminator.parameters())

    for scaled, plain in zip(run(scale), run(1.0), strict=True):
        torch.testing.assert_close(scaled / scale, plain, rtol=2e-2, atol=1e-3 * plain.abs().max().item())


def test_create_graph_in_backward_is_refused():
    discriminator = build("residual")
    _, squares = logits_and_squared_grad(discriminator, batch()[0])
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(squares.sum(), list(discriminator.parameters()), create_graph=True)


# Saved tensors ----------------------------------------------------------------------------------------------------


def test_saved_tensors_are_freed_after_backward():
    discriminator = build("limited")
    held = []

    def pack(tensor):
        kept = SavedTensor(tensor)
        held.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        logits, squares = logits_and_squared_grad(discriminator, batch()[0])
    between = sum(ref() is not None for ref in held)
    (logits.sum() + squares.sum()).backward()
    after = sum(ref() is not None for ref in held)
    assert between > 20
    assert after == 0
    with pytest.raises(RuntimeError, match="second time"):
        logits.sum().backward()


def test_a_discriminator_can_be_freed_and_copied():
    discriminator = build("residual")
    logits_and_squared_grad(discriminator, batch()[0])
    assert why_not_one_pass(copy.deepcopy(discriminator), batch()[0]) is None
    freed = weakref.ref(discriminator)
    del discriminator
    gc.collect()
    assert freed() is None


def test_weights_changed_before_backward_raise():
    discriminator = build("dcgan")
    logits, _ = logits_and_squared_grad(discriminator, batch()[0])
    with torch.no_grad():
        discriminator[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_backward_uses_the_backend_of_forward():
    discriminator = build("limited")
    real, fake, _ = batch()
    with use_backend("torch"):
        loss = r1_and_r2(discriminator, LOSSES["hinge"], real, fake, None)
    got = torch.autograd.grad(loss, discriminator.parameters())
    expected = torch.autograd.grad(
        r1_and_r2(discriminator, LOSSES["hinge"], real, fake, None), discriminator.parameters()
    )
    assert_equal_gradients(got, expected)
