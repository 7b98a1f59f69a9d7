"""Losses are the textbook's; penalties are the squared norm of the gradient, twice differentiable."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fastgan.losses import OBJECTIVES, PairedObjective, PathLength
from fastgan.penalties import logits_and_squared_grad


def test_nonsaturating_is_cross_entropy_with_the_label_wanted():
    logits = torch.randn(16, generator=torch.Generator().manual_seed(0))
    real, fake = torch.ones(16), torch.zeros(16)
    objective = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(objective.discriminator_real(logits), binary_cross_entropy_with_logits(logits, real))
    torch.testing.assert_close(objective.discriminator_fake(logits), binary_cross_entropy_with_logits(logits, fake))
    torch.testing.assert_close(objective.generator(logits), binary_cross_entropy_with_logits(logits, real))


def test_objectives_are_those_of_their_papers():
    make = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(16, generator=make, dtype=torch.float64) for _ in range(2))
    sigmoid = torch.sigmoid
    discriminator = {
        "minimax": -(sigmoid(real).log() + (1 - sigmoid(fake)).log()).mean(),
        "nonsaturating": -(sigmoid(real).log() + (1 - sigmoid(fake)).log()).mean(),
        "least-squares": (((real - 1) ** 2 + fake**2) / 2).mean(),
        "hinge": ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).mean(),
        "wasserstein": (fake - real).mean(),
        "relativistic": -sigmoid(real - fake).log().mean(),
    }
    generator = {
        "minimax": (1 - sigmoid(fake)).log().mean(),
        "nonsaturating": -sigmoid(fake).log().mean(),
        "least-squares": ((fake - 1) ** 2 / 2).mean(),
        "hinge": -fake.mean(),
        "wasserstein": -fake.mean(),
        "relativistic": -sigmoid(fake - real).log().mean(),
    }
    assert discriminator.keys() == generator.keys() == OBJECTIVES.keys()
    for name, objective in OBJECTIVES.items():
        if isinstance(objective, PairedObjective):
            results = objective.discriminator(real, fake), objective.generator(fake, real)
        else:
            results = objective.discriminator_real(real) + objective.discriminator_fake(fake), objective.generator(fake)
        torch.testing.assert_close(results, (discriminator[name], generator[name]))


def test_logits_without_a_partner_are_refused():
    with pytest.raises(ValueError, match="must be pairs"):
        OBJECTIVES["relativistic"].discriminator(torch.zeros(4), torch.zeros(3))


def test_path_length_is_the_norm_of_the_jacobian_transposed():
    """Of a linear map of w to the image, every length is known but for the noise, which is orthogonal here."""
    torch.manual_seed(0)
    scale = torch.tensor(3.0, requires_grad=True)
    ws = torch.randn(4, 2, 64, dtype=torch.float64, requires_grad=True)
    images = (scale * ws.sum(1)).reshape(4, 1, 8, 8)  # J^T y = 3 y for each of the two copies
    penalty = PathLength(decay=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        noise = torch.randn_like(images) / 8
    torch.manual_seed(1)
    value = penalty(images, ws)
    lengths = 3 * noise.flatten(1).norm(dim=1)
    torch.testing.assert_close(value, lengths.square().mean())
    value.backward()
    torch.testing.assert_close(scale.grad, (2 * lengths.square().mean() / 3).float())


def test_path_length_compares_with_its_running_mean():
    penalty = PathLength(decay=0.5)
    for _ in range(60):
        ws = torch.randn(512, 1, 16, requires_grad=True)
        value = penalty((5 * ws.sum(1)).reshape(512, 1, 4, 4), ws)
    assert penalty.mean == pytest.approx(5, abs=0.2)
    assert value < 2


def test_nonsaturating_survives_extreme_and_half_precision_logits():
    logits = torch.tensor([-6e4, 6e4], dtype=torch.float16)
    for loss in OBJECTIVES["nonsaturating"]:
        assert loss(logits).dtype == torch.float32
        assert loss(logits).isfinite()


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
def batch():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(6, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images.to(memory_format=torch.channels_last), torch.randint(5, (6,), generator=generator)


def test_grad_norm_of_a_known_discriminator(batch):
    images, labels = batch
    discriminator = Quadratic()
    logits, squares = logits_and_squared_grad(discriminator, images, labels)
    torch.testing.assert_close(logits, discriminator(images, labels))
    torch.testing.assert_close(squares, (2 * discriminator.weight * images).square().sum((1, 2, 3)))
    assert not images.requires_grad


@pytest.mark.parametrize("penalty", [lambda sq: 5 * sq.mean(), lambda sq: (sq.sqrt() - 1).square().mean()])
def test_penalty_gradients_agree_with_finite_differences(batch, penalty):
    images, labels = batch
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1)).double()
    names, weights = zip(*discriminator.named_parameters(), strict=True)

    def loss(*weights):
        call = lambda x, _: torch.func.functional_call(
            discriminator, dict(zip(names, weights, strict=True)), x
        ).squeeze(1)
        logits, squares = logits_and_squared_grad(call, images[:2], labels[:2])
        return logits.mean() + penalty(squares)

    torch.autograd.gradcheck(loss, weights)


def test_penalty_is_fp32_under_autocast():
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert discriminator(torch.randn(2, 3, 4, 4)).dtype == torch.bfloat16
        logits, squares = logits_and_squared_grad(lambda x: discriminator(x), torch.randn(2, 3, 4, 4))
    assert logits.dtype == squares.dtype == torch.float32
    squares.sum().backward()
    assert discriminator[0].weight.grad.isfinite().all()
