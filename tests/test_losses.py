"""Objectives and path length against their formulas."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from fastgan.losses import OBJECTIVES, PairedObjective, PathLength


def test_nonsaturating_is_binary_cross_entropy():
    logits = torch.randn(16, generator=torch.Generator().manual_seed(0))
    real, fake = torch.ones(16), torch.zeros(16)
    objective = OBJECTIVES["nonsaturating"]
    torch.testing.assert_close(objective.discriminator_real(logits), binary_cross_entropy_with_logits(logits, real))
    torch.testing.assert_close(objective.discriminator_fake(logits), binary_cross_entropy_with_logits(logits, fake))
    torch.testing.assert_close(objective.generator(logits), binary_cross_entropy_with_logits(logits, real))


def test_objectives_equal_the_papers_formulas():
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
    assert discriminator.keys() == generator.keys() == OBJECTIVES.keys() - {"noisy-hinge"}
    for name, objective in ((name, OBJECTIVES[name]) for name in generator):
        if isinstance(objective, PairedObjective):
            results = objective.discriminator(real, fake), objective.generator(fake, real)
        else:
            results = objective.discriminator_real(real) + objective.discriminator_fake(fake), objective.generator(fake)
        torch.testing.assert_close(results, (discriminator[name], generator[name]))


def test_the_margin_of_the_noisy_hinge_is_random_for_each_logit():
    objective, logits = OBJECTIVES["noisy-hinge"], torch.zeros(400, 5)
    torch.manual_seed(0)
    for loss in (objective.discriminator_real, objective.discriminator_fake):
        assert loss(logits).item() == pytest.approx(0.9, abs=0.01)
        assert loss(logits[:1, :1]) != loss(logits[:1, :1])
    assert objective.discriminator_real(logits + 1).item() == objective.discriminator_fake(logits - 1).item() == 0
    assert objective.discriminator_real(logits - 1).item() == pytest.approx(1.9, abs=0.01)
    assert objective.generator(logits + 1).item() == -1


def test_relativistic_logits_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="must be pairs"):
        OBJECTIVES["relativistic"].discriminator(torch.zeros(4), torch.zeros(3))


def test_path_length_is_the_norm_of_the_jacobian_transposed():
    """The map from w to the image is linear: all lengths follow from the noise."""
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


def test_path_length_is_relative_to_its_running_mean():
    penalty = PathLength(decay=0.5)
    for _ in range(60):
        ws = torch.randn(512, 1, 16, requires_grad=True)
        value = penalty((5 * ws.sum(1)).reshape(512, 1, 4, 4), ws)
    assert penalty.mean == pytest.approx(5, abs=0.2)
    assert value < 2


def test_nonsaturating_is_finite_for_extreme_fp16_logits():
    logits = torch.tensor([-6e4, 6e4], dtype=torch.float16)
    for loss in OBJECTIVES["nonsaturating"]:
        assert loss(logits).dtype == torch.float32
        assert loss(logits).isfinite()
