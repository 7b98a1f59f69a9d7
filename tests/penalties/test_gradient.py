"""Logits and squared gradient norms, in either form."""

import pytest
import torch
from torch import nn

from fastgan import layers
from fastgan.penalties import gradient, logits_and_squared_grad, why_not_one_pass
from tests.penalties import discriminators
from tests.penalties.discriminators import DISCRIMINATORS, SIZE, build, by_double_backward

pytestmark = pytest.mark.usefixtures("one_thread")


class Quadratic(nn.Module):
    """logit = sum(weight * x^2) + offset[label], whose gradient is 2 * weight * x."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, 4, 4, generator=generator, dtype=dtype))
        self.offset = nn.Parameter(torch.randn(5, generator=generator, dtype=dtype))

    def forward(self, images, labels):
        return (self.weight * images**2).sum((1, 2, 3)) + self.offset[labels]


@pytest.fixture
def images_and_labels():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(6, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images.to(memory_format=torch.channels_last), torch.randint(5, (6,), generator=generator)


def test_squared_gradient_of_a_quadratic_discriminator(images_and_labels):
    images, labels = images_and_labels
    discriminator = Quadratic()
    logits, squares = logits_and_squared_grad(discriminator, images, labels)
    torch.testing.assert_close(logits, discriminator(images, labels))
    torch.testing.assert_close(squares, (2 * discriminator.weight * images).square().sum((1, 2, 3)))
    assert not images.requires_grad


@pytest.mark.parametrize("penalty", [lambda sq: 5 * sq.mean(), lambda sq: (sq.sqrt() - 1).square().mean()])
def test_penalty_gradients_agree_with_finite_differences(images_and_labels, penalty):
    images, labels = images_and_labels
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1)).double()
    names, weights = zip(*discriminator.named_parameters(), strict=True)

    def loss(*weights):
        call = lambda x, _: torch.func.functional_call(
            discriminator, dict(zip(names, weights, strict=True)), x
        ).squeeze(1)
        logits, squares = logits_and_squared_grad(call, images[:2], labels[:2])
        return logits.mean() + penalty(squares)

    torch.autograd.gradcheck(loss, weights, fast_mode=True)


def test_results_are_fp32_under_autocast():
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert discriminator(torch.randn(2, 3, 4, 4)).dtype == torch.bfloat16
        logits, squares = logits_and_squared_grad(lambda x: discriminator(x), torch.randn(2, 3, 4, 4))
    assert logits.dtype == squares.dtype == torch.float32
    squares.sum().backward()
    assert discriminator[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_logits_and_squares_equal_autograd(name):
    discriminator = build(name)
    real, _, labels = discriminators.batch(name)
    logits, squares = logits_and_squared_grad(discriminator, real, labels)
    expected = discriminator(real) if labels is None else discriminator(real, labels)
    torch.testing.assert_close(logits, expected.flatten())
    (gradient,) = torch.autograd.grad(expected.sum(), real)
    torch.testing.assert_close(squares, gradient.square().sum((1, 2, 3)))


def test_double_backward_is_differentiable_twice():
    discriminator = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)).double()
    names, weights = zip(*discriminator.named_parameters(), strict=True)
    images = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert "Tanh" in why_not_one_pass(discriminator, images)

    def results(images, *weights):
        call = lambda x: torch.func.functional_call(discriminator, dict(zip(names, weights, strict=True)), x)
        return logits_and_squared_grad(call, images)

    torch.autograd.gradcheck(results, (images, *weights), fast_mode=True)
    torch.autograd.gradgradcheck(results, (images, *weights), fast_mode=True)


def test_a_discriminator_that_mixes_samples_is_not_recorded(monkeypatch):
    monkeypatch.setattr(gradient, "Recording", None)
    discriminator = nn.Sequential(layers.MinibatchStddev(), nn.Flatten(), nn.Linear(4 * SIZE**2, 1))
    logits, squares = logits_and_squared_grad(discriminator, torch.randn(4, 3, SIZE, SIZE))
    (logits.sum() + squares.sum()).backward()
    assert discriminator[2].weight.grad.any()


def test_with_several_logits_an_image_the_penalty_is_of_their_mean():
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3), nn.Flatten()).double()
    images = discriminators.batch()[0]
    assert "several logits" in why_not_one_pass(discriminator, images)
    logits, squares = logits_and_squared_grad(discriminator, images)
    assert logits.shape == (3, (SIZE - 4) ** 2)
    torch.testing.assert_close(logits, discriminator(images))
    _, expected = logits_and_squared_grad(lambda images: discriminator(images).mean(1), images)
    torch.testing.assert_close(squares, expected)


def test_results_that_are_not_logits_are_refused():
    images = discriminators.batch()[0]
    with pytest.raises(ValueError, match=r"logits have shape \[3, 2, 1\], must be \[3\] or \[3, P\]"):
        logits_and_squared_grad(lambda images: images.flatten(2)[:, :2, :1], images)
    with pytest.raises(ValueError, match=r"result is a tuple, must be a tensor of logits \[3\]"):
        logits_and_squared_grad(lambda images: (images.sum((1, 2, 3)), None), images)


@pytest.mark.parametrize("form", [lambda d: d, by_double_backward])
def test_images_created_in_inference_mode_are_supported(form):
    discriminator, images = build("dcgan"), discriminators.batch()[0].detach()
    with torch.inference_mode():
        made = images * 1
        with pytest.raises(RuntimeError, match=r"use torch\.no_grad$"):
            logits_and_squared_grad(form(discriminator), made)
    assert why_not_one_pass(discriminator, made) is None
    for got, expected in zip(*(logits_and_squared_grad(form(discriminator), x) for x in (made, images)), strict=True):
        assert torch.equal(got, expected)
