"""Gradient penalties: the one-pass form is double backward to rounding, and is taken only where that is so."""

import copy
import gc
import itertools
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgan import layers, losses, penalties
from fastgan.models import ModelConfig
from fastgan.models.stylegan2 import ResidualBlock
from fastgan.ops import noise_bias_act, use_backend
from fastgan.ops.layout import channels_last
from fastgan.ops.upfirdn2d import upfirdn2d
from fastgan.penalties import (
    logits_and_squared_grad,
    one_centered_penalty,
    one_pass,
    why_not_one_pass,
    zero_centered_penalty,
)
from tests.support import backends

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, CLASSES = 16, 3


class Residual(nn.Module):
    """StyleGAN2's, without minibatch standard deviation; a limit that is reached if it is low."""

    def __init__(self, clamp=256.0):
        super().__init__()
        widths = (6, 8, 10)
        self.from_rgb = layers.EqualizedConv2d(3, widths[0], 1, act="lrelu", clamp=clamp)
        self.blocks = nn.ModuleList(ResidualBlock(ModelConfig(), i, o) for i, o in itertools.pairwise(widths))
        self.conv = layers.EqualizedConv2d(widths[-1], 8, 3, act="lrelu", clamp=clamp)
        self.dense = layers.EqualizedLinear(8 * (SIZE // 4) ** 2, 12, act="lrelu", lr_multiplier=0.5)
        self.out = layers.EqualizedLinear(12, 1, gain=0.5)
        for block in self.blocks:
            block.conv.clamp = block.down.clamp = clamp

    def forward(self, images):
        x = self.from_rgb(channels_last(images))
        for block in self.blocks:
            x = block(x)
        return self.out(self.dense(self.conv(x).flatten(1))).squeeze(1)


class Bottleneck(nn.Module):
    """Pre-activation, a grouped convolution, a sum, pooling over all positions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.narrow, self.wide = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1, bias=False)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.act = nn.ReLU()
        self.out = nn.Linear(8, 1)

    def forward(self, images, labels=None):
        x = self.first(images)
        y = self.wide(self.act(self.grouped(self.act(self.narrow(self.act(x))))))
        y += x  # overwrites what nothing else reads
        return self.out(self.act(y).mean((2, 3)))[:, 0]


class Projection(nn.Module):
    """A conditional discriminator: the label's direction, normalised, times the features (Miyato & Koyama 2018)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten())
        self.out = layers.EqualizedLinear(24, 24)
        self.embed = nn.Embedding(CLASSES, 24)

    def forward(self, images, labels):
        x = self.out(self.features(images))
        direction = self.embed(labels)
        direction = direction * torch.rsqrt(direction.square().mean(1, keepdim=True) + 1e-8)
        return (x * direction).sum(1) / math.sqrt(x.shape[1])


class LabelPlanes(nn.Module):
    """A conditional discriminator: a plane for the label beside those of the image, and a learned factor and offset."""

    def __init__(self):
        super().__init__()
        self.planes = nn.Embedding(CLASSES, SIZE * SIZE)
        self.conv = layers.EqualizedConv2d(4, 8, 3, act="lrelu", down=2)
        self.factor = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.offset = nn.Parameter(torch.randn(8, 1, 1))
        self.out = nn.Linear(8 * (SIZE // 2) ** 2, 1)
        self.register_buffer("mean", torch.tensor(0.3))

    def forward(self, images, labels):
        n, _, h, w = images.shape
        x = torch.cat([images - self.mean, self.planes(labels).view(n, 1, h, w)], dim=1)
        x = self.conv(x) * self.factor + self.offset
        return self.out(
            noise_bias_act(x, bias=self.offset.flatten(), act="relu").view(n, 8 * (h // 2) * (w // 2))
        ).view(n)


class Filtered(nn.Module):
    """FIR resampling as layers, and as a function."""

    def __init__(self):
        super().__init__()
        self.blur, self.up, self.down = layers.Blur2d(), layers.Upsample2d(), layers.Downsample2d()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.2)
        self.out = nn.Linear(4 * (SIZE // 4) ** 2, 1)

    def forward(self, images):
        x = self.act(self.conv(self.up(self.down(self.blur(images)))))
        return self.out(upfirdn2d(x, self.blur.filter, down=4, padding=(1, 0, 1, 0), gain=2.0).flatten(1))


class Growing(nn.Module):
    """PGGAN's: resampled convolutions, and a fade from the smaller resolution to the larger one."""

    def __init__(self):
        super().__init__()
        self.alpha = 0.3
        self.wide = layers.EqualizedConv2d(3, 6, 1, act="lrelu")
        self.narrow = layers.EqualizedConv2d(3, 8, 1, act="lrelu")
        self.down = layers.ConvDownsample2d(6, 8, equalized=True, act="lrelu")
        self.up = layers.UpsampleConv2d(8, 4, act="lrelu")
        self.out = nn.Linear(4 * SIZE * SIZE, 1)

    def forward(self, images):
        fine = self.down(self.wide(images))
        coarse = self.narrow(F.avg_pool2d(images, 2))
        x = self.up(self.alpha * fine + (1 - self.alpha) * coarse)
        return self.out(torch.flatten(1 - F.pad(x, (0, 0)) / 2, 1)).squeeze(-1)


def dcgan():
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(6, 8, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True),
        nn.Identity(), nn.Conv2d(8, 1, SIZE // 4),
        nn.Flatten(),
    )  # fmt: skip


DISCRIMINATORS = {
    "residual": Residual,
    "limited": lambda: Residual(clamp=0.7),
    "dcgan": dcgan,
    "bottleneck": Bottleneck,
    "projection": Projection,
    "label planes": LabelPlanes,
    "growing": Growing,
    "filtered": Filtered,
}
CONDITIONAL = ("projection", "label planes")


def build(name):
    torch.manual_seed(0)
    discriminator = DISCRIMINATORS[name]().double()
    for parameter in discriminator.parameters():
        if parameter.dim() == 1:  # biases of zero would hide mistakes
            nn.init.normal_(parameter, std=0.3)
    return discriminator


def batch(name=None, n=3, dtype=torch.float64):
    """Real and generated images, and labels (or None)."""
    generator = torch.Generator().manual_seed(1)
    real, fake = (
        torch.randn(n, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        .to(dtype, memory_format=torch.channels_last)
        .requires_grad_()
        for _ in range(2)
    )
    return real, fake, torch.arange(n) % CLASSES if name in CONDITIONAL else None


def by_double_backward(discriminator):
    """The same discriminator in a function, which cannot be looked into."""
    return lambda *arguments: discriminator(*arguments)


def relativistic_average(real, fake):
    return (F.softplus(-(real - fake.mean())) + F.softplus(fake - real.mean())).mean()


LOSSES = {
    "nonsaturating": lambda real, fake: losses.nonsaturating_real(real) + losses.nonsaturating_fake(fake),
    "hinge": lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    "wasserstein": lambda real, fake: fake.mean() - real.mean(),
    "least squares": lambda real, fake: (real - 1).square().mean() + fake.square().mean(),
    "relativistic": lambda real, fake: F.softplus(fake - real).mean(),
    "relativistic average": relativistic_average,
}


def r1_and_r2(discriminator, loss, real, fake, labels):
    real_logits, real_squares = logits_and_squared_grad(discriminator, real, labels)
    fake_logits, fake_squares = logits_and_squared_grad(discriminator, fake, labels)
    return loss(real_logits, fake_logits) + 3 * zero_centered_penalty(real_squares) + fake_squares.mean()


def concatenated(discriminator, loss, real, fake, labels):
    labels = None if labels is None else torch.cat([labels, labels])
    logits, squares = logits_and_squared_grad(discriminator, torch.cat([real, fake]), labels)
    return loss(*logits.chunk(2)) + 3 * zero_centered_penalty(squares)


def interpolated(discriminator, loss, real, fake, labels):
    torch.manual_seed(2)
    plain = [discriminator(images) if labels is None else discriminator(images, labels) for images in (real, fake)]
    penalty = penalties.wgan_gp(discriminator, real, fake, labels) + penalties.wgan_gp(
        discriminator, real, fake, labels, one_sided=True
    )
    return loss(*(logits.flatten() for logits in plain)) + penalty


def assert_equal_gradients(got, expected, tolerance=1e-9):
    largest = max(g.norm() for g in expected if g is not None)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            # Where terms cancel (a last bias, with the Wasserstein loss) nothing but rounding is left.
            assert (a - b).norm() <= tolerance * b.norm() + tolerance * 1e-3 * largest


# The same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrangement", [r1_and_r2, concatenated, interpolated], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_gradients_are_those_of_double_backward(name, arrangement):
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
def test_logits_and_squares_are_the_discriminators(name):
    discriminator = build(name)
    real, _, labels = batch(name)
    logits, squares = logits_and_squared_grad(discriminator, real, labels)
    expected = discriminator(real) if labels is None else discriminator(real, labels)
    torch.testing.assert_close(logits, expected.flatten())
    (gradient,) = torch.autograd.grad(expected.sum(), real)
    torch.testing.assert_close(squares, gradient.square().sum((1, 2, 3)))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_the_steps_recorded_are_the_discriminator(name):
    real, _, labels = batch(name)
    one_pass.check(build(name), real, labels, tolerance=1e-10)


def test_limits_are_reached_where_that_is_tested():
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


@pytest.mark.parametrize(
    "form", [lambda discriminator: discriminator, by_double_backward], ids=["one pass", "double backward"]
)
def test_only_what_wants_a_gradient_gets_one(form):
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
def test_one_result_alone_can_be_differentiated(name):
    """Also None where double backward says None: the squared norm alone has no part in the last bias."""
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
def test_a_batch_of_none(name):
    discriminator = build(name)
    real, _, labels = batch(name)
    logits, squares = logits_and_squared_grad(discriminator, real[:0], None if labels is None else labels[:0])
    assert logits.shape == squares.shape == (0,)
    for grad in torch.autograd.grad(logits.sum() + squares.sum(), discriminator.parameters(), allow_unused=True):
        assert grad is None or not grad.any()


def test_a_layer_used_twice_gets_both_gradients():
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


@pytest.mark.parametrize("name", ["residual", "projection", "label planes", "dcgan"])
def test_autocast_agrees_to_16_bits(name):
    """As far from fp64 as double backward under the same autocast. Of so many samples that a few signs more or less,
    where the two forms round otherwise, do not count."""
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


def test_numbers_and_scalars_among_16_bit_activations():
    """Multiplied by c they are tensors, and must not make fp32 of what was bf16."""

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
def test_16_bits_survive_small_and_scaled_losses(scale):
    """c and p are brought to the size of one before they meet activations of 16 bits."""
    discriminator = build("residual").float()
    real, _, _ = batch(dtype=torch.float32)

    def run(factor):
        with torch.autocast("cpu", dtype=torch.float16):
            logits, squares = logits_and_squared_grad(discriminator, real.detach())
        return torch.autograd.grad(factor * (logits.sum() + squares.sum()), discriminator.parameters())

    for scaled, plain in zip(run(scale), run(1.0), strict=True):
        torch.testing.assert_close(scaled / scale, plain, rtol=2e-2, atol=1e-3 * plain.abs().max().item())


def test_double_backward_form_is_differentiable_again():
    discriminator = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)).double()
    names, weights = zip(*discriminator.named_parameters(), strict=True)
    images = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert "Tanh" in why_not_one_pass(discriminator, images)

    def results(images, *weights):
        call = lambda x: torch.func.functional_call(discriminator, dict(zip(names, weights, strict=True)), x)
        return logits_and_squared_grad(call, images)

    torch.autograd.gradcheck(results, (images, *weights))
    torch.autograd.gradgradcheck(results, (images, *weights))


def test_one_pass_refuses_a_graph_of_its_backward():
    discriminator = build("residual")
    _, squares = logits_and_squared_grad(discriminator, batch()[0])
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(squares.sum(), list(discriminator.parameters()), create_graph=True)


# What it keeps ----------------------------------------------------------------------------------------------------


class Held:
    def __init__(self, tensor):
        self.tensor = tensor


def test_nothing_is_kept_after_backward():
    discriminator = build("limited")
    held = []

    def pack(tensor):
        kept = Held(tensor)
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


def test_weights_changed_before_backward_are_noticed():
    discriminator = build("dcgan")
    logits, _ = logits_and_squared_grad(discriminator, batch()[0])
    with torch.no_grad():
        discriminator[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_what_are_no_logits_is_refused():
    with pytest.raises(ValueError, match=r"logits have shape \[3, 2\], must be \[3\]"):
        logits_and_squared_grad(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 2)).double(), batch()[0])
    with pytest.raises(ValueError, match=r"result is a tuple, must be a tensor of logits \[3\]"):
        logits_and_squared_grad(lambda images: (images.sum((1, 2, 3)), None), batch()[0])


@pytest.mark.parametrize("form", [lambda discriminator: discriminator, by_double_backward])
def test_images_made_in_inference_mode(form):
    discriminator, images = build("dcgan"), batch()[0].detach()
    with torch.inference_mode():
        made = images * 1
        with pytest.raises(RuntimeError, match=r"use torch\.no_grad$"):
            logits_and_squared_grad(form(discriminator), made)
    assert why_not_one_pass(discriminator, made) is None
    for got, expected in zip(*(logits_and_squared_grad(form(discriminator), x) for x in (made, images)), strict=True):
        assert torch.equal(got, expected)


# The penalties ----------------------------------------------------------------------------------------------------


def test_penalties_are_those_of_the_papers():
    squares = torch.tensor([0.25, 4.0])
    torch.testing.assert_close(zero_centered_penalty(squares), torch.tensor(4.25 / 4))
    torch.testing.assert_close(one_centered_penalty(squares), torch.tensor((0.25 + 1) / 2))
    torch.testing.assert_close(one_centered_penalty(squares, one_sided=True), torch.tensor(0.5))


def test_a_gradient_of_zero_has_no_direction():
    squares = torch.zeros(2, requires_grad=True)
    one_centered_penalty(squares).backward()
    assert torch.equal(squares.grad, torch.zeros(2))


def test_wgan_gp_of_a_linear_discriminator():
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    real, fake = torch.randn(2, 5, 3, 2, 2)
    expected = (discriminator[1].weight.norm() - 1).square()
    torch.testing.assert_close(penalties.wgan_gp(discriminator, real, fake), expected)


def test_interpolation_is_between_the_two_of_a_pair():
    real, fake = torch.zeros(64, 3, 2, 2), torch.ones(64, 3, 2, 2, requires_grad=True)
    between = penalties.interpolate(real, fake)
    assert not between.requires_grad
    share = between[:, 0, 0, 0]
    assert torch.equal(between, share[:, None, None, None].expand_as(between))
    assert 0 <= share.min() < 0.2
    assert 0.8 < share.max() <= 1
    with pytest.raises(ValueError, match="fake has shape"):
        penalties.interpolate(real, fake[:3])


def test_the_form_does_not_depend_on_the_backend_in_force_at_backward():
    discriminator = build("limited")
    real, fake, _ = batch()
    with use_backend("torch"):
        loss = r1_and_r2(discriminator, LOSSES["hinge"], real, fake, None)
    got = torch.autograd.grad(loss, discriminator.parameters())
    expected = torch.autograd.grad(
        r1_and_r2(discriminator, LOSSES["hinge"], real, fake, None), discriminator.parameters()
    )
    assert_equal_gradients(got, expected)
